"""Failures: what may come of an execution in which I/Os failed, by the model and QEMU's contract.

The sequential execution is made to meet the same failures, in every order and by each operation
that may have met them (:mod:`.failed_runs`); the real end must be like one of these: answers,
contents, allocation and status. Where none meets them, each operation is held to its own answer
(:mod:`.partial_work`). On top of that comes docs/block-replication.txt, which names seven failures
and where each is reported: :mod:`.failure_reports`, on the primary :mod:`.quorum`. When a failover
fails (7) the guest's data stay where they are. (6 is in
:mod:`~qmpshim.conformance.explore.directed.cases`.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from qmpshim.conformance.explore.checkers.failed_end import FailedEnd
from qmpshim.conformance.explore.checkers.failed_runs import FailedRuns
from qmpshim.conformance.explore.checkers.failure_reports import (
    hidden_refusal,
    new_data_read,
    not_in_status,
)
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker, Unchecked
from qmpshim.conformance.explore.checkers.partial_work import breaks_its_answers
from qmpshim.conformance.explore.checkers.parts import Before, done_in_part
from qmpshim.conformance.explore.checkers.quorum import NOT_IN_STATUS, late_for, masked
from qmpshim.conformance.explore.checkers.sequential import after_setup
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.outcome import GAP, Outcome
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.answers import REPLICATION_ERROR
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import NO_ERROR, Cause, CauseKind, Relation
from qmpshim.model.disks.image import Alloc, whose
from qmpshim.model.operations import Verb
from qmpshim.model.runtime.coroutines import run_sequentially


class FailureChecker:
    """Judges executions of one scenario in which something failed.

    :param checker: the one for executions in which nothing does
    :ivar in_part: executions of which what ended with an error was not looked at any closer
    """

    def __init__(self, checker: LinearizabilityChecker) -> None:
        self._checker = checker
        self._scenario = checker.scenario
        self._runs = FailedRuns(checker)
        self._with_misleading_status: FailureChecker | None = None
        self._with_masking_quorum: list[FailureChecker] = []
        self._before: Before | None = None
        self.in_part = 0

    def judge(
        self,
        seen: Outcome,
        precedence: Sequence[frozenset[int]],
        failed: Sequence[tuple[NamedIo, InjectedFault]],
    ) -> RealViolation | None:
        """What is wrong with the end of an execution in which these I/Os failed."""
        faults = tuple(fault for _, fault in failed)
        end = FailedEnd(self._scenario, seen, faults, tuple(self._checker.outcomes.values()))
        on_primary = self._scenario.has("quorum")
        wrong = None if on_primary else hidden_refusal(self._scenario, seen, failed)
        if wrong is not None:
            return wrong
        ends = self._runs.ends(faults, precedence)
        wrong = self._compare(end, ends) if ends else None
        if not ends or (wrong is not None and end.emptying):
            wrong, in_part = breaks_its_answers(self._checker, end, precedence)
            self.in_part += in_part
        if on_primary:
            return self._on_primary(wrong, seen, precedence, failed)
        other = self._checker.with_misleading_status
        if wrong is not None and other is not None:
            if self._with_misleading_status is None:
                self._with_misleading_status = FailureChecker(other)
            explained = self._with_misleading_status.judge(seen, precedence, failed) is None
            return other.misleading_status() if explained else wrong
        return wrong or not_in_status(end)

    def _on_primary(
        self,
        wrong: RealViolation | None,
        seen: Outcome,
        precedence: Sequence[frozenset[int]],
        failed: Sequence[tuple[NamedIo, InjectedFault]],
    ) -> RealViolation | None:
        """What is wrong on the primary; what a masked error alone explains is called so."""
        if not self._checker.with_masking_quorum:
            return wrong
        if wrong is None:
            return hidden_refusal(self._scenario, seen, failed)
        if not self._with_masking_quorum:
            self._with_masking_quorum = [
                FailureChecker(checker) for checker in self._checker.with_masking_quorum
            ]
        more = [checker.judge(seen, precedence, failed) for checker in self._with_masking_quorum]
        if all(more):
            return more[0]
        return masked(self._scenario, seen, precedence, failed) or wrong

    def _compare(self, end: FailedEnd, ends: Sequence[Outcome]) -> RealViolation | None:
        """What is wrong with an end that must be like one of these, or like one done in part."""
        scenario = self._scenario
        names = set()
        if not scenario.commits and not scenario.has("quorum"):
            names.add("status")
        if any(fault.gone for fault in end.faults):
            names.add("readable")
        ends = [*ends, *(loose for one in ends for loose in self._loosened(one, end))]
        if not scenario.has("quorum"):  # its disks are raw
            before = self._begins_with()
            ends += [done_in_part(scenario, one, end.seen, end.faults, before) for one in ends]
        wrong = self._checker.compare(
            end.seen, ends, Unchecked(frozenset(names), frozenset(end.unreadable()))
        )
        if wrong is None:
            return new_data_read(scenario, end.seen)
        if scenario.has("quorum") and wrong.cause == Cause(CauseKind.FINAL_STATUS, detail=NO_ERROR):
            return replace(wrong, cause=NOT_IN_STATUS)
        return replace(wrong, cause=wrong.cause.beside(end.fault_context(Relation.AFTER)))

    def _begins_with(self) -> Before:
        if self._before is None:
            scenario = self._scenario
            disks = [self._disk_begins_with(disk) for disk in range(scenario.disks)]
            many = scenario.apart // scenario.unit_of("hidden")
            self._before = Before(
                frozenset(disk * many + n for disk, one in enumerate(disks) for n in one.copied),
                scenario.laid_out((one.snapshot for one in disks), GAP),
            )
        return self._before

    def _disk_begins_with(self, disk: int) -> Before:
        chain = after_setup(self._scenario, self._checker.behaviour, disk)
        assert isinstance(chain, Chain)
        kinds = chain.hidden.alloc.items()
        there = (n for n, kind in kinds if kind is not Alloc.UNALLOCATED)
        read = chain.read_through((chain.hidden, chain.secondary), 0, chain.size)
        snapshot = whose(run_sequentially(read))
        return Before(frozenset(there), snapshot)

    def _loosened(self, one: Outcome, end: FailedEnd) -> Iterator[Outcome]:
        """The same end, when a commit failed: it may have come anywhere; or an error too late.

        One that has nothing to write need not even use the disk that is gone.
        """
        if self._scenario.has("quorum"):
            yield from self._late(one, end)
            return
        if self._scenario.commits and one.view == one.secondary:
            yield replace(one, status=None)
        secondary = list(one.secondary)
        for index, op in enumerate(self._scenario.ops):
            if op.verb is Verb.FAILOVER and one.status is not None:
                for before in self._runs.uncommitted(index, end.faults[0]):
                    for sector, owner in enumerate(end.seen.secondary):
                        view = one.view[sector] if one.view else None
                        if owner in (before.secondary[sector], view, *self._committed(sector)):
                            secondary[sector] = owner
        loose = replace(one, secondary=tuple(secondary))
        if loose != one:
            yield loose

    @cached_property
    def _first_view(self) -> tuple[int, ...]:
        """Whose the sectors are that the guest sees when the setup is over."""
        chain = after_setup(self._scenario, self._checker.behaviour)
        assert isinstance(chain, Chain)
        view = run_sequentially(chain.guest_read(0, self._scenario.size))
        return whose(view)

    def _committed(self, sector: int) -> Iterator[int]:
        """Whose a sector may be that a commit has read of the overlays, though they changed later.

        What was written since it was read is copied again (``mirror_iteration``, block/mirror.c),
        if nothing fails.
        """
        yield self._first_view[sector]
        for index, op in enumerate(self._scenario.ops):
            if op.is_guest and op.writes and sector in op.sectors:
                yield self._scenario.number(index)

    def _late(self, one: Outcome, end: FailedEnd) -> Iterator[Outcome]:
        """The same end, when the status may report an error or not."""
        if late_for(self._scenario, end.faults):
            over = [fault.over for fault in end.faults]
            queries = [n for n, op in enumerate(self._scenario.ops) if op.queries]
            answers = tuple(
                end.seen.answers[n] if n in queries and not any(n in ops for ops in over) else text
                for n, text in enumerate(one.answers)
            )
            for status in (None, REPLICATION_ERROR):
                yield replace(one, status=status, answers=answers)
