"""Compressed clusters of a qcow2 image: where their data is in the file, and what it holds.

Source: docs/interop/qcow2.txt of QEMU 7.2.0, "Compressed Clusters Descriptor". Several may share a
host cluster, and one may end in the next.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from qmpshim.model.units import SECTOR

_WINDOW_BITS = -12  # a raw deflate stream; the document's "window size"


def compressed_extents(
    entries: NDArray[np.uint64], cluster_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset and end, in bytes of the file, of what the descriptors of compressed clusters name.

    The end is that of the last sector; the data may end before it.

    :param entries: L2 entries
    """
    offset_bits = np.uint64(62 - (cluster_bits - 8))
    one = np.uint64(1)
    offset = (entries & ((one << offset_bits) - one)).astype(np.int64)
    more = (entries >> offset_bits) & ((one << (np.uint64(62) - offset_bits)) - one)
    return offset, (offset // SECTOR + 1 + more.astype(np.int64)) * SECTOR


def decompress(data: bytes | memoryview, cluster_size: int) -> bytes | None:
    """A cluster's data; None: these bytes do not decompress to so many.

    :param data: from where the descriptor begins to where it ends
    """
    try:
        cluster = zlib.decompressobj(_WINDOW_BITS).decompress(data, cluster_size)
    except zlib.error:
        return None
    return cluster if len(cluster) == cluster_size else None
