"""Failures: what may come of an execution in which I/Os failed, by the model and QEMU's contract.

The sequential execution is made to meet the same failures, in every order and by each operation
that may have met them; the real end must be like one of these: answers, contents, allocation and
status. On top of that comes docs/block-replication.txt, which names seven failures and where each
is reported: the backup failing (3) and the secondary disk failing (4) to the FT/HA manager, which
has nothing but the status to look at; the active disk failing (5) to the client; the failover
failing (7) by the status, and the guest's data stay where they are. On the primary an error of its
own disk (1) is reported to the client, and a write that could not be forwarded (2) by the status;
see :mod:`.quorum`. (6 is in :mod:`~qmpshim.conformance.explore.directed.cases`.)

Where no sequential execution meets the failures (the I/O is qcow2's own affair: which of its tables
it reads and writes when is for no model to know), each operation is held to its own answer: one
that reports success must have done it all, one that reports an error may have done any part of it
and must name the error that there was, and no other operation may notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product

from qmpshim.conformance.explore.checkers.linearizability import (
    LinearizabilityChecker,
    Unchecked,
    keeps_to,
)
from qmpshim.conformance.explore.checkers.parts import Before, done_in_part
from qmpshim.conformance.explore.checkers.placements import (
    AnyRead,
    BrokenSnapshot,
    FaultPlacement,
    FlushPlacement,
    GoneImage,
    NothingDone,
    Order,
    Unobserved,
)
from qmpshim.conformance.explore.checkers.quorum import NOT_IN_STATUS, late_for, masked
from qmpshim.conformance.explore.checkers.sequential import after_setup, run_in_order
from qmpshim.conformance.explore.faults import METADATA, InjectedFault
from qmpshim.conformance.explore.harness.io_naming import NamedIo, tags
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import cut_off
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.chains import IMAGES, PRIMARY_IMAGES
from qmpshim.model.answers import (
    DISCONNECTED,
    OK,
    REPLICATION_ERROR,
    IoError,
    answer_to_json,
    io_error,
)
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import NO_ERROR, Cause, CauseKind, FaultContext, Relation
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.operations import Verb, does
from qmpshim.model.runtime.coroutines import run_sequentially

_MOST = 4  # I/Os on one image that an operation under way may have had behind it, beside copies
_ALL = 1 << 16  # more than any has
_EMPTIES = (Verb.START, Verb.CHECKPOINT, Verb.STOP)  # the overlays
_CLOSES = (Verb.FAILOVER, Verb.STOP)  # end a job and close its filter, which flushes
_ALL_CHAIN = (*_EMPTIES, Verb.FAILOVER)  # what changes the chain


class FailureChecker:
    """Judges executions of one scenario in which something failed.

    :param judge: the one for executions in which nothing does
    :ivar in_part: executions of which what ended with an error was not looked at any closer
    """

    def __init__(self, judge: LinearizabilityChecker) -> None:
        self._judge = judge
        self._scenario = judge.scenario
        self._lenient: FailureChecker | None = None
        self._masking: list[FailureChecker] = []
        self._before: dict[tuple[InjectedFault, int], list[Outcome]] = {}
        self._ends: dict[tuple[InjectedFault, ...], list[tuple[Order, Outcome]]] = {}
        self._before_ops: Before | None = None
        self.in_part = 0

    def judge(
        self,
        seen: Outcome,
        precedence: Sequence[frozenset[int]],
        failed: Sequence[tuple[NamedIo, InjectedFault]],
    ) -> RealViolation | None:
        """What is wrong with the end of an execution in which these I/Os failed."""
        hits = tuple(hit for _, hit in failed)
        on_primary = self._scenario.has("quorum")
        wrong = None if on_primary else self._silence(seen, failed)
        if wrong is not None:
            return wrong
        ends = self._fitting(hits, precedence)
        wrong = self._compare(seen, ends, hits) if ends else None
        if not ends or (wrong is not None and self._emptying(seen, hits)):
            wrong = self._by_answers(seen, hits, precedence)
        if on_primary:
            return self._on_primary(wrong, seen, precedence, failed)
        lenient = self._judge.lenient
        if wrong is not None and lenient is not None:
            if self._lenient is None:
                self._lenient = FailureChecker(lenient)
            return wrong if self._lenient.judge(seen, precedence, failed) else lenient.misled()
        return wrong or self._unreported(seen, hits)

    def _on_primary(
        self,
        wrong: RealViolation | None,
        seen: Outcome,
        precedence: Sequence[frozenset[int]],
        failed: Sequence[tuple[NamedIo, InjectedFault]],
    ) -> RealViolation | None:
        """What is wrong on the primary; what a masked error alone explains is called so."""
        if not self._judge.masking:
            return wrong
        if wrong is None:
            return self._silence(seen, failed)
        if not self._masking:
            self._masking = [FailureChecker(judge) for judge in self._judge.masking]
        more = [judge.judge(seen, precedence, failed) for judge in self._masking]
        if all(more):
            return more[0]
        return masked(self._scenario, seen, precedence, failed) or wrong

    # -- by the model ------------------------------------------------------------------------------

    def _fitting(
        self, hits: tuple[InjectedFault, ...], precedence: Sequence[frozenset[int]]
    ) -> list[Outcome]:
        if hits not in self._ends:
            self._ends[hits] = list(dict.fromkeys(self._sequential(hits)))
        ends = [end for order, end in self._ends[hits] if keeps_to(order, precedence)]
        return list(dict.fromkeys(ends))

    def _sequential(self, hits: tuple[InjectedFault, ...]) -> Iterator[tuple[Order, Outcome]]:
        """The ends of the sequential executions that meet all these failures."""
        judge = self._judge
        for order in judge.orders:
            for choice in product(*(self._victims(hit) for hit in hits)):
                if not all(how().allows(order) for how in choice):
                    continue
                for copied in self._copied(order, choice, hits):
                    fates = [how() for how in choice]
                    end = run_in_order(self._scenario, judge.behaviour, order, fates, copied)
                    if all(fate.met or fate.may_be_missed for fate in fates):
                        yield order, end

    def _copied(
        self,
        order: Order,
        choice: Sequence[Callable[[], FaultPlacement]],
        hits: tuple[InjectedFault, ...],
    ) -> Iterator[dict[int, tuple[int, ...]]]:
        """Which clusters the operation that fails may have copied nevertheless, by operation."""
        yield {}
        fates = [how() for how in choice]
        plain = run_in_order(self._scenario, self._judge.behaviour, order, fates)
        cluster = self._scenario.granule
        # With a checkpoint between a cluster may be copied twice, and only once fail.
        twice = does(self._scenario.ops, *_EMPTIES)
        met = {
            n
            for hit in (() if twice else hits)
            if hit.count and not hit.gone
            for n in range(hit.start // cluster, -(-(hit.start + hit.count) // cluster))
        }
        for index, op in enumerate(self._scenario.ops):
            if not isinstance(plain.answers[index], IoError) or not op.is_primary or not op.count:
                continue
            own = range(op.start // cluster, -(-(op.start + op.count) // cluster))
            others = [n for n in own if n not in met]
            for many in range(1, len(others) + 1):
                yield from ({index: some} for some in combinations(others, many))

    def _victims(self, hit: InjectedFault) -> list[Callable[[], FaultPlacement]]:
        """Which operations may meet a failure; an image that is gone: after how many I/Os."""
        under_way = self._under_way(hit)
        empties = hit.image not in PRIMARY_IMAGES and does(self._scenario.ops, *_EMPTIES)
        emptied = (False, True) if empties else (False,)
        if not hit.gone and self._is_optional(hit):
            return [partial(Unobserved, hit)]
        if not hit.gone:
            ways: list[Callable[[], FaultPlacement]] = [
                partial(FaultPlacement, hit, op, emptied=way) for op in under_way for way in emptied
            ]
            if hit.verb == "flush":  # the write is done, and not durable
                durable = [op for op in under_way if self._scenario.ops[op].makes_durable]
                ways += [partial(FlushPlacement, hit, op) for op in durable]
            if self._scenario.breaks_snapshot and hit.may_be_of_copy and hit.verb != METADATA:
                ops = self._scenario.ops
                writes = [op for op in under_way if ops[op].is_primary and ops[op].changes]
                later = [op for op in range(len(ops)) if op not in hit.over]
                ways += [partial(BrokenSnapshot, hit, op, writes) for op in later]
            if hit.reader is not None:
                ways.append(partial(AnyRead, hit, hit.reader))
            stops = does(self._scenario.ops, *_CLOSES)
            if self._scenario.has("quorum") and hit.image == "secondary" and stops:
                # To a read in between the write may look like one that came after the stop.
                ways.append(partial(Unobserved, hit))
            if any(self._closes(hit, op) for op in under_way):
                ways.append(partial(Unobserved, hit))
            if hit.verb == "read" and hit.image == "secondary":
                # Before it begins a commit may look at what it will write to (11.1).
                commits = [op for op in under_way if self._scenario.ops[op].verb is Verb.FAILOVER]
                ways += [partial(NothingDone, hit, op) for op in commits]
            return ways
        counts = [
            (*range(_MOST + self._copies(op)), *((_ALL,) * self._goes_unseen(hit, op)))
            for op in under_way
        ]
        zeroes = any(op.zeroes for op in (*self._scenario.setup, *self._scenario.ops))
        tables = (False, True) if zeroes and self._is_qcow2(hit.image) else (False,)
        return [
            partial(
                GoneImage,
                hit,
                done=dict(zip(under_way, done, strict=True)),
                emptied=way,
                in_tables=in_tables,
                may_be_missed=not any(_MOST <= many < _ALL for many in done),
            )
            for done in product(*counts)
            for way in emptied
            for in_tables in tables
        ]

    def _goes_unseen(self, hit: InjectedFault, op: int) -> bool:
        """Whether an operation need not notice what failed, whatever it had done by then."""
        return self._is_optional(hit) or self._closes(hit, op)

    def _copies(self, op: int) -> int:
        """How many granules an operation copies, beyond the first."""
        sectors, granule = self._scenario.ops[op].sectors, self._scenario.granule
        if not self._scenario.ops[op].is_primary or not sectors:
            return 0
        return (sectors.stop - 1) // granule - sectors.start // granule

    def _is_optional(self, hit: InjectedFault) -> bool:
        """Whether it is a discard of clusters that are free, of qcow2's own.

        "Discard is optional, ignore the return value" (``qcow2_process_discards``,
        block/qcow2-refcount.c, 5.2 to 11.1).
        """
        return hit.verb == "discard" and self._is_qcow2(hit.image)

    def _closes(self, hit: InjectedFault, op: int) -> bool:
        """Whether it is a flush that may be of the nodes and jobs that an operation closes."""
        return hit.verb == "flush" and self._scenario.ops[op].verb in _CLOSES

    def _is_qcow2(self, image: str) -> bool:
        return image not in PRIMARY_IMAGES or (
            image == "secondary" and self._scenario.secondary == "qcow2"
        )

    def _under_way(self, hit: InjectedFault) -> list[int]:
        """The operations that may have met it."""
        count = len(self._scenario.ops)
        return [op for op in range(count) if op not in hit.over | hit.unstarted]

    def _compare(
        self, seen: Outcome, ends: Sequence[Outcome], hits: tuple[InjectedFault, ...]
    ) -> RealViolation | None:
        reported = self._scenario.commits or self._scenario.has("quorum")
        spared: set[str] = set() if reported else {"status"}
        for hit in hits:
            if hit.gone:
                spared |= self._lost_with(hit.image, seen) | {"readable"}
        if seen.view is None and self._ejected(seen):
            spared.add("view")
        ends = [*ends, *(loose for end in ends for loose in self._loosened(end, seen, hits))]
        if not self._scenario.has("quorum"):  # its disks are raw
            before = self._begins_with()
            ends += [done_in_part(self._scenario, end, seen, hits, before) for end in ends]
        wrong = self._judge.compare(seen, ends, Unchecked(frozenset(spared)))
        if wrong is None:
            return self._isolation(seen)
        if self._scenario.has("quorum") and wrong.cause == Cause(
            CauseKind.FINAL_STATUS, detail=NO_ERROR
        ):
            return replace(wrong, cause=NOT_IN_STATUS)
        return replace(wrong, cause=wrong.cause.beside(self._fault(hits, Relation.AFTER)))

    def _begins_with(self) -> Before:
        if self._before_ops is None:
            chain = after_setup(self._scenario, self._judge.behaviour)
            assert isinstance(chain, Chain)
            kinds = chain.hidden.alloc.items()
            there = (n for n, kind in kinds if kind is not Alloc.UNALLOCATED)
            read = chain.read_through((chain.hidden, chain.secondary), 0, chain.size)
            snapshot = tuple(max(0, owner) for owner in run_sequentially(read))
            self._before_ops = Before(frozenset(there), snapshot)
        return self._before_ops

    def _ejected(self, seen: Outcome) -> bool:
        """Whether an overlay may be: qcow2 ejects one that it cannot empty, which is reported."""
        ops = self._scenario.ops
        return any(op.verb in _EMPTIES and seen.answers[i] != OK for i, op in enumerate(ops))

    def _lost_with(self, image: str, seen: Outcome) -> set[str]:
        """What cannot be looked at when an image is gone: the tables of a qcow2 that it still owes
        to its file, and the view, if it falls through to there."""
        lost = {"view"} if seen.view is None else set()
        raw = image in PRIMARY_IMAGES and self._scenario.secondary == "raw"
        return lost if raw else lost | {image}

    def _by_answers(
        self, seen: Outcome, hits: tuple[InjectedFault, ...], precedence: Sequence[frozenset[int]]
    ) -> RealViolation | None:
        """Each operation must be as it reports itself: done, or failed and perhaps done in part."""
        judge, ops = self._judge, self._scenario.ops
        may = frozenset(op for hit in hits for op in self._may_have_met(hit, seen))
        failed = frozenset(op for op in may if self._reports_failure(seen, op))
        if all(hit.image == "active" for hit in hits):  # where no primary's I/O goes
            failed = frozenset(op for op in failed if not ops[op].is_primary)
        broken = self._scenario.breaks_snapshot and any(hit.image != "active" for hit in hits)
        self.in_part += bool(failed) or broken
        for index in sorted(failed) if not self._emptying(seen, hits) else ():
            wrong = self._other_error(seen, index, hits)
            if wrong is not None:
                return wrong
        ways = [self._ways(index, index in failed) for index in range(len(ops))]
        ends = [
            run_in_order(
                self._scenario,
                judge.behaviour,
                order,
                [
                    NothingDone(hits[0], index, images)
                    for index, images in enumerate(choice)
                    if images
                ],
            )
            for order in judge.orders
            if keeps_to(order, precedence)
            for choice in product(*ways)
        ]
        granule = self._scenario.granule
        ranges: set[tuple[int, int]] = set()
        copied: set[tuple[int, int]] = set()
        for op in (ops[index] for index in failed):
            if op.verb is Verb.FAILOVER:
                ranges.add((0, self._scenario.size))
                copied.add((0, self._scenario.size))
            elif op.changes:
                ranges.add((op.start, op.start + op.count))
                end = -(-(op.start + op.count) // granule) * granule
                copied.add((op.start // granule * granule, end))
        failover_failed = any(ops[op].verb is Verb.FAILOVER for op in failed)
        names = {"status"} if not self._scenario.commits or failover_failed else set()
        names.add("readable")
        for hit in hits:
            if hit.gone:
                names |= self._lost_with(hit.image, seen)
        if seen.view is None and self._ejected(seen):
            names.add("view")
        if broken:  # by a copy that failed: the snapshot ends, and no more is copied
            failed |= {i for i, op in enumerate(ops) if op.is_guest and seen.answers[i] != OK}
            names |= {"hidden"} | ({"view"} if seen.view is None else set())
        if self._emptying(seen, hits):
            names |= {hit.image for hit in hits if hit.image != "secondary"}
        spared = Unchecked(frozenset(names), failed, frozenset(ranges), frozenset(copied))
        wrong = judge.compare(seen, ends, spared)
        if wrong is None:
            return self._isolation(seen)
        return replace(wrong, cause=wrong.cause.beside(self._fault(hits, Relation.BESIDE)))

    def _ways(self, index: int, failed: bool) -> list[tuple[str, ...]]:
        """On which images an operation may have got nothing done: one disk may be empty already."""
        if not failed:
            return [()]
        one = [("hidden",), ("active",)] if self._scenario.ops[index].verb in _EMPTIES else []
        return [(), IMAGES, *one]

    def _reports_failure(self, seen: Outcome, op: int) -> bool:
        """Whether it reports so; failover answers at once, the status has its commit's error."""
        if self._scenario.ops[op].verb is Verb.FAILOVER and seen.status is not None:
            return True
        return seen.answers[op] != OK

    def _other_error(
        self, seen: Outcome, op: int, hits: tuple[InjectedFault, ...]
    ) -> RealViolation | None:
        """An I/O is answered with the error that there was, or its client is gone."""
        what, answer = self._scenario.ops[op], seen.answers[op]
        if what.is_command or answer in {io_error(hit.errno) for hit in hits}:
            return None
        if answer == DISCONNECTED and what.side in cut_off(self._scenario.ops):
            return None
        fault = self._fault(hits, Relation.AFTER)
        text = f"{what} answers {str(answer)!r}, {fault}"
        cause = Cause(CauseKind.WRONG_ANSWER, what.name, answer_to_json(answer), fault=fault)
        return RealViolation(Verdict.ERROR_CONTRACT, text, op, cause=cause)

    def _emptying(self, seen: Outcome, hits: tuple[InjectedFault, ...]) -> bool:
        """Whether an overlay could not be emptied: case 6, which the command's error names.

        qcow2 may have ejected it (``fail_broken_refcounts``, block/qcow2.c): no I/O that comes
        later need succeed. To fail over is then the manager's to decide, and may fail, too.
        """
        if all(hit.image in PRIMARY_IMAGES for hit in hits):
            return False
        ends = self._judge.outcomes.values()
        return any(
            op.verb in _EMPTIES and all(one.answers[index] != seen.answers[index] for one in ends)
            for index, op in enumerate(self._scenario.ops)
        )

    def _may_have_met(self, hit: InjectedFault, seen: Outcome) -> list[int]:
        if not hit.gone and not self._emptying(seen, (hit,)):
            return self._under_way(hit)
        return [op for op in range(len(self._scenario.ops)) if op not in hit.over]

    def _loosened(
        self, end: Outcome, seen: Outcome, hits: tuple[InjectedFault, ...]
    ) -> Iterator[Outcome]:
        """The same end, when a commit failed: it may have come anywhere; or an error too late.

        One that has nothing to write need not even use the disk that is gone.
        """
        if self._scenario.has("quorum"):
            yield from self._late(end, seen, hits)
            return
        if self._scenario.commits and end.view == end.secondary:
            yield replace(end, status=None)
        secondary = list(end.secondary)
        for index, op in enumerate(self._scenario.ops):
            if op.verb is Verb.FAILOVER and end.status is not None:
                for before in self._uncommitted(index, hits):
                    for sector, owner in enumerate(seen.secondary):
                        view = end.view[sector] if end.view else None
                        if owner in (before.secondary[sector], view):
                            secondary[sector] = owner
        loose = replace(end, secondary=tuple(secondary))
        if loose != end:
            yield loose

    def _late(
        self, end: Outcome, seen: Outcome, hits: tuple[InjectedFault, ...]
    ) -> Iterator[Outcome]:
        """The same end, when the status may report an error or not."""
        if late_for(self._scenario, hits):
            queries = [n for n, op in enumerate(self._scenario.ops) if op.queries]
            answers = tuple(
                seen.answers[n] if n in queries and not any(n in hit.over for hit in hits) else text
                for n, text in enumerate(end.answers)
            )
            for status in (None, REPLICATION_ERROR):
                yield replace(end, status=status, answers=answers)

    def _uncommitted(self, failover: int, hits: tuple[InjectedFault, ...]) -> list[Outcome]:
        """The ends if the commit had not written anything, nor anything else failed."""
        key = hits[0], failover
        if key not in self._before:
            judge = self._judge
            fates = [NothingDone(hits[0], failover)]
            self._before[key] = [
                run_in_order(self._scenario, judge.behaviour, order, fates)
                for order in judge.orders
            ]
        return self._before[key]

    def _isolation(self, seen: Outcome) -> RealViolation | None:
        """No reader above the hidden disk sees what the primary wrote, whatever failed."""
        scenario = self._scenario
        if does(scenario.ops, *_ALL_CHAIN):
            return None
        primaries = {
            scenario.number(index) if op.writes else 0
            for index, op in enumerate(scenario.ops)
            if op.is_primary and op.changes
        }
        if any(op.is_guest and op.verb is Verb.DISCARD for op in scenario.ops) or any(
            op.zeroes for op in scenario.setup
        ):
            primaries.discard(0)  # there are zeroes that are no news
        for index, data in enumerate(seen.data):
            if data and scenario.ops[index].is_guest and primaries & set(data):
                text = f"{scenario.ops[index]} returns new data after an I/O error"
                cause = Cause(CauseKind.NEW_DATA_AFTER_ERROR, scenario.ops[index].name)
                return RealViolation(Verdict.ISOLATION, text, index, cause=cause)
        if seen.view and primaries & set(seen.view):
            text = "the guest's view shows new data after an I/O error"
            cause = Cause(CauseKind.NEW_DATA_AFTER_ERROR, "view")
            return RealViolation(Verdict.ISOLATION, text, cause=cause)
        return None

    # -- by the contract ---------------------------------------------------------------------------

    def _silence(
        self, seen: Outcome, failed: Sequence[tuple[NamedIo, InjectedFault]]
    ) -> RealViolation | None:
        """The operation whose own data was refused must not report success."""
        numbers = {self._scenario.number(i): i for i in range(len(self._scenario.ops))}
        for named, hit in failed:
            for _, number, _ in tags(named.io.data):
                index = numbers.get(number)
                if named.io.image == "secondary" and self._scenario.has("quorum"):
                    continue  # that is not reported to the guest: case 2
                if index is None or index in hit.over or index != named.op:
                    continue  # another's affair: a commit's, which writes what was answered before
                if seen.answers[index] == OK:
                    op = self._scenario.ops[index]
                    return RealViolation(
                        Verdict.ERROR_CONTRACT,
                        f"{op} says success, though its data was refused by the "
                        f"{named.io.image} disk",
                        index,
                        cause=Cause(CauseKind.ERROR_MASKED, op.name, f"{named.io.image} write"),
                    )
        return None

    def _unreported(self, seen: Outcome, hits: tuple[InjectedFault, ...]) -> RealViolation | None:
        """Failures 3 and 4 are reported to the FT/HA manager: by the status alone."""
        scenario = self._scenario
        if scenario.topology.replication_mode != "secondary" or seen.status is not None:
            return None
        if does(scenario.ops, *_ALL_CHAIN):
            return None
        refused = any(
            op.is_primary and isinstance(seen.answers[index], IoError)
            for index, op in enumerate(scenario.ops)
        )
        for hit in hits:
            case = None
            if hit.image == "hidden" and (refused or hit.verb in ("write", "zero")):
                case = "3", "backup failed"
            elif hit.image == "secondary":
                case = "4", "I/O error on the secondary disk"
            if case is not None:
                return RealViolation(
                    Verdict.ERROR_CONTRACT,
                    f"case {'. '.join(case)}: query-xen-replication-status reports no error",
                    cause=Cause(CauseKind.NOT_IN_STATUS, *case),
                )
        return None

    @staticmethod
    def _fault(hits: tuple[InjectedFault, ...], relation: Relation) -> FaultContext:
        hit = hits[0]
        what = hit.image if hit.gone else f"{hit.image} {hit.verb}"
        return FaultContext(relation, what, hit.gone)
