"""Exploring the model: which protocol, which scenarios, how long; the result is data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.explore.report.model_diagram import (
    render,
    schedule_from_text,
    schedule_text,
)
from qmpshim.conformance.explore.scenarios import scenario_object, scenario_objects
from qmpshim.errors import InputError, no_such
from qmpshim.model.chain.protocols import PROTOCOLS, REFERENCE_PROTOCOLS, CowRequestProtocol
from qmpshim.model.explore.explorer import Mode, explore, shortest
from qmpshim.model.explore.model_system import ModelSystem
from qmpshim.model.explore.system import Violation
from qmpshim.model.explore.walk import Budget, Schedule, Statistics
from qmpshim.model.mutants import MUTANTS
from qmpshim.model.scenario import Scenario, scenario_from_json
from qmpshim.model.scenarios import SCENARIOS, scenario_named

REFERENCE_NAMES = tuple(kind.name for kind in REFERENCE_PROTOCOLS)


@dataclass(frozen=True, slots=True)
class ModelFinding:
    """A violation and how to see it again.

    :ivar minimal: there is no shorter schedule with a violation
    """

    violation: Violation
    schedule: Schedule
    minimal: bool

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        violation = self.violation
        return {
            "verdict": violation.kind.value,
            "text": violation.text,
            "operation": violation.op,
            "cluster": violation.cluster,
            "schedule": schedule_text(self.schedule),
            "steps": len(self.schedule),
            "minimal": self.minimal,
        }


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One scenario under one serialization protocol.

    :ivar exhaustive: every schedule was taken, or an equivalent one
    """

    discipline: str
    scenario: Scenario
    mode: Mode
    exhaustive: bool
    statistics: Statistics
    outcomes: int
    findings: tuple[ModelFinding, ...]

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "discipline": self.discipline,
            "scenario": scenario_object(self.scenario),
            "mode": self.mode.value,
            "exhaustive": self.exhaustive,
            "statistics": asdict(self.statistics),
            "outcomes": self.outcomes,
            "findings": [finding.to_json() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Everything that was explored.

    :ivar skipped: runs the budget left no time for, as (protocol, scenario)
    """

    runs: tuple[ModelRun, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def clean(self) -> bool:
        """No violation anywhere."""
        return not any(run.findings for run in self.runs)

    @property
    def exhaustive(self) -> bool:
        """Nothing was left out."""
        return not self.skipped and all(run.exhaustive for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "clean": self.clean,
            "exhaustive": self.exhaustive,
            "runs": [run.to_json() for run in self.runs],
            "skipped": [list(pair) for pair in self.skipped],
        }


def protocol_list() -> dict[str, str]:
    """Every name :func:`system_for` knows, with what it is in one line."""
    return {
        name: MUTANTS[name].about
        if name in MUTANTS and name not in PROTOCOLS
        else (PROTOCOLS[name].__doc__ or "").split("\n")[0].replace("``", "")
        for name in protocol_names()
    }


def protocol_names() -> list[str]:
    """Every name :func:`system_for` knows: serialization protocols, then mutants."""
    return [*PROTOCOLS, *(name for name in MUTANTS if name not in PROTOCOLS)]


def system_for(discipline: str, scenario: Scenario) -> ModelSystem:
    """A scenario under a serialization protocol or a mutant, by name, checked against a reference.

    :raises InputError: there is no such protocol
    """
    if discipline in PROTOCOLS:
        kind = PROTOCOLS[discipline]
        reference = kind if kind in REFERENCE_PROTOCOLS else CowRequestProtocol
        return ModelSystem(scenario, kind, reference)
    if discipline in MUTANTS:
        return MUTANTS[discipline].system(scenario)
    listing = "qmpshim explore --model --discipline list"
    raise InputError(no_such("discipline", discipline, protocol_names(), listing))


def scenarios_for(what: str) -> list[Scenario]:
    """The scenarios that a word on the command line means.

    :param what: ``all``, the name of a shipped one, or a JSON file with one or a list of them
    :raises InputError: it means nothing
    """
    if what == "all":
        return list(SCENARIOS.values())
    path = Path(what)
    if not (path.suffix == ".json" or path.is_file()):
        return [scenario_named(what)]
    return [scenario_from_json(each) for each in scenario_objects(what)]


def explore_model(
    protocols: Iterable[str] = REFERENCE_NAMES,
    scenarios: Iterable[Scenario] = tuple(SCENARIOS.values()),
    seconds: float | None = None,
    mode: Mode = Mode.AUTO,
    *,
    seed: int = 0,
    progress: Callable[[ModelRun], None] | None = None,
) -> ModelReport:
    """Explore scenarios under serialization protocols.

    :param seconds: for all of it together; ``None``: no limit (the modes by chance need one)
    :param progress: called with every run
    :raises InputError: there is no such protocol, or a mode by chance has no limit
    """
    if seconds is None and mode in (Mode.RANDOM, Mode.PREEMPTION):
        raise InputError(f"mode {mode.value} goes on for ever without a budget")
    end = None if seconds is None else time.monotonic() + seconds
    pairs = [
        (name, scenario)
        for scenario in scenarios
        for name in protocols
        if not scenario.protocols or name in scenario.protocols or name not in REFERENCE_NAMES
    ]
    if not pairs:
        raise InputError("none of these scenarios is one for any of these disciplines")
    runs, skipped = [], []
    for index, (name, scenario) in enumerate(pairs):
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            skipped.append((name, scenario.name))
            continue
        if left is not None and mode in (Mode.RANDOM, Mode.PREEMPTION):
            left /= len(pairs) - index  # otherwise the first would take it all
        system = system_for(name, scenario)
        result = explore(system, mode, Budget(left), seed=seed)
        run = ModelRun(
            name,
            scenario,
            result.mode,
            result.exhaustive,
            result.statistics,
            len(result.outcomes),
            tuple(_finding(system, *found) for found in result.violations),
        )
        runs.append(run)
        if progress is not None:
            progress(run)
    return ModelReport(tuple(runs), tuple(skipped))


def _finding(system: ModelSystem, violation: Violation, schedule: Schedule) -> ModelFinding:
    shorter = shortest(system, len(schedule) - 1)
    if shorter is None:
        return ModelFinding(violation, schedule, minimal=False)
    seen = replay_model(system, shorter)
    assert seen is not None
    return ModelFinding(seen, shorter, minimal=True)


def replay_model(system: ModelSystem, schedule: Sequence[Any] | str) -> Violation | None:
    """Take exactly these steps again and report what is wrong after them.

    :param schedule: choices, or the text of a report
    :raises InputError: one of the steps is not enabled when its turn comes
    """
    steps = schedule_from_text(schedule) if isinstance(schedule, str) else tuple(schedule)
    system.reset()
    for choice in steps:
        if choice not in system.enabled():
            known = schedule_text(system.enabled())
            raise InputError(f"{schedule_text([choice])} is not enabled there; there are: {known}")
        system.take(choice)
    if system.violation is None and not system.enabled():
        system.finish()
    return system.violation


def diagram(discipline: str, scenario: Scenario, schedule: Sequence[Any] | str) -> str:
    """The sequence diagram of a schedule.

    :raises InputError: a step is not enabled when its turn comes, or there is no such protocol
    """
    steps = schedule_from_text(schedule) if isinstance(schedule, str) else tuple(schedule)
    replay_model(system := system_for(discipline, scenario), steps)
    return f"discipline {discipline}, {render(system, steps)}"


def summary(report: ModelReport) -> str:
    """A table, a line a run, and the diagrams of what was found."""
    lines = [f"{'scenario':<26} {'discipline':<26} {'schedules':>9} {'states':>7} {'depth':>5} "
             f"{'seconds':>7}  result"]  # fmt: skip
    diagrams = []
    for run in report.runs:
        s = run.statistics
        result = "exhausted" if run.exhaustive else "not exhausted"
        if run.findings:
            result = ", ".join(finding.violation.kind.value for finding in run.findings)
        lines.append(
            f"{run.scenario.name:<26} {run.discipline:<26} {s.schedules:>9} {s.states:>7} "
            f"{s.depth:>5} {s.seconds:>7.2f}  {result}"
        )
        diagrams += [
            diagram(run.discipline, run.scenario, finding.schedule) for finding in run.findings
        ]
    lines += [f"{scenario:<26} {name:<26} not started" for name, scenario in report.skipped]
    return "\n\n".join(["\n".join(lines), *diagrams])
