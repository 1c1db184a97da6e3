"""Covering arrays with constraints: few points that contain every possible tuple of values.

A *space* has dimensions with values, and constraints that some combinations must satisfy. A *tuple*
of strength t chooses a value in each of t dimensions; it is *possible* if some point of the space
contains it. A covering array of strength t is a set of points that contains all possible ones
(Cohen, Dwyer, Shi, "Constructing interaction test suites for highly-configurable systems in the
presence of constraints", TSE 2008). Generation is greedy, one point at a time, as in AETG.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

Point = Mapping[str, str]  # a value for each dimension
Tuple = tuple[tuple[str, str], ...]  # (dimension, value), in the order of the dimensions

_CANDIDATES = 4  # points from which each row of an array is chosen


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that varies.

    :ivar values: its values; the first is the default
    """

    name: str
    values: tuple[str, ...]

    @property
    def default(self) -> str:
        """The value that a name leaves out."""
        return self.values[0]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A condition on the values of some dimensions.

    :ivar reason: why the combinations that it excludes make no sense
    """

    dimensions: tuple[str, ...]
    holds: Callable[..., bool]
    reason: str


@dataclass(frozen=True)
class Space:
    """Dimensions and constraints.

    :ivar dimensions: in the order in which a point is completed: those that constrain others first
    """

    dimensions: tuple[Dimension, ...]
    constraints: tuple[Constraint, ...]
    _about: dict[str, list[tuple[tuple[str, ...], Callable[..., bool]]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        for one in self.dimensions:
            self._about[one.name] = [
                (constraint.dimensions, constraint.holds)
                for constraint in self.constraints
                if one.name in constraint.dimensions
            ]

    def dimension(self, name: str) -> Dimension:
        """The dimension of a name.

        :raises KeyError: there is none
        """
        return {one.name: one for one in self.dimensions}[name]

    def broken(self, values: Point) -> Constraint | None:
        """A constraint that these values violate, whatever the missing ones are."""
        for constraint in self.constraints:
            given = tuple(map(values.get, constraint.dimensions))
            if None not in given and not constraint.holds(*given):
                return constraint
        return None

    def _conflict(self, values: Point, name: str) -> tuple[str, ...]:
        """The dimensions of a constraint that the value of one of them violates; none: all hold."""
        for names, holds in self._about[name]:
            given = tuple(map(values.get, names))
            if None not in given and not holds(*given):
                return names
        return ()

    def complete(self, values: Point) -> Point | None:
        """A point that contains *values*, defaults where they can be; ``None``: there is none.

        Where no value of a dimension can be, the search goes back to the last one that has to do
        with it (Prosser, "Hybrid algorithms for the constraint satisfaction problem", 1993).
        """
        chosen = dict(values)
        if self.broken(chosen):
            return None
        missing = [one for one in self.dimensions if one.name not in chosen]

        def extend(index: int) -> set[str] | None:
            """The dimensions whose values are in the way; None: all have one."""
            if index == len(missing):
                return None
            name = missing[index].name
            reasons: set[str] = set()
            for value in missing[index].values:
                chosen[name] = value
                if conflict := self._conflict(chosen, name):
                    reasons.update(conflict)
                    continue
                further = extend(index + 1)
                if further is None:
                    return None
                if name not in further:  # another value of this one changes nothing
                    reasons = further
                    break
                reasons |= further
            del chosen[name]
            return reasons - {name}

        if extend(0) is not None:
            return None
        return {one.name: chosen[one.name] for one in self.dimensions}

    def sample(self, rng: random.Random, given: Point | None = None) -> Point:
        """A point by chance: each dimension in turn has any value that a point is left with.

        :param given: values that it has to have, which some point has
        """
        chosen = dict(given or {})
        for one in self.dimensions:
            if one.name in chosen:
                continue
            values = [
                v for v in one.values if not self._conflict({**chosen, one.name: v}, one.name)
            ]
            rng.shuffle(values)
            while self.complete({**chosen, one.name: values[-1]}) is None:
                values.pop()
            chosen[one.name] = values[-1]
        return {one.name: chosen[one.name] for one in self.dimensions}

    def tuples(self, strength: int) -> Iterator[Tuple]:
        """Every possible tuple of a strength.

        What a point contains that was found for another tuple is possible, and nothing is that
        contains something impossible: most tuples need no search.
        """
        met: set[Tuple] = set()
        smaller = set(self.tuples(strength - 1)) if strength > 1 else {()}
        for names in itertools.combinations(self.dimensions, strength):
            for pairs in itertools.product(*([(one.name, v) for v in one.values] for one in names)):
                if pairs not in met:
                    if not smaller.issuperset(itertools.combinations(pairs, strength - 1)):
                        continue
                    point = self.complete(dict(pairs))
                    if point is None:
                        continue
                    met.update(self.tuples_of(point, strength))
                yield pairs

    def tuples_of(self, point: Point, strength: int) -> Iterator[Tuple]:
        """The tuples that a point contains."""
        values = tuple((one.name, point[one.name]) for one in self.dimensions)
        return itertools.combinations(values, strength)

    def covering_array(self, strength: int, seed: int = 0) -> list[Point]:
        """Points that contain every possible tuple; each of them contains as many as can be found.

        :param seed: the same seed gives the same points in the same order
        """
        rng = random.Random(seed)
        left = dict.fromkeys(self.tuples(strength))  # ordered, unlike a set
        array: list[Point] = []
        while left:
            first = next(iter(left))
            best, gain = None, 0
            for _ in range(_CANDIDATES):
                point = self._grown(first, left, rng)
                count = sum(pairs in left for pairs in self.tuples_of(point, strength))
                if count > gain:
                    best, gain = point, count
            assert best is not None  # it contains the first
            array.append(best)
            for pairs in self.tuples_of(best, strength):
                left.pop(pairs, None)
        return array

    def _changed(self, point: Point, name: str, value: str, chosen: Point) -> Point | None:
        """A point that contains what was *chosen* and another value; None: there is none.

        :param point: one that contains what was chosen: mostly it needs no other change
        """
        changed = {**point, name: value}
        if not self._conflict(changed, name):
            return changed
        return self.complete({**chosen, name: value})

    def _grown(self, first: Tuple, left: Mapping[Tuple, None], rng: random.Random) -> Point:
        """A point around a tuple; each further value completes the most tuples that are left."""
        chosen = dict(first)
        point = self.complete(chosen)
        assert point is not None  # the tuple is possible
        missing = [one for one in self.dimensions if one.name not in chosen]
        rng.shuffle(missing)
        order = {one.name: index for index, one in enumerate(self.dimensions)}
        strength = len(first)

        def new(name: str, values: list[str]) -> dict[str, int]:
            """How many tuples that are left each value would complete."""
            ordered = sorted(chosen.items(), key=lambda pair: order[pair[0]])
            low = [pair for pair in ordered if order[pair[0]] < order[name]]
            around = [
                (others[: (before := sum(pair in low for pair in others))], others[before:])
                for others in itertools.combinations(ordered, strength - 1)
            ]
            return {
                value: sum((*below, (name, value), *above) in left for below, above in around)
                for value in values
            }

        for dimension in missing:
            name, values = dimension.name, list(dimension.values)
            rng.shuffle(values)
            count = new(name, values)
            for value in sorted(values, key=lambda value: -count[value]):
                with_it = self._changed(point, name, value, chosen)
                if with_it is not None:
                    point, chosen[name] = with_it, value
                    break
        return point
