"""Coverage figures: an array meets all tuples, one scenario few, other scenarios none."""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.conformance.explore.space.coverage import POSSIBLE, tuples_met
from qmpshim.conformance.explore.space.covering import Point
from qmpshim.conformance.explore.space.grammar import SPACE
from qmpshim.conformance.explore.space.naming import name_of


def test_the_possible_tuples_are_counted() -> None:
    """A value of the grammar or a constraint that is new changes these figures."""
    counted = {strength: sum(1 for _ in SPACE.tuples(strength)) for strength in POSSIBLE}
    assert counted == POSSIBLE


def test_an_array_meets_every_pair_and_not_every_triple(pairs_of_space: Sequence[Point]) -> None:
    pairs, triples = tuples_met([name_of(point) for point in pairs_of_space])
    assert pairs.met == pairs.possible
    assert 0 < triples.met < triples.possible


def test_one_scenario_meets_a_tuple_for_each_choice_of_dimensions(
    pairs_of_space: Sequence[Point],
) -> None:
    pairs, triples = tuples_met([name_of(pairs_of_space[0])])
    many = len(SPACE.dimensions)
    assert pairs.met == many * (many - 1) // 2
    assert triples.met == many * (many - 1) * (many - 2) // 6


def test_letters_are_no_points_of_the_space() -> None:
    assert tuples_met(["WR", "fleecing-WR"]) == []
