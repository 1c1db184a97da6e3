"""Where an injected fault is placed in the sequential execution.

A failed I/O fails there, too, wherever the operation that is to meet it does an I/O of that kind at
that place. Which operation meets it is QEMU's affair (a copy is shared by all that wait for it), so
the checker tries each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from errno import ENOTSUP

from qmpshim.conformance.explore.checkers.orders import Order, operations_in
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.machine.chain.chains import DISKS, IMAGES
from qmpshim.model.chain.primary import PrimaryChain
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.chain.votes import VotingDisks
from qmpshim.model.disks.block_copy import CopyBeforeWriteJob
from qmpshim.model.disks.image import Image, Qcow2Image
from qmpshim.model.pointintime.push import PushChain
from qmpshim.model.runtime.coroutines import Io

AnyChain = Chain | PrimaryChain | VotingDisks | PushChain


class FaultPlacement:
    """Lets an I/O of an operation fail: *failing_op* meets *fault*.

    :param emptied: an overlay that fails while it is emptied is empty all the same: it is many
        writes, and only the last may fail (``make_completely_empty``, block/qcow2.c)
    :ivar has_failed: an I/O of the sequential execution has failed
    :ivar may_be_missed: none need fail
    """

    may_be_missed = False

    def __init__(self, fault: InjectedFault, failing_op: int = -1, emptied: bool = False) -> None:
        self.fault = fault
        self.failing_op = failing_op
        self.emptied = emptied
        self.has_failed = False

    def allows(self, order: Order) -> bool:
        """Whether it can be placed in this order of the operations."""
        return True

    def meets(self, disk: int) -> bool:
        """Whether it is about this one of two disks, which are run one after the other."""
        return disk == self.fault.disk

    def begins(self, op: int, chain: AnyChain) -> None:
        """Operation *op* is about to run."""

    def of(self, op: int) -> Callable[[Io], int]:
        """The errno with which each I/O of operation *op* is to fail; 0: it is done."""

        def once(io: Io) -> int:
            if self.has_failed or op != self.failing_op or not self.fault.fits(io):
                return 0
            return self._fail(io)

        return once

    def _fail(self, io: Io) -> int:
        self.has_failed = True
        if self.emptied and io.op == "empty":
            io.perform()
        return self.fault.errno


class GoneImage(FaultPlacement):
    """Lets all I/Os on an image fail from the moment at which it went away.

    :param done: how many I/Os on it each operation, of those under way then, had done
    :param in_tables: what qcow2 does in tables that are in memory is done all the same
    :param may_be_missed: what failed may have been qcow2's own
    :param fast_zeroes: operations whose zeroes do not reach the image: it has no fast ones now
    """

    def __init__(
        self,
        fault: InjectedFault,
        done: Mapping[int, int],
        emptied: bool = False,
        in_tables: bool = False,
        may_be_missed: bool = False,
        fast_zeroes: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(fault, emptied=emptied)
        self._fast_zeroes = fast_zeroes
        self.may_be_missed = may_be_missed
        self._in_tables = in_tables
        self._left = dict(done)
        self._image: Image | None = None

    def begins(self, op: int, chain: AnyChain) -> None:
        if isinstance(chain, Chain):
            images = chain.secondary, chain.hidden, chain.active
            self._image = next(one for one in images if one.name == self.fault.image)

    def of(self, op: int) -> Callable[[Io], int]:
        def gone(io: Io) -> int:
            if io.disk != self.fault.image or op in self.fault.over:
                return 0
            if self._left.get(op, 0):
                self._left[op] -= 1
                return 0
            image = self._image if self._in_tables else None
            if isinstance(image, Qcow2Image) and image.needs_tables_only(io):
                return 0
            failed = self._fail(io)
            return ENOTSUP if io.op == "zero" and op in self._fast_zeroes else failed

        return gone


class FlushPlacement(FaultPlacement):
    """The flush with which *failing_op* ends meets *fault*, and none that qcow2 needs before."""

    def of(self, op: int) -> Callable[[Io], int]:
        once = super().of(op)
        return lambda io: once(io) if io.op == "flush" else 0


class BrokenSnapshot(FaultPlacement):
    """The copy of a write meets *fault*, breaks the snapshot; the next operation is *failing_op*.

    With ``on-cbw-error=break-snapshot`` that write happens all the same, and later: others that
    begin meanwhile copy nothing and may be written before it (``cbw_do_copy_before_write``, 7.2).

    :param writes: the operations whose copy it may have been: one of them happens later
    """

    def __init__(self, fault: InjectedFault, failing_op: int, writes: Sequence[int]) -> None:
        super().__init__(fault, failing_op)
        self._writes = writes

    def allows(self, order: Order) -> bool:
        place = {op: n for n, op in enumerate(operations_in(order))}
        at = place[self.failing_op]
        return (
            all(place[op] < at for op in self.fault.over)
            and all(place[op] >= at for op in self.fault.unstarted)
            and any(place[op] >= at for op in self._writes)
        )

    def begins(self, op: int, chain: AnyChain) -> None:
        if op == self.failing_op and isinstance(chain, Chain):
            assert isinstance(chain.job, CopyBeforeWriteJob)
            chain.job.snapshot_error.setdefault(0, self.fault.errno)
            self.has_failed = True

    def of(self, op: int) -> Callable[[Io], int]:
        return lambda io: 0


class AnyRead(FaultPlacement):
    """The read *failing_op* fails, wherever it reads: QEMU may have looked in another place."""

    def of(self, op: int) -> Callable[[Io], int]:
        self.has_failed = True
        return lambda io: self.fault.errno if op == self.failing_op else 0


class NothingDone(FaultPlacement):
    """The operation *failing_op* gets nothing done on these images, a failover its commit."""

    def __init__(
        self,
        fault: InjectedFault,
        failing_op: int,
        images: Collection[str] = (*IMAGES, *DISKS),
    ) -> None:
        super().__init__(fault, failing_op)
        self._images = images

    def meets(self, disk: int) -> bool:
        return True

    def of(self, op: int) -> Callable[[Io], int]:
        self.has_failed = True
        return lambda io: (
            self.fault.errno if op == self.failing_op and io.disk in self._images else 0
        )


class Unobserved(FaultPlacement):
    """A fault that no sequential execution observes: a flush of nodes and jobs that QEMU closes, a
    discard of qcow2's own.

    That the commit's own flushes are not taken for such is seen by
    :func:`~qmpshim.conformance.explore.checkers.durability.unflushed`.
    """

    def of(self, op: int) -> Callable[[Io], int]:
        self.has_failed = True
        return lambda io: 0
