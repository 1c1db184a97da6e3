"""Does in the model what a request to a disk does, and keeps the list of what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.model.disks.image import Alloc, Image
from qmpshim.model.disks.image import Qcow2Image as ModelQcow2
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.runtime.coroutines import Co, ModelIOError, run_sequentially
from qmpshim.model.units import SECTOR, touched
from qmpshim.shim.tracking.discovery import ChainNodes
from qmpshim.shim.tracking.payload_store import PayloadStore

if TYPE_CHECKING:
    from qmpshim.shim.tracking.baseline import ImageFiles

_MOST = 1_000_000  # operations that a replay bundle may have


@dataclass(frozen=True, slots=True)
class Change:
    """A request that was answered, as seen at an NBD client or in a write log.

    :ivar side: whose: the primary's or the guest's
    :ivar offset: bytes
    :ivar length: bytes
    :ivar data: of a write
    :ivar mapped: zeroes must not be made by unmapping
    """

    side: Side
    kind: Verb
    offset: int
    length: int
    data: bytes | memoryview = b""
    mapped: bool = False


class AppliedChanges:
    """The changes that were done in one chain's model, which does each as it comes.

    :ivar operations: what was done since the chain was started, in the order QEMU answered it;
        begins with what was on the secondary disk
    :ivar whole: whether they are all there
    :ivar unrecordable: what the disks held that operations on fresh disks do not make, or ``""``
    """

    def __init__(self, oracle: Oracle, payloads: PayloadStore) -> None:
        self.oracle = oracle
        self.operations: list[Operation] = []
        self.whole = True
        self.unrecordable = ""
        self._payloads = payloads

    def command(self, kind: Verb) -> None:
        """A command that acts on the chain as a whole was answered."""
        self._list(Operation(Side.CHAIN, kind, number=self._payloads.count()))

    def take_baseline(
        self, found: ChainNodes, files: Mapping[str, ImageFiles], uri: str
    ) -> list[str]:
        """Take over what the disks hold before anything begins; gives what cannot be known.

        Parameters and errors as :meth:`Baseline.take`.
        """
        from qmpshim.shim.tracking.baseline import Baseline

        baseline = Baseline(self.oracle.chain, found, self._payloads, self._write_before)
        baseline.take(files, uri)
        self.unrecordable = baseline.unrecordable
        return baseline.doubts

    def _write_before(self, start: int, count: int, number: int, data: bool) -> None:
        kind = Verb.WRITE if data else Verb.ZERO
        self._list(Operation(Side.PRIMARY, kind, start, count, number=number))

    def _list(self, operation: Operation) -> None:
        if len(self.operations) < _MOST:
            self.operations.append(operation)
        else:
            self.whole = False

    def request(self, change: Change) -> int:
        """Do a request in the model; gives the errno that it must have been answered with.

        :raises HostError: there is no space to keep what was written
        """
        side, kind = change.side, change.kind
        sectors = touched(change.offset, change.length, SECTOR)
        start, count = sectors.start, len(sectors)
        if kind in (Verb.READ, Verb.FLUSH) or not count:
            number = self._payloads.count()
            if count or kind is Verb.FLUSH:
                self._list(Operation(side, kind, start, count, number=number))
            return 0
        try:
            number, kind, operation = self._change(change, start, count)
            self._list(Operation(side, kind, start, count, number=number))
            run_sequentially(operation)
        except ModelIOError as failure:
            return failure.errno
        return 0

    def _change(self, change: Change, start: int, count: int) -> tuple[int, Verb, Co[None]]:
        """Operation number, what it is to the model, and what it does there."""
        chain, note = self.oracle.chain, self._payloads.note
        guest = change.side is Side.GUEST
        aligned = not (change.offset % SECTOR or change.length % SECTOR)
        if change.kind is Verb.DISCARD:
            number = note(start, None)
            do = chain.guest_discard if guest else chain.primary_discard
            return number, Verb.DISCARD, do(start, count, number)
        if change.kind is Verb.ZERO and aligned and (guest or not change.mapped):
            number = note(start, None)
            do = chain.guest_zero if guest else chain.primary_zero
            return number, Verb.ZERO, do(start, count, number)
        data = bytearray(change.data or bytes(change.length))
        if not aligned:
            view = self.oracle.guest_view if guest else self.oracle.primary_view
            whole = bytearray(self._payloads.data(view.read(start, count), start))
            at = change.offset - start * SECTOR
            whole[at : at + change.length] = data
            data = whole
        number = note(start, data)
        do = chain.guest_write if guest else chain.primary_write
        return number, Verb.WRITE, do(start, count, number)

    def forget_how(self, image: Image, start: int, count: int) -> None:
        """Zeroes were written, and it is not known whether as data: either kind of cluster fits."""
        if not isinstance(image, ModelQcow2):
            return
        for at, length, kind in list(image.runs(start, count)):
            if kind in (Alloc.DATA, Alloc.ZERO):
                first, last = at // image.cluster, (at + length - 1) // image.cluster
                for index in range(first, last + 1):
                    image.alloc[index] = Alloc.ALLOCATED
