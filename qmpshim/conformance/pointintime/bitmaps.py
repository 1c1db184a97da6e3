"""The bitmaps of the real disks, held to the model's: their bits, and what is reported of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qmpshim.conformance.compare.evidence import BitmapNames
from qmpshim.conformance.pointintime.comparisons import (
    BitmapPlace,
    Diverged,
    compare_bits,
    compare_mismarked,
    compare_state,
)
from qmpshim.conformance.pointintime.sides import Sides
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.sectors import Sectors
from qmpshim.model.units import SECTOR


@dataclass(frozen=True, slots=True)
class Bitmaps:
    """The bitmaps of all disks."""

    sides: Sides

    async def read(self, disk: int) -> None:
        """Compare the bits of every bitmap that can be exported.

        :raises Diverged: one names too much or too little
        """
        if self.sides.model.active(disk) is not None:
            return
        bitmaps = self.sides.model.disks[disk].bitmaps
        names = sorted(n for n, b in bitmaps.items() if b.user is None and not b.inconsistent)
        if not names:
            return
        await self.sides.chain.export("bits", f"disk{disk}", True, names)
        self.compare(disk, "bits", names)
        await self.sides.chain.unexport("bits")

    def compare(self, disk: int, export: str, names: Sequence[str]) -> None:
        """Compare the bits of bitmaps as an export has them.

        :raises Diverged: one names too much or too little
        """
        found = self.sides.chain.read_bitmaps(export, names)
        for name in names:
            extents = found[name]
            marked = Sectors.of((at // SECTOR, length // SECTOR) for at, length in extents)
            bitmap = self.sides.model.disks[disk].bitmaps[name]
            compare = partial(compare_bits, BitmapPlace(disk, name), export, marked)
            compare_mismarked(bitmap, compare)
            # What is marked stays so until a command or a job clears it.
            bitmap.must = bitmap.may = marked

    def compare_states(self, disk: int, listed: Sequence[Mapping[str, Any]]) -> None:
        """Compare what ``query-named-block-nodes`` has of the bitmaps.

        :raises Diverged: there are others, or one is in another state
        """
        active = self.sides.model.active(disk) is not None
        named = {one["name"]: one for one in listed if "name" in one}
        bitmaps = self.sides.model.disks[disk].bitmaps
        where = f"bitmaps of disk{disk}"
        evidence = BitmapNames(f"disk{disk}", tuple(sorted(bitmaps)))
        if named.keys() != bitmaps.keys():
            wanted, seen = ", ".join(sorted(bitmaps)), ", ".join(sorted(named))
            raise Diverged(Verdict.PROTOCOL, where, wanted or "none", seen or "none", evidence)
        if len(named) < len(listed) and not active:
            raise Diverged(
                Verdict.PROTOCOL, where, "named ones only", "one without a name", evidence
            )
        for name, bitmap in bitmaps.items():
            compare_mismarked(bitmap, partial(compare_state, BitmapPlace(disk, name), named[name]))
