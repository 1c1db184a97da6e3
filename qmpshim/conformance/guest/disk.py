"""The guest's end of a chain when there is a guest: its own program does the I/O.

To a :class:`~qmpshim.conformance.workload.session.WorkloadRun` that looks like an NBD client.
"""

from __future__ import annotations

import numpy as np

from qmpshim.conformance.guest.program import PROGRAM, GuestMisreported, read_lines
from qmpshim.conformance.workload import pattern
from qmpshim.errors import IOFailed
from qmpshim.machine.guest.console import RUN_LIMIT
from qmpshim.machine.guest.guest import Guest
from qmpshim.machine.host.files import Bytes
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR


class GuestDisk:
    """A disk of the guest as a :class:`~qmpshim.machine.nbd.client.BlockClient`, one I/O at a time.

    :param disk: its device in the guest, e.g. ``/dev/vda``
    """

    def __init__(self, guest: Guest, disk: str) -> None:
        self._guest = guest
        self._disk = disk
        self._buffer: bytearray | None = None
        self._submitted: Operation | None = None
        self._cookie = 0

    def submit_read(self, buffer: bytearray, offset: int) -> int:
        self._buffer = buffer
        return self._submit(Verb.READ, 0, offset, len(buffer))

    def submit_write(self, data: Bytes, offset: int) -> int:
        # The guest makes the bytes itself; here it is enough to know whose they are.
        tag = int(np.frombuffer(data, dtype=np.uint64, count=1)[0])
        return self._submit(Verb.WRITE, tag >> pattern.SECTOR_BITS, offset, len(data))

    def submit_zero(self, length: int, offset: int) -> int:
        return self._submit(Verb.ZERO, 0, offset, length)

    def submit_discard(self, length: int, offset: int) -> int:
        return self._submit(Verb.DISCARD, 0, offset, length)

    def submit_flush(self) -> int:
        return self._submit(Verb.FLUSH, 0, 0, 0)

    def _submit(self, verb: Verb, number: int, offset: int, length: int) -> int:
        operation = Operation(Side.GUEST, verb, offset // SECTOR, length // SECTOR, number=number)
        place = "" if verb is Verb.FLUSH else f" {operation.start} {operation.count}"
        self._guest.send(f"{PROGRAM} {self._disk} {verb} {number}{place}")
        self._submitted = operation
        self._cookie += 1
        return self._cookie

    def wait(self, cookie: int) -> None:
        """Wait for the one I/O that is under way.

        :raises IOFailed: the guest got an error
        :raises MachineError: the guest is gone, or its program reported what cannot be
        """
        buffer, self._buffer = self._buffer, None
        output = self._guest.finish(RUN_LIMIT, check=False).output
        reports = list(read_lines(output))
        if [line.operation for line in reports] != [self._submitted]:
            raise GuestMisreported(
                f"the guest's program was to do {self._submitted}, and said {output.strip()!r}"
            )
        if reports[0].errno:
            raise IOFailed(f"guest {reports[0].operation.verb}", reports[0].errno)
        if buffer is not None:
            buffer[:] = reports[0].data

    def close(self) -> None:
        """Nothing is open between two operations."""
