"""Explored backup jobs, how they end, and what is found of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import pytest

from qmpshim.conformance.explore.harness.choices import IoId
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import point_named, scenario_of
from qmpshim.errors import BuildError
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.explore.walk import Budget
from qmpshim.model.pointintime.jobs import Ending
from vmtests.support.followed import followed

#: What is wrong with what.
Kinds = set[tuple[Verdict, CauseKind, str]]
AnySystem = TypeVar("AnySystem", bound=RealSystem)


class Recording(RealSystem):
    """Keeps how each execution ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ends: set[Outcome | None] = set()

    def finish(self) -> Hashable:
        found = super().finish()
        self.ends.add(self.now.outcome)
        return found


def endings(system: Recording) -> set[Ending | None]:
    """The ways in which the job ended."""
    return {end.backup.ending for end in system.ends if end is not None and end.backup is not None}


def point_of(form: str, name: str) -> RealScenario:
    """The point of a form: a name without that, ``primary_write+backup_full,target=large``."""
    operations, comma, more = name.partition(",")
    return scenario_of(point_named(f"{operations},form={form}{comma}{more}"))


def explored(
    pool: QemuPool,
    scenario: RealScenario,
    kind: type[AnySystem] = RealSystem,  # type: ignore[assignment]
    *,
    release: Release = faithfully,
    errnos: Sequence[int] = (),
    plan: Mapping[IoId, int] = MappingProxyType({}),
    mode: Mode = Mode.STATEFUL,
    most: int = 400,
    seed: int = 0,
) -> AnySystem:
    """The schedules of a scenario, or the first of many; a build that lacks an option is skipped.

    :param plan: I/Os that fail in each of them
    """

    def made() -> AnySystem:
        return kind(
            pool, scenario, release=release, injection=Injection(plan=plan, errnos=tuple(errnos))
        )

    try:
        system, _ = followed(made, mode, Budget(schedules=most), seed)
    except BuildError as error:
        pytest.skip(str(error))
    assert plan.keys() <= system.ios, system.ios
    return system


def kinds(system: RealSystem) -> Kinds:
    """What is found."""
    return {(verdict, cause.kind, cause.subject) for verdict, cause in system.found}
