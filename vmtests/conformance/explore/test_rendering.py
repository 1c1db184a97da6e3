"""Nothing is decided by text: with every rendering spoilt all verdicts and matches are the same."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.explore.reproducer.symptoms import symptom_of
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.known.tracker import script_of_schedule
from qmpshim.machine.builds.build import Build
from vmtests.support.gibberish import gibberish
from vmtests.support.reproducer import Reproducer, known

#: With findings of most kinds: known ones on some build, and with faults on all.
NAMES = ("fleecing-WR", "WC", "primary-PG", "OQ")
FAULTY = ("WQ", "backup-WH", "primary-GR")
READ = ("title", "trace")  # of a script's case, what it shows to its reader


def decided(build: Build, names: tuple[str, ...], errnos: tuple[int, ...]) -> list[Any]:
    """What was decided of each finding, in an order that no text has a say in."""
    every = [one for name in names for one in scenario_sets.named(name)]
    report = explore_real(
        build,
        every,
        settings=Settings(faults=errnos),
        bounds=Bounds(jobs=1),
        known=WrittenUp(known_findings()),
    )
    return sorted(
        (
            str(finding.verdict),
            finding.known,
            finding.count,
            finding.replays,
            finding.cause.kind.value,
            str(symptom_of(finding)),
            str(symptom_of(again(finding))),
            script_data(finding),
        )
        for finding in (*report.findings, *report.unconfirmed)
    )


def again(finding: Finding) -> Finding:
    """The finding as a bundle gives it back."""
    return finding_from_json(finding.to_json())


def script_data(finding: Finding) -> str:
    """All that decides how the finding's script ends: its case, without what is only read."""
    (case,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(export_script(finding)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CASE"
    )
    return str({name: value for name, value in case.items() if name not in READ})


@pytest.mark.parametrize(("names", "errnos"), [(NAMES, ()), (FAULTY, (5,))])
def test_no_text_decides(
    qemu_build: Build,
    names: tuple[str, ...],
    errnos: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = decided(qemu_build, names, errnos)
    assert plain
    with gibberish(monkeypatch):
        assert decided(qemu_build, names, errnos) == plain


def test_a_script_that_was_written_in_gibberish_ends_as_it_should(
    reproducer: Reproducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gibberish(monkeypatch):
        script = script_of_schedule(known("snapshot-read-returns-new-data"))
    assert "gibberish" in script
    assert reproducer(script)[0] == 1
