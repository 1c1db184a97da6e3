"""Units of measure: the one place where they have numbers, and arithmetic of ranges in units."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

#: Bytes of a sector, the unit of the model and of QEMU's block layer in 2.8.
SECTOR = 512

_T = TypeVar("_T", bound=Hashable)
_SIZE = re.compile(r"(\d+)([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Bytes, with an optional suffix k, m, g or t; None: it is no size."""
    found = _SIZE.fullmatch(text.strip())
    return int(found[1]) << 10 * " kmgt".index(found[2].lower() or " ") if found else None


def touched(start: int, count: int, unit: int) -> range:
    """The units that a range touches."""
    return range(start // unit, -(-(start + count) // unit))


def inside(start: int, count: int, unit: int, size: int) -> range:
    """The units that are wholly within a range.

    :param size: of the disk, whose end may cut the last unit short
    """
    end = start + count
    return range(-(-start // unit), -(-size // unit) if end >= size else end // unit)


def outwards(start: int, count: int, unit: int) -> tuple[int, int]:
    """First and end of a range that is rounded outwards to whole units."""
    return start // unit * unit, -(-(start + count) // unit) * unit


def runs_of(values: Iterable[_T], start: int = 0) -> Iterator[tuple[int, int, _T]]:
    """The values that are the same one after another: first place, end and value of each run.

    :param start: the place of the first value
    """
    for value, run in groupby(values):
        end = start + sum(1 for _ in run)
        yield start, end, value
        start = end
