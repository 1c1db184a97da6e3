"""Which I/O is held, what it is called, and whose it is.

Where qcow2 puts a cluster in its file depends on which write came first, so host offsets are no
names. What a request carries is one: every sector of our data names the operation that wrote it and
its place (:mod:`qmpshim.conformance.workload.pattern`). So a write to an overlay is *data* when it
carries such a sector, and is named by the guest sector; the place is remembered, and reads of it
are data, too. Everything else in an overlay is metadata; it passes at once unless all I/O is held.

A request belongs to the operation whose step made it possible, unless its data names another.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qmpshim.conformance.explore.harness.choices import IoId
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.chains import DISKS
from qmpshim.machine.chain.parts import disk_of, first_of
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import SECTOR, outwards

_STEP1 = int(pattern._STEP[1])
_BITS = pattern.SECTOR_BITS
_MASK = (1 << _BITS) - 1
_NEAR = 128  # sectors: an operation on part of a cluster may need all of it
GARBAGE = -(1 << 62)  # the owner of a sector whose bytes no operation wrote

#: What requests are called.
VERBS = {
    Nbd.READ: "read",
    Nbd.WRITE: "write",
    Nbd.WRITE_ZEROES: "zero",
    Nbd.TRIM: "discard",
    Nbd.FLUSH: "flush",
    Nbd.BLOCK_STATUS: "status",
}
#: Those that only look at an image, and so need no room in it.
LOOKS = frozenset({"read", "status"})
#: Those that leave an image's content as it is.
CHANGE_NOTHING = LOOKS | {"flush"}


@functools.lru_cache(maxsize=256)  # schedule after schedule writes the same
def tags(data: bytes) -> tuple[tuple[int, int, int], ...]:
    """(place, operation, sector) of the first and the following differing traceable sectors.

    :returns: one entry for each run of sectors of one operation; places are sectors in *data*
    """
    found: list[tuple[int, int, int]] = []
    for at in range(0, len(data) - 15, SECTOR):
        tag = int.from_bytes(data[at : at + 8], "little")
        if tag >> _BITS and int.from_bytes(data[at + 8 : at + 16], "little") == tag ^ _STEP1:
            operation = tag >> _BITS
            if not found or found[-1][1] != operation:
                found.append((at // SECTOR, operation, tag & _MASK))
    return tuple(found)


def owners(data: bytes | memoryview, start: int) -> list[int]:
    """Whose each sector is: an operation, 0 for zeroes, or :data:`GARBAGE`.

    :param start: the sector at which the first belongs; data from elsewhere is garbage
    """
    rows = np.frombuffer(data, dtype=np.uint64).reshape(-1, pattern.WORDS)
    first = rows[:, 0]
    home = np.arange(start, start + len(rows), dtype=np.uint64)
    whole = ((rows ^ first[:, None]) == pattern._STEP).all(axis=1)
    good = whole & ((first & np.uint64(_MASK)) == home) & (first >> np.uint64(_BITS) > 0)
    result = np.where(good, (first >> np.uint64(_BITS)).astype(np.int64), GARBAGE)
    if not good.all():
        result = np.where(~rows.any(axis=1), 0, result)
    values: list[int] = result.tolist()
    return values


@dataclass(frozen=True, slots=True)
class NamedIo:
    """A held request with its name.

    :ivar start: guest sector, :ivar count: sectors (0 for a flush)
    """

    id: IoId
    io: HeldIO
    start: int
    count: int

    @property
    def op(self) -> int:
        """The operation that it belongs to."""
        return self.id.op

    @property
    def verb(self) -> str:
        """What is done."""
        return self.id.verb

    @property
    def meta(self) -> bool:
        """Whether it is about an overlay's tables, not data."""
        return self.id.meta


class IoNames:
    """Names the requests of one execution.

    :param ops: the concurrent operations
    :param numbers: under which each writes
    :param all_io: hold every request, metadata among them
    :param apart: the number of a second disk's first sector: they come after those of the first, so
        that the name of an I/O of data needs no disk
    :param secondary: by secondary disk where its sectors are in its file, by place; ``None``: raw
    """

    def __init__(
        self,
        ops: Sequence[Operation],
        numbers: Sequence[int],
        all_io: bool = False,
        secondary: Mapping[str, Mapping[int, int]] | None = None,
        apart: int = 0,
    ) -> None:
        self._ops = ops
        self._by_number = {number: index for index, number in enumerate(numbers)}
        self._all_io = all_io
        self._apart = apart
        self._places: dict[str, dict[int, int]] = {}  # image: host sector -> guest sector
        self._nth: Counter[IoId] = Counter()
        self._raw = {*DISKS} if secondary is None else {*DISKS} - {"secondary"}
        for image, places in (secondary or {}).items():
            self._places[image] = dict(places)
        self.flushing = False  # a flush is an operation now, and to be held

    def joined(self, number: int) -> None:
        """One more operation was appended to the concurrent ones; it writes under *number*."""
        self._by_number[number] = len(self._ops) - 1

    def holds(self, io: HeldIO) -> bool:
        """Whether this request is held as a choice, not passed on.

        A write to an overlay shows where in the file qcow2 put a cluster: that is remembered here.
        """
        if io.op is Nbd.BLOCK_STATUS:
            return self._all_io
        if first_of(io.image) in self._raw:
            return True
        if io.op is Nbd.FLUSH:
            return self.flushing or self._all_io
        if io.op is Nbd.WRITE:
            found = tags(io.data)
            if found:
                place, _, sector = found[0]
                places = self._places.setdefault(io.image, {})
                host = io.offset // SECTOR
                for index in range(-(-io.length // SECTOR)):
                    places[host + index] = sector - place + index
                return True
        elif io.op is Nbd.READ and self.guest_sector(io) is not None:
            return True
        return self._all_io

    def guest_sector(self, io: HeldIO) -> int | None:
        """The guest sector of a request."""
        if first_of(io.image) in self._raw:
            return io.offset // SECTOR + disk_of(io.image) * self._apart
        return self._places.get(io.image, {}).get(io.offset // SECTOR)

    def name(
        self, io: HeldIO, mover: int, unfinished: Sequence[int], still: Sequence[int] | None = None
    ) -> NamedIo:
        """Give a held request its name.

        :param mover: the operation whose step let this request happen
        :param unfinished: the operations that were under way then
        :param still: those of them that are now, too; ``None``: all
        """
        verb = VERBS[io.op]
        guest = self.guest_sector(io)
        start, count = guest or 0, -(-io.length // SECTOR)
        carried = [number for _, number, _ in tags(io.data)] if io.op is Nbd.WRITE else []
        meta = guest is None and verb != "flush"
        owners = still if meta and still is not None else unfinished
        op = self._owner(io, verb, start, count, meta, carried, mover, owners)
        if io.op is Nbd.FLUSH:
            place = ""
        elif meta:
            place = f"meta {io.offset}+{io.length}"
        else:
            place = f"{start}+{count}"
        has_sector = guest is not None and verb != "flush"
        first = IoId(op, first_of(io.image) if has_sector else io.image, verb, place)
        nth = self._nth[first]
        self._nth[first] += 1
        return NamedIo(first._replace(nth=nth) if nth else first, io, start, count)

    def _owner(
        self,
        io: HeldIO,
        verb: str,
        start: int,
        count: int,
        meta: bool,
        carried: list[int],
        mover: int,
        unfinished: Sequence[int],
    ) -> int:
        image = first_of(io.image)
        if image in (*DISKS, "active") and verb == "write":
            for number in carried:
                index = self._by_number.get(number)
                if index is not None and index in unfinished:
                    return index
        fitting = [
            i for i in unfinished if self._may(self._ops[i], image, verb, start, count, meta)
        ]
        if mover in fitting or not fitting:
            return mover
        return fitting[0]

    @staticmethod
    def _may(op: Operation, image: str, verb: str, start: int, count: int, meta: bool) -> bool:
        """Whether an operation could need such a request; one table is about many clusters."""
        if op.backs_up:  # its job copies in the background
            return image == "hidden" or verb in CHANGE_NOTHING
        if verb == "flush":
            return op.makes_durable or op.verb in (Verb.FAILOVER, Verb.CHECKPOINT, Verb.STOP)
        if op.verb in (Verb.FAILOVER, Verb.START, Verb.CHECKPOINT, Verb.STOP):
            return op.verb is not Verb.CHECKPOINT or image != "secondary"
        first, end = outwards(op.start, op.count, _NEAR)
        near = meta or (first < start + count and start < end)
        if not near or not op.count:
            return False
        looks = verb in LOOKS
        if op.reads:
            return looks
        if op.is_guest and op.writes:
            return image in ("primary", "tertiary", "active") or looks
        own = image in DISKS
        return own or (image == "hidden" and (meta or not looks))
