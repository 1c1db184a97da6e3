"""Sets of sectors of disks of any size: what is not in them costs nothing.

The explorer's disks have some hundred sectors, and sets of theirs are integers (:mod:`.masks`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import merge

from qmpshim.model.units import outwards, touched


class Sectors:
    """An immutable set of sectors, as its runs.

    :param edges: ascending: the first sector of a run, the first one after it, and so on
    """

    __slots__ = ("_edges",)

    def __init__(self, edges: tuple[int, ...] = ()) -> None:
        self._edges = edges

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> Sectors:
        """The sectors of runs (first, sectors)."""
        found = NOTHING
        for start, count in runs:
            found |= sectors(start, count)
        return found

    def runs(self) -> Iterator[tuple[int, int]]:
        """Its runs, in order: (first sector, sectors)."""
        edges = iter(self._edges)
        return ((start, end - start) for start, end in zip(edges, edges, strict=True))

    @property
    def first(self) -> int:
        """The first sector."""
        return self._edges[0]

    @property
    def last(self) -> int:
        """The last sector."""
        return self._edges[-1] - 1

    def __bool__(self) -> bool:
        return bool(self._edges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sectors) and self._edges == other._edges

    def __hash__(self) -> int:
        return hash(self._edges)

    def __repr__(self) -> str:
        return f"Sectors({self._edges})"

    def __or__(self, other: Sectors) -> Sectors:
        more, fewer = self._edges, other._edges
        if len(more) < len(fewer):
            more, fewer = fewer, more
        if not fewer:
            return Sectors(more)
        if len(fewer) == 2:
            return Sectors(_with_run(more, *fewer))
        return self._combined(other, lambda here, there: here or there)

    def __and__(self, other: Sectors) -> Sectors:
        return self._combined(other, lambda here, there: here and there)

    def __sub__(self, other: Sectors) -> Sectors:
        if not (self._edges and other._edges):
            return self
        return self._combined(other, lambda here, there: here and not there)

    def _combined(self, other: Sectors, keeps: Callable[[bool, bool], bool]) -> Sectors:
        sides = ([(edge, n) for edge in one._edges] for n, one in enumerate((self, other)))
        found: list[int] = []
        within = [False, False]
        for edge, side in merge(*sides):
            within[side] = not within[side]
            if keeps(*within) != bool(len(found) % 2):
                if found and found[-1] == edge:
                    found.pop()
                else:
                    found.append(edge)
        return Sectors(tuple(found))

    def cover(self, unit: int, size: int) -> Sectors:
        """It, rounded outwards to whole units.

        :param unit: sectors of a unit
        :param size: sectors of the disk, which cuts the last unit short
        """
        rounded = (outwards(start, count, unit) for start, count in self.runs())
        return Sectors.of((first, min(size, end) - first) for first, end in rounded)

    def units(self, unit: int) -> int:
        """How many units it has, if it consists of whole ones; the disk's end may cut the last."""
        return sum(len(touched(start, count, unit)) for start, count in self.runs())

    @property
    def mask(self) -> int:
        """It as an integer: bit *n* stands for sector *n*."""
        return sum(((1 << count) - 1) << start for start, count in self.runs())


NOTHING = Sectors()


def sectors(start: int, count: int) -> Sectors:
    """*count* sectors from sector *start* on."""
    return Sectors((start, start + count)) if count > 0 else NOTHING


def _with_run(edges: tuple[int, ...], start: int, end: int) -> tuple[int, ...]:
    # An even number of edges before a place: it is outside of all runs.
    low, high = bisect_left(edges, start), bisect_right(edges, end)
    first = (start,) if low % 2 == 0 else ()
    last = (end,) if high % 2 == 0 else ()
    return edges[:low] + first + last + edges[high:]
