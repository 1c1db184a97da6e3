"""Real builds assessed: what they have is named, and no version string is believed."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.assess import trials
from qmpshim.conformance.assess.assess import assess, how_many, left_to_explore
from qmpshim.conformance.assess.exploration import explore_uses
from qmpshim.conformance.assess.judgement import Answer, judge
from qmpshim.conformance.assess.trials import Record, Seen, Trial, note, try_finding, try_findings
from qmpshim.conformance.known.folder import by_severity, known_workloads, write_up, write_ups
from qmpshim.conformance.known.matching import WorkloadWriteUp
from qmpshim.conformance.known.tracker import command_of
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import Use
from qmpshim.errors import NotStarted
from qmpshim.machine.builds.build import Build, read_version, resolve
from vmtests.support.broken_builds import make

SNAPSHOT = write_up("snapshot-read-returns-new-data")
QUICK = [
    write_up(name) for name in (SNAPSHOT.name, "verify/stop-always-fails", "directed/copy-fails")
]
STALE = write_up("pair/colo-secondary-runs-stale-code-under-tcg")
#: COLO does not get so far as to show it where the primary has one of these.
BEFORE_STALE = ("pair/colo-primary-deadlocks-under-tcg", "pair/colo-migration-completes")


@pytest.mark.parametrize(
    ("budget", "seconds", "left"),
    [(60, 10, 80), (60, 40, 63), (60, 60, 43), (60, 500, 15), (5, 500, 1.25)],
)
def test_what_took_longer_or_less_is_taken_from_the_exploration_or_given_to_it(
    budget: float, seconds: float, left: float
) -> None:
    assert left_to_explore(budget, seconds) == left


def calls_itself(version: str, real: str, directory: Path) -> Build:
    """A build that gives another version and is otherwise what it is."""
    directory.mkdir()
    script = directory / "qemu-system-x86_64"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version {version}" && exit\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    image_tool = shutil.which("qemu-img")
    assert image_tool is not None
    (directory / "qemu-img").symlink_to(image_tool)
    return resolve(str(script))


def has(build: Build, known: WriteUp) -> bool:
    return known.concerns(read_version(build)[0])


def test_each_kind_of_finding_is_tried(qemu_build: Build) -> None:
    for trial in try_findings(qemu_build, QUICK, 1, 60.0):
        if trial.seen is not Seen.IMPOSSIBLE:
            assert (trial.seen is Seen.SHOWN) is has(qemu_build, trial.entry), trial


@pytest.mark.parametrize("one", known_workloads(), ids=lambda one: one.id)
def test_what_a_workload_shows_is_named(
    one: WorkloadWriteUp, qemu_build: Build, tmp_path: Path
) -> None:
    """Also where another write-up's symptom shows itself in the place of its own."""
    (trial,) = try_finding(qemu_build, one, tmp_path)
    assert trial.seen is (Seen.SHOWN if has(qemu_build, one) else Seen.NOT_SEEN), trial
    if one.id == "refused-transaction-loses-bitmap" and trial.seen is Seen.NOT_SEEN:
        assert trial.why.startswith("verify/refused-transaction-marks-everything shows itself")


def test_a_build_is_not_believed_its_version(tmp_path: Path, qemu_build: Build) -> None:
    """7.2 that calls itself 11.1.3, where the defect is written up as mended."""
    if not has(qemu_build, SNAPSHOT):
        pytest.skip("this QEMU does not have the defect")
    misnamed = calls_itself("11.1.3", str(qemu_build.binary), tmp_path / "misbehaving")
    assert not has(misnamed, SNAPSHOT)
    (trial,) = try_findings(misnamed, [SNAPSHOT], 1, 60.0)
    assert trial.seen is Seen.SHOWN


def test_without_time_nothing_is_reported(qemu_build: Build) -> None:
    trials = try_findings(qemu_build, QUICK, 1, 0.0)
    assert {trial.seen for trial in trials} == {Seen.NOT_TRIED}
    # Ended while they are tried, but for what was shown by then.
    trials = try_findings(qemu_build, QUICK, 1, 0.01)
    assert Seen.NOT_TRIED in {trial.seen for trial in trials} <= {Seen.NOT_TRIED, Seen.SHOWN}


def test_the_worst_is_tried_first_whatever_shows_it(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the time be short, what is left is what matters least."""
    done: list[WriteUp] = []

    def carry_out(build: Build, identity: object, names: Sequence[str], *_: object) -> Record:
        done.extend(map(write_up, names))
        return Record((), "nothing was done")

    monkeypatch.setattr(trials, "carry_out_batch", carry_out)
    wanted = by_severity(write_ups())
    try_findings(qemu_build, wanted, 1, 60.0)
    assert sorted(one.name for one in done) == sorted(one.name for one in wanted)
    pairs = [one.meaning for one in done if one.kind == "pair"]
    ranks = [(not one.disqualifies, one.severity.rank) for one in pairs]
    assert ranks == sorted(ranks) and len(set(ranks)) > 1
    assert STALE in done[: len(done) // 2]
    serious = [one.meaning.disqualifies for one in done]
    assert all(serious[: serious.count(True) - 4]) and not any(serious[serious.count(True) + 4 :])


def test_a_pair_whose_guest_takes_long_to_boot_is_tried_by_its_script(
    qemu_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "run_plan", None)  # which would boot Linux
    (trial,) = try_finding(qemu_build, STALE, tmp_path)
    version = read_version(qemu_build)[0]
    if not any(write_up(name).concerns(version) for name in BEFORE_STALE):
        assert trial.seen is Seen.SHOWN, trial
    elif trial.seen is not Seen.SHOWN:
        assert trial.seen is Seen.UNSURE and "COLO" in trial.why


def test_a_batch_that_is_ended_keeps_what_it_recorded() -> None:
    shown, other = QUICK[:2]
    line = json.dumps([shown.name, Seen.SHOWN.value, "new data", None, [], False, []])
    found: dict[str, Trial] = {}
    note(found, [shown.name, other.name], Record((line,), "killed"))
    assert found[shown.name] == Trial(shown, Seen.SHOWN, "new data")
    assert found[other.name] == Trial(other, Seen.UNSURE, "killed")


def test_a_command_that_shows_it_can_be_pasted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for one in (QUICK[1], QUICK[2]):
        words = shlex.split(command_of(one))
        assert words.pop(0) == "qmpshim"
        assert {main(words), main(words)} <= {0, 1}


def test_a_build_that_does_not_start_is_no_build_that_cannot(tmp_path: Path) -> None:
    """Of what it can do nothing is known."""
    script = tmp_path / "qemu-system-x86_64"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 7.2.0"\n')
    script.chmod(0o755)
    (tmp_path / "qemu-img").symlink_to(shutil.which("qemu-img") or "")
    build = resolve(str(script))
    for one in QUICK:
        (trial,) = try_finding(build, one, tmp_path)
        assert trial.seen is Seen.UNSURE, trial


def test_nothing_is_tried_on_a_build_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = resolve(str(make("ends-at-once", tmp_path / "broken")))
    monkeypatch.setattr("qmpshim.conformance.assess.assess.try_findings", None)
    with pytest.raises(NotStarted, match="ended at once"):
        assess(build, [Use.FLEECING], 1.0, 1)


def test_a_build_that_dies_is_never_reliable(tmp_path: Path) -> None:
    """At the first disk: nothing can be tried on it."""
    build = resolve(str(make("dies-building", tmp_path / "broken")))
    (judgement,) = assess(build, [Use.FLEECING], 1.0, 1).judgements
    assert judgement.answer is not Answer.RELIABLE


@pytest.mark.full
def test_a_checkpoint_that_is_swallowed_is_found_by_the_exploration(tmp_path: Path) -> None:
    """No write-up says so: the fresh exploration alone does."""
    build = resolve(str(make("checkpoint-swallowed", tmp_path / "broken")))
    use = Use.COLO_SECONDARY
    explored = explore_uses(build, [use], 60.0, 2)[use]
    assessment = judge(use, [], explored)
    assert assessment.answer is Answer.NOT_RELIABLE
    assert any(reason.finding is not None for reason in assessment.reasons)


@pytest.mark.full
def test_a_whole_assessment(qemu_build: Build) -> None:
    """For every use it names the most severe of the findings written up for this version."""
    assessment = assess(qemu_build, list(Use), 60.0, 2)
    for judgement in assessment.judgements:
        expected = [
            one
            for one in write_ups()
            if judgement.use in one.meaning.affects
            and one.kind != "pair"
            and one.meaning.disqualifies
            and has(qemu_build, one)
        ]
        named = {reason.entry.name for reason in judgement.reasons if reason.entry}
        worst = min((one.meaning.severity.rank for one in expected), default=None)
        assert worst is None or any(
            one.name in named for one in expected if one.meaning.severity.rank == worst
        )


def test_what_shows_itself_beside_what_is_tried_does_not_make_it_more_than_all() -> None:
    first, second, other = write_ups()[:3]
    tried = {one.name for one in (first, other)}
    assert how_many(tried, [first, second]) == 1
