"""What a check reads of disks and snapshots: what was touched, and a part of the rest in turn."""

from __future__ import annotations

from qmpshim.model.disks.image import PAGE
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors


class Rotation:
    """The parts of each export that the next check reads; positions are in sectors.

    That is all of it at its first check, later what requests to the disk below it have named since
    the last check, in whole clusters, and one part of the rest, another one each time.

    :param size: of a disk
    :param cluster: of its image
    :param disks: how many
    :param parts: into which each is divided: a wrong byte where no request was is found as many
        checks later, at most
    """

    def __init__(self, size: int, cluster: int, disks: int, parts: int) -> None:
        self._size = size
        self._unit = max(PAGE, cluster)
        self._touched = [NOTHING] * disks
        self._parts, self._part = parts, -(-size // (parts * PAGE)) * PAGE
        self._turn = 0
        self._known: set[str] = set()  # exports that a check has read as a whole

    @property
    def whole(self) -> Sectors:
        """All of a disk."""
        return sectors(0, self._size)

    def touch(self, disk: int, start: int, count: int) -> None:
        """Note a request to a disk."""
        self._touched[disk] |= sectors(start, count).cover(self._unit, self._size)

    def due(self, export: str, disk: int) -> Sectors:
        """What this check reads of an export, which is of a disk or of its snapshot."""
        if export not in self._known:
            self._known.add(export)
            return self.whole
        start = self._turn * self._part
        return self._touched[disk] | sectors(start, min(self._part, self._size - start))

    def forget(self, export: str) -> None:
        """An export is another one from now on, of the same name."""
        self._known.discard(export)

    def checked(self) -> None:
        """A check is over."""
        self._touched = [NOTHING] * len(self._touched)
        self._turn = (self._turn + 1) % self._parts
