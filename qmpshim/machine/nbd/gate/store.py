"""The bytes of one image behind the gate: with allocation and snapshots.

A store keeps one base:allocation state (``STATE_HOLE``, ``STATE_ZERO``) for each 4 KiB block
beside the bytes. Every effect is durable at once: :meth:`Store.snapshot` is what a crash at this
instant would leave. All offsets and lengths are bytes; a range must be inside the image.

Coming back to a snapshot is cheap: a store remembers which blocks were touched since it was last
restored, so restoring the same snapshot again copies only those.
"""

from __future__ import annotations

import mmap
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

from qmpshim.errors import InputError
from qmpshim.machine.nbd.protocol.structured_replies import STATE_HOLE, STATE_ZERO, Extent
from qmpshim.model.units import inside, touched

BLOCK = 4096  # granularity of the allocation states, bytes

_HOLE = STATE_HOLE | STATE_ZERO
_DATA = 0
_PIECE = 1 << 20  # how much is zeroed or scanned at a time, bytes
_NOT = {state: re.compile(b"[^%c]" % state) for state in (_DATA, STATE_ZERO, _HOLE)}


class Store(ABC):
    """One image of ``size`` bytes; ``fast_zero``: zeroing never costs as much as writing."""

    fast_zero = True

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise InputError(f"an image needs at least one byte, not {size}")
        self.size = size
        self._states = bytearray([_HOLE]) * -(-size // BLOCK)
        self._base: bytes | None = None  # the snapshot restored last
        self._base_states = b""
        self._touched: set[int] = set()  # blocks that may differ from it

    @abstractmethod
    def get_bytes(self, offset: int, length: int) -> bytes:
        """The bytes of a range inside the image.

        :raises OSError: the host cannot read
        """

    @abstractmethod
    def put_bytes(self, offset: int, data: bytes | memoryview) -> None:
        """Replace a range inside the image, whatever its blocks' states.

        :raises OSError: the host cannot write
        """

    @abstractmethod
    def flush(self) -> None:
        """Make every effect so far survive a crash of this machine.

        :raises OSError: the host cannot
        """

    @abstractmethod
    def close(self) -> None:
        """Give back memory and descriptors; the store is of no use afterwards."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range.

        :raises OSError: the host cannot read
        """
        self._check(offset, length)
        return self.get_bytes(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``.

        :raises OSError: the host cannot write (a full disk under a file)
        """
        self._check(offset, len(data))
        if data:
            self.mark_blocks(offset // BLOCK, -(-(offset + len(data)) // BLOCK), _DATA)
            self.put_bytes(offset, data)

    def zero(self, offset: int, length: int, hole: bool = True) -> None:
        """Make a range read as zeroes; whole blocks become holes, or stay allocated.

        :raises OSError: the host cannot write
        """
        self._check(offset, length)
        if not length:
            return
        at, end = offset, offset + length
        if self._base is not None:  # before it can fail half-way
            self._touched.update(touched(offset, length, BLOCK))
        for extent in list(self._runs(offset, end)):
            if not extent.state & STATE_ZERO:
                for start in range(at, at + extent.length, _PIECE):
                    self.put_bytes(start, bytes(min(_PIECE, at + extent.length - start)))
            at += extent.length
        # Blocks covered in part keep their state, but a hole that must not be one is filled.
        inner = inside(offset, length, BLOCK, self.size)
        for edge in (offset // BLOCK, (end - 1) // BLOCK):
            if edge not in inner:
                state = self._states[edge]
                self.mark_blocks(
                    edge, edge + 1, STATE_ZERO if state == _HOLE and not hole else state
                )
        if inner:
            self.mark_blocks(inner.start, inner.stop, _HOLE if hole else STATE_ZERO)

    def trim(self, offset: int, length: int) -> None:
        """Discard a range: it reads as zeroes, as a discarded range of a sparse file does."""
        self.zero(offset, length)

    def extents(self, offset: int, length: int, limit: int = 1 << 16) -> list[Extent]:
        """The base:allocation extents of a range, at most ``limit``, the last cut to the range."""
        self._check(offset, length)
        found = []
        for extent in self._runs(offset, offset + length):
            found.append(extent)
            if len(found) == limit:
                break
        return found

    def has_hole(self, offset: int, length: int) -> bool:
        """Whether a range touches a block that is a hole."""
        return self._states.find(_HOLE, offset // BLOCK, -(-(offset + length) // BLOCK)) >= 0

    def snapshot(self) -> bytes:
        """The exact bytes of the whole image, now."""
        return self.get_bytes(0, self.size)

    def restore(self, snapshot: bytes) -> None:
        """Make the image's bytes those of ``snapshot``; blocks of zeroes become holes.

        The same object given twice in a row costs only the blocks touched in between.

        :raises InputError: the snapshot is of another size
        :raises OSError: the host cannot write
        """
        if len(snapshot) != self.size:
            raise InputError(f"a snapshot of {len(snapshot)} bytes for an image of {self.size}")
        states = self._states
        if snapshot is self._base:
            with memoryview(snapshot) as view:
                for block in self._touched:
                    self.put_bytes(block * BLOCK, view[block * BLOCK : (block + 1) * BLOCK])
                    states[block] = self._base_states[block]
        else:
            self.put_bytes(0, snapshot)
            states[:] = _states_of(snapshot)
            self._base, self._base_states = snapshot, bytes(states)
        self._touched.clear()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InputError(f"{offset}+{length} is outside an image of {self.size} bytes")

    def mark_blocks(self, first: int, last: int, state: int) -> None:
        """Set the state of the blocks ``first`` to ``last - 1``."""
        if last - first == 1:
            self._states[first] = state
        else:
            self._states[first:last] = bytes([state]) * (last - first)
        if self._base is not None:
            self._touched.update(range(first, last))

    def _runs(self, at: int, end: int) -> Iterator[Extent]:
        """The extents from byte ``at`` to byte ``end``, neighbours with equal states joined."""
        while at < end:
            block = at // BLOCK
            state = self._states[block]
            other = _NOT[state].search(self._states, block, -(-end // BLOCK))
            stop = min(end, other.start() * BLOCK) if other else end
            yield Extent(stop - at, state)
            at = stop


class MemoryStore(Store):
    """An image in anonymous memory: what was never written costs nothing.

    :param content: the image's size in bytes (all zeroes), or its bytes
    :raises InputError: the image would be empty
    """

    def __init__(self, content: int | bytes) -> None:
        super().__init__(content if isinstance(content, int) else len(content))
        self._memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if not isinstance(content, int):
            self.restore(content)

    def get_bytes(self, offset: int, length: int) -> bytes:
        return self._memory[offset : offset + length]

    def put_bytes(self, offset: int, data: bytes | memoryview) -> None:
        self._memory[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Nothing to do: memory has no later."""

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def _states_of(image: bytes) -> bytes:
    """Data for each block with a byte that is not zero, hole for the others."""
    zeroes = bytes(BLOCK)
    return bytes(
        _HOLE if (block := image[start : start + BLOCK]) == zeroes[: len(block)] else _DATA
        for start in range(0, len(image), BLOCK)
    )
