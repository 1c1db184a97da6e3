"""The sequential executions in which given I/Os fail, in every order and place that is possible.

Which operation meets a failure is QEMU's affair, so each that was under way may; so is how much of
a copy was done beside what failed, and how far an operation came before its image was gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, product

from qmpshim.conformance.explore.checkers.failed_end import EMPTIES, under_way
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.checkers.orders import Order, keeps_to
from qmpshim.conformance.explore.checkers.placements import (
    AnyRead,
    BrokenSnapshot,
    FaultPlacement,
    FlushPlacement,
    GoneImage,
    NothingDone,
    Unobserved,
)
from qmpshim.conformance.explore.checkers.sequential import run_in_order
from qmpshim.conformance.explore.faults import METADATA, InjectedFault
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.machine.chain.chains import DISKS
from qmpshim.model.answers import IoError
from qmpshim.model.operations import Verb, does
from qmpshim.model.units import touched

_MOST = 4  # I/Os on one image that an operation under way may have had behind it, beside copies
_ALL = 1 << 16  # more than any has
_CLOSES = (Verb.FAILOVER, Verb.STOP)  # end a job and close its filter, which flushes

Placement = Callable[[], FaultPlacement]  # a new one for each execution


class FailedRuns:
    """Knows the ends of the sequential executions of one scenario in which I/Os fail."""

    def __init__(self, checker: LinearizabilityChecker) -> None:
        self._checker = checker
        self._scenario = checker.scenario
        self._ends: dict[tuple[InjectedFault, ...], list[tuple[Order, Outcome]]] = {}
        self._uncommitted: dict[tuple[InjectedFault, int], list[Outcome]] = {}

    def ends(
        self, faults: tuple[InjectedFault, ...], precedence: Sequence[frozenset[int]]
    ) -> list[Outcome]:
        """The ends of those in which all of *faults* fail; none where the model has no such I/O.

        :param precedence: for each operation those that had ended when it started
        """
        if faults not in self._ends:
            self._ends[faults] = list(dict.fromkeys(self._runs(faults)))
        ends = [end for order, end in self._ends[faults] if keeps_to(order, precedence)]
        return list(dict.fromkeys(ends))

    def uncommitted(self, failover: int, fault: InjectedFault) -> list[Outcome]:
        """The ends if the commit of a failover writes nothing, and nothing else fails."""
        key = fault, failover
        if key not in self._uncommitted:
            placements = [NothingDone(fault, failover)]
            self._uncommitted[key] = [
                self._run(order, placements) for order in self._checker.orders
            ]
        return self._uncommitted[key]

    def _run(
        self,
        order: Order,
        placements: Sequence[FaultPlacement],
        copied: dict[int, tuple[int, ...]] | None = None,
    ) -> Outcome:
        return run_in_order(
            self._scenario, self._checker.behaviour, order, placements, copied or {}
        )

    def _runs(self, faults: tuple[InjectedFault, ...]) -> Iterator[tuple[Order, Outcome]]:
        for order in self._checker.orders:
            for choice in product(*(self._placements(fault) for fault in faults)):
                if not all(how().allows(order) for how in choice):
                    continue
                for copied in self._copied(order, choice, faults):
                    placements = [how() for how in choice]
                    end = self._run(order, placements, copied)
                    if all(
                        placement.has_failed or placement.may_be_missed for placement in placements
                    ):
                        yield order, end

    def _copied(
        self, order: Order, choice: Sequence[Placement], faults: tuple[InjectedFault, ...]
    ) -> Iterator[dict[int, tuple[int, ...]]]:
        """Which clusters the operation that fails may have copied nevertheless, by operation."""
        yield {}
        plain = self._run(order, [how() for how in choice])
        cluster = self._scenario.granule
        # With a checkpoint between a cluster may be copied twice, and only once fail.
        twice = does(self._scenario.ops, *EMPTIES)
        met = {
            n
            for fault in (() if twice else faults)
            if fault.count and not fault.gone
            for n in touched(fault.start, fault.count, cluster)
        }
        for index, op in enumerate(self._scenario.ops):
            if not isinstance(plain.answers[index], IoError) or not op.is_primary or not op.count:
                continue
            others = [n for n in touched(op.start, op.count, cluster) if n not in met]
            for many in range(1, len(others) + 1):
                yield from ({index: some} for some in combinations(others, many))

    # -- where a failure may be placed -------------------------------------------------------------

    def _placements(self, fault: InjectedFault) -> list[Placement]:
        """Which operations may meet a failure, and how."""
        empties = fault.image not in DISKS and does(self._scenario.ops, *EMPTIES)
        emptied = (False, True) if empties else (False,)
        if fault.gone:
            return self._gone(fault, emptied)
        if self._is_optional(fault):
            return [partial(Unobserved, fault)]
        ops, met_by = self._scenario.ops, under_way(self._scenario, fault)
        ways: list[Placement] = [
            partial(FaultPlacement, fault, op, emptied=way) for op in met_by for way in emptied
        ]
        if fault.verb == "flush":  # the write is done, and not durable
            ways += [partial(FlushPlacement, fault, op) for op in met_by if ops[op].makes_durable]
        if self._scenario.breaks_snapshot and fault.may_be_of_copy and fault.verb != METADATA:
            writes = [op for op in met_by if ops[op].is_primary and ops[op].changes]
            later = [op for op in range(len(ops)) if op not in fault.over]
            ways += [partial(BrokenSnapshot, fault, op, writes) for op in later]
        if fault.reader is not None and not self._scenario.topology.voters:
            ways.append(partial(AnyRead, fault, fault.reader))
        if self._may_be_unobserved(fault):
            ways.append(partial(Unobserved, fault))
        if fault.verb == "read" and fault.image == "secondary":
            # Before it begins a commit may look at what it will write to (11.1).
            commits = [op for op in met_by if ops[op].verb is Verb.FAILOVER]
            ways += [partial(NothingDone, fault, op) for op in commits]
        return ways

    def _may_be_unobserved(self, fault: InjectedFault) -> bool:
        """Whether no operation need notice."""
        ops = self._scenario.ops
        if self._scenario.on_primary and fault.image == "secondary" and does(ops, *_CLOSES):
            # To a read in between the write may look like one that came after the stop.
            return True
        return any(self._closes(fault, op) for op in under_way(self._scenario, fault))

    def _gone(self, fault: InjectedFault, emptied: Sequence[bool]) -> list[Placement]:
        """An image is gone: after how many I/Os of each operation that was under way."""
        ops, met_by = self._scenario.ops, under_way(self._scenario, fault)
        counts = [
            (*range(_MOST + self._copies(op)), *((_ALL,) * self._goes_unseen(fault, op)))
            for op in met_by
        ]
        zeroes = any(op.zeroes for op in (*self._scenario.setup, *ops))
        has_tables = fault.image in self._scenario.topology.qcow2
        tables = (False, True) if zeroes and has_tables else (False,)
        fast = frozenset(n for n, op in enumerate(ops) if op.verb is Verb.ZERO_FAST)
        forgets = bool(fast) and self._checker.behaviour.forgets_fast_zeroes
        forgotten = (frozenset[int](), fast) if forgets else (frozenset[int](),)
        return [
            partial(
                GoneImage,
                fault,
                done=dict(zip(met_by, done, strict=True)),
                emptied=way,
                in_tables=in_tables,
                may_be_missed=not any(_MOST <= many < _ALL for many in done),
                fast_zeroes=one,
            )
            for done in product(*counts)
            for way in emptied
            for in_tables in tables
            for one in forgotten
        ]

    def _goes_unseen(self, fault: InjectedFault, op: int) -> bool:
        """Whether an operation need not notice what failed, whatever it had done by then."""
        return self._is_optional(fault) or self._closes(fault, op)

    def _copies(self, op: int) -> int:
        """How many granules an operation copies, beyond the first."""
        sectors, granule = self._scenario.ops[op].sectors, self._scenario.granule
        if not self._scenario.ops[op].is_primary or not sectors:
            return 0
        return (sectors.stop - 1) // granule - sectors.start // granule

    def _is_optional(self, fault: InjectedFault) -> bool:
        """Whether it is a discard of clusters that are free, of qcow2's own.

        "Discard is optional, ignore the return value" (``qcow2_process_discards``,
        block/qcow2-refcount.c, 5.2 to 11.1).
        """
        return fault.verb == "discard" and fault.image in self._scenario.topology.qcow2

    def _closes(self, fault: InjectedFault, op: int) -> bool:
        """Whether it is a flush that may be of the nodes and jobs that an operation closes."""
        return fault.verb == "flush" and self._scenario.ops[op].verb in _CLOSES
