"""The reduction loses no outcome, and is worth it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, assume, example, given, reject, settings
from hypothesis import strategies as st

from qmpshim.model.chain.protocols import REFERENCE_PROTOCOLS, SerializationProtocol
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Exploration, Mode, explore
from qmpshim.model.explore.model_system import ModelSystem
from qmpshim.model.explore.walk import Budget
from qmpshim.model.mutants import MUTANTS, Mutant
from qmpshim.model.scenario import Scenario, scenario_from_json
from qmpshim.model.scenarios import SCENARIOS
from vmtests.support.random_systems import RandomSystem
from vmtests.support.scenarios import scenarios
from vmtests.support.schedules import count_schedules

NAIVE = 1500  # schedules at most, to enumerate each of them
REDUCED = (Mode.STATEFUL, Mode.DPOR, Mode.STATES)
PATIENT = settings(suppress_health_check=list(HealthCheck))
GENERIC = sorted(name for name, mutant in MUTANTS.items() if name != "only-newest")


def kinds(found: Exploration) -> set[Verdict]:
    return {violation.kind for violation, _ in found.violations}


def compare(make: Callable[[], ModelSystem]) -> Exploration:
    """Explore naively and with every reduction; all must agree."""
    if count_schedules(make(), NAIVE) > NAIVE:
        reject()
    naive = explore(make(), Mode.NAIVE, stop=False)
    assert naive.exhaustive
    for mode in REDUCED:
        reduced = explore(make(), mode, stop=False)
        assert reduced.exhaustive
        assert reduced.outcomes == naive.outcomes, mode
        assert kinds(reduced) == kinds(naive), mode
        assert reduced.statistics.schedules <= naive.statistics.schedules or mode is Mode.STATES
    return naive


@settings(PATIENT, max_examples=60)
@given(scenarios(), st.sampled_from(REFERENCE_PROTOCOLS), st.booleans())
def test_no_outcome_is_lost(
    scenario: Scenario, protocol: type[SerializationProtocol], late: bool
) -> None:
    compare(lambda: ModelSystem(scenario, protocol, protocol, late_wakes=late))


#: A mutant that puts another disk in the place of one has to note what it touches, too.
KEPT = scenario_from_json(
    {
        "contract": False,
        "setup": [{"do": "primary_write", "at": [0, 256]}, {"do": "start"}],
        "ops": [{"do": "guest_write", "at": [0, 128]}, {"do": "checkpoint"}],
    }
)


@settings(PATIENT, max_examples=60)
@given(scenarios(), st.sampled_from(GENERIC))
@example(KEPT, "checkpoint-keeps-active")
def test_no_outcome_of_a_mutant_is_lost(scenario: Scenario, name: str) -> None:
    compare(lambda: MUTANTS[name].system(scenario))


def compare_random(seed: int, exact: bool, fatal: bool) -> None:
    def make() -> RandomSystem:
        return RandomSystem(seed, exact, fatal)

    if not 2 <= count_schedules(make(), 400) <= 400:
        reject()
    naive = explore(make(), Mode.NAIVE, stop=False)
    for mode in REDUCED:
        assert explore(make(), mode, stop=False).outcomes == naive.outcomes, mode


@settings(PATIENT, max_examples=500)
@given(st.integers(0, 1 << 32), st.booleans(), st.booleans())
def test_no_outcome_of_a_random_system_is_lost(seed: int, exact: bool, fatal: bool) -> None:
    compare_random(seed, exact, fatal)


@pytest.mark.full
@settings(PATIENT, max_examples=5000)
@given(st.integers(0, 1 << 32), st.booleans(), st.booleans())
def test_no_outcome_of_a_random_system_is_lost_long(seed: int, exact: bool, fatal: bool) -> None:
    compare_random(seed, exact, fatal)


@pytest.mark.full
@settings(PATIENT, max_examples=2000)
@given(scenarios(), st.sampled_from(REFERENCE_PROTOCOLS), st.booleans())
def test_no_outcome_is_lost_long(
    scenario: Scenario, protocol: type[SerializationProtocol], late: bool
) -> None:
    compare(lambda: ModelSystem(scenario, protocol, protocol, late_wakes=late))


@pytest.mark.full
@settings(PATIENT, max_examples=2000)
@given(scenarios(), st.sampled_from(GENERIC))
def test_no_outcome_of_a_mutant_is_lost_long(scenario: Scenario, name: str) -> None:
    compare(lambda: MUTANTS[name].system(scenario))


@settings(PATIENT, max_examples=60)
@given(scenarios(4), st.sampled_from(REFERENCE_PROTOCOLS))
def test_states_agree_on_bigger_scenarios(
    scenario: Scenario, protocol: type[SerializationProtocol]
) -> None:
    """Too many schedules to take each: known states alone, without reduction, are the reference."""
    budget = Budget(schedules=2000)
    every = explore(ModelSystem(scenario, protocol, protocol), Mode.STATES, budget, stop=False)
    assume(every.exhaustive)
    for mode in (Mode.STATEFUL, Mode.DPOR):
        reduced = explore(ModelSystem(scenario, protocol, protocol), mode, stop=False)
        assert reduced.outcomes == every.outcomes
        assert kinds(reduced) == kinds(every)


@pytest.mark.parametrize(
    "name", ["write-read", "write-write", "write-read-read", "copy-fails", "copy-fails-two"]
)
@pytest.mark.parametrize(
    "mutant", [None, "none", "no-wait", "copies-in-background", "errors-swallowed"]
)
def test_shipped_scenarios_agree(name: str, mutant: str | None) -> None:
    broken: Mutant | None = MUTANTS[mutant] if mutant else None
    for protocol in REFERENCE_PROTOCOLS:

        def make(kind: type[SerializationProtocol] = protocol) -> ModelSystem:
            scenario = SCENARIOS[name]
            return broken.system(scenario) if broken else ModelSystem(scenario, kind, kind)

        compare(make)


@pytest.mark.parametrize("protocol", REFERENCE_PROTOCOLS, ids=lambda kind: kind.name)
def test_two_writers_two_readers_one_checkpoint(protocol: type[SerializationProtocol]) -> None:
    """At most 1/50 of the schedules are visited."""

    def make() -> ModelSystem:
        return ModelSystem(SCENARIOS["seed"], protocol, protocol)

    reduced = explore(make())
    assert reduced.exhaustive and not reduced.violations
    wanted = reduced.statistics.schedules * 50
    every = count_schedules(make(), wanted)
    assert wanted <= every, (reduced.statistics, every)


def test_an_unsound_reduction_is_seen() -> None:
    """A footprint that hides what a step touched loses outcomes: the comparison can fail."""

    class Blind(ModelSystem):
        def take(self, choice):  # type: ignore[no-untyped-def]
            return super().take(choice)._replace(reads=0)

    scenario = SCENARIOS["write-read"]
    none = MUTANTS["none"]
    naive = explore(none.system(scenario), Mode.NAIVE, stop=False)
    blind = explore(Blind(scenario, none.protocol, none.reference), Mode.DPOR, stop=False)
    assert blind.outcomes < naive.outcomes
