"""Random scenarios without end: what they cover, what ends them, and how they are gone on with."""

from __future__ import annotations

from errno import EIO
from pathlib import Path

import pytest

from qmpshim.conformance.explore.report.report import ExploreReport, render
from qmpshim.conformance.explore.search import soak
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.explore.search.soak import SoakState, soak_real, soak_state
from qmpshim.conformance.explore.space.covering import Tuple
from qmpshim.conformance.explore.space.grammar import DIMENSIONS, SPACE
from qmpshim.conformance.explore.space.naming import name_of, point_named
from qmpshim.conformance.explore.space.random_points import RandomPoints
from qmpshim.conformance.known.folder import known_findings
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build


def test_points_by_chance_keep_to_the_constraints_and_leave_no_value_out() -> None:
    points = RandomPoints(5).take(150)
    assert not any(map(SPACE.broken, points))
    assert len({name_of(one) for one in points}) == 150
    for one in DIMENSIONS:
        assert {point[one.name] for point in points} == set(one.values)
    assert points == RandomPoints(5).take(150) != RandomPoints(6).take(150)


def test_what_was_met_before_comes_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def met() -> int:
        every: set[Tuple] = set()
        for point in RandomPoints(1).take(150):
            every.update(SPACE.tuples_of(point, 3))
        return len(every)

    chosen = met()
    monkeypatch.setattr(RandomPoints, "new", lambda self, point: 0)  # the first one is taken
    assert chosen > met() * 1.1


def test_points_after_others_are_those_that_would_have_come() -> None:
    whole = RandomPoints(2)
    first, then = whole.take(20), whole.take(20)
    assert RandomPoints(2, map(name_of, first)).take(20) == then


def _soak(
    build: Build, most: int, state: SoakState | None = None, kept: list[int] | None = None
) -> ExploreReport:
    """A soak that is interrupted once there were so many schedules."""
    reports: list[ExploreReport] = []

    def progress(now: Progress) -> None:
        if now.schedules >= most:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        soak_real(
            build,
            faults=(EIO,),
            progress=progress,
            known=known_findings(),
            state=state,
            keep=lambda state: kept.append(len(state.names)) if kept is not None else None,
            interrupted=reports.append,
        )
    (report,) = reports
    return report


def test_a_soak_that_is_ended_has_its_figures_and_goes_on(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(soak, "BATCH", 2)
    monkeypatch.setattr(soak, "DEEP_LIMIT", 0.2)
    monkeypatch.setattr(soak, "CONFIRMING_LIMIT", 0.5)
    file, kept = tmp_path / "soak.json", list[int]()
    state = soak_state(file, qemu_build, 4)
    report = _soak(qemu_build, 30, state, kept)
    assert report.interrupted and report.schedules >= 30
    # Two are drawn at a time; what this build lacks is not kept.
    tested = [one.schedules > 0 for one in report.scenarios]
    assert kept == [sum(tested[: 2 * n]) for n in range(1, len(kept) + 1)]
    names = [one.name for one in report.scenarios]
    assert len(set(names)) == len(names) > kept[-1]
    pairs, triples = report.coverage
    many = len(DIMENSIONS)
    assert pairs.met >= many * (many - 1) // 2 and triples.met > pairs.met
    assert f"{triples.met} of {triples.possible} combinations of 3 values" in render(report)
    assert report.to_json()["coverage"]["tuples"][1]["met"] == triples.met

    state.save(file)
    again = soak_state(file, qemu_build, 9)
    assert (again.seed, len(again.names)) == (4, kept[-1]) and set(again.names) <= set(names)
    more = _soak(qemu_build, 1, again)
    assert not {one.name for one in more.scenarios} & set(again.names)
    assert more.coverage[0].met > pairs.met // 2
    assert f"{len(more.before)} reached before" in render(more)
    assert len(more.before) == kept[-1] == more.to_json()["coverage"]["reached_before"]
    assert all(point_named(name) for name in more.before)


def test_what_a_soak_has_found_is_not_lost_with_a_full_disk(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "BATCH", 2)
    monkeypatch.setattr(soak, "DEEP_LIMIT", 0.2)
    reports: list[ExploreReport] = []

    def keep(state: SoakState) -> None:
        raise HostError("the disk is full")

    with pytest.raises(HostError, match="full"):
        soak_real(qemu_build, keep=keep, interrupted=reports.append)
    (report,) = reports
    assert report.interrupted and report.schedules


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "no JSON|Expecting"),
        ('{"format": 1, "kind": "schedule"}', "does not hold how far"),
        (
            '{"format": 1, "kind": "soak", "seed": 1, "build": "x 1.0", "scenarios": ["W+R"]}',
            "no first 'W'",
        ),
        ('{"format": 1, "kind": "soak", "seed": 1, "build": "x 1.0", "scenarios": []}', "of x 1.0"),
    ],
)
def test_a_file_that_is_of_something_else_is_refused(
    qemu_build: Build, tmp_path: Path, text: str, wrong: str
) -> None:
    file = tmp_path / "soak.json"
    file.write_text(text)
    with pytest.raises(InputError, match=wrong):
        soak_state(file, qemu_build, 0)
    assert file.read_text() == text
