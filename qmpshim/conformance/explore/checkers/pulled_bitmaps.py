"""Pulled bitmaps: what was frozen at T0 stays as it was; what began then names all changes since.

That is what a backup program is to rely on that pulls a snapshot: by the bitmap that was frozen it
knows what to read now, by the one that began in the same transaction what the next time. Each
sector that does not end as it was at T0 has been changed, whatever failed and in whatever order; a
request that ended with an error may be named, too (``bdrv_co_write_req_finish``, block/io.c).

Where the chain begins with the transaction, that is before the operations of the setup. Where an
operation starts it, the changes that are before T0 are those by which :mod:`.pulled_point` explains
the snapshot. A bitmap marks when a request ends. Those under way when the command comes end before
the first bitmap is frozen (``bdrv_drain_all`` in ``qmp_transaction``), those that begin after it
come to the other one. But each action of the transaction is prepared by itself, and that of the job
drains the disk once more: what begins beside the command may be in the snapshot, and in the bitmap
that began. It is in one of both (``block_dirty_bitmap_disable_prepare`` and
``blockdev_backup_prepare``, blockdev.c; QEMU 7.2 and 10.0).

What a client reads of the frozen one meanwhile is in :mod:`.linearizability`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qmpshim.conformance.compare.model_chain import frozen_at_start
from qmpshim.conformance.explore.checkers.bitmaps import granules_differ, state_differs
from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.pulled_point import Point, fitting_points, start_of
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.outcome import BitmapLeft, Outcome
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.answers import OK, UNANSWERED, Answer, ReportedError
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.pointintime.masks import span
from qmpshim.model.pointintime.push import FIRST, NEW


def pulled_bitmaps_hold(end: End) -> RealViolation | None:
    """Whether both bitmaps are as they must be, where a snapshot is pulled."""
    if end.scenario.topology.frozen is None or end.outcome is None:
        return None
    left = {one.name: one for one in end.outcome.bitmaps if one.name}
    if not end.scenario.topology.begins_late:
        return _others(left, (FIRST, NEW)) or _begun_before(end, end.outcome, left)
    start = start_of(end)
    if start is None:  # it is refused, which is wrong by itself
        return None
    wrong = _others(left, (FIRST, NEW)) or state_differs(left[NEW], recording=True)
    wrong = wrong or state_differs(left[FIRST], recording=False, busy=_is_offered(end))
    if wrong is not None:
        return wrong
    marks = Marks(end.scenario, end.history.answers, end.history.precedence, start)
    found = []
    for point in fitting_points(end):
        since = changed(end.outcome.secondary, point.owners) & ~_unknown(end)
        found.append(_differ(left, marks.named(point), since, end.scenario.size))
    return None if None in found or not found else found[0]


def _differ(
    left: Mapping[str, BitmapLeft], named: Named, changes: int, size: int
) -> RealViolation | None:
    """How the bitmaps differ from what is predicted.

    :param changes: sectors that are not as they were at T0
    """
    since = named.since | changes
    return (
        granules_differ(left[FIRST], named.first, named.may_be_first, size)
        or granules_differ(left[NEW], since, since | named.may_be_since, size)
        or granules_differ(_joined(left[FIRST], left[NEW]), named.either, span(0, size), size)
    )


def _others(left: Collection[str], names: Sequence[str]) -> RealViolation | None:
    """Whether the disk has other bitmaps than these."""
    if set(left) == set(names):
        return None
    seen = ", ".join(left) or "none"
    text = f"the disk has the bitmaps {seen}, predicted {' and '.join(names)}"
    cause = Cause(CauseKind.BITMAP_STATE, "list", seen, tuple(names))
    return RealViolation(Verdict.PROTOCOL, text, cause=cause)


def _begun_before(end: End, outcome: Outcome, left: dict[str, BitmapLeft]) -> RealViolation | None:
    scenario = end.scenario
    then, since = left[FIRST], left[NEW]
    named = frozen_at_start(scenario.topology, scenario.size)
    must = changed(outcome.secondary, [(BASE,)] * scenario.size) & ~_unknown(end)
    return (
        state_differs(then, recording=False, busy=True)  # the export uses it
        or granules_differ(then, named, named, scenario.size)
        or state_differs(since, recording=True)
        or granules_differ(since, must, must | touched(scenario), scenario.size)
    )


def unknown(scenario: RealScenario, faults: Iterable[InjectedFault]) -> int:
    """The sectors, as a set, of disks in qcow2 that are gone: not all that their tables have is in
    their files.
    """
    if scenario.secondary == "raw":
        return 0
    gone = {fault.disk for fault in faults if fault.gone and fault.image == "secondary"}
    return sum(span(disk * scenario.apart, scenario.disk_size) for disk in gone)


def _unknown(end: End) -> int:
    return unknown(end.scenario, (fault for _, fault in end.history.failed))


def _is_offered(end: End) -> bool:
    """Whether an export uses the frozen bitmap: an operation that reads it has made one."""
    answers = zip(end.scenario.ops, end.history.answers, strict=True)
    reads = (answer for op, answer in answers if op.verb is Verb.DIRTY_BITMAP)
    return any(answer != UNANSWERED and not isinstance(answer, ReportedError) for answer in reads)


def _surely_marked(op: Operation) -> bool:
    """Whether an operation that succeeds is marked: a discard may do nothing."""
    return op.changes and op.verb is not Verb.DISCARD


def _sectors(ops: Iterable[Operation]) -> int:
    """The sectors of operations, as a set."""
    found = 0
    for op in ops:
        found |= span(op.start, op.count)
    return found


@dataclass(frozen=True, slots=True)
class Named:
    """What both bitmaps must and may name, in sectors.

    :ivar since: beside what the disk does not hold as it was
    :ivar either: what one of both must name
    """

    first: int
    may_be_first: int
    since: int
    may_be_since: int
    either: int


@dataclass(frozen=True, slots=True)
class Marks:
    """The changes that bitmaps must and may name, where operation *start* has started the pull.

    :ivar answers: by operation
    :ivar precedence: by operation, those that come before it
    """

    scenario: RealScenario
    answers: Sequence[Answer]
    precedence: Sequence[frozenset[int]]
    start: int

    def named(self, point: Point) -> Named:
        """What is predicted for a point in time."""
        scenario, setup = self.scenario, self.scenario.setup
        changes = {n: op for n, op in enumerate(scenario.ops) if op.changes}
        drained = self.precedence[self.start]
        done = {n: op for n, op in changes.items() if self._is_done(n)}
        late = {n for n in changes if self.start in self.precedence[n]}
        first = _sectors(filter(_surely_marked, setup))
        first |= _sectors(op for n, op in done.items() if n in drained)
        may_be_first = _sectors(op for op in setup if op.changes)
        may_be_first |= _sectors(op for n, op in changes.items() if n not in late)
        since = _sectors(op for n, op in done.items() if n not in point.before)
        may_be_since = _sectors(op for n, op in changes.items() if n not in drained)
        either = _sectors(op for n, op in done.items() if n in point.before and n not in drained)
        return Named(first, first | may_be_first, since, since | may_be_since, either)

    def _is_done(self, index: int) -> bool:
        """Whether an operation was done, and marked for certain."""
        return self.answers[index] == OK and _surely_marked(self.scenario.ops[index])


def _joined(one: BitmapLeft, other: BitmapLeft) -> BitmapLeft:
    """What at least one of two bitmaps names."""
    assert one.granules is not None and other.granules is not None
    return replace(one, name=f"{one.name} or {other.name}", granules=one.granules | other.granules)


def changed(disk: Sequence[int], then: Sequence[Collection[int]]) -> int:
    """The sectors that do not hold what they may have held at T0, as a set.

    :param then: by sector, whose it may have been
    """
    pairs = enumerate(zip(disk, then, strict=True))
    return sum(1 << sector for sector, (owner, owners) in pairs if owner not in owners)


def touched(scenario: RealScenario) -> int:
    """The sectors that some operation is to change, as a set."""
    return _sectors(op for op in (*scenario.setup, *scenario.ops) if op.changes)
