"""``explore --mode soak``: random scenarios of the space, without end.

They come in batches. Each scenario of a batch is sampled, with a failing I/O, with two and with all
I/O held by share; those that gave the most are explored for a few seconds; and what was seen for
the first time is confirmed before the next batch begins. A file can hold how far it is, to go on
with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qmpshim.conformance.bundles.case_file import strings
from qmpshim.conformance.explore.checkers.crash_points import NO_CRASH_POINTS, CrashPoints
from qmpshim.conformance.explore.harness.history import Sighting, SightingKey
from qmpshim.conformance.explore.report.findings import group
from qmpshim.conformance.explore.report.recognition import ExplainsFinding, recogniser
from qmpshim.conformance.explore.report.report import SOAK, ExploreReport, ScenarioResult, why_none
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.agenda import sampled, shape
from qmpshim.conformance.explore.search.confirmed import Confirmed
from qmpshim.conformance.explore.search.progress import Board, Progress
from qmpshim.conformance.explore.search.search import Sample, ScenarioTask
from qmpshim.conformance.explore.search.workers import in_processes, in_this_process
from qmpshim.conformance.explore.space.naming import scenario_of
from qmpshim.conformance.explore.space.random_points import RandomPoints
from qmpshim.errors import BuildError, InputError, decoding
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.files import write_file
from qmpshim.model.explore.explorer import Mode

BATCH = 40  # scenarios, for each process
_DEEPER = 2  # of them that are explored, for each process
DEEP_LIMIT = 4.0  # seconds for each of those
CONFIRMING_LIMIT = 30.0  # seconds at most for what was seen for the first time
_LEAST = 3.0  # seconds for that, where the end is near
_LAST = 0.3, 60.0  # share of a budget, and seconds, of which the lesser is kept for confirming

_FORMAT = 1


@dataclass
class SoakState:
    """How far a soak is.

    :ivar build: name and version of what is explored
    :ivar names: of the scenarios that are done
    """

    seed: int
    build: str
    names: list[str]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        :raises HostError: it cannot be written
        """
        value = {"format": _FORMAT, "kind": SOAK, "seed": self.seed, "build": self.build,
                 "scenarios": self.names}  # fmt: skip
        write_file(path, json.dumps(value, indent=1).encode() + b"\n")


def soak_state(path: Path, build: Build, seed: int) -> SoakState:
    """What a file holds; where there is none, the beginning.

    :param seed: of the beginning
    :raises InputError: it cannot be read, or is of another build
    """
    there = f"{build.name} {'.'.join(map(str, read_version(build)[0]))}"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return SoakState(seed, there, [])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error
    with decoding(str(path)):
        value = json.loads(text)
        if value["format"] != _FORMAT or value["kind"] != SOAK:
            raise InputError(f"{path} does not hold how far a soak is")
        state = SoakState(
            int(value["seed"]), str(value["build"]), list(strings(value["scenarios"]))
        )
        RandomPoints(state.seed, state.names)  # each of them is a point
    if state.build != there:
        raise InputError(f"{path} is of {state.build}, not of {there}")
    return state


def soak_real(
    build: Build,
    *,
    faults: Sequence[int] = (),
    crash_points: CrashPoints = NO_CRASH_POINTS,
    seed: int = 0,
    budget: float | None = None,
    jobs: int = 1,
    known: Sequence[ExplainsFinding] = (),
    state: SoakState | None = None,
    keep: Callable[[SoakState], None] = lambda state: None,
    progress: Callable[[Progress], None] | None = None,
    interrupted: Callable[[ExploreReport], None] = lambda report: None,
) -> ExploreReport:
    """Explore random scenarios until the budget is used up.

    :param faults: errnos; they come in samples alone
    :param budget: seconds; ``None``: until a KeyboardInterrupt
    :param state: goes on with this; its seed is the one that counts
    :param keep: called with the state after each batch
    :param interrupted: given what there is when anything ends it before its time, which is passed
        on: hours of it are not lost with a full disk, or by a mistake of ours
    :raises BuildError: the build can do none of the scenarios
    """
    task = ScenarioTask(build, read_version(build)[0], Mode.STATEFUL, tuple(faults), None, seed,
                        crash_points)  # fmt: skip
    state = state or SoakState(seed, build.name, [])
    soak = _Soak(task, budget, jobs, progress, known, state)
    try:
        while soak.time_left():
            soak.batch()
            keep(soak.state)
    except BaseException:
        report = soak.report()
        report.interrupted = True
        if report.schedules:
            interrupted(report)
        raise
    return soak.report()


def _sampled(task: ScenarioTask) -> ScenarioTask:
    """What is tried of each scenario at first, schedules in which two I/Os fail among it."""
    task = sampled(task, True)
    if not task.errnos:
        return task
    two = (Sample(1, faults=2), Sample(1, faults=2, all_io=True))
    return replace(task, samples=task.samples + two, samples_alone=task.samples_alone + two)


class _Soak:
    """A soak under way.

    :ivar state: how far it is
    """

    def __init__(
        self,
        task: ScenarioTask,
        budget: float | None,
        jobs: int,
        progress: Callable[[Progress], None] | None,
        known: Sequence[ExplainsFinding],
        state: SoakState,
    ) -> None:
        self.state = state
        self._before = tuple(state.names)
        self._points = RandomPoints(state.seed, state.names)
        self._recognise = recogniser(known, task.version)
        self._jobs, self._board = jobs, Board(0, progress)
        self._began = time.monotonic()
        self._end = None if budget is None else self._began + budget
        if budget is not None:
            share, most = _LAST
            task = replace(task, deadline=self._began + budget - min(share * budget, most))
        self._task = task
        self._batches = 0
        self._kept: dict[tuple[SightingKey, str], tuple[ScenarioResult, int]] = {}
        self._confirmed = Confirmed(self._task, True, self._recognise)

    def time_left(self) -> bool:
        """Whether there is time for exploring."""
        return self._task.deadline is None or time.monotonic() < self._task.deadline

    def batch(self) -> None:
        """Explore more scenarios, and confirm what is new.

        :raises BuildError: the build can do none of them
        """
        points = self._points.take(BATCH * self._jobs)
        scenarios = sorted(map(scenario_of, points), key=shape)
        self._board.total += len(scenarios)
        results = self._run(_sampled(self._task), scenarios)
        if why := why_none(results):
            raise BuildError(f"{self._task.build.name}: {why}")
        if self.time_left():
            self._explore({one.name: one for one in scenarios}, results)
        self.state.names += [one.name for one in results if one.schedules]
        self._compact()
        self._confirmed.confirm(self._sightings(), self._end_of)
        self._batches += 1

    def _run(self, task: ScenarioTask, scenarios: Sequence[RealScenario]) -> list[ScenarioResult]:
        run = in_processes if self._jobs > 1 else in_this_process
        return run(task, scenarios, self._jobs, self._board)

    def _explore(
        self, scenarios: Mapping[str, RealScenario], sampled: Sequence[ScenarioResult]
    ) -> None:
        """Explore those that gave the most; faults and all I/O have their share of the batches."""
        best = sorted((one for one in sampled if not one.skipped), key=lambda one: -one.yielded)
        best = best[: _DEEPER * self._jobs]
        task = replace(
            self._task,
            budget=DEEP_LIMIT * _DEEPER,
            errnos=self._task.errnos if self._batches % 2 else (),
            all_io=self._batches % 4 > 1,
        )
        names = [one.name for one in best]
        self._board.again(names)
        self._run(task, [scenarios[name] for name in names])

    def _compact(self) -> None:
        """Keep one sighting of each kind: a soak is long."""
        for result in self._board.done[-BATCH * self._jobs :]:
            left: list[Sighting] = []
            for seen in result.sightings:
                (finding,) = group([seen], self._recognise)
                key = seen.key, finding.known
                if key in self._kept:
                    holder, index = self._kept[key]
                    held = left if holder is result else holder.sightings
                    held[index] = held[index].joined(seen)
                else:
                    self._kept[key] = result, len(left)
                    left.append(seen)
            result.sightings = left

    def _end_of(self, left: int) -> float:
        """The end of confirming the next finding, when so many are left."""
        now = time.monotonic()
        if self._end is None:
            return now + CONFIRMING_LIMIT
        share = max((self._end - now) / left, _LEAST)
        return min(now + CONFIRMING_LIMIT, now + share, self._end)

    def _sightings(self) -> list[Sighting]:
        return [sighting for one in self._board.so_far() for sighting in one.sightings]

    def report(self) -> ExploreReport:
        """What there is."""
        findings = self._confirmed.findings(self._sightings())
        return ExploreReport(
            self._task.build.name,
            self._task.version,
            SOAK,
            self.state.seed,
            bool(self._task.errnos),
            self._board.so_far(),
            [finding for finding in findings if finding.confirmed],
            time.monotonic() - self._began,
            self._jobs,
            [finding for finding in findings if not finding.confirmed],
            self._task.crash_points,
            before=self._before,
        )
