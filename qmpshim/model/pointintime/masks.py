"""Sets of sectors as integers: bit *n* stands for sector *n*. For the explorer's small disks.

Union, intersection and count of a whole disk are then one operation each.
"""

from __future__ import annotations

from collections.abc import Iterator

from qmpshim.model.units import outwards, touched


def span(start: int, count: int) -> int:
    """The set of *count* sectors from sector *start* on."""
    return ((1 << count) - 1) << start


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """The runs of a set, in order: (first sector, sectors)."""
    at = 0
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        count = (~mask & (mask + 1)).bit_length() - 1
        yield at + gap, count
        mask >>= count
        at += gap + count


def cover(mask: int, unit: int, size: int) -> int:
    """A set rounded outwards to whole units.

    :param unit: sectors of a unit
    :param size: sectors of the disk, which cuts the last unit short
    """
    covered = 0
    for start, count in runs(mask):
        first, end = outwards(start, count, unit)
        covered |= span(first, min(size, end) - first)
    return covered


def units(mask: int, unit: int) -> int:
    """How many units a set that consists of whole ones has; the disk's end may cut the last."""
    return sum(len(touched(start, count, unit)) for start, count in runs(mask))
