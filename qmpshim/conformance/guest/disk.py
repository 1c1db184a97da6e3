"""The guest's end of a chain when there is a guest: its own program does the I/O.

``guest-images/workload.c`` writes the sectors of :mod:`qmpshim.conformance.pattern` and tells whose
sectors it reads. To a :class:`~qmpshim.conformance.session.Session` that looks like an NBD client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qmpshim.conformance import pattern
from qmpshim.conformance.workload import Kind, Operation, Side
from qmpshim.errors import IOFailed, MachineError
from qmpshim.machine.guest import RUN_LIMIT, Guest
from qmpshim.model.disk import SECTOR

PROGRAM = "/bin/workload"
_LINE = re.compile(r"(?m)^(\d+) (\w+) (\d+) (\d+) (?:wrong )?(\S+)\r?$")
_RUN = re.compile(r"(?:(\d+)(?:@(\d+))?|\?([0-9a-f]{16}))x(\d+)")
_STRANGE = 0xEE  # what stands for the bytes that the guest's program does not tell
_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class GuestLied(MachineError):
    """The guest's program told something that cannot be."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the guest's program said about one operation.

    :ivar errno: the error it ended with, 0 for success
    :ivar data: of a read, the bytes that were seen, as far as the program tells them apart
    """

    operation: Operation
    errno: int = 0
    data: bytes = b""


def read_lines(output: str) -> Iterator[Told]:
    """What the program said, a line an operation; other lines (the kernel's) are passed over.

    :raises GuestLied: it cannot be
    """
    for number, kind, start, count, said in _LINE.findall(output):
        try:
            operation = Operation(int(number), Side.GUEST, Kind(kind), int(start), int(count))
        except ValueError as error:
            raise GuestLied(f"the guest's program did {kind!r}") from error
        if said == "ok":
            yield Told(operation)
        elif said.isdecimal():
            yield Told(operation, errno=int(said))
        else:
            yield Told(operation, data=_bytes(operation, said))


def _bytes(operation: Operation, runs: str) -> bytes:
    """The bytes of a read, made again from the owners told."""
    pieces = []
    at = operation.start
    for run in runs.split("+"):
        found = _RUN.fullmatch(run)
        if not found:
            raise GuestLied(f"{operation}: the guest's program told {run!r}")
        owner, home, strange, count = found[1], found[2], found[3], int(found[4])
        if strange:
            sector = bytes.fromhex(strange) + bytes([_STRANGE]) * (SECTOR - 8)
            pieces.append(sector * count)
        elif owner == "0":
            pieces.append(bytes(SECTOR * count))
        else:
            place = int(home) if home else at
            pieces.append(bytes(pattern.data_of(int(owner), place, count)))
        at += count
    if at != operation.start + operation.count:
        raise GuestLied(f"{operation}: the guest's program told of {at - operation.start} sectors")
    return b"".join(pieces)


class GuestDisk:
    """A disk of the guest as a :class:`~qmpshim.machine.nbd_client.BlockClient`, one I/O at a time.

    :param disk: its device in the guest, e.g. ``/dev/vda``
    """

    def __init__(self, guest: Guest, disk: str, limit: float = RUN_LIMIT) -> None:
        self._guest = guest
        self._disk = disk
        self._limit = limit
        self._buffer: bytearray | None = None
        self._cookie = 0

    def submit_read(self, buffer: bytearray, offset: int) -> int:
        self._buffer = buffer
        return self._submit(Kind.READ, 0, offset, len(buffer))

    def submit_write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        # The guest makes the bytes itself; here it is enough to know whose they are.
        tag = int(np.frombuffer(data, dtype=np.uint64, count=1)[0])
        return self._submit(Kind.WRITE, tag >> pattern.SECTOR_BITS, offset, len(data))

    def submit_zero(self, length: int, offset: int) -> int:
        return self._submit(Kind.ZERO, 0, offset, length)

    def submit_discard(self, length: int, offset: int) -> int:
        return self._submit(Kind.DISCARD, 0, offset, length)

    def submit_flush(self) -> int:
        return self._submit(Kind.FLUSH, 0, 0, 0)

    def _submit(self, kind: Kind, number: int, offset: int, length: int) -> int:
        place = "" if kind is Kind.FLUSH else f" {offset // SECTOR} {length // SECTOR}"
        self._guest.send(f"{PROGRAM} {self._disk} {kind} {number}{place}")
        self._cookie += 1
        return self._cookie

    def wait(self, cookie: int) -> None:
        """Wait for the one I/O that is under way.

        :raises IOFailed: the guest got an error
        :raises MachineError: the guest is gone, or its program told nothing that can be
        """
        buffer, self._buffer = self._buffer, None
        output = self._guest.finish(self._limit, check=False).output
        told = list(read_lines(output))
        if len(told) != 1:
            raise GuestLied(f"the guest's program said {output.strip()!r}")
        if told[0].errno:
            raise IOFailed(f"guest {told[0].operation.kind}", told[0].errno)
        if buffer is not None:
            buffer[:] = told[0].data

    def close(self) -> None:
        """Nothing is open between two operations."""


def random_operations(
    seed: int, times: int, number: int, start: int, length: int
) -> Iterator[Operation]:
    """What ``workload random SEED COUNT OP START LENGTH`` does, made a second time here."""
    state = seed

    def draw() -> int:
        nonlocal state
        state = (state + _STEP) & _MASK
        z = state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
        return z ^ z >> 31

    kinds = [*[Kind.WRITE] * 7, Kind.ZERO, *[Kind.READ] * 7, Kind.FLUSH]
    for index in range(times):
        kind, shape, where = kinds[draw() % 16], draw(), draw()
        count = min((1, 8, 1 + (shape >> 8) % 256, 128)[shape % 4], length)
        where %= length - count + 1
        if shape >> 4 & 1:
            where -= where % 8
        if kind is Kind.FLUSH:
            yield Operation(number + index, Side.GUEST, kind)
        else:
            yield Operation(number + index, Side.GUEST, kind, start + where, count)
