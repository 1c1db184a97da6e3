"""Explores one scenario: all its schedules, and with faults all of them for each I/O that fails."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from errno import ENOSPC
from functools import cached_property
from typing import Any

from qmpshim.conformance.explore.checkers.crash_points import NO_CRASH_POINTS, CrashPoints, How
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.checkers.quorum import both_refused
from qmpshim.conformance.explore.harness.choices import CUTS, Cut, IoId
from qmpshim.conformance.explore.harness.history import Sighting, SightingKey
from qmpshim.conformance.explore.harness.io_naming import LOOKS
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, Injection, RealSystem
from qmpshim.conformance.explore.report.report import ScenarioResult
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.errors import BuildError, NotStarted, OptionMissing
from qmpshim.machine.builds.build import Build
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import Phase
from qmpshim.model.explore.explorer import Exploration, Mode, explore
from qmpshim.model.explore.walk import Budget, OutOfBudget

_REPETITIONS = 3  # times that an exploration is repeated because it could not be followed


@dataclass(slots=True)
class ScenarioTask:
    """What is the same for all scenarios of a run.

    :ivar budget: seconds that are shared out among the scenarios
    :ivar deadline: when all of them have ended, by time.monotonic(), whatever QEMU does
    :ivar samples: take these instead of all schedules
    :ivar samples_alone: and these of a scenario of one operation
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
    samples_alone: tuple[Sample, ...] = ()

    @property
    def crash_points_alone(self) -> CrashPoints:
        """Those of an operation by itself: where none are chosen, those of a loss of power."""
        chosen = self.crash_points
        return CrashPoints(How.POWER_LOSS) if chosen.how is How.NONE else chosen

    def samples_of(self, scenario: RealScenario) -> tuple[Sample, ...]:
        """What is taken of a scenario instead of all schedules."""
        return self.samples_alone if len(scenario.ops) == 1 else self.samples


@dataclass(frozen=True, slots=True)
class Sample:
    """Schedules by chance.

    :ivar schedules: how many at most
    :ivar faults: so many I/Os fail in each of them, of those seen before in the scenario
    :ivar each_io: each I/O fails in one of them, in the first way of those that there are, and
        they are all taken, even if the time is over
    :ivar all_io: every request is held, qcow2's own among them
    :ivar crash_points: look at the images as these have it; None: as the task has it
    """

    schedules: int
    faults: int = 0
    each_io: bool = False
    all_io: bool = False
    crash_points: CrashPoints | None = None

    def plans(self, ios: Iterable[IoId], errnos: Sequence[int], rng: random.Random) -> list[Plan]:
        """What is to fail in its schedules, of the I/Os that were seen before."""
        if not self.faults:
            return [{}]
        possible = _faults(ios, errnos[:1] if self.each_io else errnos)
        if self.faults > 1:
            possible = _together(possible, self.faults)
        return rng.sample(possible, min(self.schedules, len(possible)))


@dataclass(frozen=True, slots=True)
class LiveFindings:
    """How far the exploration of a scenario is, and what it found so far.

    :ivar schedules: executions that have ended
    :ivar distinct: how many different outcomes they had
    :ivar sightings: what went wrong in them
    """

    scenario: RealScenario
    schedules: int
    distinct: int
    sightings: tuple[Sighting, ...]

    def result(self) -> ScenarioResult:
        """What is known of the scenario, should its exploration end here."""
        result = ScenarioResult(self.scenario.name, self.scenario.contract, cut_short=True)
        result.schedules, result.distinct = self.schedules, self.distinct
        result.sightings = list(self.sightings)
        return result


Tick = Callable[[LiveFindings], None]
Plan = dict[IoId, int]  # the I/Os that fail, and how


class _ReportingSystem(RealSystem):
    """Reports before each execution.

    :ivar ended: executions before the present one, those that were cut short among them
    """

    def __init__(
        self,
        *args: Any,
        report: Callable[[_ReportingSystem], None],
        outcomes: set[Any],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.ended = -1
        self._report = report
        self._outcomes = outcomes

    def reset(self) -> None:
        super().reset()
        self.ended += 1
        self._report(self)

    def finish(self) -> Any:
        outcome = super().finish()
        self._outcomes.add(outcome)
        return outcome


def errnos_of(scenario: RealScenario, errnos: Sequence[int]) -> tuple[int, ...]:
    """What I/Os of a scenario may fail with, of these.

    A job that copies again what failed has to have its disks: else it would never end.
    """
    return tuple(errno for errno in errnos if errno != Cut.FOR_GOOD or not scenario.ignores)


class _ScenarioRun:
    """One scenario, explored under one plan after another.

    :ivar result: figures of all plans so far
    """

    def __init__(
        self, pool: QemuPool, scenario: RealScenario, task: ScenarioTask, tick: Tick
    ) -> None:
        self.scenario = scenario
        self.result = ScenarioResult(scenario.name, scenario.contract)
        self._pool = pool
        self._task = task
        self._tick = tick
        self._sightings: dict[SightingKey, Sighting] = {}
        self._outcomes: set[Any] = set()
        self._began = time.monotonic()
        self._reported: tuple[_ReportingSystem | None, int, tuple[Sighting, ...]] = (None, 0, ())
        pool.deadline = task.deadline

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._began

    @property
    def late(self) -> bool:
        """Whether the task's deadline has passed."""
        return self._task.deadline is not None and time.monotonic() >= self._task.deadline

    @property
    def errnos(self) -> tuple[int, ...]:
        """What I/Os may fail with."""
        return errnos_of(self.scenario, self._task.errnos)

    @cached_property
    def _checker(self) -> LinearizabilityChecker:
        return LinearizabilityChecker(self.scenario, behaviour_of(self._task.version))

    def system(
        self, plan: Plan, all_io: bool, crash_points: CrashPoints | None = None
    ) -> _ReportingSystem:
        """The scenario as a system that can be explored, once."""
        points = self._task.crash_points if crash_points is None else crash_points
        return _ReportingSystem(
            self._pool,
            self.scenario,
            injection=Injection(plan=plan),
            checks=Checks(linearizability=self._checker, each_step=points.check),
            all_io=all_io,
            report=self._report,
            outcomes=self._outcomes,
        )

    def explore(
        self, system: _ReportingSystem, mode: Mode, budget: Budget, seed: int, apart: bool = True
    ) -> Exploration | None:
        """Explore *system* and add what came of it to the result.

        :param apart: take the chain apart in the end, since no more comes of it
        :returns: None: it ended early, since the deadline passed or the build cannot do it
        :raises NotStarted: QEMU does not even start
        """
        explored: Exploration | None = None
        in_time = False
        try:
            explored = explore(system, mode, budget, stop=False, seed=seed)
            in_time = _went_back(system, apart)
        except BuildError as error:
            never = self._pool.machine is None and self._pool.resets["fresh"] == 1
            if isinstance(error, NotStarted) and never:
                raise  # nor can anything else be explored
            self.result.skipped, self.result.lacks = str(error), isinstance(error, OptionMissing)
        except OutOfBudget:
            pass
        self._add(system, explored)
        if in_time:
            return explored
        self._pool.discard()
        return None

    def _add(self, system: _ReportingSystem, explored: Exploration | None) -> None:
        result = self.result
        if explored is None:
            result.schedules += max(0, system.ended)
        else:
            result.schedules += explored.statistics.schedules
            result.steps += explored.statistics.steps
            result.depth = max(result.depth, explored.statistics.depth)
        result.derailed += system.derailed
        result.in_part += system.in_part
        result.looks += system.looks
        _collect(system, self._sightings)

    def _report(self, system: _ReportingSystem) -> None:
        violations = sum(one.count for one in system.found.values())
        if self._reported[:2] != (system, violations):
            sightings = dict(self._sightings)
            _collect(system, sightings)
            self._reported = system, violations, tuple(sightings.values())
        schedules = self.result.schedules + system.ended
        self._tick(LiveFindings(self.scenario, schedules, len(self._outcomes), self._reported[2]))

    def end(self) -> ScenarioResult:
        """The result as a whole."""
        self.result.distinct, self.result.seconds = len(self._outcomes), self.seconds
        self.result.sightings = list(self._sightings.values())
        return self.result


def explore_scenario(
    pool: QemuPool,
    scenario: RealScenario,
    task: ScenarioTask,
    seconds: float | None,
    tick: Tick = lambda live: None,
) -> ScenarioResult:
    """Explore one scenario on a QEMU of *pool*, for at most so many *seconds*.

    With faults a third of the time goes to exploring without, which shows what can fail. At the
    task's deadline it ends wherever it is, with what was seen before.

    :raises NotStarted: QEMU does not even start; where it did before, only this scenario is skipped
    """
    run = _ScenarioRun(pool, scenario, task, tick)
    result = run.result
    result.exhaustive = True
    plans: list[Plan] = [{}]
    repetitions = _REPETITIONS
    while plans:
        plan = plans.pop()
        remaining = None if seconds is None else seconds - run.seconds
        if run.late or (remaining is not None and remaining <= 0):
            result.exhaustive, result.cut_short = False, True
            break
        if remaining is not None:
            remaining /= 3 if task.errnos and not plan else len(plans) + 1
        system = run.system(plan, task.all_io)
        explored = run.explore(system, task.mode, Budget(remaining), task.seed, not plans)
        if explored is None:
            result.exhaustive, result.cut_short = False, not result.skipped
            break
        if not plan:
            plans = _faults(system.ios, run.errnos) + both_refused(system.ios, run.errnos)
        # A block job's timer may come between under load; then all of it once more.
        repeated = bool(system.derailed) and repetitions > 0 and explored.exhaustive
        if repeated:
            repetitions -= 1
            plans.append(plan)
        begun = all(cause.phase is not Phase.SETUP for _, cause in system.found)
        complete = explored.exhaustive and not system.derailed and begun
        result.exhaustive = result.exhaustive and (complete or repeated)
        result.cut_short = result.cut_short or not explored.exhaustive
    return run.end()


def sample_scenario(
    pool: QemuPool,
    scenario: RealScenario,
    task: ScenarioTask,
    seconds: float | None,
    tick: Tick = lambda live: None,
) -> ScenarioResult:
    """Take the task's samples of one scenario; parameters and errors as :func:`explore_scenario`.

    Where the time is over the later samples are left out, but not the first, nor those of each I/O.
    """
    run = _ScenarioRun(pool, scenario, task, tick)
    run.result.cut_short = True
    ios: dict[bool, set[IoId]] = {False: set(), True: set()}  # that can fail, by all_io
    rng = random.Random(f"{task.seed} {scenario.name}")
    for number, sample in enumerate(task.samples_of(scenario)):
        if run.late:
            break
        plans = sample.plans(ios[sample.all_io], run.errnos, rng)
        for left, plan in zip(reversed(range(len(plans))), plans, strict=True):
            late = seconds is not None and run.seconds > seconds
            if number and late and not sample.each_io:
                break
            system = run.system(plan, sample.all_io, sample.crash_points)
            budget = Budget(None, 1 if plan else sample.schedules)
            apart = not (sample.each_io and left)
            explored = run.explore(system, Mode.RANDOM, budget, rng.randrange(1 << 30), apart)
            ios[sample.all_io] |= set(system.ios)
            if explored is None:
                return run.end()
    return run.end()


def _went_back(system: RealSystem, apart: bool) -> bool:
    """Go back to the beginning, and return whether there was time for that."""
    try:
        system.leave(apart)
    except OutOfBudget:
        return False
    return True


def _faults(names: Iterable[IoId], errnos: Sequence[int]) -> list[Plan]:
    """Every I/O that was seen is to fail once, in each way that makes sense for it."""
    return [
        {name: errno}
        for name in sorted(names)
        for errno in errnos
        if errno != ENOSPC or name.verb not in LOOKS
    ]


def _together(faults: Sequence[Plan], many: int) -> list[Plan]:
    """So many of these at once, of different I/Os.

    Where connections are made again QEMU waits for a disk that is gone: one of both kinds of cut.
    """
    plans = []
    for some in itertools.combinations(faults, many):
        plan = {io: errno for one in some for io, errno in one.items()}
        if len(plan) == many and not set(plan.values()) >= CUTS:
            plans.append(plan)
    return plans


def _collect(system: RealSystem, found: dict[SightingKey, Sighting]) -> None:
    """Add what was seen, keeping the shortest schedule of each."""
    for new in system.found.values():
        old = found.get(new.key)
        found[new.key] = old.joined(new) if old is not None else new
