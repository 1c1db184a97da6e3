"""The end of an execution in which I/Os failed, and which operations those may have been of."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain.chains import DISKS
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import FaultContext, Relation
from qmpshim.model.operations import Verb

EMPTIES = (Verb.START, Verb.CHECKPOINT, Verb.STOP)  # the overlays
CHANGES_CHAIN = (*EMPTIES, Verb.FAILOVER)


@dataclass(frozen=True)
class FailedEnd:
    """What is seen at the end of an execution, and the I/Os that failed in it.

    :ivar normal: the ends of the sequential executions in which nothing fails
    """

    scenario: RealScenario
    seen: Outcome
    faults: tuple[InjectedFault, ...]
    normal: tuple[Outcome, ...]

    @cached_property
    def emptying(self) -> bool:
        """Whether an overlay could not be emptied: case 6, which the command's error names.

        qcow2 may have ejected it (``fail_broken_refcounts``, block/qcow2.c): no I/O that comes
        later need succeed. To fail over is then the manager's to decide, and may fail, too.
        """
        if all(fault.image in DISKS for fault in self.faults):
            return False
        return any(
            op.verb in EMPTIES
            and all(end.answers[index] != self.seen.answers[index] for end in self.normal)
            for index, op in enumerate(self.scenario.ops)
        )

    @property
    def ejected(self) -> bool:
        """Whether an overlay may be: qcow2 ejects one that it cannot empty, which is reported."""
        ops = enumerate(self.scenario.ops)
        return any(op.verb in EMPTIES and self.seen.answers[i] != OK for i, op in ops)

    def may_have_met(self, fault: InjectedFault) -> Iterable[int]:
        """The operations that may have met a failure.

        Those that began after it, too, where its image is gone or ejected.
        """
        ejected = self.emptying and fault.image not in DISKS
        if not fault.gone and not ejected:
            return under_way(self.scenario, fault)
        return about(self.scenario, fault, fault.over)

    def unreadable(self) -> set[tuple[str, int]]:
        """What of the end cannot be looked at, and of which disk.

        The tables of a qcow2 that it still owes to its file which is gone, and the view, if it
        falls through to there or to an ejected overlay.
        """
        gone = {fault.disk for fault in self.faults if fault.gone}
        qcow2 = self.scenario.topology.qcow2
        lost = {
            (fault.image, fault.disk)
            for fault in self.faults
            if fault.gone and fault.image in qcow2
        }
        unread = (disk for disk in range(self.scenario.disks) if not self._is_read(disk))
        return lost | {("view", disk) for disk in unread if self.ejected or disk in gone}

    def _is_read(self, disk: int) -> bool:
        """Whether a disk could be read at the guest's end."""
        view = self.seen.view
        return view is not None and view[disk * self.scenario.apart] is not None

    def fault_context(self, relation: Relation) -> FaultContext:
        """The first of the failures, for a cause."""
        fault = self.faults[0]
        what = fault.image if fault.gone else f"{fault.image} {fault.verb}"
        return FaultContext(relation, what, fault.gone)


def under_way(scenario: RealScenario, fault: InjectedFault) -> list[int]:
    """The operations that were under way when an I/O failed."""
    return about(scenario, fault, fault.over | fault.unstarted)


def about(scenario: RealScenario, fault: InjectedFault, without: Collection[int]) -> list[int]:
    """The operations that are about the disk of which an I/O failed, without some of them."""
    return [
        index
        for index, op in enumerate(scenario.ops)
        if index not in without and scenario.is_about(op, fault.disk)
    ]
