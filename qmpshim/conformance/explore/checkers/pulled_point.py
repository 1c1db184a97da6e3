"""Pulled point: what is read of a pull that an operation starts is the disk at one point in time.

T0 is where the transaction is done. Which changes are before it depends on the order of the
operations; those of requests that are under way when the command comes are, since they end before
it does anything (``bdrv_drain_all`` in ``qmp_transaction``, blockdev.c; QEMU 5.2 to 10.0). The same
changes have to explain all that is read after the transaction: the view in the end, and what
operations read that start when the transaction is over. Sector by sector the order of overlapping
changes is free. A change that ended with an error may be done or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.orders import Order, operations_in, ways
from qmpshim.conformance.explore.checkers.point_in_time import kind_of_data
from qmpshim.conformance.explore.checkers.sequential import after_setup, run_op
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.outcome import GAP
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.answers import OK, Answer
from qmpshim.model.chain.behaviour import Behaviour, behaviour_of
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import whose
from qmpshim.model.operations import Verb, does


@dataclass
class Point:
    """A point in time at which the transaction may have been done.

    :ivar before: the changes that were done then; those that ended with an error may have been
    :ivar owners: by sector, whose it may be
    """

    before: frozenset[int]
    owners: list[set[int]] = field(default_factory=list)


def snapshot_is_point_in_time(end: End) -> RealViolation | None:
    """Whether all that is read of the snapshot is the disk at one point in time."""
    scenario = end.scenario
    if start_of(end) is None or does(scenario.ops, Verb.STOP):
        return None
    gone = end.history.gone_disks()
    seen = {at: owners for at, owners in _read(end).items() if scenario.disk_of(at) not in gone}
    points = points_of(end)
    wrong = [[at for at in seen if _wrong(seen, one, at)] for one in points]
    if not seen or not all(wrong):
        return None
    everywhere = set.intersection(*map(set, wrong))
    if not everywhere:
        text = "what is read of the snapshot is the disk of no single point in time"
        cause = Cause(CauseKind.NO_POINT_IN_TIME, "view")
        return RealViolation(Verdict.CONTENT, text, cause=cause)
    sector = min(everywhere)
    there = sorted({kind_of_data(scenario, owner) for owner in seen[sector]})
    wanted = sorted({kind_of_data(scenario, o) for one in points for o in one.owners[sector]})
    text = f"the snapshot has {' and '.join(there)} in sector {sector}"
    text += f", predicted {' or '.join(wanted)} of T0"
    cause = Cause(CauseKind.WRONG_DATA, "view", there[0], tuple(wanted))
    cluster = sector // scenario.cluster
    return RealViolation(Verdict.ISOLATION, text, cluster=cluster, cause=cause)


def start_of(end: End) -> int | None:
    """The operation that has started a pull; None: none has, or the topology did."""
    scenario, answers = end.scenario, end.history.answers
    if not scenario.topology.begins_late:
        return None
    starts = (n for n, op in enumerate(scenario.ops) if op.verb is Verb.START)
    return next((n for n in starts if answers[n] == OK), None)


def fitting_points(end: End) -> list[Point]:
    """The points in time that explain what is read of the snapshot."""
    seen = {} if does(end.scenario.ops, Verb.STOP) else _read(end)
    return [one for one in points_of(end) if not any(_wrong(seen, one, at) for at in seen)]


def points_of(end: End) -> list[Point]:
    """The points in time that are possible in an execution."""
    return list(
        possible_points(
            end.scenario,
            behaviour_of(end.machine.version),
            tuple(end.history.answers),
            tuple(end.history.precedence),
            end.history.faults > 0,
        )
    )


@lru_cache(maxsize=4096)
def possible_points(
    scenario: RealScenario,
    behaviour: Behaviour,
    answers: tuple[Answer, ...],
    precedence: tuple[frozenset[int], ...],
    failing: bool = False,
) -> tuple[Point, ...]:
    """The points in time that the orders of the operations leave.

    :param precedence: for each operation those that come before it
    :param failing: some I/O failed, so that an operation may have failed and be done nevertheless
    """
    found: dict[frozenset[int], Point] = {}
    uncertain = [
        n for n, op in enumerate(scenario.ops) if failing and op.changes and answers[n] != OK
    ]
    for order, undone in ways(scenario, behaviour, precedence, uncertain):
        before, owners = _at_start(scenario, behaviour, order, undone)
        point = found.setdefault(before - {*uncertain}, Point(before))
        point.owners = point.owners or [set() for _ in owners]
        for there, owner in zip(point.owners, owners, strict=True):
            there.add(owner)
    return tuple(found.values())


def _at_start(
    scenario: RealScenario, behaviour: Behaviour, order: Order, undone: Sequence[int]
) -> tuple[frozenset[int], list[int]]:
    """The changes that an order does before the pull is started, and the disk that they leave."""
    changes = []
    for index in operations_in(order):
        op = scenario.ops[index]
        if op.verb is Verb.START:
            break
        if op.changes and index not in undone:
            changes.append(index)
    disks = (_changed(scenario, behaviour, disk, changes) for disk in range(scenario.disks))
    return frozenset(changes), [*scenario.laid_out(disks, GAP)]


def _changed(
    scenario: RealScenario, behaviour: Behaviour, disk: int, changes: Sequence[int]
) -> tuple[int, ...]:
    """What a disk holds after the setup and these operations."""
    chain = after_setup(scenario, behaviour, disk)
    assert isinstance(chain, Chain)
    for index in changes:
        op = scenario.ops[index]
        if scenario.is_about(op, disk):
            run_op(chain, scenario.on_own_disk(op), scenario.number(index))
    return whose(chain.secondary.contents.read(0, chain.size))


def _read(end: End) -> dict[int, set[int]]:
    """By sector, whose data was read of the snapshot once the pull had started."""
    found: dict[int, set[int]] = {}
    view = end.outcome.view if end.outcome is not None else None
    for sector, owner in enumerate(view or ()):
        if owner is not None:
            found.setdefault(sector, set()).add(owner)
    for first, data in _reads(end.scenario, end.history):
        for sector, owner in enumerate(data, first):
            found.setdefault(sector, set()).add(owner)
    return found


def _reads(scenario: RealScenario, history: History) -> Iterator[tuple[int, Sequence[int]]]:
    """First sector and owners of each read that began when the pull had started."""
    for index, op in enumerate(scenario.ops):
        data = history.data[index]
        begun = any(scenario.ops[n].verb is Verb.START for n in history.precedence[index])
        if data is not None and begun and op.is_guest and op.verb is Verb.READ:
            yield op.start, data


def _wrong(seen: Mapping[int, set[int]], point: Point, sector: int) -> bool:
    return not seen[sector] <= point.owners[sector]
