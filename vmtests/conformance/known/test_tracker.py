"""A report for QEMU's tracker: complete for a reader without qmpshim."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.folder import read, write_up, write_ups
from qmpshim.conformance.known.matching import DirectedWriteUp
from qmpshim.conformance.known.tracker import tracker_text
from qmpshim.conformance.known.write_ups import DIRECTORY, Interval, WriteUp, intervals_from_json
from qmpshim.errors import BuildError, InputError
from qmpshim.machine.builds.build import Build, read_version
from vmtests.support import write_up_checks as checks

EACH = pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)


@EACH
def test_it_has_no_names_of_ours(one: WriteUp) -> None:
    checks.no_names_of_ours(one)


def test_a_name_of_ours_is_seen() -> None:
    one = write_up("failed-flush-unorders-frees")
    assert checks.named(tracker_text(replace(one, reason=f"As {one.related[0]}"), "x.py"))


@EACH
def test_the_steps_are_in_words(one: WriteUp) -> None:
    checks.steps_in_words(one)


@EACH
def test_expected_and_actual_are_of_the_finding(one: WriteUp) -> None:
    checks.expected_and_actual(one)


def test_what_is_decided_by_an_answer_expects_that_answer() -> None:
    """And does not allow what would be taken for the finding."""
    one = write_up("start-after-stop-is-ignored")
    answer = "Block replication is running or done"
    assert load_finding(one.path).text.endswith(f"predicted {answer!r}")
    assert one.expected == f'The second start is answered with "{answer}".'


def test_without_what_was_observed_there_is_no_report() -> None:
    with pytest.raises(InputError, match="observed"):
        tracker_text(replace(write_up("directed/start-fails"), observed=""), "x.py")


@pytest.mark.parametrize(
    "one", [one for one in write_ups() if isinstance(one, DirectedWriteUp)], ids=lambda one: one.id
)
def test_a_directed_case_shows_what_is_written(one: DirectedWriteUp, qemu_build: Build) -> None:
    """Word for word on the version it was taken from, whose source has those lines."""
    if read_version(qemu_build)[0][:2] != (7, 2) or not one.concerns((7, 2, 22)):
        pytest.skip("it was taken from another version")
    (case,) = (case for case in DIRECTED if case.id == one.name)
    try:
        found = run_directed(case, qemu_build)
    except BuildError as error:
        pytest.skip(str(error))
    assert found is not None and found.text == one.observed


@EACH
def test_a_fix_or_a_suggestion(one: WriteUp) -> None:
    checks.fix_or_suggestion(one)


@pytest.mark.parametrize(
    ("since", "fixed", "words"),
    [
        ("", "6.0", "before 6.0"),
        ("5.2", "6.0", "from 5.2 to before 6.0"),
        ("5.2", "", "from 5.2"),
        ("", "", "all"),
    ],
)
def test_ranges_are_words(since: str, fixed: str, words: str) -> None:
    one = replace(write_up("directed/start-fails"), intervals=(Interval(since, fixed),))
    assert one.versions == words
    assert f"QEMU's sources: {words}." in tracker_text(one, "x.py")


def test_stable_branches_end_an_interval_each() -> None:
    """By number 10.1 comes after the 10.0.11 that was mended, and was released before it."""
    one = write_up("discard-during-write-frees-cluster")
    assert one.versions == "from 5.2 to before 10.0.11, and from 10.1 to before 11.1"
    assert one.fixed_in == "10.0.11 and later of 10.0, 11.1 and later"
    has_it = [(5, 2, 0), (10, 0, 10), (10, 1, 0), (11, 0, 2)]
    assert all(one.concerns(version) for version in has_it)
    assert not any(one.concerns(version) for version in [(5, 1), (10, 0, 11), (11, 1), (11, 1, 3)])
    assert len(one.summary["intervals"]) == 2
    completes = write_up("colo-migration-completes")
    assert completes.concerns((10, 1, 0)) and not completes.concerns((10, 0, 7))


def test_a_fix_is_in_what_was_looked_at() -> None:
    """Not seen is only what was run."""
    one = write_up("directed/nbd-answer-waits")
    assert one.meaning.fix is None and one.fixed == "11.1.3"
    fix = checks.section(tracker_text(one, "x.py"), "Fix")
    assert fix.startswith("Fixed: not in 11.1.3 and later. By what was run and QEMU's sources")
    assert "seen" not in fix


@pytest.mark.parametrize(
    "value",
    [
        [],
        [{"fixed": "10.1"}, {"since": "10.0"}],
        [{}, {}],
        {"since": "x"},
        {"since": "10", "fixed": "9"},
        5,
        {"since": 5},
    ],
)
def test_versions_that_are_none(value: Any) -> None:
    with pytest.raises((ValueError, InputError)):
        intervals_from_json(value)


def test_steps_that_are_not_written_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    value = json.loads((DIRECTORY / "verify" / "stop-always-fails.json").read_text())
    path = tmp_path_factory.mktemp("draft") / "draft.json"
    path.write_text(json.dumps({**value, "steps": ["TO BE WRITTEN"]}))
    with pytest.raises(InputError, match="steps have to be written"):
        read(path)
