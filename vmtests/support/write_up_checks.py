"""What the suite checks of a write-up, and of a draft that is filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from qmpshim.codec import encode
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.folder import write_up, write_ups
from qmpshim.conformance.known.matching import ExplorerWriteUp, WorkloadWriteUp
from qmpshim.conformance.known.meaning import SEVERITY_OF, Severity, Trigger, Upstream
from qmpshim.conformance.known.tracker import observed, tracker_text
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.errors import name_errnos
from qmpshim.model.check.verdict import Verdict

NAMES = {name for one in write_ups() for name in (one.name, one.id)}


def section(text: str, name: str) -> str:
    return text.partition(f"\n## {name}\n\n")[2].partition("\n\n## ")[0]


def named(text: str) -> set[str]:
    """What of it only qmpshim knows."""
    own = {name for name in NAMES if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w-])", text)}
    return own | set(re.findall(r"qmpshim|\bexplore\b|--all-io|directed case|…", text))


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


#: Milder than the verdict that shows it: an answer that only waits for another one; data that are
#: wrong while they are being written, which nothing relies on, and later after an error or a crash.
MILDER = {
    "directed/nbd-answer-waits": Severity.COSMETIC,
    "failed-flush-leaves-l1-entry": Severity.DAMAGE_AFTER_ERROR,
    "failed-write-beside-zeroes-is-backed-up": Severity.DAMAGE_AFTER_ERROR,
    "write-beside-zeroes-zeroes-data": Severity.DAMAGE_AFTER_ERROR,
}


def no_names_of_ours(one: WriteUp) -> None:
    """Its report is for readers without qmpshim."""
    assert not named(tracker_text(one, "reproducer.py"))


def steps_in_words(one: WriteUp) -> None:
    """What is opened and done, or at least two sentences."""
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


def expected_and_actual(one: WriteUp) -> None:
    """What QEMU promises, and what was seen instead."""
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


def fix_or_suggestion(one: WriteUp) -> None:
    """What the report has of either, and what is related."""
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


def meaning_agrees(one: WriteUp) -> None:
    """The meaning with the rest of the write-up."""
    meaning = one.meaning
    assert json.loads(one.path.read_text())["meaning"] == json.loads(json.dumps(encode(meaning)))
    # What is only possible against QEMU's documents is a matter of robustness.
    if meaning.trigger is Trigger.MISUSE:
        assert not one.contract
    # And what only such use shows does not count against a build that is used as they want it.
    if not one.contract:
        assert meaning.trigger not in (Trigger.LOAD, Trigger.FAILURE)
    # A version on which it was seen is one of those that have it.
    assert all(one.concerns(numbers(version)) for version in meaning.seen)
    assert list(meaning.seen) == sorted(meaning.seen, key=numbers)
    if meaning.upstream is Upstream.PRESENT:
        assert not one.fixed and meaning.seen
    if meaning.upstream is Upstream.FIXED:
        assert one.fixed
    if meaning.fix is not None and len(one.intervals) > 1:
        assert meaning.fix.release == " and ".join(each.fixed for each in one.intervals)
    if meaning.fix is not None:
        assert meaning.upstream is Upstream.FIXED
        assert not meaning.fix.commit or meaning.fix.commit in f"{one.reason} {one.source}"
    # What the finding is called must not be milder than what was seen.
    worst = min(SEVERITY_OF[verdict].rank for verdict in one.verdicts)
    if one.name in MILDER:
        assert meaning.severity is MILDER[one.name] and not meaning.severity.serious
    elif worst <= Severity.HANG.rank:
        assert meaning.severity.serious


CHECKS: tuple[Callable[[WriteUp], None], ...] = (
    no_names_of_ours,
    steps_in_words,
    expected_and_actual,
    fix_or_suggestion,
    meaning_agrees,
)
