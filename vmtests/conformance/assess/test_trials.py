"""Trying a known finding: what else goes wrong there is seen, too, and is no sign of soundness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.assess import trials
from qmpshim.conformance.assess.exploration import Explored
from qmpshim.conformance.assess.judgement import Answer, judge
from qmpshim.conformance.assess.trials import (
    Record,
    Seen,
    Trial,
    note,
    pairs_alike,
    run_batch,
    try_finding,
)
from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.check.runners import bundle, known
from qmpshim.conformance.explore.search import minimize
from qmpshim.conformance.known import folder
from qmpshim.conformance.known.folder import write_up, write_ups
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.check.cause import Cause, CauseKind

#: What 7.2 has: without a failing I/O, and with one.
ON_7_2 = ("snapshot-read-returns-new-data", "write-refused-by-both-disks-succeeds")


@pytest.fixture(params=ON_7_2)
def shadowed(
    request: pytest.FixtureRequest, qemu_build: Build, tmp_path: Path
) -> tuple[str, ExplorerWriteUp]:
    """A known finding, and a write-up of another one that is never seen in its scenario."""
    known = write_up(request.param)
    assert isinstance(known, ExplorerWriteUp)
    if not known.concerns(read_version(qemu_build)[0]):
        pytest.skip("another version's")
    case = replace(known.case, cause=Cause(CauseKind.JOB_GONE))
    return request.param, replace(known, case=case, path=tmp_path / "never-seen.json", causes=())


@pytest.fixture
def nothing_known(shadowed: tuple[str, ExplorerWriteUp], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a write-up shadows is not known by another one either."""
    monkeypatch.setattr(folder, "known_findings", lambda: ())


def test_what_is_known_of_it_is_reported_beside(
    shadowed: tuple[str, ExplorerWriteUp], qemu_build: Build, tmp_path: Path
) -> None:
    name, other = shadowed
    found = {one.entry.name: one.seen for one in try_finding(qemu_build, other, tmp_path)}
    assert found == {name: Seen.SHOWN, other.name: Seen.NOT_SEEN}


@pytest.mark.usefixtures("nothing_known")
def test_what_nothing_explains_is_no_sign_of_soundness(
    shadowed: tuple[str, ExplorerWriteUp], qemu_build: Build, tmp_path: Path
) -> None:
    _, other = shadowed
    (trial,) = try_finding(qemu_build, other, tmp_path)
    assert trial.seen is Seen.OTHER and trial.why
    assert trial.wrong is not None and trial.uses and not trial.new


def _recorded(one: WriteUp, build: Build, directory: Path) -> Trial:
    """What a batch of a single finding notes of it."""
    record, found = directory / "record", dict[str, Trial]()
    words = {"names": [one.name], "record": str(record)}
    run_batch(build, Case("trial", one.name, words), directory)
    note(found, [one.name], Record(tuple(record.read_text().splitlines()), ""))
    return found[one.name]


@pytest.mark.usefixtures("nothing_known")
def test_what_goes_wrong_again_is_new(
    shadowed: tuple[str, ExplorerWriteUp],
    qemu_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was a doubt only: a build that lost each write in a case was not called unreliable."""
    _, other = shadowed
    monkeypatch.setattr(trials, "write_up", lambda name: other)
    trial = _recorded(other, qemu_build, tmp_path)
    assert trial.new and trial.seen is Seen.OTHER
    for use in trial.uses:
        judged = judge(use, [trial], Explored(scenarios=1, reached=1, schedules=3))
        assert judged.answer is Answer.NOT_RELIABLE and not judged.doubts
        assert [reason.trial for reason in judged.reasons] == [trial]
        once = judge(use, [replace(trial, again=False)], Explored(scenarios=1, reached=1))
        assert once.answer is Answer.CANNOT_TELL and "something else went wrong" in once.doubts[0]


@pytest.mark.usefixtures("nothing_known")
def test_something_else_the_second_time_is_not_the_same(
    shadowed: tuple[str, ExplorerWriteUp],
    qemu_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever its words are: another cause is another thing that goes wrong."""
    _, other = shadowed
    tried: list[Trial] = []

    def with_another_cause(build: Build, one: WriteUp, directory: Path) -> list[Trial]:
        found = try_finding(build, one, directory)
        if tried:
            found = [replace(each, causes=frozenset([Cause(CauseKind.STAYS)])) for each in found]
        tried.extend(found)
        return found

    monkeypatch.setattr(trials, "write_up", lambda name: other)
    monkeypatch.setattr(trials, "try_finding", with_another_cause)
    assert not _recorded(other, qemu_build, tmp_path).new
    first, second = tried
    assert (first.wrong, first.why) == (second.wrong, second.why)


def test_a_check_of_what_is_known_diverges_over_something_else(
    shadowed: tuple[str, ExplorerWriteUp],
    qemu_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is written up it is no news; what could not be tried to its end was not tried."""
    _, other = shadowed
    case = Case("known", "x", {"id": "x"})
    monkeypatch.setattr(known, "write_up", lambda name: other)
    assert known.known(qemu_build, case, tmp_path).status is Status.OK
    with monkeypatch.context() as nothing_known:
        nothing_known.setattr(folder, "known_findings", lambda: ())
        outcome = known.known(qemu_build, case, tmp_path)
    assert outcome.status is Status.DIVERGED and outcome.text.startswith("another divergence: ")
    (finding,) = outcome.findings
    assert finding.confirmed and not finding.known
    monkeypatch.setattr(minimize, "SMALLER_LIMIT", 0.0)
    assert known.known(qemu_build, case, tmp_path).status is Status.SKIPPED


def test_another_cause_of_the_same_write_up_is_the_same(
    shadowed: tuple[str, ExplorerWriteUp],
    qemu_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Builds differ in what a defect shows as: `assess` and `check` take either for it."""
    name, other = shadowed
    written = write_up(name)
    assert isinstance(written, ExplorerWriteUp)
    same = replace(written, case=other.case)
    assert [one.seen for one in try_finding(qemu_build, same, tmp_path)] == [Seen.SHOWN]
    monkeypatch.setattr(known, "write_up", lambda name: same)
    outcome = known.known(qemu_build, Case("known", "x", {"id": name}), tmp_path)
    assert (outcome.status, outcome.figures) == (Status.OK, {"seen": 1})


def test_a_bundle_is_not_cleared_by_something_else(
    shadowed: tuple[str, ExplorerWriteUp], qemu_build: Build, tmp_path: Path
) -> None:
    """With the same I/Os failing: a bisection passes such a build over."""
    _, other = shadowed
    content = other.case.to_json()
    outcome = bundle.bundle(qemu_build, Case("bundle", "x", {"content": content}), tmp_path)
    assert outcome.status is Status.DIVERGED and outcome.figures == {"reproduced": 0}
    assert outcome.text.startswith("another divergence: ")


def test_pairs_that_begin_alike_are_tried_together_the_longest_first() -> None:
    names = [[one.name for one in alike] for alike in pairs_alike(write_ups())]
    assert ["pair/colo-primary-deadlocks-under-tcg", "pair/colo-migration-completes"] in names
    tried = sorted(name for alike in names for name in alike)
    assert tried == sorted(one.name for one in write_ups() if one.kind == "pair")
