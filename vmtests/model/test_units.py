"""Ranges in units, against what they mean sector by sector."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.model.units import inside, outwards, parse_size, touched

SIZE = 21
UNIT = 4


@given(st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_ranges_in_units(start: int, count: int) -> None:
    sectors = set(range(start, min(start + count, SIZE)))
    count = len(sectors)
    units = {n: set(range(n * UNIT, min((n + 1) * UNIT, SIZE))) for n in range(-(-SIZE // UNIT))}
    assert set(touched(start, count, UNIT)) == {n for n, has in units.items() if has & sectors}
    assert set(inside(start, count, UNIT, SIZE)) == {
        n for n, has in units.items() if has <= sectors
    }
    first, end = outwards(start, count, UNIT)
    assert [first // UNIT, end // UNIT] == [min(touched(start, count, UNIT)), (end - 1) // UNIT + 1]
    assert first % UNIT == end % UNIT == 0 and first <= start and start + count <= end


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("64k", 65536), ("1M", 1 << 20), (" 2GiB ", 2 << 30), ("1kb", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5M", "1 k", "0x10"])
def test_no_sizes(text: str) -> None:
    assert parse_size(text) is None
