"""What operations may have done where no sequential execution meets the failures.

The I/O that failed is qcow2's own affair: which of its tables it reads and writes when is for no
model to know. So each operation is held to its own answer: one that reports success must have done
it all, one that reports an error may have done any part of it and must name the error that there
was, and no other operation may notice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import product

from qmpshim.conformance.explore.checkers.failed_end import EMPTIES, FailedEnd
from qmpshim.conformance.explore.checkers.failure_reports import another_error, new_data_read
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker, Unchecked
from qmpshim.conformance.explore.checkers.orders import keeps_to
from qmpshim.conformance.explore.checkers.placements import NothingDone
from qmpshim.conformance.explore.checkers.sequential import run_in_order
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.chains import IMAGES
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import Relation
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import outwards


def breaks_its_answers(
    checker: LinearizabilityChecker, end: FailedEnd, precedence: Sequence[frozenset[int]]
) -> tuple[RealViolation | None, bool]:
    """What is wrong with an end, and whether something in it was not looked at any closer."""
    failed = _failed(end)
    broken = end.scenario.breaks_snapshot and any(fault.image != "active" for fault in end.faults)
    in_part = bool(failed) or broken
    if not end.emptying:
        for index in sorted(failed):
            wrong = another_error(end, index)
            if wrong is not None:
                return wrong, in_part
    ends = _ends(checker, end, failed, precedence)
    wrong = checker.compare(end.seen, ends, _unchecked(end, failed, broken))
    if wrong is None:
        return new_data_read(end.scenario, end.seen), in_part
    cause = wrong.cause.beside(end.fault_context(Relation.BESIDE))
    return replace(wrong, cause=cause), in_part


def _failed(end: FailedEnd) -> frozenset[int]:
    """The operations that may have met a failure and report one.

    Failover answers at once; the status has the error of its commit.
    """
    ops = end.scenario.ops
    met = frozenset(op for fault in end.faults for op in end.may_have_met(fault))
    failed = frozenset(
        op
        for op in met
        if end.seen.answers[op] != OK
        or (ops[op].verb is Verb.FAILOVER and end.seen.status is not None)
    )
    if all(fault.image == "active" for fault in end.faults):  # where no primary's I/O goes
        failed = frozenset(op for op in failed if not ops[op].is_primary)
    return failed


def _ends(
    checker: LinearizabilityChecker,
    end: FailedEnd,
    failed: Collection[int],
    precedence: Sequence[frozenset[int]],
) -> list[Outcome]:
    """The sequential ends in which what failed is done, or not done on some of the images."""
    ways = [_images(op, index in failed) for index, op in enumerate(end.scenario.ops)]
    fault = end.faults[0]
    return [
        run_in_order(
            end.scenario,
            checker.behaviour,
            order,
            [NothingDone(fault, index, images) for index, images in enumerate(choice) if images],
        )
        for order in checker.orders
        if keeps_to(order, precedence)
        for choice in product(*ways)
    ]


def _images(op: Operation, failed: bool) -> list[tuple[str, ...]]:
    """On which images an operation may have got nothing done: one disk may be empty already."""
    if not failed:
        return [()]
    one = [("hidden",), ("active",)] if op.verb in EMPTIES else []
    return [(), IMAGES, *one]


def _unchecked(end: FailedEnd, failed: frozenset[int], broken: bool) -> Unchecked:
    """What of the end may be anything: what the failed operations were about."""
    scenario, seen = end.scenario, end.seen
    ops, granule = scenario.ops, scenario.granule
    ranges: set[tuple[int, int]] = set()
    copied: set[tuple[int, int]] = set()
    for op in (ops[index] for index in failed):
        if op.verb is Verb.FAILOVER:
            ranges.add((0, scenario.size))
            copied.add((0, scenario.size))
        elif op.changes:
            ranges.add((op.start, op.start + op.count))
            copied.add(outwards(op.start, op.count, granule))
    names = {"readable"}
    if not scenario.commits or any(ops[op].verb is Verb.FAILOVER for op in failed):
        names.add("status")
    if broken:  # by a copy that failed: the snapshot ends, and no more is copied
        failed |= {i for i, op in enumerate(ops) if op.is_guest and seen.answers[i] != OK}
        names |= {"hidden"} | ({"view"} if seen.view is None else set())
    if end.emptying:
        names |= {fault.image for fault in end.faults if fault.image != "secondary"}
    lost = frozenset(end.unreadable())
    return Unchecked(frozenset(names), lost, failed, frozenset(ranges), frozenset(copied))
