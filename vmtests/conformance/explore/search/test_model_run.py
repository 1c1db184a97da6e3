"""What ``qmpshim explore --model`` is made of: reports, diagrams, schedules that replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpshim.conformance.explore.report.model_diagram import schedule_from_text, schedule_text
from qmpshim.conformance.explore.search.model_run import (
    REFERENCE_NAMES,
    diagram,
    explore_model,
    protocol_names,
    replay_model,
    scenarios_for,
    summary,
    system_for,
)
from qmpshim.errors import InputError
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.scenarios import SCENARIOS, scenario_named

PAIR = scenario_named("write-read")


def test_reference_protocols_come_out_clean() -> None:
    report = explore_model(scenarios=[PAIR, scenario_named("write-write")])
    assert report.clean and report.exhaustive
    assert len(report.runs) == 2 * len(REFERENCE_NAMES)
    assert "exhausted" in summary(report)


def test_a_finding_is_data_and_replays() -> None:
    report = explore_model(["reader-skips-begin"], [PAIR])
    value = json.loads(json.dumps(report.to_json()))
    assert not value["clean"]
    (finding,) = value["runs"][0]["findings"]
    assert finding["verdict"] == "isolation" and finding["steps"] <= 12
    violation = replay_model(system_for("reader-skips-begin", PAIR), finding["schedule"])
    assert violation is not None and violation.kind is Verdict.ISOLATION
    assert replay_model(system_for("cow-request", PAIR), "start:0") is None


def test_the_diagram_shows_which_request_does_what_and_which_waits() -> None:
    text = diagram("cow-request", PAIR, "start:0 start:1")
    assert "waits for CowRequest [0, 1) of op 0" in " ".join(text.replace("|", "").split())
    report = explore_model(["waits-for-waiting"], [scenario_named("write-read-read")])
    text = summary(report)
    assert "deadlock" in text and "cluster 0" in text and "schedule: start:" in text


def test_schedules_survive_text() -> None:
    schedule = (("start", 0), ("io", 0, 1), ("io", 0, "1.0"), ("wake", 2, 0))
    assert schedule_from_text(schedule_text(schedule)) == schedule


def test_impossible_schedule_is_the_users_fault() -> None:
    with pytest.raises(InputError, match="start:0"):
        replay_model(system_for("cow-request", PAIR), "io:0:0")


def test_scenarios_by_name_by_file_and_all(tmp_path: Path) -> None:
    assert scenarios_for("all") == list(SCENARIOS.values())
    assert scenarios_for("write-read") == [PAIR]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([PAIR.to_json(), {"ops": [{"do": "checkpoint"}]}]))
    assert scenarios_for(str(path))[0] == PAIR
    path.write_text("{")
    for bad in (str(path), "nonsense", str(tmp_path / "absent.json")):
        with pytest.raises(InputError):
            scenarios_for(bad)


def test_unknown_protocol_lists_the_known() -> None:
    with pytest.raises(
        InputError, match=r"no discipline 'copy-before-rite'; did you mean copy-before-write"
    ):
        explore_model(["copy-before-rite"], [PAIR])
    assert len(protocol_names()) == len(set(protocol_names()))


def test_budget_is_for_all_of_it() -> None:
    report = explore_model(scenarios=[scenario_named("seed")], seconds=0.2)
    assert not report.exhaustive and report.skipped
    with pytest.raises(InputError, match="budget"):
        explore_model(scenarios=[PAIR], mode=Mode.RANDOM)
    report = explore_model(scenarios=[PAIR], mode=Mode.RANDOM, seconds=0.3)
    assert report.clean and len(report.runs) + len(report.skipped) == 3
