"""Which scenarios and directed cases the options of `explore` mean."""

from __future__ import annotations

import argparse

from qmpshim.commands.console import Listed
from qmpshim.conformance.explore.directed.cases import DIRECTED, Directed
from qmpshim.conformance.explore.directed.run import cases_named
from qmpshim.conformance.explore.scenario_sets import SETS
from qmpshim.conformance.explore.scenarios import (
    RealScenario,
    described,
    scenario_from_json,
    scenario_object,
    scenario_objects,
)
from qmpshim.conformance.explore.space.grammar import DIMENSIONS
from qmpshim.conformance.explore.space.naming import array, scenarios_called
from qmpshim.errors import InputError

_STRENGTH = 2  # of the scenarios that are explored by default


def real_scenarios(what: str) -> list[RealScenario]:
    """The scenarios that a word on the command line means: a name, or a JSON file.

    :raises InputError: it means nothing
    """
    if not what.endswith(".json"):
        return scenarios_called(what)
    return [scenario_from_json(one) for one in scenario_objects(what)]


def chosen_scenarios(args: argparse.Namespace) -> list[RealScenario]:
    """The scenarios that the options mean."""
    if args.scenario is not None:
        return [] if cases_named(args.scenario) else real_scenarios(args.scenario)
    if args.strength is None:
        return [*SETS["alone"](), *array(_STRENGTH, args.seed)]
    if args.strength > len(DIMENSIONS):
        raise InputError(f"--strength is 1 to {len(DIMENSIONS)}, the dimensions that there are")
    return list(array(args.strength, args.seed))


def chosen_cases(args: argparse.Namespace) -> list[Directed]:
    """The directed cases that the options mean."""
    if args.scenario is not None:
        return cases_named(args.scenario)
    return list(DIRECTED) if args.strength is None else []


def listed_scenario(scenario: RealScenario) -> Listed:
    return Listed(scenario.name, described(scenario), scenario_object(scenario))


def listed_case(case: Directed) -> Listed:
    side = "" if case.contract else "robustness: "
    return Listed(case.id, side + case.about, {"name": case.id, "contract": case.contract})
