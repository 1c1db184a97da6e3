"""Nothing is decided by text: with every rendering spoilt all verdicts and matches are the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Completed,
    Ended,
    Failed,
    Started,
)
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json
from qmpshim.conformance.explore.reproducer.symptoms import symptom_of
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.known.folder import known_findings
from qmpshim.machine.builds.build import Build
from qmpshim.model.answers import _Described
from qmpshim.model.check.cause import Cause
from qmpshim.model.operations import Operation

#: With findings of most kinds: known ones on some build, and with faults on all.
NAMES = ("fleecing-WR", "WC", "primary-PG", "OQ")
FAULTY = ("WQ", "backup-WH", "primary-GR")


def decided(build: Build, names: tuple[str, ...], errnos: tuple[int, ...]) -> list[Any]:
    """What was decided of each finding, in an order that no text has a say in."""
    every = [one for name in names for one in scenarios.named(name)]
    report = explore_real(build, every, jobs=1, known=known_findings(), faults=errnos)
    return sorted(
        (
            str(finding.verdict),
            finding.known,
            finding.count,
            finding.replays,
            finding.cause.kind.value,
            str(symptom_of(finding)),
            str(symptom_of(again(finding))),
        )
        for finding in (*report.findings, *report.unconfirmed)
    )


def again(finding: Finding) -> Finding:
    """The finding as a bundle gives it back."""
    return finding_from_json(finding.to_json())


@pytest.fixture
def gibberish(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every rendering is another text each time."""
    number = count()

    def spoilt(*_words: object) -> str:
        return f"gibberish {next(number)}"

    with monkeypatch.context() as patch:
        patch.setattr(Cause, "__str__", spoilt)
        for kind in (Started, Completed, Failed, Arrived, Ended, _Described, Operation):
            patch.setattr(kind, "__str__", spoilt)
        yield


@pytest.mark.parametrize(("names", "errnos"), [(NAMES, ()), (FAULTY, (5,))])
def test_no_text_decides(
    qemu_build: Build,
    names: tuple[str, ...],
    errnos: tuple[int, ...],
    request: pytest.FixtureRequest,
) -> None:
    plain = decided(qemu_build, names, errnos)
    assert plain
    request.getfixturevalue("gibberish")
    assert decided(qemu_build, names, errnos) == plain
