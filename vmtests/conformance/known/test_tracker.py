"""A report for QEMU's tracker: complete for a reader without qmpshim."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.folder import read, write_up, write_ups
from qmpshim.conformance.known.matching import DirectedWriteUp, ExplorerWriteUp, WorkloadWriteUp
from qmpshim.conformance.known.meaning import Upstream
from qmpshim.conformance.known.tracker import observed, tracker_text
from qmpshim.conformance.known.write_ups import DIRECTORY, WriteUp
from qmpshim.errors import BuildError, InputError, name_errnos
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.check.verdict import Verdict

EACH = pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)
NAMES = {name for one in write_ups() for name in (one.name, one.id)}


def section(text: str, name: str) -> str:
    return text.partition(f"\n## {name}\n\n")[2].partition("\n\n## ")[0]


def named(text: str) -> set[str]:
    """What of it only qmpshim knows."""
    own = {name for name in NAMES if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", text)}
    return own | set(re.findall(r"qmpshim|\bexplore\b|--all-io|directed case|…", text))


@EACH
def test_it_has_no_names_of_ours(one: WriteUp) -> None:
    assert not named(tracker_text(one, "reproducer.py"))


def test_a_name_of_ours_is_seen() -> None:
    one = write_up("failed-flush-unorders-frees")
    assert named(tracker_text(replace(one, reason=f"As {one.related[0]}"), "x.py"))


@EACH
def test_the_steps_are_in_words(one: WriteUp) -> None:
    steps = section(tracker_text(one, "reproducer.py"), "Steps to reproduce")
    if isinstance(one, ExplorerWriteUp):
        assert not one.steps
        scenario = load_finding(one.path).scenario
        for part in scenario.topology.parts:
            assert f"`{part.name}`" in steps
        for node in scenario.topology.nodes:
            assert f'"node-name": "{node.name}"' in steps
        for name in {op.name for op in scenario.ops} & scenario.topology.commands.keys():
            assert scenario.topology.commands[name].name in steps
    else:
        assert len(one.steps) > 1
        for number, step in enumerate(one.steps, 1):
            assert f"{number}. {step}\n" in steps and step.endswith(".")


@EACH
def test_expected_and_actual_are_of_the_finding(one: WriteUp) -> None:
    text = tracker_text(one, "reproducer.py")
    assert section(text, "Actual") == observed(one)
    match one:
        case ExplorerWriteUp():
            assert observed(one) == name_errnos(load_finding(one.path).text)
        case WorkloadWriteUp():
            assert one.divergence.observed in observed(one)
        case _:
            assert one.observed
    # What an error or a protocol should have been does not follow from the verdict alone.
    unsaid = {Verdict.ERROR_CONTRACT, Verdict.PROTOCOL} & set(one.verdicts)
    if unsaid or not isinstance(one, ExplorerWriteUp):
        assert one.expected, one.name


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
    fix = section(tracker_text(one, "reproducer.py"), "Fix")
    if one.meaning.upstream is Upstream.FIXED:
        assert fix.startswith("Fixed: ")
    else:
        assert fix.startswith("A suggestion, which was not tried: " if one.suggestion else "None")
    if one.suggestion:
        assert one.meaning.fix is None
        assert one.suggestion.endswith(".") and ". " not in one.suggestion
        # It invents nothing: its functions are those of the reason.
        functions = set(re.findall(r"\w+\(\)", one.suggestion))
        assert all(name[:-1] in f"{one.reason} {one.source}" for name in functions)
    assert {write_up(name).name for name in one.related} == set(one.related) - {one.name}


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
    one = replace(write_up("directed/start-fails"), since=since, fixed=fixed)
    assert one.versions == words
    assert f"By QEMU's sources: {words}." in tracker_text(one, "x.py")


def test_steps_that_are_not_written_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    value = json.loads((DIRECTORY / "verify" / "stop-always-fails.json").read_text())
    path = tmp_path_factory.mktemp("draft") / "draft.json"
    path.write_text(json.dumps({**value, "steps": ["TO BE WRITTEN"]}))
    with pytest.raises(InputError, match="steps have to be written"):
        read(path)
