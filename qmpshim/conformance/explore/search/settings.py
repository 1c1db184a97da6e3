"""The settings of a whole exploration: how it is done, how much it may take, what is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from errno import EIO, ENOSPC

from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore.checkers.crash_points import NO_CRASH_POINTS, CrashPoints
from qmpshim.conformance.explore.harness.choices import Cut
from qmpshim.conformance.explore.report.recognition import ExplainsCase, ExplainsFinding
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.model.explore.explorer import Mode

#: What a held I/O may end with instead.
FAULTS = (EIO, ENOSPC, *Cut)


def _as_they_come(scenario: RealScenario) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How schedules are taken.

    :ivar mode: ``AUTO`` is ``STATEFUL`` here, since
        :mod:`~qmpshim.conformance.explore.harness.state` reports where an execution is
    :ivar faults: errnos a held I/O may end with instead; empty: no faults
    :ivar all_io: hold every request to the images, qcow2's own among them
    :ivar mixed: *faults* and all I/O only in samples; without a budget there are none
    :ivar crash_points: look at the images after each step, as a crash would leave them
    :ivar seed: of what goes by chance
    :ivar turn: under a budget those scenarios with the lowest are sampled first
    :ivar minimise: make what is found small
    """

    mode: Mode = Mode.AUTO
    faults: Sequence[int] = ()
    all_io: bool = False
    mixed: bool = False
    crash_points: CrashPoints = NO_CRASH_POINTS
    seed: int = 0
    turn: Callable[[RealScenario], int] = _as_they_come
    minimise: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much may be spent.

    :ivar budget: seconds until everything is over, confirming included; modes by chance need one.
        First each scenario is sampled, then they are exhausted, those first that gave the most
    :ivar limit: seconds for everything, not shared out: where it is over everything ends
    :ivar jobs: processes at most, each with a QEMU of its own; a scenario is explored by one
    :ivar cluster: explore there, with all its workers; what was found is confirmed here
    """

    budget: float | None = None
    limit: float | None = None
    jobs: int = 1
    cluster: Cluster | None = None


@dataclass(frozen=True, slots=True)
class WrittenUp:
    """What is known.

    :ivar findings: of scenarios
    :ivar directed: of directed cases, by their names
    """

    findings: Sequence[ExplainsFinding] = ()
    directed: Mapping[str, ExplainsCase] = field(default_factory=dict)
