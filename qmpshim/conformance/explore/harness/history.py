"""What happened in one execution on a real QEMU: its steps, answers, held I/Os, and its trace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qmpshim.conformance.compare.divergence import stable
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.choices import IoId, RealChoice, failing_kinds
from qmpshim.conformance.explore.harness.events import Event
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import CommandFailed, Exit, IOFailed, MachineDied, MachineError, ReplyOverrun
from qmpshim.model.answers import UNANSWERED, Answer
from qmpshim.model.check.cause import NO_ANSWER, Cause, CauseKind, Phase
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation

SightingKey = tuple[Verdict, Cause, frozenset[str]]


@dataclass(slots=True)
class RunningOperation:
    """An operation under way.

    :ivar kind: what takes its answer: the client of the export ``primary`` or ``guest``, that for
        block ``status``, the monitor ``qmp``; ``export``: the monitor, and then that for block
        status; ``vanish``: nothing, its client is gone
    :ivar key: of the request or command there
    """

    kind: str
    key: int


@dataclass(slots=True)
class History:
    """What happened since the reset.

    :ivar precedence: by operation, those that come before it: see :meth:`.RealScenario.preceding`
    :ivar over: operations that ended
    :ivar held: by name, what waits at the gate
    :ivar wrote: changes that were let go, by the request's number: whose they were
    :ivar failed: I/Os that were ended with an error, and what that means for the model
    :ivar faults: I/Os that did not end well, cut connections that were made again among them
    :ivar paused: operations that started while an error had paused the backup job
    :ivar given_up: a job that an error had paused was cancelled at the end: a disk is gone
    :ivar events: the trace: the steps, and what each made visible
    :ivar lost: the schedule could not be followed
    :ivar outcome: the end, once everything there was looked at
    """

    steps: list[RealChoice] = field(default_factory=list)
    running: dict[int, RunningOperation] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    data: list[tuple[int, ...] | None] = field(default_factory=list)
    precedence: list[frozenset[int]] = field(default_factory=list)
    over: set[int] = field(default_factory=set)
    started: set[int] = field(default_factory=set)
    held: dict[IoId, NamedIo] = field(default_factory=dict)
    wrote: dict[int, int] = field(default_factory=dict)
    failed: list[tuple[NamedIo, InjectedFault]] = field(default_factory=list)
    faults: int = 0
    paused: set[int] = field(default_factory=set)
    given_up: bool = False
    events: list[Event] = field(default_factory=list)
    lost: bool = False
    outcome: Outcome | None = None

    @classmethod
    def of(cls, operations: int) -> History:
        """Nothing has happened yet, of so many operations."""
        return cls(
            answers=[UNANSWERED] * operations,
            data=[None] * operations,
            precedence=[frozenset()] * operations,
        )

    def gone(self) -> bool:
        """Whether an image is gone for good."""
        return bool(self.gone_disks())

    def gone_disks(self) -> set[int]:
        """Of which of two disks an image is gone for good; of one alone it is 0."""
        return {fault.disk for _, fault in self.failed if fault.gone}


@dataclass(frozen=True, slots=True)
class Sighting:
    """A violation in one scenario: its shortest schedule, and in how many it was seen.

    :ivar all_io: qcow2's own I/O was held, too
    """

    scenario: RealScenario
    violation: RealViolation
    schedule: tuple[RealChoice, ...]
    events: tuple[Event, ...]
    count: int
    all_io: bool = False

    @property
    def key(self) -> SightingKey:
        """What went wrong, why, and what failed: of several that are equal here one is enough."""
        return self.violation.kind, self.violation.cause, failing_kinds(self.schedule)

    def joined(self, other: Sighting) -> Sighting:
        """Both, which are equal: the shorter schedule, and how many there were."""
        shortest = min(self, other, key=lambda one: len(one.schedule))
        return replace(shortest, count=self.count + other.count)


def ended_by(error: MachineError, phase: Phase = Phase.EXECUTION) -> Cause:
    """The cause of an error that QEMU ended or broke off with."""
    if isinstance(error, ReplyOverrun):
        return Cause(CauseKind.REPLY_OVERRUN, phase=phase)
    died = error.last_words if isinstance(error, MachineDied) else ""
    return ended(died or str(error), phase)


def failed_setup(op: Operation, error: MachineError) -> Cause:
    """The cause of an operation of the setup that failed, or was not answered."""
    match error:
        case CommandFailed():
            detail = stable(error.desc)
        case IOFailed():
            detail = stable(f"errno {error.errno}")
        case _:
            detail = NO_ANSWER
    return Cause(CauseKind.SETUP_FAILS, op.name, detail, phase=Phase.SETUP)


def how_it_ended(error: MachineError) -> Exit | None:
    """How QEMU ended, where an error reports that."""
    return error.exit if isinstance(error, MachineDied) else None


def ended(text: str, phase: Phase = Phase.EXECUTION) -> Cause:
    """The cause of what QEMU ended or broke off with.

    :param text: QEMU's last words, or what it did not do
    """
    return Cause(CauseKind.ENDED, detail=stable(text), phase=phase)
