"""Covering arrays: every possible tuple is there, nothing impossible; a seed decides it all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpshim.conformance.explore.space import covering
from qmpshim.conformance.explore.space.covering import Constraint, Dimension, Point, Space


def points(space: Space) -> Iterator[dict[str, str]]:
    """Every point of a small space, by trying all."""
    names = [one.name for one in space.dimensions]
    for values in itertools.product(*(one.values for one in space.dimensions)):
        point = dict(zip(names, values, strict=True))
        if all(c.holds(*(point[name] for name in c.dimensions)) for c in space.constraints):
            yield point


def tuples_in(all_points: Sequence[Point], space: Space, strength: int) -> set[covering.Tuple]:
    names = [one.name for one in space.dimensions]
    return {
        tuple((name, point[name]) for name in some)
        for point in all_points
        for some in itertools.combinations(names, strength)
    }


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """A few dimensions, and constraints that forbid some combinations of two or three."""
    many = draw(st.integers(3, 5))
    dimensions = tuple(
        Dimension(f"d{n}", tuple(f"v{v}" for v in range(draw(st.integers(1, 4)))))
        for n in range(many)
    )
    constraints = []
    for _ in range(draw(st.integers(0, 4))):
        some = draw(st.lists(st.sampled_from(dimensions), min_size=2, max_size=3, unique=True))
        bad = tuple(draw(st.sampled_from(one.values)) for one in some)

        def holds(*values: str, bad: tuple[str, ...] = bad) -> bool:
            return values != bad

        constraints.append(Constraint(tuple(one.name for one in some), holds, "forbidden"))
    return Space(dimensions, tuple(constraints))


def wrong(space: Space, strength: int, seed: int) -> str:
    """What is wrong with an array, by brute force; ``""``: nothing."""
    every = list(points(space))
    array = space.covering_array(strength, seed)
    if any(point not in every for point in array):
        return "an impossible point"
    wanted, got = tuples_in(every, space, strength), tuples_in(array, space, strength)
    if wanted != got:
        return f"{len(wanted - got)} tuples are not there"
    if set(space.tuples(strength)) != wanted:
        return "tuples are called possible that are not"
    if array != space.covering_array(strength, seed):
        return "not the same again"
    return ""


@given(spaces(), st.sampled_from([1, 2, 3]), st.integers(0, 3))
@settings(max_examples=60)
def test_an_array_has_every_possible_tuple_and_nothing_else(
    space: Space, strength: int, seed: int
) -> None:
    assert wrong(space, strength, seed) == ""


THREE = Space(
    tuple(Dimension(name, ("x", "y", "z")) for name in "abcd"),
    (
        Constraint(("a", "b"), lambda a, b: a != "x" or b == "y", "x wants y"),
        Constraint(("b", "c"), lambda b, c: b != "y" or c != "z", "y forbids z"),
    ),
)


def test_a_tuple_that_only_a_chain_of_constraints_forbids_is_not_possible() -> None:
    assert THREE.complete({"a": "x", "c": "z"}) is None  # a=x wants b=y, which forbids c=z
    assert THREE.complete({"a": "y", "c": "z"}) is not None
    assert THREE.complete({"a": "x", "c": "z"}) is None


def test_another_seed_makes_another_array() -> None:
    assert THREE.covering_array(2, 0) != THREE.covering_array(2, 1)


REAL = Space.covering_array
_CALLS = itertools.count(1)


def _forgets(space: Space, strength: int, seed: int = 0) -> list[Point]:
    return REAL(space, strength, seed)[:-1]


def _ignores(space: Space, strength: int, seed: int = 0) -> list[Point]:
    return REAL(Space(space.dimensions, ()), strength, seed)


def _drifts(space: Space, strength: int, seed: int = 0) -> list[Point]:
    return REAL(space, strength, seed + next(_CALLS))


def _weaker(space: Space, strength: int, seed: int = 0) -> list[Point]:
    return REAL(space, strength - 1, seed)


@pytest.mark.parametrize("mutant", [_forgets, _ignores, _drifts, _weaker])
def test_generators_with_a_fault_are_caught(
    mutant: Callable[..., list[Point]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong(THREE, 2, 0) == ""
    monkeypatch.setattr(Space, "covering_array", mutant)
    assert wrong(THREE, 2, 0)
