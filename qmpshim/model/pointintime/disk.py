"""A disk with its dirty bitmaps: each sector's owner, and which clusters were written to.

Owners are those of :mod:`qmpshim.model.disks.image`. The disk is a qcow2 image over a raw base, or
an image with nothing behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from qmpshim.model.disks.image import Contents, Owners, is_zero, owned
from qmpshim.model.pointintime.bitmap import Bitmap, RefusedError
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors


@dataclass(slots=True)
class Disk:
    """One disk, and everything that is attached to its node.

    :ivar size: sectors
    :ivar cluster: sectors of a cluster of its image
    :ivar base: contents in the beginning; the base's, if there is one
    :ivar backed: there is a base; without one the image holds all that is not zero
    :ivar now: contents as a reader of the disk sees them
    :ivar written: sectors of clusters that the image itself may hold
    :ivar version: raised with every change
    """

    size: int
    cluster: int
    base: Contents
    backed: bool = True
    bitmaps: dict[str, Bitmap] = field(default_factory=dict)
    now: Contents = field(default_factory=Contents)
    written: Sectors = NOTHING
    version: int = 0

    def __post_init__(self) -> None:
        self.now = self.base.copy()
        self.written = NOTHING if self.backed else sectors(0, self.size)

    @property
    def held(self) -> Sectors:
        """Sectors that the image holds for certain: above a base they are not known."""
        if self.backed:
            return NOTHING
        return _where([owner > 0 for owner in self.now.read(0, self.size)], 0)

    def bitmap(self, name: str) -> Bitmap:
        """A bitmap by its name.

        :raises RefusedError: there is none
        """
        if name not in self.bitmaps:
            raise RefusedError(f"there is no bitmap {name}")
        return self.bitmaps[name]

    def write(self, start: int, count: int, owner: int) -> None:
        """New data; it differs from all that was there before."""
        self._change(start, owned(owner, count), sectors(start, count))

    def zero(self, start: int, count: int, owner: int) -> None:
        """Zeroes, *owner* being negative."""
        self._change(start, owned(owner, count), sectors(start, count))

    def discarded(self, start: int, count: int) -> tuple[int, int]:
        """What a discard makes zero: first sector, sectors.

        Whole clusters, and the last one of the disk though it may be cut short
        (``qcow2_co_pdiscard`` in block/qcow2.c, ``bdrv_co_pdiscard`` in block/io.c).
        """
        first = -(-start // self.cluster) * self.cluster
        end = start + count
        if end != self.size:
            end -= end % self.cluster
        return first, max(0, end - first)

    def discard(self, start: int, count: int, owner: int, done: bool) -> None:
        """A discard.

        :param done: False: a filter above the image has swallowed it (a backup job's is opened
            without ``BDRV_O_UNMAP``)
        """
        first, length = self.discarded(start, count)
        zeroes = owned(owner, length if done else 0)
        self._change(first, zeroes, sectors(start, count))

    def _change(self, start: int, owners: Owners, touched: Sectors) -> None:
        count = len(owners)
        before = self.now.read(start, count)
        if is_zero(owners):
            changed = _where([owner > 0 for owner in before], start)
        else:  # a write: all of it is data
            changed = sectors(start, count)
        self.now.write(start, owners)
        self.written |= touched.cover(self.cluster, self.size)
        self.version += bool(changed)
        for bitmap in self.bitmaps.values():
            bitmap.record(changed, touched)


def _where(flags: Sequence[bool], start: int) -> Sectors:
    """The sectors whose flags are set; the first is that of sector *start*."""
    beside = enumerate(pairwise((False, *flags, False)), start)
    return Sectors(tuple(at for at, (was, now) in beside if was != now))
