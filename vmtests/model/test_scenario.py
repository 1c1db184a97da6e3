"""Scenarios as JSON, and what is wrong with bad ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from qmpshim.errors import InputError
from qmpshim.model.scenario import Scenario, check, scenario_from_json
from qmpshim.model.scenarios import ROBUSTNESS, SCENARIOS, scenario_named
from vmtests.support.scenarios import scenarios

WRITE = {"do": "primary_write", "at": [0, 8]}


@pytest.mark.parametrize("scenario", [*SCENARIOS.values(), *ROBUSTNESS.values()], ids=str)
def test_shipped_scenarios_survive_json(scenario: Scenario) -> None:
    check(scenario)
    assert scenario_from_json(json.loads(json.dumps(scenario.to_json()))) == scenario


@given(scenarios())
def test_made_scenarios_survive_json(scenario: Scenario) -> None:
    assert scenario_from_json(json.loads(json.dumps(scenario.to_json()))) == scenario


def test_only_operations_are_required() -> None:
    scenario = scenario_from_json({"ops": [WRITE]})
    assert [op.name for op in scenario.setup] == ["start"]


@pytest.mark.parametrize(
    "value",
    [
        [],
        7,
        {},
        {"ops": []},
        {"ops": [{"do": "dance", "at": [0, 8]}]},
        {"ops": [{"do": "primary_write", "at": [250, 8]}]},
        {"ops": [{"do": "primary_write", "at": [0, 0]}]},
        {"ops": [{"do": "primary_write"}]},
        {"ops": [{**WRITE, "when": 3}]},
        {"ops": [{**WRITE, "after": 0}]},
        {"ops": [WRITE], "colour": "blue"},
        {"ops": [WRITE], "workflow": "none"},
        {"ops": [WRITE], "secondary": "vmdk"},
        {"ops": [WRITE], "cluster": 100},
        {"ops": [WRITE], "faults": [{"disc": "hidden"}]},
    ],
)
def test_bad_ones_are_refused(value: Any) -> None:
    with pytest.raises(InputError):
        scenario_from_json(value)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="write-read"):
        scenario_named("nonsense")
