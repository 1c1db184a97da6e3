"""Symbolic disks: which operation owns each sector, and which clusters are allocated."""

from __future__ import annotations

from enum import IntEnum


class Alloc(IntEnum):
    """Allocation of one cluster of an image, as qcow2's L2 table tells it."""

    UNALLOCATED = 0  # reads fall through to the backing file
    ZERO = 1  # reads as zeroes, whatever the backing file holds
    DATA = 2  # reads the image's own bytes
