"""The scenario space: each of its points is a scenario with a name that means this scenario."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.scenarios import RealScenario, scenario_from_json
from qmpshim.conformance.explore.space import grammar, point_scenario
from qmpshim.conformance.explore.space.covering import Point
from qmpshim.conformance.explore.space.grammar import DIMENSIONS, SPACE
from qmpshim.conformance.explore.space.naming import (
    array,
    name_of,
    point_if_named,
    point_named,
    scenario_of,
)
from qmpshim.conformance.explore.space.values import CLUSTERS, NONE, RELATIONS
from qmpshim.errors import InputError


def test_the_array_of_the_grammar_has_every_pair(pairs_of_space: Sequence[Point]) -> None:
    points = pairs_of_space
    assert [name_of(p) for p in points] == [name_of(p) for p in SPACE.covering_array(2)]
    got = {pairs for point in points for pairs in SPACE.tuples_of(point, 2)}
    for one, other in itertools.combinations(DIMENSIONS, 2):
        for values in itertools.product(one.values, other.values):
            pairs = tuple(zip((one.name, other.name), values, strict=True))
            assert (pairs in got) == (SPACE.complete(dict(pairs)) is not None), pairs


def test_every_point_is_a_scenario_and_its_name_means_it(pairs_of_space: Sequence[Point]) -> None:
    rng = random.Random(7)
    points = [*pairs_of_space]
    for _ in range(300):
        start = {one.name: rng.choice(one.values) for one in rng.sample(DIMENSIONS, 4)}
        if found := SPACE.complete(start):
            points.append(found)
    names = set()
    for point in points:
        name = name_of(point)
        assert point_if_named(name) == point == point_named(name)
        scenario = scenario_of(point)
        assert scenario.name == name
        assert scenario_from_json(scenario.to_json()) == scenario
        names.add(name)
    assert len(names) == len({tuple(sorted(point.items())) for point in points})


def test_letters_are_no_names_of_points() -> None:
    for one in (*named("pairs"), *named("follow-ups"), *named("vanishing")):
        assert point_if_named(one.name) is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("primary_write+guest_read,cluster=3k", "no cluster '3k'"),
        ("primary_write+guest_read,clusters=4k", "did you mean cluster"),
        ("primary_write+guest_reed", "did you mean guest_read"),
        ("primary_write+guest_read,cluster", "'cluster' is not"),
        ("primary_write+guest_read,cluster=4k,cluster=4k", "each once"),
        ("primary_write+guest_read,form=primary", "form=primary, first=primary_write"),
        ("primary_write+checkpoint,relation=meets", "has no range"),
        ("primary_write+guest_dirty_bitmap,form=backup", "no bitmap is offered"),
        ("primary_write+guest_dirty_bitmap,form=fleecing,bitmap=ends", "second=guest_dirty_bitmap"),
        ("primary_write+guest_read,bitmap=ends", "neither a filter .* nor a job"),
        ("none+checkpoint,third=then_guest_read", "by itself"),
        ("none+guest_vanish", "something to do"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_is_wrong(name: str, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        point_named(name)


def _allen(a: range, b: range) -> str:
    """Allen's relation of two ranges, by definition; one that is an inverse is in brackets."""
    if a == b:
        return "equals"
    if a.stop < b.start:
        return "before"
    if a.stop == b.start:
        return "meets"
    if a.start == b.start:
        return "starts" if a.stop < b.stop else "(starts)"
    if a.stop == b.stop:
        return "finishes" if a.start > b.start else "(finishes)"
    if a.start > b.start and a.stop < b.stop:
        return "during"
    if a.start < b.start < a.stop < b.stop:
        return "overlaps"
    return "(other)"


def _scenario(**values: str) -> RealScenario:
    point = SPACE.complete({"first": "primary_write", "second": "guest_read", **values})
    assert point is not None
    return scenario_of(point)


@pytest.mark.parametrize("place", ["granules", "ragged", "small", "end"])
@pytest.mark.parametrize("relation", list(RELATIONS))
def test_ranges_are_in_the_relation_they_are_named_by(relation: str, place: str) -> None:
    for disk, cluster in itertools.product(("whole", "half", "odd"), CLUSTERS):
        one = _scenario(relation=relation, place=place, disk=disk, cluster=cluster)
        first, second = (range(op.start, op.start + op.count) for op in one.ops[:2])
        assert _allen(first, second) == relation, one
        assert first and second and second.stop <= one.size


def test_places_are_what_they_are_called() -> None:
    unit = 128
    whole = _scenario(relation="overlaps")
    assert all(op.start % unit == op.count % unit == 0 for op in whole.ops)
    ragged = _scenario(relation="overlaps", place="ragged")
    assert all(op.start % unit and (op.start + op.count) % unit for op in ragged.ops)
    small = _scenario(relation="before", place="small", cluster="4k")
    assert all(op.start + op.count <= unit for op in small.ops)
    assert small.ops[0].start // 8 != small.ops[1].start // 8  # other clusters, the same granule
    end = _scenario(relation="meets", place="end", disk="odd")
    assert end.ops[1].start + end.ops[1].count == end.size and end.size % unit


@pytest.mark.parametrize("disk", ["half", "odd"])
@pytest.mark.parametrize("cluster", list(CLUSTERS))
def test_a_disk_can_end_inside_a_granule(disk: str, cluster: str) -> None:
    point = SPACE.complete({"disk": disk, "cluster": cluster})
    assert point is not None
    assert point_scenario.size(point) % point_scenario.granule(point)
    assert cluster == "512" or disk == "half" or point_scenario.size(point) % CLUSTERS[cluster]


def test_an_operation_can_be_by_itself(pairs_of_space: Sequence[Point]) -> None:
    scenario = scenario_of(point_named("none+guest_write,cluster=512,history=active"))
    assert [op.name for op in scenario.ops] == ["guest_write"]
    assert [op.name for op in scenario.setup] == ["guest_write"]
    alone = {point["second"] for point in pairs_of_space if point["first"] == NONE}
    assert alone == {*SPACE.dimension("second").values} - grammar.BESIDE_ANOTHER


def test_what_outdoes_the_documents_is_robustness() -> None:
    assert _scenario().contract
    assert not _scenario(second="checkpoint").contract
    assert not _scenario(second="unexport").contract
    assert _scenario(first="guest_write", second="failover").contract
    assert _scenario(first="primary_write", second="status").contract
    assert len({one.contract for one in array(2)}) == 2
