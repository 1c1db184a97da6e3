"""Snapshots that are pulled: scratch overlays of jobs with ``sync=none``, exported and read."""

from __future__ import annotations

from dataclasses import dataclass, field

from qmpshim.conformance.pointintime.bitmaps import Bitmaps
from qmpshim.conformance.pointintime.sides import Sides
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.sectors import Sectors


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The snapshots that are exported now.

    :ivar exported: by disk, the names of the bitmaps that its export has
    """

    sides: Sides
    bitmaps: Bitmaps
    exported: dict[int, tuple[str, ...]] = field(default_factory=dict)

    async def export(self, disk: int) -> None:
        """Export the scratch overlay, with the disk's disabled bitmaps."""
        bitmaps = self.sides.model.disks[disk].bitmaps
        usable = [
            name
            for name, b in sorted(bitmaps.items())
            if not b.enabled and b.user is None and not b.inconsistent
        ]
        await self.sides.chain.export(f"snapshot{disk}", f"target{disk}", False, usable)
        for name in usable:
            bitmaps[name].user = f"snapshot{disk}"
        self.exported[disk] = tuple(usable)
        self.sides.rotation.forget(f"snapshot{disk}")

    async def unexport(self, disk: int) -> None:
        """Remove the export; its bitmaps are free again."""
        await self.sides.chain.unexport(f"snapshot{disk}")
        for name in self.exported.pop(disk):
            self.sides.model.disks[disk].bitmaps[name].user = None

    def read(self, disk: int, part: Sectors) -> None:
        """Compare a part of a disk's snapshot, if that is exported.

        :raises Diverged: it is not the disk at T0
        """
        if disk not in self.exported:
            return
        t0 = self.sides.model.jobs[f"job{disk}"].t0
        where, export = f"snapshot of disk{disk}", f"snapshot{disk}"
        self.sides.compare(Verdict.ISOLATION, where, export, t0, part)

    def read_bitmaps(self, disk: int) -> None:
        """Compare the bitmaps that its export has.

        :raises Diverged: one names too much or too little
        """
        if names := self.exported.get(disk):
            self.bitmaps.compare(disk, f"snapshot{disk}", names)
