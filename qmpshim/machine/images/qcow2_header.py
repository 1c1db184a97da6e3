"""The header of a qcow2 image: its fields, and which headers no QEMU would open.

Source for every field and bit: docs/interop/qcow2.txt of QEMU 7.2.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from qmpshim.errors import ImageError, UnsupportedFeature

MAGIC = b"QFI\xfb"

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


class Incompatible(IntFlag):
    """The header's incompatible feature bits."""

    DIRTY = 1
    CORRUPT = 2
    EXTERNAL_DATA = 4
    COMPRESSION_TYPE = 8
    EXTENDED_L2 = 16


_KNOWN = sum(Incompatible)


@dataclass(frozen=True, slots=True)
class Header:
    """The header's fields; offsets and sizes in bytes."""

    version: int
    cluster_bits: int
    virtual_size: int
    backing_file: str | None
    backing_format: str | None
    flags: Incompatible
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


def parse_header(image: memoryview) -> Header:
    """Read the header.

    :raises ImageError: not a qcow2 image, cut short, or a header that no QEMU would open
    :raises UnsupportedFeature: encryption, an unknown version, feature bit or compression type
    """
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
    incompatible, refcount_order, header_length = 0, 4, 72
    if version == 3:
        if len(image) < 104:
            raise ImageError(f"cut short: {len(image)} bytes, a version 3 header has at least 104")
        # The compatible and the autoclear features between may be ignored.
        incompatible, refcount_order, header_length = struct.unpack_from(">Q16xII", image, 72)
    if cluster_bits not in _CLUSTER_BITS:
        raise ImageError(f"impossible header: clusters of 2^{cluster_bits} bytes")
    cluster = 1 << cluster_bits
    if unknown := incompatible & ~_KNOWN:
        lowest = (unknown & -unknown).bit_length() - 1
        raise UnsupportedFeature(f"incompatible feature bit {lowest}")
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
