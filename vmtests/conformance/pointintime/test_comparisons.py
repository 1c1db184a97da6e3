"""What differs by a known defect alone, and what differs beside it."""

from __future__ import annotations

from functools import partial

import pytest

from qmpshim.conformance.pointintime.comparisons import (
    BitmapPlace,
    Diverged,
    compare_bits,
    compare_mismarked,
)
from qmpshim.model.pointintime.bitmap import Bitmap
from qmpshim.model.pointintime.points import PointDefect
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors

_GRANULE = 128  # sectors
_WRITTEN, _MISMARKED = sectors(0, _GRANULE), sectors(_GRANULE, 2 * _GRANULE)


@pytest.mark.parametrize(
    ("marked", "defect"),
    [
        (_WRITTEN | _MISMARKED, PointDefect.ALWAYS_MARKS),
        (_WRITTEN | sectors(_GRANULE, _GRANULE), None),  # the defect marks all
        (_WRITTEN | _MISMARKED | sectors(3 * _GRANULE, _GRANULE), None),
        (_MISMARKED, None),  # what was written is missing
    ],
)
@pytest.mark.parametrize("met", [True, False])
def test_only_what_the_defect_has_marked_is_the_defect(
    marked: Sectors, defect: PointDefect | None, met: bool
) -> None:
    bitmap = Bitmap(
        "b", _GRANULE, 4 * _GRANULE, must=_WRITTEN, may=_WRITTEN,
        mismarked=_MISMARKED if met else NOTHING,
    )  # fmt: skip
    compare = partial(compare_bits, BitmapPlace(0, "b"), "export", marked)
    with pytest.raises(Diverged) as found:
        compare_mismarked(bitmap, compare)
    assert found.value.defect is (defect if met else None)


def test_what_is_as_predicted_is_no_defect() -> None:
    bitmap = Bitmap("b", _GRANULE, 4 * _GRANULE, must=_WRITTEN, may=_WRITTEN, mismarked=_MISMARKED)
    compare_mismarked(bitmap, partial(compare_bits, BitmapPlace(0, "b"), "export", _WRITTEN))
