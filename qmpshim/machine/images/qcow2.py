"""Reads a qcow2 image's tables from its bytes, by the format's document and not by QEMU's code.

Source for every field and bit: docs/interop/qcow2.txt of QEMU 7.2.0. Extended L2 entries, external
data files and compressed clusters are read; what is not (encryption, compression by zstd, unknown
incompatible bits) raises :class:`~qmpshim.errors.UnsupportedFeature`.

The image is any buffer: an ``mmap`` of a file, or the ``bytearray`` that an in-memory NBD export
writes to. Nothing here does I/O. A buffer must hold still while it is looked at: a ``bytearray``
cannot be resized as long as a :class:`Qcow2Reader` on it lives, and touching an ``mmap`` of a file
that was cut short is a SIGBUS.

Bytes past the end of the file read as zeroes, as they do in QEMU's block layer: the last host
cluster may be cut short, so long as it starts inside the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmpshim.errors import ImageError, UnsupportedFeature
from qmpshim.machine.host.files import BytesLike
from qmpshim.machine.images.qcow2_compressed import compressed_extents, decompress
from qmpshim.machine.images.qcow2_header import Header, Incompatible, parse_header
from qmpshim.model.disks.image import Alloc
from qmpshim.model.disks.subclusters import SUBCLUSTERS

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]

_OFFSET = np.uint64(0x00FF_FFFF_FFFF_FE00)  # bits 9-55 of an L1 or L2 entry
COPIED = np.uint64(1 << 63)
_COMPRESSED = np.uint64(1 << 62)
_ZERO = np.uint64(1)
_L1_RESERVED = np.uint64(0x7F00_0000_0000_01FF)
_L2_RESERVED = np.uint64(0x3F00_0000_0000_01FE)
_BITMAP = np.uint64(0xFFFF_FFFF)  # the allocation bits of a subcluster bitmap; zero bits are above
_GATHER_BYTES = 256 << 10  # L2 tables looked at in one go: few enough to stay in the CPU cache


class Run(NamedTuple):
    """A stretch of allocated guest clusters or subclusters that one slice can hold.

    ``offset`` and ``length`` in guest bytes; ``host_offset`` in bytes of the file that holds the
    data (the image file or its external data file), None for ZERO (a preallocated ZERO cluster's
    host bytes are never read).
    """

    offset: int
    length: int
    alloc: Alloc
    host_offset: int | None


@dataclass(frozen=True, slots=True)
class Clusters:
    """The allocated units of an image as arrays of equal length, in guest order.

    A unit is a cluster, or a subcluster where the image has extended L2 entries.

    :param index: guest unit numbers (guest offset in bytes / unit size)
    :param kind: ``Alloc.ZERO`` or ``Alloc.DATA``
    :param host: offset in bytes in the file that holds the data; -1 for a ZERO unit without one.
        Of a compressed cluster its place in ``Qcow2Reader.with_decompressed``
    :param decompressed: what the compressed clusters hold, one after the other
    """

    index: Ints
    kind: NDArray[np.uint8]
    host: Ints
    decompressed: bytes = b""

    def __len__(self) -> int:
        return len(self.index)


class Qcow2Reader:
    """One qcow2 image, seen through its tables.

    :param image: the image file's bytes; kept, not copied
    :param header: what :meth:`parse` read from it
    :ivar unit_size: bytes whose allocation one bit holds: a subcluster's size where the image has
        extended L2 entries, the cluster size elsewhere
    """

    def __init__(self, image: memoryview, header: Header) -> None:
        self._image = image
        self.file_size = len(image)
        self.header = header
        self.virtual_size = header.virtual_size
        self.cluster_size = 1 << header.cluster_bits
        self.unit_size = self.cluster_size // (SUBCLUSTERS if header.extended_l2 else 1)

    @classmethod
    def parse(cls, image: BytesLike) -> Qcow2Reader:
        """Reads the header.

        :raises ImageError: not a qcow2 image, cut short, or a header that no QEMU would open
        :raises UnsupportedFeature: encryption, an unknown version, feature bit or compression type
        """
        view = memoryview(image).cast("B")
        return cls(view, parse_header(view))

    @property
    def guest_units(self) -> int:
        """How many units the virtual disk has, the last one perhaps cut short."""
        return -(-self.virtual_size // self.unit_size)

    def clusters(self) -> Clusters:
        """The allocated units inside the virtual size; costs what is allocated, not the size.

        :raises ImageError: an entry that cannot be followed, or a compressed cluster that cannot
            be decompressed
        :raises UnsupportedFeature: a cluster that is compressed by zstd
        """
        l2 = self._sound_l2()
        has_host = self.has_host(l2) | l2.compressed
        host = np.where(has_host, l2.host, -1)
        host[l2.compressed] = self.extra_at + self.cluster_size * np.arange(l2.compressed.sum())
        if self.header.extended_l2:
            index, kind, host = subclusters(l2, host, self.unit_size)
        else:
            zero = ~l2.compressed & ((l2.raw & _ZERO) != 0)
            index = l2.index
            kind = np.where(zero, np.uint8(Alloc.ZERO), np.uint8(Alloc.DATA))
            kind[~zero & ~has_host] = Alloc.UNALLOCATED
        keep = (kind != Alloc.UNALLOCATED) & (index < self.guest_units)
        return Clusters(index[keep], kind[keep], host[keep], self._decompressed(l2))

    @property
    def extra_at(self) -> int:
        """Where what compressed clusters hold can be put, in bytes of the file: past its last
        cluster, and one more, so that no run goes from the one to the other.
        """
        return (-(-self.file_size // self.cluster_size) + 1) * self.cluster_size

    def with_decompressed(self, clusters: Clusters) -> memoryview:
        """The file's bytes, followed by what its compressed clusters hold: copied if there are any.

        :param clusters: the result of :meth:`clusters`
        """
        if not clusters.decompressed:
            return self._image
        whole = bytes(self._image).ljust(self.extra_at, b"\0")
        return memoryview(whole + clusters.decompressed)

    def has_compressed(self) -> bool:
        """Whether there is a compressed cluster.

        :raises ImageError: an entry that cannot be followed
        """
        return bool(self._sound_l2().compressed.any())

    def _decompressed(self, l2: Entries) -> bytes:
        packed = np.flatnonzero(l2.compressed)
        if len(packed) and Incompatible.COMPRESSION_TYPE in self.header.flags:
            raise UnsupportedFeature("clusters compressed by zstd")
        clusters = []
        for number, offset, end in zip(packed, *self.compressed_extents(l2), strict=True):
            cluster = decompress(self.bytes_at(int(offset), int(end - offset)), self.cluster_size)
            if cluster is None:
                where = f"guest cluster {l2.index[number]}"
                raise ImageError(f"{where}: compressed data that does not decompress to a cluster")
            clusters.append(cluster)
        return b"".join(clusters)

    def compressed_extents(self, l2: Entries) -> tuple[Ints, Ints]:
        """Offset and end of the compressed clusters' data; bytes of the file."""
        return compressed_extents(l2.raw[l2.compressed], self.header.cluster_bits)

    def host_clusters(self) -> list[int]:
        """Numbers of the guest clusters that have a host cluster, whatever they read as.

        :raises ImageError: as :meth:`clusters`
        :raises UnsupportedFeature: as :meth:`clusters`
        """
        l2 = self._sound_l2()
        numbers: list[int] = l2.index[self.has_host(l2)].tolist()
        return numbers

    def _sound_l2(self) -> Entries:
        l1, l2 = self.walk()
        for fault in (*self.l1_faults(l1), *self.l2_faults(l2)):
            raise ImageError(fault)
        return l2

    def allocation(self) -> dict[int, Alloc]:
        """The allocated units as {guest unit number: ZERO or DATA}; UNALLOCATED is absent.

        :raises ImageError: as :meth:`clusters`
        :raises UnsupportedFeature: as :meth:`clusters`
        """
        found = self.clusters()
        return dict(zip(found.index.tolist(), map(Alloc, found.kind.tolist()), strict=True))

    def runs(self, clusters: Clusters | None = None) -> Iterator[Run]:
        """The allocated units, in guest order, joined wherever one slice can hold them.

        :param clusters: the result of :meth:`clusters`, if the caller has it
        :raises ImageError: as :meth:`clusters`
        :raises UnsupportedFeature: as :meth:`clusters`
        """
        found = self.clusters() if clusters is None else clusters
        if not len(found):
            return
        data = found.kind[1:] == Alloc.DATA
        joins = (np.diff(found.index) == 1) & (np.diff(found.kind) == 0)
        joins &= ~data | (np.diff(found.host) == self.unit_size)
        starts = np.concatenate(([0], np.flatnonzero(~joins) + 1))
        counts = np.diff(np.concatenate((starts, [len(found)])))
        for index, count, kind, host in zip(
            found.index[starts].tolist(),
            counts.tolist(),
            found.kind[starts].tolist(),
            found.host[starts].tolist(),
            strict=True,
        ):
            offset = index * self.unit_size
            length = min(count * self.unit_size, self.virtual_size - offset)
            if kind == Alloc.DATA:
                yield Run(offset, length, Alloc.DATA, host)
            else:
                yield Run(offset, length, Alloc.ZERO, None)

    # -- walking ---------------------------------------------------------------------------

    def bytes_at(self, offset: int, length: int) -> memoryview:
        """``length`` bytes from ``offset``, zeroes past the end of the file."""
        piece = self._image[offset : offset + length]
        return piece if len(piece) == length else memoryview(bytes(piece).ljust(length, b"\0"))

    def words(self, offset: int, count: int) -> Words:
        """``count`` big-endian words of 64 bits from byte ``offset`` of the image."""
        return np.frombuffer(self.bytes_at(offset, count * 8), ">u8").astype(np.uint64)

    def walk(self) -> tuple[Entries, Entries]:
        """The non-zero entries of the L1 table, and of every L2 table that can be reached."""
        l1 = Entries.nonzero(self.words(self.header.l1_offset, self.header.l1_entries))
        followed = (l1.host != 0) & ~self.unaligned(l1.host) & ~self.outside(l1.host)
        numbers, tables = l1.index[followed], l1.host[followed]
        step = max(1, _GATHER_BYTES // self.cluster_size)
        parts = [
            self._gather(numbers[at : at + step], tables[at : at + step])
            for at in range(0, len(tables), step)
        ]
        if not parts:
            return l1, Entries.nonzero(np.empty(0, np.uint64))
        return l1, Entries(
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.raw for part in parts]),
            np.concatenate([part.bitmap for part in parts]),
        )

    def _gather(self, numbers: Ints, tables: Ints) -> Entries:
        """The non-zero entries of the L2 tables at host offsets ``tables``, all in one go.

        :param numbers: each table's place in the L1 table
        """
        words = self.cluster_size // 8
        whole = self.file_size // self.cluster_size
        file = np.frombuffer(self._image, np.uint64, whole * words).reshape(whole, words)
        found = np.zeros((len(tables), words), np.uint64)
        inside = tables // self.cluster_size < whole
        found[inside] = file[tables[inside] // self.cluster_size]
        for row in np.flatnonzero(~inside):  # a table that the end of the file cuts short
            table = self.bytes_at(int(tables[row]), self.cluster_size)
            found[row] = np.frombuffer(table, np.uint64)
        entries = self.cluster_size // self.header.l2_entry_size
        fields = found.reshape(-1, self.header.l2_entry_size // 8)
        at = np.flatnonzero(fields.any(axis=1) if self.header.extended_l2 else fields)
        index = numbers[at // entries] * entries + at % entries
        raw, *bitmap = np.ascontiguousarray(fields[at].T).view(">u8").astype(np.uint64)
        return Entries(index, raw, bitmap[0] if bitmap else np.zeros(len(at), np.uint64))

    def unaligned(self, host: Ints) -> Mask:
        """Which host offsets are inside a cluster."""
        unaligned: Mask = host % self.cluster_size != 0
        return unaligned

    def outside(self, host: Ints) -> Mask:
        """Which host offsets are past the end of the file."""
        return host >= self.file_size

    def l1_faults(self, l1: Entries) -> Iterator[str]:
        """Why an entry cannot be followed, or was not written by QEMU."""
        yield from l1.describe(
            "L1 entry {index}",
            {
                "has reserved bits set": (l1.raw & _L1_RESERVED) != 0,
                "points inside a cluster": self.unaligned(l1.host),
                "points outside the file": self.outside(l1.host),
            },
        )

    def l2_faults(self, l2: Entries) -> Iterator[str]:
        """Why an entry cannot be followed, or was not written by QEMU."""
        standard = ~l2.compressed
        has_host = self.has_host(l2)
        zero_bits, alloc_bits = l2.bitmap >> np.uint64(32), l2.bitmap & _BITMAP
        has_zero_flag = (l2.raw & _ZERO) != 0
        faults = {
            "has reserved bits set": standard & ((l2.raw & _L2_RESERVED) != 0),
            "has the zero flag, which version 2 lacks": standard
            & has_zero_flag
            & (self.header.version == 2),
            "has the zero flag, which extended L2 entries lack": standard
            & has_zero_flag
            & self.header.extended_l2,
            "has a subcluster that is allocated and zero": standard
            & ((zero_bits & alloc_bits) != 0),
            "has allocated subclusters without an offset": standard & ~has_host & (alloc_bits != 0),
            "has a subcluster bitmap, but is compressed": l2.compressed & (l2.bitmap != 0),
            "has COPIED set, but is compressed": l2.compressed & ((l2.raw & COPIED) != 0),
            "points inside a cluster": standard & self.unaligned(l2.host),
        }
        if self.header.external_data:
            faults |= {
                "is compressed, but has an external data file": l2.compressed,
                "is not at its own offset in the external data file": has_host
                & (l2.host != l2.index * self.cluster_size),
            }
        else:
            start = l2.host
            start[l2.compressed] = self.compressed_extents(l2)[0]
            faults["points outside the file"] = self.outside(start)
        yield from l2.describe("L2 entry of guest cluster {index}", faults)

    def has_host(self, l2: Entries) -> Mask:
        """Which entries have a host cluster; offset 0 is one only in an external data file."""
        offset: Mask = l2.host != 0
        if self.header.external_data:
            offset |= (l2.raw & COPIED) != 0
        return offset & ~l2.compressed


@dataclass(frozen=True, slots=True)
class Entries:
    """Non-zero L1 or L2 entries, in native byte order, and the number of each in its table.

    :ivar bitmap: the second half of an extended L2 entry, zero elsewhere
    """

    index: Ints
    raw: Words
    bitmap: Words

    @classmethod
    def nonzero(cls, table: Words) -> Entries:
        """Those of a table that are not zero."""
        index = np.flatnonzero(table)
        return cls(index, table[index], np.zeros(len(index), np.uint64))

    @property
    def host(self) -> Ints:
        """The offsets that they hold, in bytes."""
        return (self.raw & _OFFSET).astype(np.int64)

    @property
    def compressed(self) -> Mask:
        """Which of them are compressed clusters."""
        compressed: Mask = (self.raw & _COMPRESSED) != 0
        return compressed

    def describe(self, where: str, faults: dict[str, Mask]) -> Iterator[str]:
        """A sentence for each entry and each fault whose mask has it."""
        for what, mask in faults.items():
            for at in np.flatnonzero(mask):
                place = where.format(index=int(self.index[at]))
                yield f"{place} ({int(self.raw[at]):#018x}) {what}"


def subclusters(l2: Entries, host: Ints, size: int) -> tuple[Ints, NDArray[np.uint8], Ints]:
    """Number, kind and host offset of every subcluster of the clusters in *l2*.

    :param host: offset of each cluster in bytes, -1 where it has none
    :param size: of a subcluster, in bytes
    """
    number = np.arange(SUBCLUSTERS)
    bits = number.astype(np.uint64)
    allocated = ((l2.bitmap[:, None] >> bits) & np.uint64(1)) != 0
    zero = ((l2.bitmap[:, None] >> (bits + np.uint64(SUBCLUSTERS))) & np.uint64(1)) != 0
    kind = np.full(zero.shape, Alloc.UNALLOCATED, np.uint8)
    kind[allocated | l2.compressed[:, None]] = Alloc.DATA
    kind[zero] = Alloc.ZERO
    index = l2.index[:, None] * SUBCLUSTERS + number
    place = np.where(host[:, None] < 0, -1, host[:, None] + number * size)
    return index.reshape(-1), kind.reshape(-1), place.reshape(-1)
