"""The model of a pair's disks, fed from the NBD link and the secondary's guest.

Allocation comes from the reference model (:class:`qmpshim.model.chain.secondary.Chain`), whose
owners are numbered writes; this module keeps the bytes they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qmpshim.machine.nbd.protocol.transmission import NbdCommand, Request
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Chain, Workflow
from qmpshim.model.disks.image import PAGE, Alloc, Owners, Qcow2Image, owned
from qmpshim.model.runtime.coroutines import run_sequentially
from qmpshim.model.units import SECTOR


@dataclass(frozen=True, slots=True)
class Written:
    """One write since the last checkpoint: its first byte's place, and its bytes."""

    offset: int
    data: bytes


class PairModel:
    """What the secondary's three disks must hold.

    :param initial: what both disks held when replication began
    :param cluster: of hidden and active disk, bytes
    :ivar disk: the secondary disk's bytes
    :ivar base: the same at the last checkpoint
    :ivar checkpoints: taken so far
    :ivar writes: writes of the primary so far
    """

    def __init__(self, initial: bytes, cluster: int, behaviour: Behaviour) -> None:
        self.disk = bytearray(initial)
        self.base = bytearray(initial)
        self.cluster = cluster
        self.behaviour = behaviour
        self.checkpoints = self.writes = 0
        self.overlaid = False  # the secondary disk took over what hidden and active disk held
        self._number = 1
        self._mark = 1  # owners up to this one: the bytes of the last checkpoint
        self._since: dict[int, Written] = {}
        size = len(initial) // SECTOR
        self.chain = Chain(
            Workflow.REPLICATION, size, cluster // SECTOR, "raw", behaviour=behaviour
        )
        for page in range(0, size, PAGE):  # what is not zero has an owner from the start
            count = min(PAGE, size - page)
            if any(initial[page * SECTOR : (page + count) * SECTOR]):
                self.chain.secondary.contents.write(page, owned(1, count))

    def start(self) -> None:
        """Replication starts."""
        run_sequentially(self.chain.start())

    def passed(self, request: Request, error: int) -> None:
        """A change came over the link, and the secondary's QEMU has answered it.

        :param error: with this errno; then the link is broken, and whether the change was made
            does not matter: a failover keeps the checkpoint, and no more is needed
        """
        if error:
            return
        start, count = request.offset // SECTOR, request.length // SECTOR
        self.writes += 1
        number = self._next(request.offset, request.data or bytes(request.length))
        if request.type == NbdCommand.WRITE.value:
            run_sequentially(self.chain.primary_write(start, count, number))
        elif request.type == NbdCommand.WRITE_ZEROES.value:
            run_sequentially(self.chain.primary_zero(start, count, number))
        else:
            run_sequentially(self.chain.primary_discard(start, count, number))
            if not self.behaviour.discard_passes_job:
                return
        self._put(self.disk, self._since[number])

    def guest_wrote(self, offset: int, data: bytes) -> None:
        """The secondary's guest wrote.

        :param offset: bytes, as the data whole sectors
        """
        number = self._next(offset, data)
        run_sequentially(self.chain.guest_write(offset // SECTOR, len(data) // SECTOR, number))
        if self.overlaid:
            self._put(self.disk, self._since[number])

    def _next(self, offset: int, data: bytes) -> int:
        self._number += 1
        self._since[self._number] = Written(offset, data)
        return self._number

    @staticmethod
    def _put(disk: bytearray, written: Written) -> None:
        disk[written.offset : written.offset + len(written.data)] = written.data

    def checkpoint(self) -> None:
        """A checkpoint: what the secondary disk holds now is what its guest starts from."""
        run_sequentially(self.chain.checkpoint())
        for written in self._since.values():
            end = written.offset + len(written.data)
            self.base[written.offset : end] = self.disk[written.offset : end]
        self._since.clear()
        self._mark = self._number
        self.checkpoints += 1

    def failover(self) -> None:
        """The secondary fails over: what its guest sees becomes the secondary disk."""
        run_sequentially(self.chain.failover())
        self.overlaid = True
        for start, data in self._changed():
            self.disk[start : start + len(data)] = data

    def _changed(self) -> list[tuple[int, bytes]]:
        """The guest's view of each range that anybody wrote since the last checkpoint."""
        return [
            (written.offset, self.view(written.offset, len(written.data)))
            for written in self._since.values()
        ]

    def view(self, offset: int, length: int) -> bytes:
        """What the secondary's guest reads; *offset* and *length* in bytes, whole sectors."""
        start, count = offset // SECTOR, length // SECTOR
        owners = run_sequentially(self.chain.read_through(self.chain.top, start, count))
        return self._bytes(owners, start)

    def allocation(self, node: str) -> dict[int, Alloc]:
        """The clusters that ``hidden`` or ``active`` must have allocated."""
        return self._overlay(node).alloc

    def content(self, node: str, offset: int, length: int) -> bytes:
        """What ``hidden`` or ``active`` must hold in clusters that are allocated.

        :param offset: bytes, as the length whole sectors
        """
        start, count = offset // SECTOR, length // SECTOR
        return self._bytes(self._overlay(node).contents.read(start, count), start)

    def _overlay(self, node: str) -> Qcow2Image:
        image = getattr(self.chain, node)
        assert isinstance(image, Qcow2Image)
        return image

    def _bytes(self, owners: Owners, start: int) -> bytes:
        """The bytes behind *owners* of the sectors from *start* on."""
        writers = np.abs(np.frombuffer(owners, dtype=np.int64))
        end = start + len(writers)
        result = bytearray(self.base[start * SECTOR : end * SECTOR])
        for number in np.unique(writers[writers > self._mark]).tolist():
            written = self._since[number]
            shift = start * SECTOR - written.offset
            for index in np.flatnonzero(writers == number).tolist():
                at = index * SECTOR
                result[at : at + SECTOR] = written.data[at + shift : at + shift + SECTOR]
        return bytes(result)

    def describe_writer(self, sector: int) -> str:
        """The last writer of a sector of the secondary disk, in words."""
        owner = abs(self.chain.secondary.contents.read(sector, 1)[0])
        if owner <= self._mark:
            return f"as at checkpoint {self.checkpoints}"
        return f"written after checkpoint {self.checkpoints}"
