"""What one image holds, and what a chain of them reads as: slices of the files' bytes.

Our own walk of the tables (``qcow2.py``) finds them. Offsets and lengths are guest bytes unless a
name contains "host".

An image must hold still while it is looked at. A file is mapped, not copied: reading a mapping
after QEMU cut the file short (a checkpoint empties an overlay that way) is a SIGBUS.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qmpshim.errors import UnsupportedFeature
from qmpshim.machine.host.files import BytesLike, file_extents, map_file
from qmpshim.machine.images.qcow2 import Qcow2Reader, Run
from qmpshim.model.disks.image import Alloc


class Piece(NamedTuple):
    """``length`` bytes at guest ``offset``; ``data`` only for DATA, ``length`` bytes long."""

    offset: int
    length: int
    alloc: Alloc
    data: memoryview | None


class ImageView:
    """The bytes that one qcow2 image itself holds, as slices of its file; not of its backing file.

    The tables are read once, here: look again with a new view after the image changed.

    :param image: the image file's bytes; kept, and copied only where clusters are compressed
    :param data: the bytes of the image's external data file, if it has one; kept, not copied
    :ivar unit_size: of a subcluster, or of a cluster where the image has none; in bytes
    :raises ImageError: as :meth:`Qcow2Reader.parse` and :meth:`Qcow2Reader.clusters`
    :raises UnsupportedFeature: the same, and an external data file without *data*
    """

    def __init__(self, image: BytesLike, *, data: BytesLike | None = None) -> None:
        qcow2 = Qcow2Reader.parse(image)
        self.virtual_size, self.cluster_size = qcow2.virtual_size, qcow2.cluster_size
        self.unit_size = qcow2.unit_size
        self._image = memoryview(image).cast("B")
        if qcow2.header.external_data:
            if data is None:
                raise UnsupportedFeature("an external data file that is out of reach")
            self._image = memoryview(data).cast("B")
        self._clusters = qcow2.clusters()
        self._runs: list[Run] = list(qcow2.runs(self._clusters))
        self._extra_at = sys.maxsize
        if self._clusters.decompressed:
            self._extra_at = qcow2.extra_at
            self._image = qcow2.with_decompressed(self._clusters)
        self._starts = [run.offset for run in self._runs]

    @classmethod
    def open(cls, path: str | Path) -> ImageView:
        """As the constructor, on a file; the header names an external data file.

        :raises HostError: a file cannot be opened
        """
        image = map_file(path)
        return cls(image, data=external_data(path, Qcow2Reader.parse(image)))

    def runs(self, offset: int = 0, length: int | None = None) -> Iterator[Run]:
        """All of a range, in order and without gaps: UNALLOCATED runs included.

        :param length: None means up to the end; bytes past the virtual size are left out
        """
        end = self.virtual_size if length is None else min(self.virtual_size, offset + length)
        first = max(0, bisect_right(self._starts, offset) - 1)
        for at in range(first, bisect_left(self._starts, end)):
            start, count, alloc, host = self._runs[at]
            if offset < start:
                yield Run(offset, start - offset, Alloc.UNALLOCATED, None)
                offset = start
            skipped, stop = offset - start, min(end, start + count)
            if offset < stop:
                yield Run(offset, stop - offset, alloc, None if host is None else host + skipped)
                offset = stop
        if offset < end:
            yield Run(offset, end - offset, Alloc.UNALLOCATED, None)

    def is_compressed(self, run: Run) -> bool:
        """Whether a run is of compressed clusters: its host offset is nowhere in the file then."""
        return run.host_offset is not None and run.host_offset >= self._extra_at

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[Piece]:
        """As :meth:`runs`, with the bytes: in as few pieces as the image's layout allows."""
        for run in self.runs(offset, length):
            if run.host_offset is None:
                yield Piece(run.offset, run.length, run.alloc, None)
                continue
            data = self._image[run.host_offset : run.host_offset + run.length]
            if len(data):
                yield Piece(run.offset, len(data), run.alloc, data)
            missing = run.length - len(data)  # the file's end cut the last cluster short
            if missing:
                zeroes = memoryview(bytes(missing))
                yield Piece(run.offset + len(data), missing, run.alloc, zeroes)

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """The bytes of a range in one array, zeroes where the image holds none.

        Copies, a cluster at a time and outside Python: for small clusters in random order this is
        faster than to look at each piece; for large runs :meth:`pieces` is.
        """
        length = max(0, min(length, self.virtual_size - offset))
        if not length:
            return np.zeros(0, np.uint8)
        size, found = self.unit_size, self._clusters
        first, last = offset // size, (offset + length - 1) // size
        here = slice(*np.searchsorted(found.index, (first, last + 1)))
        data = found.kind[here] == Alloc.DATA
        index, host = found.index[here][data] - first, found.host[here][data] // size
        whole = len(self._image) // size
        if len(host) and int(host.max()) >= whole:  # the file's end cuts that cluster short
            pieces = [
                np.frombuffer(p.data or bytes(p.length), np.uint8)
                for p in self.pieces(offset, length)
            ]
            return np.concatenate(pieces)
        file = np.frombuffer(self._image, np.uint8, whole * size).reshape(whole, size)
        out = np.zeros((last + 1 - first, size), np.uint8)
        out[index] = file[host]
        return out.reshape(-1)[offset - first * size :][:length]


class RawFile:
    """A raw image as its file, which is not mapped: it may be larger than what can be.

    :raises OSError: the file cannot be read
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.virtual_size = path.stat().st_size
        self._stored = list(file_extents(path))

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[Piece]:
        """All of a range: what the host's file system stores is DATA, and its holes are ZERO."""
        end = self.virtual_size if length is None else min(self.virtual_size, offset + length)
        first = bisect_right(self._stored, offset, key=lambda extent: extent[0])
        with self._path.open("rb") as file:
            for start, count in self._stored[max(0, first - 1) :]:
                if start >= end:
                    break
                if offset < start:
                    yield Piece(offset, start - offset, Alloc.ZERO, None)
                    offset = start
                if (some := min(end, start + count) - offset) > 0:
                    data = memoryview(os.pread(file.fileno(), some, offset))
                    yield Piece(offset, some, Alloc.DATA, data)
                    offset += some
        if offset < end:
            yield Piece(offset, end - offset, Alloc.ZERO, None)


class InPieces(Protocol):
    """One image of a chain."""

    virtual_size: int

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[Piece]:
        """All of a range, in order and without gaps."""


def external_data(path: str | Path, qcow2: Qcow2Reader) -> BytesLike | None:
    """The bytes of the external data file that an image's header names; None without a name.

    :param path: of the image, whose directory a relative name begins at
    :raises HostError: the file cannot be opened
    """
    name = qcow2.header.data_file
    if not qcow2.header.external_data or name is None:
        return None
    return map_file(Path(path).parent / name)


def through(
    chain: Sequence[InPieces], offset: int = 0, length: int | None = None
) -> Iterator[Piece]:
    """A range as a reader of a chain of images sees it: every piece is DATA or ZERO.

    :param chain: the top image first, each one's backing file after it; the range is clipped to the
        top's size, and what no image holds (or is past the end of a shorter backing file) is ZERO
    """
    top, below = chain[0], chain[1:]
    for piece in top.pieces(offset, length):
        if piece.alloc is not Alloc.UNALLOCATED:
            yield piece
            continue
        covered = 0
        if below:
            covered = max(0, min(piece.length, below[0].virtual_size - piece.offset))
            yield from through(below, piece.offset, covered)
        if covered < piece.length:
            yield Piece(piece.offset + covered, piece.length - covered, Alloc.ZERO, None)
