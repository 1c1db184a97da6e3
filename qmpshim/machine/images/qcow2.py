"""Reads a qcow2 image's tables from its bytes, by the format's document and not by QEMU's code.

Source for every field and bit: docs/interop/qcow2.txt of QEMU 7.2.0. Extended L2 entries and
external data files are read; what is not (encryption, compressed clusters, unknown incompatible
bits; for :meth:`Qcow2Reader.check` also internal snapshots and persistent bitmaps) raises
:class:`~qmpshim.errors.UnsupportedFeature`.

The image is any buffer: an ``mmap`` of a file, or the ``bytearray`` that an in-memory NBD export
writes to. Nothing here does I/O. A buffer must hold still while it is looked at: a ``bytearray``
cannot be resized as long as a :class:`Qcow2Reader` on it lives, and touching an ``mmap`` of a file
that was cut short is a SIGBUS.

Bytes past the end of the file read as zeroes, as they do in QEMU's block layer: the last host
cluster may be cut short, so long as it starts inside the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qmpshim.errors import MachineError, UnsupportedFeature
from qmpshim.model.disks.image import Alloc
from qmpshim.model.disks.subclusters import SUBCLUSTERS

BytesLike = bytes | bytearray | memoryview | mmap.mmap
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]

MAGIC = b"QFI\xfb"
_OFFSET = np.uint64(0x00FF_FFFF_FFFF_FE00)  # bits 9-55 of an L1 or L2 entry
_COPIED = np.uint64(1 << 63)
_COMPRESSED = np.uint64(1 << 62)
_ZERO = np.uint64(1)
_L1_RESERVED = np.uint64(0x7F00_0000_0000_01FF)
_L2_RESERVED = np.uint64(0x3F00_0000_0000_01FE)
_REFTABLE_RESERVED = np.uint64(0x1FF)
_BITMAP = np.uint64(0xFFFF_FFFF)  # the allocation bits of a subcluster bitmap; zero bits are above
_GATHER_BYTES = 256 << 10  # L2 tables looked at in one go: few enough to stay in the CPU cache

# QEMU's own limits (the notes in qcow2.txt): beyond them no QEMU opens the image.
_CLUSTER_BITS = range(9, 22)
_EXTENDED_CLUSTER_BITS = range(14, 22)
_MAX_L1_BYTES = 32 << 20
_MAX_REFTABLE_BYTES = 8 << 20

_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_BITMAPS = 0x23852875
_EXT_DATA_FILE = 0x44415441
_ENCRYPTION = {1: "AES", 2: "LUKS"}
_COMPRESSION_ZSTD = 1


class ImageError(MachineError):
    """An image's bytes are not valid."""


class Incompatible(IntFlag):
    """The header's incompatible feature bits."""

    DIRTY = 1
    CORRUPT = 2
    EXTERNAL_DATA = 4
    COMPRESSION_TYPE = 8
    EXTENDED_L2 = 16


class Severity(StrEnum):
    """How bad a :class:`Inconsistency` is; the first two are the ones ``qemu-img check`` counts."""

    CORRUPTION = "corruption"  # data is wrong, or the next write may make it wrong
    LEAK = "leak"  # space is lost, nothing else
    NOTICE = "notice"  # legal, but only after a crash


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


class Inconsistency(NamedTuple):
    """One inconsistency: its severity, and a sentence with its place."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


@dataclass(frozen=True, slots=True)
class Clusters:
    """The allocated units of an image as arrays of equal length, in guest order.

    A unit is a cluster, or a subcluster where the image has extended L2 entries.

    :param index: guest unit numbers (guest offset in bytes / unit size)
    :param kind: ``Alloc.ZERO`` or ``Alloc.DATA``
    :param host: offset in bytes in the file that holds the data; -1 for a ZERO unit without one
    """

    index: Ints
    kind: NDArray[np.uint8]
    host: Ints

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class Header:
    """The header's fields; offsets and sizes in bytes."""

    version: int
    cluster_bits: int
    virtual_size: int
    backing_file: str | None
    backing_format: str | None
    flags: Incompatible
    compatible: int
    autoclear: int
    refcount_bits: int
    l1_offset: int
    l1_entries: int
    reftable_offset: int
    reftable_clusters: int
    snapshots: int
    has_bitmaps: bool
    data_file: str | None

    @property
    def extended_l2(self) -> bool:
        """L2 entries of 128 bits, which hold the allocation of subclusters."""
        return Incompatible.EXTENDED_L2 in self.flags

    @property
    def external_data(self) -> bool:
        """Guest data is in another file, named ``data_file`` unless QEMU's options give another."""
        return Incompatible.EXTERNAL_DATA in self.flags

    @property
    def l2_entry_size(self) -> int:
        """Bytes of one L2 entry."""
        return 16 if self.extended_l2 else 8


class Qcow2Reader:
    """One qcow2 image, seen through its tables.

    :param image: the image file's bytes; kept, not copied
    :param header: what :meth:`parse` read from it
    :ivar unit_size: bytes whose allocation one bit holds: a subcluster's size where the image has
        extended L2 entries, the cluster size elsewhere
    """

    def __init__(self, image: memoryview, header: Header) -> None:
        self._image = image
        self._file_size = len(image)
        self.header = header
        self.version = header.version
        self.virtual_size = header.virtual_size
        self.cluster_size = 1 << header.cluster_bits
        self.unit_size = self.cluster_size // (SUBCLUSTERS if header.extended_l2 else 1)
        self.backing_file = header.backing_file
        self.flags = header.flags

    @classmethod
    def parse(cls, image: BytesLike) -> Qcow2Reader:
        """Reads the header.

        :raises ImageError: not a qcow2 image, cut short, or a header that no QEMU would open
        :raises UnsupportedFeature: encryption, an unknown version, feature bit or compression type
        """
        view = memoryview(image).cast("B")
        return cls(view, _parse_header(view))

    @property
    def guest_clusters(self) -> int:
        """How many clusters the virtual disk has, the last one perhaps cut short."""
        return -(-self.virtual_size // self.cluster_size)

    @property
    def guest_units(self) -> int:
        """How many units the virtual disk has, the last one perhaps cut short."""
        return -(-self.virtual_size // self.unit_size)

    def clusters(self) -> Clusters:
        """The allocated units inside the virtual size; costs what is allocated, not the size.

        :raises ImageError: an entry that cannot be followed
        :raises UnsupportedFeature: a compressed cluster
        """
        l2 = self._sound_l2()
        has_host = self._has_host(l2)
        host = np.where(has_host, l2.host, -1)
        if self.header.extended_l2:
            index, kind, host = _subclusters(l2, host, self.unit_size)
        else:
            zero = (l2.raw & _ZERO) != 0
            index = l2.index
            kind = np.where(zero, np.uint8(Alloc.ZERO), np.uint8(Alloc.DATA))
            kind[~zero & ~has_host] = Alloc.UNALLOCATED
        keep = (kind != Alloc.UNALLOCATED) & (index < self.guest_units)
        return Clusters(index[keep], kind[keep], host[keep])

    def host_clusters(self) -> list[int]:
        """Numbers of the guest clusters that have a host cluster, whatever they read as.

        :raises ImageError: as :meth:`clusters`
        :raises UnsupportedFeature: as :meth:`clusters`
        """
        l2 = self._sound_l2()
        numbers: list[int] = l2.index[self._has_host(l2)].tolist()
        return numbers

    def _sound_l2(self) -> _Entries:
        l1, l2 = self._walk()
        for fault in (*self._l1_faults(l1), *self._l2_faults(l2)):
            raise ImageError(fault)
        _refuse_compressed(l2)
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

    def check(self) -> list[Inconsistency]:
        """All inconsistencies that the bytes alone show, worst first.

        Finds all that ``qemu-img check`` finds. Beyond it: the corrupt and dirty bits,
        a host cluster with two uses and a refcount to match (without internal snapshots nothing
        explains that), a COPIED flag without an offset, and a guest cluster that has another place
        in an external data file than its own. As there, a refcount for a cluster past the end of
        the file is no leak: it holds no space.

        :raises UnsupportedFeature: internal snapshots, persistent bitmaps or compressed clusters,
            whose references are not followed
        """
        if self.header.snapshots:
            raise UnsupportedFeature("internal snapshots")
        if self.header.has_bitmaps:
            raise UnsupportedFeature("persistent bitmaps")
        return sorted(self._findings(), key=lambda finding: list(Severity).index(finding.severity))

    # -- walking ---------------------------------------------------------------------------

    def _bytes(self, offset: int, length: int) -> memoryview:
        """``length`` bytes from ``offset``, zeroes past the end of the file."""
        piece = self._image[offset : offset + length]
        return piece if len(piece) == length else memoryview(bytes(piece).ljust(length, b"\0"))

    def _words(self, offset: int, count: int) -> Words:
        return np.frombuffer(self._bytes(offset, count * 8), ">u8").astype(np.uint64)

    def _walk(self) -> tuple[_Entries, _Entries]:
        """The non-zero entries of the L1 table, and of every L2 table that can be reached."""
        l1 = _Entries.nonzero(self._words(self.header.l1_offset, self.header.l1_entries))
        followed = (l1.host != 0) & ~self._unaligned(l1.host) & ~self._outside(l1.host)
        numbers, tables = l1.index[followed], l1.host[followed]
        step = max(1, _GATHER_BYTES // self.cluster_size)
        parts = [
            self._gather(numbers[at : at + step], tables[at : at + step])
            for at in range(0, len(tables), step)
        ]
        if not parts:
            return l1, _Entries.nonzero(np.empty(0, np.uint64))
        return l1, _Entries(
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.raw for part in parts]),
            np.concatenate([part.bitmap for part in parts]),
        )

    def _gather(self, numbers: Ints, tables: Ints) -> _Entries:
        """The non-zero entries of the L2 tables at host offsets ``tables``, all in one go.

        :param numbers: each table's place in the L1 table
        """
        words = self.cluster_size // 8
        whole = self._file_size // self.cluster_size
        file = np.frombuffer(self._image, np.uint64, whole * words).reshape(whole, words)
        found = np.zeros((len(tables), words), np.uint64)
        inside = tables // self.cluster_size < whole
        found[inside] = file[tables[inside] // self.cluster_size]
        for row in np.flatnonzero(~inside):  # a table that the end of the file cuts short
            found[row] = np.frombuffer(self._bytes(int(tables[row]), self.cluster_size), np.uint64)
        entries = self.cluster_size // self.header.l2_entry_size
        fields = found.reshape(-1, self.header.l2_entry_size // 8)
        at = np.flatnonzero(fields.any(axis=1) if self.header.extended_l2 else fields)
        index = numbers[at // entries] * entries + at % entries
        raw, *bitmap = np.ascontiguousarray(fields[at].T).view(">u8").astype(np.uint64)
        return _Entries(index, raw, bitmap[0] if bitmap else np.zeros(len(at), np.uint64))

    def _unaligned(self, host: Ints) -> Mask:
        unaligned: Mask = host % self.cluster_size != 0
        return unaligned

    def _outside(self, host: Ints) -> Mask:
        return host >= self._file_size

    def _l1_faults(self, l1: _Entries) -> Iterator[str]:
        yield from l1.blame(
            "L1 entry {index}",
            {
                "has reserved bits set": (l1.raw & _L1_RESERVED) != 0,
                "points inside a cluster": self._unaligned(l1.host),
                "points outside the file": self._outside(l1.host),
            },
        )

    def _l2_faults(self, l2: _Entries) -> Iterator[str]:
        """Why an entry cannot be followed, or was not written by QEMU."""
        standard = ~l2.compressed
        has_host = self._has_host(l2)
        zero_bits, alloc_bits = l2.bitmap >> np.uint64(32), l2.bitmap & _BITMAP
        has_zero_flag = (l2.raw & _ZERO) != 0
        faults = {
            "has reserved bits set": standard & ((l2.raw & _L2_RESERVED) != 0),
            "has the zero flag, which version 2 lacks": standard
            & has_zero_flag
            & (self.version == 2),
            "has the zero flag, which extended L2 entries lack": standard
            & has_zero_flag
            & self.header.extended_l2,
            "has a subcluster that is allocated and zero": standard
            & ((zero_bits & alloc_bits) != 0),
            "has allocated subclusters without an offset": standard & ~has_host & (alloc_bits != 0),
            "has a subcluster bitmap, but is compressed": l2.compressed & (l2.bitmap != 0),
            "has COPIED set, but is compressed": l2.compressed & ((l2.raw & _COPIED) != 0),
            "points inside a cluster": standard & self._unaligned(l2.host),
        }
        if self.header.external_data:
            faults |= {
                "is compressed, but has an external data file": l2.compressed,
                "is not at its own offset in the external data file": has_host
                & (l2.host != l2.index * self.cluster_size),
            }
        else:
            faults["points outside the file"] = standard & self._outside(l2.host)
        yield from l2.blame("L2 entry of guest cluster {index}", faults)

    def _has_host(self, l2: _Entries) -> Mask:
        """Which entries have a host cluster; offset 0 is one only in an external data file."""
        offset: Mask = l2.host != 0
        if self.header.external_data:
            offset |= (l2.raw & _COPIED) != 0
        return offset & ~l2.compressed

    # -- checking --------------------------------------------------------------------------

    def _findings(self) -> Iterator[Inconsistency]:
        if Incompatible.CORRUPT in self.flags:
            yield Inconsistency(Severity.CORRUPTION, "QEMU marked the image corrupt")
        if Incompatible.DIRTY in self.flags:
            yield Inconsistency(
                Severity.NOTICE, "the image is marked dirty: refcounts may be behind"
            )
        l1, l2 = self._walk()
        _refuse_compressed(l2)
        reftable = _Entries.nonzero(
            self._words(
                self.header.reftable_offset, self.header.reftable_clusters * self.cluster_size // 8
            )
        )
        # A refcount table entry's offset goes up to bit 63; past bit 62 no file can reach.
        blocks = (reftable.raw & ~_REFTABLE_RESERVED).clip(max=2**63 - 1).astype(np.int64)
        reftable_faults = reftable.blame(
            "refcount table entry {index}",
            {
                "has reserved bits set": (reftable.raw & _REFTABLE_RESERVED) != 0,
                "points inside a cluster": self._unaligned(blocks),
                "points outside the file": self._outside(blocks),
            },
        )
        for fault in (*self._l1_faults(l1), *self._l2_faults(l2), *reftable_faults):
            yield Inconsistency(Severity.CORRUPTION, fault)

        sound = ~self._unaligned(blocks) & ~self._outside(blocks)
        stored = self._stored_refcounts(reftable.index[sound], blocks[sound])
        yield from self._compare_refcounts(self._references(l1, l2, blocks[sound]), stored)
        once = stored.at(l1.host // self.cluster_size) == 1
        yield from _check_copied("L1 entry {index}", l1, l1.host != 0, once)
        if self.header.external_data:  # no refcounts: each cluster of that file has one user
            once = np.ones(len(l2.raw), np.bool_)
        else:
            once = stored.at(l2.host // self.cluster_size) == 1
        where = "L2 entry of guest cluster {index}"
        yield from _check_copied(where, l2, self._has_host(l2), once)

    def _stored_refcounts(self, numbers: Ints, blocks: Ints) -> _Counts:
        """The non-zero refcounts of every host cluster, as the image keeps them."""
        bits = self.header.refcount_bits
        per_block = self.cluster_size * 8 // bits
        keys, values = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        for number, block in zip(numbers.tolist(), blocks.tolist(), strict=True):
            raw = self._bytes(block, self.cluster_size)
            if bits < 8:
                octets = np.frombuffer(raw, np.uint8)
                shifts = np.arange(0, 8, bits, dtype=np.uint8)
                counts = ((octets[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)
            else:
                counts = np.frombuffer(raw, f">u{bits // 8}")
            at = np.flatnonzero(counts)
            keys.append(number * per_block + at)
            values.append(counts[at].astype(np.uint64))
        return _Counts(np.concatenate(keys), np.concatenate(values))

    def _references(self, l1: _Entries, l2: _Entries, blocks: Ints) -> dict[str, Ints]:
        """Which host clusters each structure uses, one number for each time it is used."""

        def span(offset: int, length: int) -> Ints:
            return np.arange(
                offset // self.cluster_size, -(-(offset + length) // self.cluster_size)
            )

        def pointed(host: Ints) -> Ints:
            inside: Ints = host[(host != 0) & ~self._outside(host)]
            return np.asarray(inside // self.cluster_size)

        head = self.header
        own_data = ~l2.compressed & (not head.external_data)
        return {
            "the header": span(0, 1),
            "the refcount table": span(
                head.reftable_offset, head.reftable_clusters * self.cluster_size
            ),
            "a refcount block": pointed(blocks),
            "the L1 table": span(head.l1_offset, head.l1_entries * 8),
            "an L2 table": pointed(l1.host),
            "guest data": pointed(l2.host[own_data]),
        }

    def _compare_refcounts(
        self, references: dict[str, Ints], stored: _Counts
    ) -> Iterator[Inconsistency]:
        every = np.concatenate(list(references.values()))
        used = _Counts(*np.unique(every, return_counts=True))
        for cluster in used.keys[used.values > 1].tolist():
            users = [
                user
                for user, mine in references.items()
                for _ in range(np.count_nonzero(mine == cluster))
            ]
            yield Inconsistency(
                Severity.CORRUPTION,
                f"host offset {cluster * self.cluster_size:#x} is used twice: " + ", ".join(users),
            )
        clusters = np.union1d(used.keys, stored.keys)
        counted, kept = used.at(clusters), stored.at(clusters)
        for at in np.flatnonzero(counted != kept):
            host = int(clusters[at]) * self.cluster_size
            text = f"host offset {host:#x}: refcount {kept[at]}, but {counted[at]} references"
            if kept[at] < counted[at]:
                yield Inconsistency(Severity.CORRUPTION, text)
            elif host < self._file_size:
                yield Inconsistency(Severity.LEAK, text)


@dataclass(frozen=True, slots=True)
class _Entries:
    """Non-zero L1 or L2 entries, in native byte order, and the number of each in its table.

    :ivar bitmap: the second half of an extended L2 entry, zero elsewhere
    """

    index: Ints
    raw: Words
    bitmap: Words

    @classmethod
    def nonzero(cls, table: Words) -> _Entries:
        index = np.flatnonzero(table)
        return cls(index, table[index], np.zeros(len(index), np.uint64))

    @property
    def host(self) -> Ints:
        return (self.raw & _OFFSET).astype(np.int64)

    @property
    def compressed(self) -> Mask:
        compressed: Mask = (self.raw & _COMPRESSED) != 0
        return compressed

    def blame(self, where: str, faults: dict[str, Mask]) -> Iterator[str]:
        """A sentence for each entry and each fault whose mask has it."""
        for what, mask in faults.items():
            for at in np.flatnonzero(mask):
                place = where.format(index=int(self.index[at]))
                yield f"{place} ({int(self.raw[at]):#018x}) {what}"


@dataclass(frozen=True, slots=True)
class _Counts:
    """A count for each host cluster number in ``keys`` (sorted); zero for all others."""

    keys: Ints
    values: NDArray[np.uint64] | Ints

    def at(self, wanted: Ints) -> Words:
        if not len(self.keys):
            return np.zeros(len(wanted), np.uint64)
        place = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.values[place], 0).astype(np.uint64)


def _check_copied(where: str, table: _Entries, points: Mask, once: Mask) -> Iterator[Inconsistency]:
    """COPIED means "refcount exactly one: may be written in place".

    :param points: which entries have an offset
    :param once: the refcounts of which host clusters are 1
    """
    copied = (table.raw & _COPIED) != 0
    faults = {
        "has COPIED set without an offset": ~table.compressed & ~points & copied,
        "has COPIED set, but its refcount is not 1": points & copied & ~once,
        "lacks COPIED, but its refcount is 1": points & ~copied & once,
    }
    for fault in table.blame(where, faults):
        yield Inconsistency(Severity.CORRUPTION, fault)


def _refuse_compressed(l2: _Entries) -> None:
    """Compressed clusters are not read; one with COPIED is no compressed cluster but a fault."""
    if (l2.compressed & ((l2.raw & _COPIED) == 0)).any():
        raise UnsupportedFeature("compressed clusters")


def _subclusters(l2: _Entries, host: Ints, size: int) -> tuple[Ints, NDArray[np.uint8], Ints]:
    """Number, kind and host offset of every subcluster of the clusters in *l2*.

    :param host: offset of each cluster in bytes, -1 where it has none
    :param size: of a subcluster, in bytes
    """
    number = np.arange(SUBCLUSTERS)
    bits = number.astype(np.uint64)
    allocated = ((l2.bitmap[:, None] >> bits) & np.uint64(1)) != 0
    zero = ((l2.bitmap[:, None] >> (bits + np.uint64(SUBCLUSTERS))) & np.uint64(1)) != 0
    kind = np.full(zero.shape, Alloc.UNALLOCATED, np.uint8)
    kind[allocated] = Alloc.DATA
    kind[zero] = Alloc.ZERO
    index = l2.index[:, None] * SUBCLUSTERS + number
    place = np.where(host[:, None] < 0, -1, host[:, None] + number * size)
    return index.reshape(-1), kind.reshape(-1), place.reshape(-1)


def _parse_header(image: memoryview) -> Header:
    if len(image) < 72:
        raise ImageError(f"not a qcow2 image: {len(image)} bytes, a header has at least 72")
    magic, version, backing_offset, backing_size, cluster_bits, virtual_size = struct.unpack_from(
        ">4sIQIIQ", image
    )
    crypt, l1_entries, l1_offset, reftable_offset, reftable_clusters, snapshots, snapshots_at = (
        struct.unpack_from(">IIQQIIQ", image, 32)
    )
    if magic != MAGIC:
        raise ImageError(f"not a qcow2 image: it starts with {magic!r}")
    if version not in (2, 3):
        raise UnsupportedFeature(f"qcow2 version {version}")
    incompatible, compatible, autoclear, refcount_order, header_length = 0, 0, 0, 4, 72
    if version == 3:
        if len(image) < 104:
            raise ImageError(f"cut short: {len(image)} bytes, a version 3 header has at least 104")
        incompatible, compatible, autoclear, refcount_order, header_length = struct.unpack_from(
            ">QQQII", image, 72
        )
    if cluster_bits not in _CLUSTER_BITS:
        raise ImageError(f"impossible header: clusters of 2^{cluster_bits} bytes")
    cluster = 1 << cluster_bits
    for bit in range(64):
        if (incompatible & ~sum(Incompatible)) >> bit & 1:
            raise UnsupportedFeature(f"incompatible feature bit {bit}")
    if crypt:
        method = _ENCRYPTION.get(crypt)
        raise UnsupportedFeature(f"{method} encryption" if method else f"encryption method {crypt}")
    flags = Incompatible(incompatible)
    if Incompatible.EXTENDED_L2 in flags and cluster_bits not in _EXTENDED_CLUSTER_BITS:
        raise ImageError(f"impossible header: subclusters of 2^{cluster_bits - 5} bytes")
    if refcount_order > 6:
        raise ImageError(f"impossible header: refcounts of 2^{refcount_order} bits")
    if header_length % 8 or not (72 if version == 2 else 104) <= header_length <= cluster:
        raise ImageError(f"impossible header: it says it is {header_length} bytes long")
    compression = image[104] if header_length > 104 else 0
    if (compression != 0) != (Incompatible.COMPRESSION_TYPE in flags):
        has = "with" if Incompatible.COMPRESSION_TYPE in flags else "without"
        raise ImageError(f"impossible header: compression type {compression} {has} its feature bit")
    if compression > _COMPRESSION_ZSTD:
        raise UnsupportedFeature(f"compression type {compression}")
    l2_entries = cluster // (16 if Incompatible.EXTENDED_L2 in flags else 8)
    l1_covers = l1_entries * l2_entries * cluster
    if l1_covers < virtual_size or l1_entries * 8 > _MAX_L1_BYTES:
        raise ImageError(f"impossible header: {l1_entries} L1 entries for {virtual_size} bytes")
    if not 0 < reftable_clusters * cluster <= _MAX_REFTABLE_BYTES:
        raise ImageError(f"impossible header: a refcount table of {reftable_clusters} clusters")
    if snapshots_at % cluster or snapshots_at >= 1 << 63:
        raise ImageError(f"impossible header: a snapshot table at {snapshots_at:#x}")
    end = -(-len(image) // cluster) * cluster
    for what, offset, length in (
        ("L1 table", l1_offset, l1_entries * 8),
        ("refcount table", reftable_offset, reftable_clusters * cluster),
    ):
        if length and (offset % cluster or offset + length > end):
            raise ImageError(
                f"impossible header: the {what} ({length} bytes at {offset:#x}) is not aligned or "
                f"not inside the file ({len(image)} bytes)"
            )
    backing_file = _backing_file(image[:cluster], header_length, backing_offset, backing_size)
    extensions = dict(_extensions(image[: backing_offset or cluster], header_length))
    backing_format = extensions.get(_EXT_BACKING_FORMAT)
    data_file = extensions.get(_EXT_DATA_FILE)
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_size=virtual_size,
        backing_file=backing_file,
        backing_format=None if backing_format is None else _text(backing_format),
        flags=flags,
        compatible=compatible,
        autoclear=autoclear,
        refcount_bits=1 << refcount_order,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        reftable_offset=reftable_offset,
        reftable_clusters=reftable_clusters,
        snapshots=snapshots,
        has_bitmaps=_EXT_BITMAPS in extensions,
        data_file=None if data_file is None else _text(data_file),
    )


def _extensions(area: memoryview, at: int) -> Iterator[tuple[int, memoryview]]:
    """Header extensions: (type, data). The area ends at the backing file name or the cluster."""
    while at + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, at)
        data = area[at + 8 : at + 8 + length]
        if len(data) < length:
            raise ImageError(f"impossible header: extension {kind:#x} is {length} bytes long")
        if kind == 0:
            return
        yield kind, data
        at += 8 + -(-length // 8) * 8


def _backing_file(cluster: memoryview, header: int, offset: int, size: int) -> str | None:
    if offset == 0:
        return None
    if size > 1023 or not header <= offset <= len(cluster) - size:
        raise ImageError(f"impossible header: a backing file name of {size} bytes at {offset:#x}")
    return _text(cluster[offset : offset + size])


def _text(data: memoryview) -> str:
    return bytes(data).decode("utf-8", "surrogateescape")
