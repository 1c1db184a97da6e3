"""Traceable data: every sector's bytes name the operation that wrote it, and where it belongs.

A sector is 64 little-endian words ``tag ^ STEP[i]``, with ``tag = operation << 36 | sector`` and
``STEP[0] = 0``; so word 0 can be read as it is, and no word equals its neighbour.  Sectors that the
model has as zero (owners <= 0) are zero bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qmpshim.machine.host.files import Bytes
from qmpshim.model.disks.image import PAGE, Owners
from qmpshim.model.units import SECTOR

Words = npt.NDArray[np.uint64]

WORDS = SECTOR // 8
SECTOR_BITS = 36
_SECTOR_MASK = (1 << SECTOR_BITS) - 1
MAX_OPERATIONS = 1 << (63 - SECTOR_BITS)
_STEP: Words = np.arange(WORDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_NUMBERS: Words = np.arange(1 << 16, dtype=np.uint64)


def _numbers(count: int) -> Words:
    return _NUMBERS[:count] if count <= len(_NUMBERS) else np.arange(count, dtype=np.uint64)


def data_of(operation: int, start: int, count: int, into: Words | None = None) -> memoryview:
    """What *operation* writes into *count* sectors from sector *start*.

    :param into: rows of words to use, at least *count*; otherwise new ones are made
    """
    tags = np.uint64(operation << SECTOR_BITS | start) + _numbers(count)
    words = np.empty((count, WORDS), dtype=np.uint64) if into is None else into[:count]
    np.bitwise_xor(tags[:, None], _STEP, out=words)
    return words.data.cast("B")


class Recorded:
    """The bytes of operations that were seen, not made: their sectors name no operation."""

    def __init__(self) -> None:
        self._data: dict[int, tuple[int, Words]] = {}

    def add(self, operation: int, start: int, data: Bytes) -> None:
        """*operation* wrote *data* (whole sectors, copied) from sector *start* on."""
        words = np.frombuffer(bytes(data), dtype=np.uint64).reshape(-1, WORDS)
        self._data[operation] = (start, words)

    def fill(self, words: Words, owners: npt.NDArray[np.int64], start: int) -> None:
        """Put the recorded bytes where *owners* (of the sectors from *start* on) name them."""
        for owner in np.unique(owners).tolist():
            if owner in self._data:
                first, data = self._data[owner]
                rows = np.flatnonzero(owners == owner)
                words[rows] = data[rows + (start - first)]


def expected(
    owners: Owners, start: int, into: Words | None = None, recorded: Recorded | None = None
) -> Words:
    """The bytes of the sectors from *start* on that have these *owners*, as rows of words."""
    owner = np.frombuffer(owners, dtype=np.int64)
    count = len(owner)
    tags = (owner.view(np.uint64) << np.uint64(SECTOR_BITS)) | (np.uint64(start) + _numbers(count))
    words = np.empty((count, WORDS), dtype=np.uint64) if into is None else into[:count]
    np.bitwise_xor(tags[:, None], _STEP, out=words)
    zero = owner <= 0
    if zero.any():
        words[zero] = 0
    if recorded is not None:
        recorded.fill(words, owner, start)
    return words


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A run of sectors whose bytes are not the predicted ones.

    :ivar start: first sector
    :ivar count: sectors
    :ivar predicted: owner of the first sector according to the model
    :ivar found: what is there instead, in words
    """

    start: int
    count: int
    predicted: int
    found: str

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"sectors {self.start}..{self.start + self.count - 1}"

    @property
    def prediction(self) -> str:
        """What is predicted there, in words."""
        return f"{describe_owner(self.predicted)} in {self.place}"

    def __str__(self) -> str:
        return (
            f"{self.place} (byte {self.start * SECTOR}): "
            f"predicted {describe_owner(self.predicted)}, found {self.found}"
        )


def describe_owner(owner: int) -> str:
    """An owner in words."""
    if owner > 0:
        return f"the data of operation {owner}"
    if owner < 0:
        return f"zeroes made by operation {-owner}"
    return "zeroes nobody ever wrote"


def describe_bytes(sector: Bytes, number: int) -> str:
    """Whose bytes are found in sector *number*."""
    words = np.frombuffer(sector, dtype=np.uint64)
    if not words.any():
        return "zeroes"
    tags = words ^ _STEP
    tag = int(np.bincount(np.unique(tags, return_inverse=True)[1]).argmax())
    common = int(np.unique(tags)[tag])
    wrong = int((tags != np.uint64(common)).sum())
    operation, home = common >> SECTOR_BITS, common & _SECTOR_MASK
    if wrong > WORDS // 2 or operation == 0:
        return f"bytes no operation wrote ({bytes(sector[:8]).hex()}...)"
    text = f"the data of operation {operation}"
    if home != number:
        text += f" for sector {home}"
    if wrong:
        text += f", {wrong} of its {WORDS} words damaged"
    return text


def mismatches(
    found: Bytes, owners: Owners, start: int, recorded: Recorded | None = None
) -> list[Mismatch]:
    """Compare bytes with the model; runs of sectors that agree on what is wrong are one entry.

    :param found: the bytes of ``len(owners)`` sectors from sector *start*
    """
    want = expected(owners, start, recorded=recorded)
    have = np.frombuffer(found, dtype=np.uint64).reshape(-1, WORDS)
    if np.array_equal(want, have):
        return []
    bad = np.flatnonzero((want != have).any(axis=1))
    result: list[Mismatch] = []
    for index in bad.tolist():
        number = start + index
        text = describe_bytes(have[index].tobytes(), number)
        last = result[-1] if result else None
        if (
            last is not None
            and last.start + last.count == number
            and last.predicted == owners[index]
            and last.found == text
        ):
            result[-1] = Mismatch(last.start, last.count + 1, last.predicted, text)
        else:
            result.append(Mismatch(number, 1, owners[index], text))
    return result


class Readable(Protocol):
    """What knows the owners of sectors: an image's contents, a view of a chain."""

    def read(self, start: int, count: int) -> Owners:
        """The owners of *count* sectors from sector *start*."""


class _Kept:
    """What an image is to hold in some place, as bytes; only what changed is made anew.

    :param count: sectors, which are zeroes at first
    """

    def __init__(self, count: int) -> None:
        self._owners = np.zeros(count, dtype=np.int64)
        self._words: Words = np.zeros((count, WORDS), dtype=np.uint64)

    def words(self, owners: Owners, at: int, start: int) -> Words:
        """The bytes of the sectors from place *at* on, which have these owners now.

        :param start: the first one's number on the disk
        """
        owner = np.frombuffer(owners, dtype=np.int64)
        here = slice(at, at + len(owner))
        known, words = self._owners[here], self._words[here]
        rows = np.flatnonzero(owner != known)
        if len(rows):
            new = owner[rows]
            known[rows] = new
            tags = new.view(np.uint64) << np.uint64(SECTOR_BITS)
            tags |= (rows + start).astype(np.uint64)
            words[rows] = tags[:, None] ^ _STEP
            words[rows[new <= 0]] = 0
        return words


class Comparer:
    """Compares long stretches of an image with the model's contents, at memory speed.

    :param recorded: operations whose bytes are not those of the pattern
    :param keep: of so many MiB it keeps what they are to hold: to make that takes longer than to
        compare it, and little changes between two looks at the same disk
    """

    BATCH = 16  # pages at a time: 1 MiB of disk, so that everything stays in the cache

    def __init__(self, recorded: Recorded | None = None, keep: int = 0) -> None:
        self._recorded = recorded
        self._keep = 0 if recorded else keep
        self._kept: dict[int, _Kept] = {}  # by number, each a MiB
        self._want: Words = np.empty((self.BATCH * PAGE, WORDS), dtype=np.uint64)
        self._equal = np.empty((self.BATCH * PAGE, WORDS), dtype=np.bool_)
        self.sectors = 0  # compared so far

    def same(self, found: bytearray, owners: Owners, start: int) -> bool:
        """Whether *found* is what these owners' sectors hold: the answer alone, and at once."""
        want = expected(owners, start, self._want if len(owners) <= len(self._want) else None)
        return found == want.data  # a bytearray's comparison is memcmp()

    def compare(self, found: Bytes, contents: Readable, start: int) -> list[Mismatch]:
        """Compare the bytes *found* from sector *start* on with *contents*."""
        have = np.frombuffer(found, dtype=np.uint64).reshape(-1, WORDS)
        result: list[Mismatch] = []
        step = self.BATCH * PAGE
        at, total = 0, len(have)
        while at < total:
            count = min(step - (start + at) % step, total - at)
            owners = contents.read(start + at, count)
            want = self._expected(owners, start + at)
            equal = np.equal(want, have[at : at + count], out=self._equal[:count])
            if not equal.all():
                piece = have[at : at + count].tobytes()
                result += mismatches(piece, owners, start + at, self._recorded)
            at += count
        self.sectors += total
        return result

    def _expected(self, owners: Owners, start: int) -> Words:
        number, at = divmod(start, self.BATCH * PAGE)
        kept = self._kept.get(number)
        if kept is None:
            if len(self._kept) == self._keep:
                return expected(owners, start, self._want, self._recorded)
            kept = self._kept[number] = _Kept(self.BATCH * PAGE)
        return kept.words(owners, at, start)
