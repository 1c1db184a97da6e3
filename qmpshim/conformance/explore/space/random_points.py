"""Points of the scenario space by chance, without end; what was met before is taken less often."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from qmpshim.conformance.explore.space.covering import Point, Tuple
from qmpshim.conformance.explore.space.grammar import SPACE
from qmpshim.conformance.explore.space.naming import name_of, point_named

_STRENGTH = 3
_CANDIDATES = 3  # points of which the one with the most that is new is taken
_VALUES = [(one.name, value) for one in SPACE.dimensions for value in one.values]


class RandomPoints:
    """A source of points.

    :param seed: the same seed gives the same points, after the same ones before
    :param before: names of points that are not to come again
    """

    def __init__(self, seed: int, before: Iterable[str] = ()) -> None:
        self.seed = seed
        self._names: set[str] = set()
        self._met: set[Tuple] = set()
        self._counts: Counter[tuple[str, str]] = Counter()  # of values
        for name in before:
            self._take(point_named(name))

    def take(self, count: int) -> list[Point]:
        """The next points, none of which came before."""
        rng = random.Random(f"{self.seed} {len(self._names)}")
        points: list[Point] = []
        while len(points) < count:
            candidates = [SPACE.sample(rng) for _ in range(_CANDIDATES - 1)]
            candidates.append(SPACE.sample(rng, self._rarest()))
            fresh = [one for one in candidates if name_of(one) not in self._names]
            if fresh:
                points.append(max(fresh, key=self.new))
                self._take(points[-1])
        return points

    def _rarest(self) -> Point:
        """The value that the fewest points had, as some have it in few combinations only."""
        name, value = min(_VALUES, key=self._counts.__getitem__)
        return {name: value}

    def new(self, point: Point) -> int:
        """How many tuples of a point were not met yet."""
        return sum(one not in self._met for one in SPACE.tuples_of(point, _STRENGTH))

    def _take(self, point: Point) -> None:
        self._names.add(name_of(point))
        self._counts.update(point.items())
        self._met.update(SPACE.tuples_of(point, _STRENGTH))
