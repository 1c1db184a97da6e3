"""Linearizability: some order of the operations, run by the sequential model, explains the end.

What is looked at is a map of observables; how it is explained is in
:mod:`qmpshim.model.check.observables`. Here are the orders that are possible, the cells of the
disk, and what an unexplained observable means as a verdict and a cause.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

from qmpshim.conformance.compare.evidence import Allocated, Held
from qmpshim.conformance.explore.checkers.orders import Order, keeps_to, orders_of
from qmpshim.conformance.explore.checkers.sequential import run_in_order
from qmpshim.conformance.explore.outcome import UNREADABLE, Outcome
from qmpshim.conformance.explore.scenarios import BASE, RealScenario, cut_off
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.chains import DISKS
from qmpshim.machine.chain.parts import on_disk
from qmpshim.model.answers import IoError, Ok, OrDisconnected, answer_to_json
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.check.cause import NO_ERROR, Cause, CauseKind
from qmpshim.model.check.observables import (
    COMMON,
    MARKED,
    NOT_ZEROES,
    UNMARKED,
    Aspect,
    Observable,
    Observations,
    Unexplained,
    unexplained,
)
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.operations import Verb, does
from qmpshim.model.units import SECTOR


class Whose(StrEnum):
    """Whose data a sector holds; the same for all scenarios."""

    NOTHING = "nothing"  # there is no such disk
    OLD = "the old data"
    NEW = "new data"  # the primary's
    GUEST = "the guest's data"
    ZEROES = "zeroes"
    GUEST_ZEROES = "the guest's zeroes"
    PROBE = "the probe's data"
    GARBAGE = "garbage"
    ERROR = "an error"  # it cannot be read
    NOT_ZEROES = "what may be data"  # as a block status has it
    MARKED = "what the bitmap names"
    UNMARKED = "what the bitmap does not name"


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What of an end is not looked at.

    :ivar names: ``primary``, ``secondary``, ``hidden``, ``active``, ``view``, ``status``;
        ``readable``: that the view can be read though it need not be
    :ivar lost: the same of one of two disks: the name, and 0 or 1
    :ivar ops: operations whose answers are, and what they read
    :ivar ranges: first and end sector of what all disks hold
    :ivar copied: first and end sector of what the overlays hold, and whether it is allocated there
    """

    names: frozenset[str] = frozenset()
    lost: frozenset[tuple[str, int]] = frozenset()
    ops: frozenset[int] = frozenset()
    ranges: frozenset[tuple[int, int]] = frozenset()
    copied: frozenset[tuple[int, int]] = frozenset()


ALL_CHECKED = Unchecked()
NODE_DESCRIPTION = r" json:\{.*\}"  # in an error of QEMU's, with temporary paths


class LinearizabilityChecker:
    """Knows every sequential outcome of one scenario."""

    def __init__(self, scenario: RealScenario, behaviour: Behaviour) -> None:
        self.scenario = scenario
        self.behaviour = behaviour
        self.cells = _cells(scenario)
        self.orders = orders_of(scenario, behaviour)
        self._cut_off = cut_off(scenario.ops)
        # Whether a write may be forwarded although replication was stopped before it.
        self._forwards_late = scenario.on_primary and does(scenario.ops, Verb.STOP, Verb.FAILOVER)
        self._seen: dict[Hashable, RealViolation | None] = {}
        self._predictions: dict[Outcome, Observations] = {}
        self.outcomes: dict[Order, Outcome] = {}
        for order in self.orders:
            self.outcomes[order] = run_in_order(scenario, behaviour, order)

    # -- judging -----------------------------------------------------------------------------------

    def judge(self, seen: Outcome, precedence: Sequence[frozenset[int]]) -> RealViolation | None:
        """What is wrong with the end of an execution.

        :param precedence: for each operation those that had ended when it started
        """
        key = (seen, tuple(precedence))
        if key not in self._seen:
            self._seen[key] = self._judge(seen, precedence)
        return self._seen[key]

    def _judge(self, seen: Outcome, precedence: Sequence[frozenset[int]]) -> RealViolation | None:
        ends = [one for order, one in self.outcomes.items() if keeps_to(order, precedence)]
        wrong = self.compare(seen, ends)
        other = self.with_misleading_status
        if wrong is not None and other is not None:
            return wrong if other.judge(seen, precedence) else self.misleading_status()
        return wrong

    @cached_property
    def with_misleading_status(self) -> LinearizabilityChecker | None:
        """A checker for which failover may report an error, as QEMU's does.

        So what comes of this one defect is distinguished from what merely looks like it. ``None``:
        no status is queried.
        """
        known = self.behaviour.known
        queried = self.scenario.commits and does(self.scenario.ops, Verb.STATUS)
        if not queried or KnownDefect.FAILOVER_REPORTS_ERROR in known:
            return None
        known |= {KnownDefect.FAILOVER_REPORTS_ERROR}
        return LinearizabilityChecker(self.scenario, replace(self.behaviour, known=known))

    @cached_property
    def with_masking_quorum(self) -> tuple[LinearizabilityChecker, ...]:
        """Checkers for which an error of the primary disk may be masked, as QEMU's quorum does.

        None where there is no primary, or this is such a checker.
        """
        known = self.behaviour.known
        if not self.scenario.on_primary or KnownDefect.QUORUM_MASKS_PRIMARY in known:
            return ()
        return tuple(
            LinearizabilityChecker(self.scenario, replace(self.behaviour, known=known | masks))
            for masks in (
                {KnownDefect.QUORUM_MASKS_PRIMARY, KnownDefect.QUORUM_MASKS_FLUSH},
                {KnownDefect.QUORUM_MASKS_PRIMARY},
            )
        )

    def misleading_status(self) -> RealViolation:
        """The violation that this defect is, when it alone explains an execution."""
        index = next(i for i, op in enumerate(self.scenario.ops) if op.queries)
        text = "status answers 'I/O error occurred' while failing over, though nothing failed"
        cause = Cause(CauseKind.MISLEADING_STATUS)
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=cause)

    def compare(
        self, seen: Outcome, ends: Sequence[Outcome], unchecked: Unchecked = ALL_CHECKED
    ) -> RealViolation | None:
        """What is wrong with an end that must be like one of *ends*."""
        observed = self.observations(seen)
        checked = {one: v for one, v in observed.items() if self._checks(one, v, unchecked)}
        orders = [self.predictions(one) for one in ends]
        wrong = unexplained(checked, orders, self._together)
        return None if wrong is None else self._violation(wrong, seen, ends)

    # -- observables -------------------------------------------------------------------------------

    def observations(self, end: Outcome) -> Observations:
        """An end as observables, in the order in which they are to be explained."""
        found = Observations()
        for index, answer in enumerate(end.answers):
            found[Observable(Aspect.ANSWER, index)] = answer
        for disk in range(self.scenario.disks):
            readable = end.view is not None and end.view[disk * self.scenario.apart] is not None
            found[Observable(Aspect.READABLE, place=disk)] = readable
        disks = (
            ("primary", end.primary),
            ("secondary", end.secondary),
            ("tertiary", end.tertiary),
            ("view", end.view),
            ("hidden", end.hidden),
            ("active", end.active),
        )
        for cell, (start, last) in enumerate(self.cells):
            for index, op in enumerate(self.scenario.ops):
                data = end.data[index]
                if data is not None and op.overlaps(start, last):
                    low, high = max(start, op.start) - op.start, last - op.start
                    found[Observable(Aspect.DATA, index, cell)] = data[low:high]
            for name, sectors in disks:
                if sectors is not None and sectors[start] is not None:
                    found[Observable(Aspect.DISK, name, cell)] = sectors[start:last]
        for name, kinds in zip(("hidden", "active"), end.alloc, strict=False):
            for cluster, kind in enumerate(kinds):
                if kind >= 0:
                    found[Observable(Aspect.ALLOCATION, name, cluster)] = kind
        found[Observable(Aspect.STATUS)] = end.status
        return found

    def predictions(self, end: Outcome) -> Observations:
        """A sequential end as observables; a client that is cut off need not learn its answer."""
        if end not in self._predictions:
            found = self.observations(end)
            for index, op in enumerate(self.scenario.ops):
                answer = end.answers[index]
                cut_off = op.side in self._cut_off and not op.queries_status
                if op.is_request and cut_off and isinstance(answer, Ok | IoError):
                    found[Observable(Aspect.ANSWER, index)] = OrDisconnected(answer)
            self._predictions[end] = found
        return self._predictions[end]

    def _together(self, one: Observable) -> Hashable:
        """What the same order has to explain.

        On the primary, whether a write is still forwarded when replication stops is decided when it
        begins, and so by another order than what a read beside it returns. A bitmap is frozen a
        little before the job of its transaction begins (see :mod:`.pulled_bitmaps`).
        """
        match one.aspect:
            case Aspect.ANSWER:
                return COMMON
            case Aspect.DATA if not self._reads_bitmap(one):
                return one.place
            case Aspect.DISK if not (self._forwards_late and one.of == "secondary"):
                return one.place
        return one

    def _reads_bitmap(self, one: Observable) -> bool:
        """Whether this was read of a bitmap."""
        assert isinstance(one.of, int)
        return self.scenario.ops[one.of].verb is Verb.DIRTY_BITMAP

    def _checks(self, one: Observable, observed: Any, unchecked: Unchecked) -> bool:
        """Whether an observable, with this value, is looked at."""
        match one.aspect:
            case Aspect.ANSWER:
                return one.of not in unchecked.ops
            case Aspect.READABLE:
                if "view" in unchecked.names or ("view", one.place) in unchecked.lost:
                    return False
                return not (observed and "readable" in unchecked.names)
            case Aspect.STATUS:
                return "status" not in unchecked.names
            case Aspect.ALLOCATION:
                cluster = self.scenario.unit_of(str(one.of))
                start, last = one.place * cluster, (one.place + 1) * cluster
                copied = _within(start, last, unchecked.copied)
                return not (copied or self._is_lost(one, start, unchecked))
        start, last = self.cells[one.place]
        if _within(start, last, unchecked.ranges):
            return False
        if one.aspect is Aspect.DATA:
            return True
        copied = one.of in ("hidden", "active") and _within(start, last, unchecked.copied)
        return not (copied or self._is_lost(one, start, unchecked))

    def _is_lost(self, one: Observable, sector: int, unchecked: Unchecked) -> bool:
        """Whether an image is not looked at, at least not on the disk that a sector is on."""
        where = str(one.of), self.scenario.disk_of(sector)
        return one.of in unchecked.names or where in unchecked.lost

    # -- what is not explained, as a violation -----------------------------------------------------

    def _violation(
        self, wrong: Unexplained, seen: Outcome, ends: Sequence[Outcome]
    ) -> RealViolation:
        one = wrong.observable
        if one is None:
            return self._no_order(wrong, seen, ends)
        match one:
            case Observable(Aspect.ANSWER, int(index)):
                return self._wrong_answer(index, wrong)
            case Observable(Aspect.READABLE) if wrong.observed:
                text = "the disk can be read at the guest's end, though it was given up there"
                cause = Cause(CauseKind.VIEW_READABLE)
                return RealViolation(Verdict.ISOLATION, text, cause=cause)
            case Observable(Aspect.READABLE) if parted := self._parted(seen, ends):
                return replace(parted, text=f"{parted.text}, and no two of them agree")
            case Observable(Aspect.READABLE):
                text = "the disk cannot be read at the guest's end, though nothing prevents it"
                cause = Cause(CauseKind.VIEW_UNREADABLE)
                return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
            case Observable(Aspect.DATA, int(index), cell):
                op = self.scenario.ops[index]
                at = max(self.cells[cell][0], op.start)
                evidence = _held(index, at, wrong)
                return self._wrong_data(f"{op} returns", op.name, wrong, cell, index, evidence)
            case Observable(Aspect.DISK, name, cell):
                what = "the guest's view ends as" if name == "view" else f"{name} disk ends as"
                evidence = _held(name, self.cells[cell][0], wrong)
                return self._wrong_data(what, str(name), wrong, cell, None, evidence)
            case Observable(Aspect.ALLOCATION, name, cluster):
                there = Alloc(wrong.observed).name.lower()
                kinds = tuple(Alloc(want).name.lower() for want in sorted(wrong.predicted))
                extended = self.scenario.unit_of(str(name)) < self.scenario.cluster_of(str(name))
                what = "subcluster" if extended else "cluster"
                text = f"{what} {cluster} of the {name} disk is {there}"
                text += f", predicted {' or '.join(kinds)}"
                cause = Cause(CauseKind.ALLOCATION, str(name), there, kinds)
                allowed = tuple(
                    kind.name.lower()
                    for kind in (Alloc.UNALLOCATED, Alloc.ZERO, Alloc.DATA)
                    if any(Alloc(want).admits(kind) for want in wrong.predicted)
                )
                unit = self.scenario.unit_of(str(name))
                disk, first = self.scenario.place_of(cluster * unit)
                return RealViolation(
                    Verdict.ALLOCATION,
                    text,
                    cluster=cluster,
                    cause=cause,
                    evidence=Allocated(on_disk(str(name), disk), first // unit, allowed),
                )
        assert one.aspect is Aspect.STATUS
        wanted = " or ".join(sorted(map(str, wrong.predicted)))
        text = f"replication's status at the end is {wrong.observed!r}, predicted {wanted}"
        cause = Cause(
            CauseKind.FINAL_STATUS,
            detail=NO_ERROR if wrong.observed is None else str(wrong.observed),
        )
        return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)

    def _no_order(
        self, wrong: Unexplained, seen: Outcome, ends: Sequence[Outcome]
    ) -> RealViolation:
        """Each answer, or each thing in a cell, is given by some order, and all by none."""
        if wrong.group == COMMON:
            return answers_fit_no_order(seen)
        assert isinstance(wrong.group, int)
        start, end = self.cells[wrong.group]
        if parted := self._parted_in(start, end, seen, ends):
            return parted
        cluster, where = start // self.scenario.cluster, f"sectors {start}..{end - 1}"
        text = f"in {where} what reads returned and what the disks hold fit no order"
        cause = Cause(CauseKind.DATA_FITS_NO_ORDER)
        return RealViolation(Verdict.ISOLATION, text, cluster=cluster, cause=cause)

    def _parted(self, seen: Outcome, ends: Sequence[Outcome]) -> RealViolation | None:
        """The violation that the disks which vote are parted, in the first cell where they are."""
        if not self.scenario.topology.voters:
            return None
        found = (self._parted_in(*cell, seen, ends) for cell in self.cells)
        return next(filter(None, found), None)

    def _parted_in(
        self, start: int, end: int, seen: Outcome, ends: Sequence[Outcome]
    ) -> RealViolation | None:
        """The violation that disks which have the same written to them differ in a cell.

        Each of them holds what one of *ends* has there, but not all the same one's: a disk that
        holds anything else is no matter of the order of two writes.
        """
        ops = self.scenario.ops
        held = {disk[start:end] for disk in _copies(seen)}
        writes = [op for op in ops if op.is_guest and op.changes and op.overlaps(start, end)]
        explained = {disk[start:end] for one in ends for disk in _copies(one)}
        if len(writes) < 2 or len(held) < 2 or not held <= explained:
            return None
        disks, kind = "the primary and the secondary disk", CauseKind.DISKS_DIFFER
        if self.scenario.topology.voters:
            disks, kind = "the disks that vote", CauseKind.VOTERS_DIFFER
        text = (
            f"in sectors {start}..{end - 1} {disks} hold the data of operations that were done on "
            f"them in different orders"
        )
        cluster = start // self.scenario.cluster
        return RealViolation(Verdict.CONTENT, text, cluster=cluster, cause=Cause(kind))

    def _wrong_answer(self, index: int, wrong: Unexplained) -> RealViolation:
        op = self.scenario.ops[index]
        predicted = " or ".join(sorted({repr(str(one)) for one in wrong.predicted}))
        text = f"{op} answers {str(wrong.observed)!r}, predicted {predicted}"
        detail = answer_to_json(wrong.observed)
        detail = re.sub(NODE_DESCRIPTION, "", detail)
        cause = Cause(CauseKind.WRONG_ANSWER, op.name, detail)
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=cause)

    def _wrong_data(
        self,
        what: str,
        name: str,
        wrong: Unexplained,
        cell: int,
        index: int | None,
        evidence: Held,
    ) -> RealViolation:
        start, end = self.cells[cell]
        kinds = [self._kind(owner) for owner in wrong.observed]
        predicted = sorted({self._kind(want[0]) for want in wrong.predicted})
        verdict = Verdict.CONTENT
        above = name in ("guest_read", "guest_block_status", "guest_dirty_bitmap", "view")
        if above and not {Whose.NEW, Whose.MARKED}.isdisjoint(kinds):
            verdict = Verdict.ISOLATION
        elif above or name in (*DISKS, "active", "primary_read"):
            verdict = Verdict.LOST_WRITE
        where = f"sectors {start}..{end - 1}"
        text = f"{what} {_runs(kinds)} in {where}, predicted {' or '.join(predicted)}"
        cause = Cause(CauseKind.WRONG_DATA, name, kinds[0], tuple(predicted))
        cluster = start // self.scenario.cluster
        return RealViolation(verdict, text, index, cluster, cause=cause, evidence=evidence)

    def _kind(self, owner: int | None) -> str:
        """Whose data: one of :class:`Whose`, or of which operation of the setup."""
        if owner is None:
            return Whose.NOTHING
        if owner == 0:
            ops = self.scenario.ops
            if any(op.is_guest and op.verb is Verb.ZERO for op in ops):
                return Whose.GUEST_ZEROES
            return Whose.NEW if any(op.is_primary and op.zeroes for op in ops) else Whose.ZEROES
        if owner == NOT_ZEROES:
            return Whose.NOT_ZEROES
        if owner in (MARKED, UNMARKED):
            return Whose.MARKED if owner == MARKED else Whose.UNMARKED
        if owner == UNREADABLE:
            return Whose.ERROR
        if owner < 0:
            return Whose.GARBAGE
        if owner == BASE:
            return Whose.OLD
        index = owner - BASE - 1
        if index < len(self.scenario.setup):
            return f"earlier {self.scenario.setup[index].name.replace('_', ' ')}'s data"
        index -= len(self.scenario.setup)
        if index < len(self.scenario.ops):
            guest = self.scenario.ops[index].is_guest
            return Whose.GUEST if guest else Whose.NEW
        return Whose.PROBE


def _held(where: str | int, start: int, wrong: Unexplained) -> Held:
    """Data that no order explains; of what may be data nothing more is known."""
    allowed = {
        tuple(None if owner == NOT_ZEROES else owner for owner in want) for want in wrong.predicted
    }
    return Held(where, start, tuple(sorted(allowed, key=str)))


def _copies(end: Outcome) -> list[tuple[int, ...]]:
    """What the disks hold that have the same written to them."""
    return [one for one in (end.primary, end.secondary, end.tertiary) if one is not None]


def answers_fit_no_order(seen: Outcome) -> RealViolation:
    """The violation that no order of the operations gives all answers of an end."""
    text = f"the answers {tuple(map(str, seen.answers))} fit no order of the operations"
    cause = Cause(CauseKind.ANSWERS_FIT_NO_ORDER)
    return RealViolation(Verdict.PROTOCOL, text, cause=cause)


def _runs(kinds: list[str]) -> str:
    distinct = list(dict.fromkeys(kinds))
    return " and ".join(distinct[:3])


def _within(start: int, end: int, ranges: Collection[tuple[int, int]]) -> bool:
    """Whether a sector of [start, end) is in one of the ranges."""
    return any(first < end and start < last for first, last in ranges)


def _cells(scenario: RealScenario) -> list[tuple[int, int]]:
    step = min(scenario.cluster, scenario.smallest_unit)
    if frozen := scenario.topology.frozen:
        step = min(step, frozen.granularity // SECTOR)
    edges = {0, scenario.disk_size, scenario.size, *range(0, scenario.size, step)}
    for op in (*scenario.setup, *scenario.ops):
        if op.count:
            edges |= {op.start, op.start + op.count}
    ordered = sorted(edges)
    return list(pairwise(ordered))
