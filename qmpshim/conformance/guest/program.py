"""The guest's own program (``guest-images/workload.c``): what it chooses, and the lines it prints.

It writes the sectors of :mod:`qmpshim.conformance.workload.pattern` and reports whose sectors it
reads; what it does at random follows from its seed, so it is known here as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qmpshim.conformance.workload import pattern
from qmpshim.errors import MachineError
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR

PROGRAM = "/bin/workload"
# A console at its prompt has no newline before the program's first line.
_LINE = re.compile(r"(?m)^(?:\[ready\] guest# )?(\d+) (\w+) (\d+) (\d+) (?:wrong )?(\S+)\r?$")
_RUN = re.compile(r"(?:(\d+)(?:@(\d+))?|\?([0-9a-f]{16}))x(\d+)")
_STRANGE = 0xEE  # what stands for the bytes that the guest's program does not report
_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class GuestMisreported(MachineError):
    """The guest's program reported something that cannot be."""


@dataclass(frozen=True, slots=True)
class ProgramReport:
    """What the guest's program reported about one operation.

    :ivar errno: the error it ended with, 0 for success
    :ivar data: of a read, the bytes that were seen, as far as the program distinguishes them
    """

    operation: Operation
    errno: int = 0
    data: bytes = b""


def read_lines(output: str) -> Iterator[ProgramReport]:
    """What the program reported, a line an operation; other lines (the kernel's) are passed over.

    :raises GuestLied: it cannot be
    """
    for number, kind, start, count, result in _LINE.findall(output):
        try:
            operation = Operation(
                Side.GUEST, Verb(kind), int(start), int(count), number=int(number)
            )
        except ValueError as error:
            raise GuestMisreported(f"the guest's program did {kind!r}") from error
        if result == "ok":
            yield ProgramReport(operation)
        elif result.isdecimal():
            yield ProgramReport(operation, errno=int(result))
        else:
            yield ProgramReport(operation, data=_bytes(operation, result))


def _bytes(operation: Operation, runs: str) -> bytes:
    """The bytes of a read, made again from the owners reported."""
    pieces = []
    at = operation.start
    for run in runs.split("+"):
        found = _RUN.fullmatch(run)
        if not found:
            raise GuestMisreported(f"{operation}: the guest's program told {run!r}")
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
        raise GuestMisreported(
            f"{operation}: the guest's program told of {at - operation.start} sectors"
        )
    return b"".join(pieces)


def random_operations(seed: int, times: int, number: int, length: int) -> Iterator[Operation]:
    """What ``workload random SEED COUNT OP 0 LENGTH`` does, made a second time here.

    :param times: how many operations, numbered from *number* on
    :param length: sectors that it uses, from the first on
    """
    state = seed

    def draw() -> int:
        nonlocal state
        state = (state + _STEP) & _MASK
        z = state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
        return z ^ z >> 31

    kinds = [*[Verb.WRITE] * 7, Verb.ZERO, *[Verb.READ] * 7, Verb.FLUSH]
    for index in range(times):
        kind, shape, where = kinds[draw() % 16], draw(), draw()
        count = min((1, 8, 1 + (shape >> 8) % 256, 128)[shape % 4], length)
        where %= length - count + 1
        if shape >> 4 & 1:
            where -= where % 8
        if kind is Verb.FLUSH:
            yield Operation(Side.GUEST, kind, number=number + index)
        else:
            yield Operation(Side.GUEST, kind, where, count, number=number + index)
