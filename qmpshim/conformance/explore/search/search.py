"""Explores one scenario: all its schedules, and with faults all of them for each I/O that fails."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from errno import ENOSPC
from typing import Any

from qmpshim.conformance.explore.checkers.crash_points import NO_CRASH_POINTS, CrashPoints
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.checkers.quorum import both_refused
from qmpshim.conformance.explore.harness.choices import IoId
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.report.findings import Sighting, SightingKey
from qmpshim.conformance.explore.report.report import ScenarioResult
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.errors import BuildError, NotStarted
from qmpshim.machine.builds.build import Build
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import Phase
from qmpshim.model.explore.explorer import Exploration, Mode, explore
from qmpshim.model.explore.walk import Budget, OutOfBudget

_AGAIN = 3  # times that an exploration is repeated because it could not be followed


@dataclass(slots=True)
class ScenarioTask:
    """What is the same for all scenarios of a run.

    :ivar budget: seconds that are shared out among the scenarios
    :ivar deadline: when all of them have ended, by time.monotonic(), whatever QEMU does
    :ivar samples: take these instead of all schedules
    """

    build: Build
    version: tuple[int, ...]
    mode: Mode
    errnos: tuple[int, ...]
    budget: float | None
    seed: int
    crash_points: CrashPoints = NO_CRASH_POINTS
    all_io: bool = False
    deadline: float | None = None
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """Schedules by chance.

    :ivar faults: in each of them an I/O fails that was seen before in the scenario
    :ivar all_io: every request is held, qcow2's own among them
    """

    schedules: int
    faults: bool = False
    all_io: bool = False


@dataclass(frozen=True, slots=True)
class LiveFindings:
    """How far the exploration of a scenario is.

    :ivar schedules: executions that are over, of all that is explored of it
    :ivar distinct: outcomes that differ, of what is over
    :ivar sightings: what went wrong in them
    """

    scenario: RealScenario
    schedules: int
    distinct: int
    sightings: tuple[Sighting, ...]

    @property
    def verdicts(self) -> Counter[str]:
        """Schedules that ended with each verdict."""
        verdicts: Counter[str] = Counter()
        for sighting in self.sightings:
            verdicts[sighting.violation.kind.value] += sighting.count
        return verdicts

    def result(self) -> ScenarioResult:
        """What is known of the scenario, should its exploration end here."""
        result = ScenarioResult(self.scenario.name, self.scenario.contract, cut_short=True)
        result.schedules, result.distinct = self.schedules, self.distinct
        result.sightings = list(self.sightings)
        return result


class _Counting(RealSystem):
    """Tells with each execution how far it is.

    :ivar over: executions before the present one, those that were cut short among them
    :ivar outcomes: what executions ended as
    """

    def __init__(
        self,
        *words: Any,
        tick: Callable[[_Counting], None],
        outcomes: set[Any],
        **named: Any,
    ) -> None:
        super().__init__(*words, **named)
        self._tick = tick
        self.over = -1
        self.outcomes = outcomes

    def reset(self) -> None:
        super().reset()
        self.over += 1
        self._tick(self)

    def finish(self) -> Any:
        outcome = super().finish()
        self.outcomes.add(outcome)
        return outcome


def explore_scenario(
    stage: QemuPool,
    scenario: RealScenario,
    task: ScenarioTask,
    seconds: float | None,
    tick: Callable[[LiveFindings], None] = lambda live: None,
) -> ScenarioResult:
    """Explore one scenario on *stage*, for at most so many *seconds*.

    With faults a third of the time goes to exploring without, which shows what can fail. At the
    task's deadline it ends wherever it is, with what was seen before.

    :raises NotStarted: QEMU does not even start; where it did before, only this scenario is skipped
    """
    result = ScenarioResult(scenario.name, scenario.contract)
    judge = LinearizabilityChecker(scenario, behaviour_of(task.version))
    began = time.monotonic()
    found: dict[SightingKey, Sighting] = {}
    outcomes: set[Any] = set()
    plans: list[dict[IoId, int]] = [{}]
    result.exhaustive = True
    again_left = _AGAIN

    seen: tuple[_Counting | None, int, tuple[Sighting, ...]] = (None, 0, ())

    def on_step(system: _Counting) -> None:
        nonlocal seen
        violations = sum(one.count for one in system.found.values())
        if seen[:2] != (system, violations):
            sightings = dict(found)
            _collect(system, scenario, sightings)
            seen = system, violations, tuple(sightings.values())
        tick(LiveFindings(scenario, result.schedules + system.over, len(outcomes), seen[2]))

    stage.deadline = task.deadline
    while plans:
        plan = plans.pop()
        system = _Counting(
            stage,
            scenario,
            judge=judge,
            plan=plan,
            all_io=task.all_io,
            each_step=task.crash_points.check,
            tick=on_step,
            outcomes=outcomes,
        )
        now = time.monotonic()
        left = None if seconds is None else seconds - (now - began)
        late = task.deadline is not None and now >= task.deadline
        if late or (left is not None and left <= 0):
            result.exhaustive, result.cut_short = False, True
            break
        if left is not None:
            left /= 3 if task.errnos and not plan else len(plans) + 1
        explored: Exploration | None
        try:
            explored = explore(system, task.mode, Budget(left), stop=False, seed=task.seed)
        except BuildError as error:
            never = stage.machine is None and stage.resets["fresh"] == 1
            if isinstance(error, NotStarted) and never:
                raise  # nor can anything else be explored
            result.exhaustive, result.skipped = False, str(error)
            _collect(system, scenario, found)
            break
        except OutOfBudget:  # before the first step
            explored = None
        if explored is None or not _left(system):
            stage.discard()
            result.exhaustive, result.cut_short = False, True
            result.schedules += max(0, system.over)
            _collect(system, scenario, found)
            break
        if not plan:
            plans = _faults(system.names, task.errnos) + both_refused(system.names, task.errnos)
        statistics = explored.statistics
        # A block job's timer may come between under load; then all of it once more.
        again = bool(system.derailed) and again_left > 0 and explored.exhaustive
        if again:
            again_left -= 1
            plans.append(plan)
        begun = all(cause.phase is not Phase.SETUP for _, cause in system.found)
        complete = explored.exhaustive and not system.derailed and begun
        result.exhaustive = result.exhaustive and (complete or again)
        result.cut_short = result.cut_short or not explored.exhaustive
        result.schedules += statistics.schedules
        result.steps += statistics.steps
        result.depth = max(result.depth, statistics.depth)
        result.derailed += system.derailed
        result.in_part += system.in_part
        result.looks.add(system.looks)
        _collect(system, scenario, found)
    result.distinct, result.seconds = len(outcomes), time.monotonic() - began
    result.sightings = list(found.values())
    return result


def sample_scenario(
    stage: QemuPool,
    scenario: RealScenario,
    task: ScenarioTask,
    seconds: float | None,
    tick: Callable[[LiveFindings], None] = lambda live: None,
) -> ScenarioResult:
    """Take the task's samples of one scenario; parameters and errors as :func:`explore_scenario`.

    Where the time is over the later samples are left out, but not the first.
    """
    result = ScenarioResult(scenario.name, scenario.contract, cut_short=True)
    judge = LinearizabilityChecker(scenario, behaviour_of(task.version))
    found: dict[SightingKey, Sighting] = {}
    outcomes: set[Any] = set()
    seen: dict[bool, set[IoId]] = {False: set(), True: set()}  # by all_io
    rng = random.Random(f"{task.seed} {scenario.name}")
    began = time.monotonic()
    stage.deadline = task.deadline
    for sample in task.samples:
        plans: list[dict[IoId, int]] = [{}]
        if sample.faults:
            possible = _faults(seen[sample.all_io], task.errnos)
            plans = rng.sample(possible, min(sample.schedules, len(possible)))
        for plan in plans:
            late = seconds is not None and time.monotonic() - began > seconds
            if late and sample is not task.samples[0]:
                break
            system = _Counting(
                stage,
                scenario,
                judge=judge,
                plan=plan,
                all_io=sample.all_io,
                each_step=task.crash_points.check,
                tick=lambda one: tick(
                    LiveFindings(
                        scenario,
                        result.schedules + one.over,
                        len(outcomes),
                        tuple(found.values()),
                    )
                ),
                outcomes=outcomes,
            )
            budget = Budget(None, 1 if plan else sample.schedules)
            try:
                done = explore(system, Mode.RANDOM, budget, stop=False, seed=rng.randrange(1 << 30))
                over = not _left(system)
            except BuildError as error:
                if isinstance(error, NotStarted) and stage.resets["fresh"] == 1:
                    raise
                result.skipped = str(error)
                over = True
            except OutOfBudget:
                over = True
            else:
                result.schedules += done.statistics.schedules
                result.steps += done.statistics.steps
                result.depth = max(result.depth, done.statistics.depth)
                result.derailed += system.derailed
                result.in_part += system.in_part
                result.looks.add(system.looks)
            seen[sample.all_io] |= set(system.names)
            _collect(system, scenario, found)
            if over:
                stage.discard()
                break
        if result.skipped or (task.deadline is not None and time.monotonic() >= task.deadline):
            break
    result.distinct, result.seconds = len(outcomes), time.monotonic() - began
    result.sightings = list(found.values())
    return result


def _left(system: RealSystem) -> bool:
    """Go back to the beginning; whether there was time for that."""
    try:
        system.leave()
    except OutOfBudget:
        return False
    return True


def _faults(names: Iterable[IoId], errnos: Sequence[int]) -> list[dict[IoId, int]]:
    """Every I/O that was seen is to fail once, in each way that makes sense for it."""
    return [
        {name: errno}
        for name in sorted(names)
        for errno in errnos
        if errno != ENOSPC or name.verb not in ("read", "status")
    ]


def _collect(
    system: RealSystem, scenario: RealScenario, found: dict[SightingKey, Sighting]
) -> None:
    """Add what was seen, keeping the shortest schedule of each."""
    for seen in system.found.values():
        words = scenario, seen.violation, seen.schedule, seen.events, seen.count
        new = Sighting(*words, system.all_io)
        old = found.get(new.key)
        found[new.key] = old.joined(new) if old is not None else new
