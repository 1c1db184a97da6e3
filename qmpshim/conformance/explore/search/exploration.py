"""``qmpshim explore``: many scenarios' schedules on one real QEMU build, in several processes.

:func:`explore_real` does it all: it explores, groups what it found by cause, makes each finding
small, proves it by running it again on fresh QEMUs, and sets aside what is known. Under a budget it
explores and confirms in turns, until the time is over or nothing is left.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qmpshim.conformance.explore.directed.cases import Directed
from qmpshim.conformance.explore.directed.run import DirectedResult, run_cases
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.report.recognition import recogniser
from qmpshim.conformance.explore.report.report import ExploreReport, ScenarioResult, why_none
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.agenda import WORTH_IT, Agenda
from qmpshim.conformance.explore.search.confirmed import Confirmed
from qmpshim.conformance.explore.search.progress import Board, Progress
from qmpshim.conformance.explore.search.search import ScenarioTask
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.search.workers import in_processes, in_this_process, on_cluster
from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.explore.explorer import Mode

_FIRST = 0.7  # of a budget, for the first turn: what it finds has to be confirmed, too
_FIRST_LATEST = 0.75  # of a budget, when exploring in it has ended
_LAST = 0.9  # of a budget or limit, when nothing more is explored
_BY_CHANCE = 60.0  # seconds of a search by chance that has no budget
_CONFIRMING = 3.0  # seconds for a finding, at least: with less not one of many is confirmed
_DIRECTED = 0.4  # of a budget or limit, at most: the directed cases take some ten seconds
_USUAL, _NO_BOUNDS, _NOTHING_KNOWN = Settings(), Bounds(), WrittenUp()


def explore_real(
    build: Build,
    scenarios: Sequence[RealScenario],
    directed: Sequence[Directed] = (),
    *,
    settings: Settings = _USUAL,
    bounds: Bounds = _NO_BOUNDS,
    known: WrittenUp = _NOTHING_KNOWN,
    progress: Callable[[Progress], None] | None = None,
    interrupted: Callable[[ExploreReport], None] = lambda report: None,
) -> ExploreReport:
    """Run *directed* cases on *build*, then explore *scenarios*.

    :param interrupted: given what there is when a KeyboardInterrupt, a HostError or an InputError
        ends it, which is passed on
    :raises BuildError: the build cannot do any of the scenarios, and no case showed anything; or
        it cannot do any of the cases, where there are no scenarios
    :raises InputError: there are none; or the build is gone, or another program
    :raises HostError: a process that explored is gone, or the cluster (ExecutorLost)
    """
    if not scenarios and not directed:
        raise InputError("there is no scenario to explore")
    exploration = _Exploration(build, scenarios, directed, settings, bounds, known, progress)
    try:
        exploration.run()
    except (KeyboardInterrupt, HostError, InputError):
        interrupted(exploration.report(interrupted=True))
        raise
    return exploration.report()


class _Exploration:
    """An exploration under way; its parameters are those of :func:`explore_real`."""

    def __init__(
        self,
        build: Build,
        scenarios: Sequence[RealScenario],
        directed: Sequence[Directed],
        settings: Settings,
        bounds: Bounds,
        known: WrittenUp,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        mode = Mode.STATEFUL if settings.mode is Mode.AUTO else settings.mode
        version, cluster = read_version(build)[0], bounds.cluster
        self._times = _Deadlines.of(time.monotonic(), bounds, mode)
        errnos = tuple(settings.faults)
        self._task = ScenarioTask(
            build,
            version,
            mode,
            errnos,
            None,
            settings.seed,
            settings.crash_points,
            settings.all_io,
        )
        self._scenarios, self._bounds, self._known = scenarios, bounds, known
        self._jobs = max(1, min(cluster.workers if cluster else bounds.jobs, len(scenarios)))
        self._cases = DirectedResult(tuple(directed))
        self._progress, self._board = progress, Board(len(scenarios), progress)
        self._agenda = Agenda(scenarios, settings, self._explore, self._board)
        recognise = recogniser(known.findings, version)
        self._confirmed = Confirmed(self._task, settings.minimise, recognise)

    def run(self) -> None:
        """Run the cases, explore and confirm.

        :raises BuildError: the build can do nothing of it
        """
        self._run_cases()
        if self._scenarios:
            self._turn(self._times.first)
            while self._agenda.unfinished and self._times.for_another:
                self._turn(self._times.last)

    def report(self, interrupted: bool = False) -> ExploreReport:
        """What there is by now."""
        task, results = self._task, self._results()
        findings = self._confirmed.findings(_sightings(results))
        return ExploreReport(
            task.build.name,
            task.version,
            task.mode.value,
            task.seed,
            bool(task.errnos),
            results,
            [finding for finding in findings if finding.confirmed],
            time.monotonic() - self._times.began,
            self._jobs,
            [finding for finding in findings if not finding.confirmed],
            task.crash_points,
            interrupted,
            directed=self._cases,
        )

    def _run_cases(self) -> None:
        """Run the directed cases.

        :raises BuildError: it can do none of them, and there is nothing else
        """
        task, cases = self._task, self._cases
        jobs = self._bounds.jobs
        jobs += jobs > 1  # a case waits for QEMU half of its time
        end = self._times.directed
        run_cases(task.build, cases, self._known.directed, end, self._at_case, jobs)
        if cases.cases and len(cases.skipped) == len(cases.cases) and not self._scenarios:
            raise BuildError(f"{task.build.name}: {next(iter(cases.skipped.values()))}")

    def _at_case(self, name: str) -> None:
        if self._progress is not None:
            seconds, found = time.monotonic() - self._times.began, tuple(self._cases.findings)
            many = len(self._scenarios)
            self._progress(Progress(0, many, 0, 0, seconds, Counter(), name, directed=found))

    def _turn(self, turn: _Turn) -> None:
        """Explore until a turn's end, and confirm what was seen."""
        task = replace(self._task, deadline=turn.latest)
        left = None if turn.end is None else max(0.0, turn.end - time.monotonic())
        if left is None or task.mode.by_chance:
            self._explore(replace(task, budget=left), self._scenarios)
        else:
            self._agenda.turn(task, left)
        results = self._results()
        if (why := why_none(results)) and not self._cases.findings:
            raise BuildError(f"{task.build.name}: {why}")
        self._confirmed.confirm(_sightings(results), self._times.of_finding)

    def _results(self) -> list[ScenarioResult]:
        """What is known by now, in the order of the scenarios, whichever ended first."""
        place = {one.name: number for number, one in enumerate(self._scenarios)}
        return sorted(self._board.so_far(), key=lambda one: place[one.name])

    def _explore(
        self, task: ScenarioTask, scenarios: Sequence[RealScenario]
    ) -> list[ScenarioResult]:
        if self._bounds.cluster is not None:
            return on_cluster(self._bounds.cluster, task, scenarios, self._jobs, self._board)
        run = in_processes if self._jobs > 1 else in_this_process
        return run(task, scenarios, self._jobs, self._board)


def _sightings(results: Sequence[ScenarioResult]) -> list[Sighting]:
    return [sighting for one in results for sighting in one.sightings]


@dataclass(frozen=True, slots=True)
class _Turn:
    """When exploring ends, by time.monotonic(), before what was found is confirmed.

    :ivar end: None: when all schedules were taken
    :ivar latest: then it has ended whatever QEMU does
    """

    end: float | None
    latest: float | None


@dataclass(frozen=True, slots=True)
class _Deadlines:
    """When what has to be over, by time.monotonic(); None: it takes what it takes.

    :ivar everything: confirming included
    """

    began: float
    first: _Turn
    last: _Turn
    everything: float | None

    @classmethod
    def of(cls, began: float, bounds: Bounds, mode: Mode) -> _Deadlines:
        """Those that a caller's bounds mean."""
        seconds = bounds.budget
        if seconds is None and mode.by_chance:
            seconds = _BY_CHANCE
        whole, first, last = seconds, _Turn(None, None), _Turn(None, None)
        if seconds is not None:
            first = _Turn(began + seconds * _FIRST, began + seconds * _FIRST_LATEST)
            last = _Turn(began + seconds * _LAST, began + seconds * _LAST)
        if bounds.limit is not None and (seconds is None or bounds.limit < seconds):
            whole, latest = bounds.limit, began + bounds.limit * _LAST
            first, last = _Turn(first.end, latest), _Turn(last.end and latest, latest)
        return cls(began, first, last, None if whole is None else began + whole)

    @property
    def directed(self) -> float | None:
        """The end of the directed cases."""
        if self.everything is None:
            return None
        return self.began + _DIRECTED * (self.everything - self.began)

    @property
    def for_another(self) -> bool:
        """Whether there is time for another turn."""
        end = self.last.end
        return end is not None and end - time.monotonic() > WORTH_IT * (end - self.began)

    def of_finding(self, left: int) -> float | None:
        """The end of confirming the next finding, when so many are left."""
        if self.everything is None:
            return None
        now = time.monotonic()
        return min(now + max((self.everything - now) / left, _CONFIRMING), self.everything)
