"""What to do where nothing can be concluded: it follows from what was not tried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qmpshim.conformance.assess.advice import Advice, Remedy, advice
from qmpshim.conformance.assess.exploration import Explored
from qmpshim.conformance.assess.judgement import Answer, judge
from qmpshim.conformance.assess.trials import Seen, Trial
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.folder import write_up, write_ups
from qmpshim.conformance.uses import COLO, USE_NAMES, Use, uses_named
from qmpshim.machine.builds.build import Build

ALL = Explored(scenarios=36, reached=36, exhausted=30, schedules=400, cases=3, cases_run=3)
NONE_SEEN = [Trial(one, Seen.NOT_SEEN) for one in write_ups()]
SNAPSHOT = write_up("snapshot-read-returns-new-data")
FOUND = replace(load_finding(SNAPSHOT.path), known="")


def trials(seen: Seen) -> list[Trial]:
    return [replace(one, seen=seen) if one.entry is SNAPSHOT else one for one in NONE_SEEN]


@pytest.mark.parametrize(
    ("tried", "explored", "remedy"),
    [
        (NONE_SEEN, replace(ALL, reached=30), Remedy.TIME),
        (NONE_SEEN, replace(ALL, cases_run=2), Remedy.TIME),
        (trials(Seen.NOT_TRIED), ALL, Remedy.TIME),
        (NONE_SEEN, replace(ALL, unconfirmed=[replace(FOUND, replays=(0, 0))]), Remedy.TIME),
        (NONE_SEEN, replace(ALL, unconfirmed=[replace(FOUND, replays=(1, 3))]), Remedy.AGAIN),
        (trials(Seen.UNSURE), ALL, Remedy.AGAIN),
        (NONE_SEEN, Explored(scenarios=36, lacking=20, skipped=16), Remedy.OTHER_BUILD),
    ],
)
def test_what_would_allow_a_conclusion(
    tried: list[Trial], explored: Explored, remedy: Remedy, qemu_build: Build
) -> None:
    judgement = judge(Use.FLEECING, tried, explored)
    assert judgement.answer is Answer.CANNOT_TELL
    found = advice(judgement, 60.0)
    assert found is not None and found.remedy is remedy
    words = found.words(judgement, replace(qemu_build, name="debian:sid"))
    if remedy is Remedy.OTHER_BUILD:
        assert words == []
    else:
        command = "qmpshim assess --use fleecing --budget 5m --build debian:sid"
        assert " ".join(words) == command


def test_an_answer_needs_none(qemu_build: Build) -> None:
    for seen in (Seen.SHOWN, Seen.NOT_SEEN):
        assert advice(judge(Use.FLEECING, trials(seen), replace(ALL)), 60.0) is None
    words = Advice(Remedy.TIME, 400.0).words(judge(Use.BITMAPS, [], ALL), qemu_build)
    assert "7m" in words  # never less than what it says


def test_both_sides_of_colo_have_one_word() -> None:
    assert uses_named(COLO) == (Use.COLO_PRIMARY, Use.COLO_SECONDARY)
    assert {use for word in USE_NAMES for use in uses_named(word)} == set(Use)
    with pytest.raises(ValueError):
        uses_named("COLO")
