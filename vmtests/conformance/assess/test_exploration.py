"""What is explored for a use."""

from __future__ import annotations

import pytest

from qmpshim.conformance.assess import exploration
from qmpshim.conformance.assess.exploration import cases_of, explore_uses, scenarios_of
from qmpshim.conformance.explore.directed.cases import DIRECTED
from qmpshim.conformance.explore.report.report import ExploreReport, ScenarioResult
from qmpshim.conformance.explore.scenario_sets import pairs
from qmpshim.conformance.explore.space.grammar import DIMENSIONS, SPACE
from qmpshim.conformance.explore.space.naming import point_if_named
from qmpshim.conformance.explore.space.values import OPERATIONS
from qmpshim.conformance.uses import USES, Use
from qmpshim.machine.builds.build import Build, find
from qmpshim.model.operations import Verb, does


@pytest.mark.parametrize("chain", list(USES))
def test_all_pairs_of_a_chain_are_explored(chain: str) -> None:
    assert set(pairs(chain)) <= {one for use in USES[chain] for one in scenarios_of(use)}


@pytest.mark.parametrize("chain", list(OPERATIONS))
def test_every_value_that_a_chain_can_have_is_explored(chain: str) -> None:
    scenarios = [one for use in USES[chain] for one in scenarios_of(use)]
    own = [one for one in scenarios if one.form == chain]  # several may stand for one use
    points = [point for one in own if (point := point_if_named(one.name))]
    there = {(name, value) for point in points for name, value in point.items()}
    possible = {
        (one.name, value)
        for one in DIMENSIONS
        for value in one.values
        if SPACE.complete({"form": chain, one.name: value}) is not None
    }
    assert there == possible - {("form", other) for other in USES if other != chain}


@pytest.mark.parametrize("use", Use)
def test_only_what_stands_for_the_use_is(use: Use) -> None:
    scenarios = scenarios_of(use)
    assert scenarios and len({one.name for one in scenarios}) == len(scenarios)
    if use is not Use.NBD_EXPORT:
        assert all(use in USES[one.form] for one in scenarios)


def test_what_an_export_reports_is_explored() -> None:
    """A build whose exports call data a hole was RELIABLE for them: backup tools skip holes."""
    beside = {
        other.name
        for one in scenarios_of(Use.NBD_EXPORT)
        if does(one.ops, Verb.BLOCK_STATUS)
        for other in one.ops
        if other.verb is not Verb.BLOCK_STATUS
    }
    assert beside >= {"primary_write", "primary_zero", "primary_discard", "primary_write_fua"}
    bitmaps = [one for one in scenarios_of(Use.NBD_EXPORT) if does(one.ops, Verb.DIRTY_BITMAP)]
    assert len(bitmaps) >= 10


def test_what_the_builds_own_schema_has_is_no_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario of the array that a build refuses, though it knows all of it, is a doubt."""
    names = [one.name for one in scenarios_of(Use.FLEECING) if point_if_named(one.name)][:2]
    results = [ScenarioResult(name, True, skipped=name) for name in names]
    results[0].lacks = True
    build = find("system")
    report = ExploreReport(build.name, (7, 2, 0), "stateful", 0, False, results, [], 1.0, 1)
    monkeypatch.setattr(exploration, "explore_real", lambda *args, **options: report)
    explored = exploration.explore_uses(build, [Use.FLEECING], 1.0, 1)[Use.FLEECING]
    assert (explored.lacking, explored.skipped, explored.why) == (1, 1, names[1])


def test_each_directed_case_is_run_for_a_use() -> None:
    assert {one.name for use in Use for one in cases_of(use)} == {one.name for one in DIRECTED}
    assert all(cases_of(use) for use in Use)


def test_what_is_decided_comes_last(qemu_build: Build) -> None:
    found = explore_uses(
        qemu_build, [Use.BITMAPS, Use.SYNC_NONE_BACKUP], 8.0, 1, decided=[Use.BITMAPS]
    )
    assert found[Use.SYNC_NONE_BACKUP].reached > 0 and found[Use.BITMAPS].schedules == 0


def test_what_only_a_failing_io_shows_is_explored(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the primary disk that the quorum masks, without its write-up being tried."""
    monkeypatch.setattr(exploration, "DIRECTED", ())
    monkeypatch.setattr(exploration, "FAILING", 0.8)
    monkeypatch.setattr(exploration, "scenarios_of", lambda use: pairs("primary")[:3])
    use = Use.COLO_PRIMARY
    found = explore_uses(qemu_build, [use], 15.0, 2)[use].seen
    assert any(one.known.startswith("primary-") for one in found), found
    assert len({(one.verdict, one.described) for one in found}) == len(found)


def test_each_request_of_an_operation_by_itself_fails(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that the primary's own disk refuses: its only request there."""
    monkeypatch.setattr(exploration, "DIRECTED", ())
    monkeypatch.setattr(exploration, "FAILING", 0.8)
    ones = {one.name: one for one in scenarios_of(Use.COLO_PRIMARY)}
    flush = ones["primary-F"]
    assert len(flush.ops) == 1
    monkeypatch.setattr(exploration, "scenarios_of", lambda use: [flush])
    found = explore_uses(qemu_build, [Use.COLO_PRIMARY], 10.0, 1)[Use.COLO_PRIMARY].seen
    assert any(
        one.known.startswith(("primary-", "flush-fails", "forwarded-flush")) for one in found
    )
