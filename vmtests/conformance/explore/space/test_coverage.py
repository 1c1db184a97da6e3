"""Coverage figures: an array meets all tuples, one scenario few, other scenarios none."""

from __future__ import annotations

from qmpshim.conformance.explore.space.coverage import tuples_met
from qmpshim.conformance.explore.space.grammar import SPACE
from qmpshim.conformance.explore.space.naming import name_of


def test_an_array_meets_every_pair_and_not_every_triple() -> None:
    pairs, triples = tuples_met([name_of(point) for point in SPACE.covering_array(2)])
    assert pairs.met == pairs.possible == sum(1 for _ in SPACE.tuples(2))
    assert 0 < triples.met < triples.possible


def test_one_scenario_meets_a_tuple_for_each_choice_of_dimensions() -> None:
    (point, *_) = SPACE.covering_array(2)
    pairs, triples = tuples_met([name_of(point)])
    many = len(SPACE.dimensions)
    assert pairs.met == many * (many - 1) // 2
    assert triples.met == many * (many - 1) * (many - 2) // 6


def test_letters_are_no_points_of_the_space() -> None:
    assert tuples_met(["WR", "fleecing-WR"]) == []
