"""``qmpshim explore``: many scenarios' schedules on one real QEMU build, in several processes.

:func:`explore_real` does it all: it explores, groups what it found by cause, makes each finding
small, proves it by running it again on fresh QEMUs, and sets aside what is known.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qmpshim.conformance.explore.directed.cases import Directed
from qmpshim.conformance.explore.directed.run import DirectedResult, run_cases
from qmpshim.conformance.explore.report.findings import Finding, group
from qmpshim.conformance.explore.report.report import (
    ExploreReport,
    ScenarioResult,
    render,
    why_none,
)
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.minimize import confirm
from qmpshim.conformance.explore.search.search import Sample, ScenarioTask
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.search.workers import (
    Board,
    Progress,
    in_processes,
    in_this_process,
    on_cluster,
)
from qmpshim.conformance.known.matching import (
    recogniser,
)
from qmpshim.errors import BuildError, HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.explore.explorer import Mode

Run = Callable[[ScenarioTask, Sequence[RealScenario], int, Board], list[ScenarioResult]]

PLAIN_SAMPLES, FAULTY_SAMPLES = 3, 2  # schedules of a scenario's samples
_WORTH_IT = 0.1  # of the budget
_EXPLORING = 0.7  # of a budget: what was found has to be confirmed, too
_LATEST = 0.75  # of a budget, when exploring has ended
_UNSEEN = 0.88  # of a budget, when it has ended where nothing has to be confirmed
_LONGEST = 0.9  # of a limit, for exploring
_BY_CHANCE = 60.0  # seconds of a search by chance that has no budget
_CONFIRMING = 3.0  # seconds for a finding, at least: with less not one of many is confirmed
_SAMPLING = 0.9  # of the time for exploring, at most
_DIRECTED = 0.4  # of a budget or limit, at most: the directed cases take some ten seconds
_USUAL, _NO_BOUNDS, _NOTHING_KNOWN = Settings(), Bounds(), WrittenUp()

__all__ = ["ExploreReport", "Progress", "ScenarioResult", "explore_real", "render"]


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
    mode = Mode.STATEFUL if settings.mode is Mode.AUTO else settings.mode
    cluster, version = bounds.cluster, read_version(build)[0]
    jobs = max(1, min(cluster.workers if cluster else bounds.jobs, len(scenarios)))
    times = _Deadlines.of(time.monotonic(), bounds, mode)
    task = ScenarioTask(build, version, mode, tuple(settings.faults), times.budget, settings.seed,
                        settings.crash_points, settings.all_io, times.exploring)  # fmt: skip
    board = Board(len(scenarios), progress)
    cases = DirectedResult(tuple(directed))
    recognise = recogniser(known.findings, version)
    report = ExploreReport(build.name, version, mode.value, settings.seed, bool(settings.faults),
                           [], [], 0.0, jobs, directed=cases)  # fmt: skip
    report.crash_points = settings.crash_points
    results: list[ScenarioResult] | None = None
    findings: list[Finding] = []
    confirmed: list[Finding] = []

    def at_case(name: str) -> None:
        if progress is not None:
            seconds, found = time.monotonic() - times.began, tuple(cases.findings)
            progress(Progress(0, len(scenarios), 0, 0, seconds, Counter(), name, directed=found))

    try:
        run_cases(build, cases, known.directed, times.directed, at_case, bounds.jobs)
        if directed and len(cases.skipped) == len(directed) and not scenarios:
            raise BuildError(f"{build.name}: {next(iter(cases.skipped.values()))}")
        run: Run = in_processes if jobs > 1 else in_this_process
        if cluster is not None:
            run = partial(on_cluster, cluster)
        if task.budget is not None:
            task.budget = max(0.0, task.budget - (time.monotonic() - times.began))
        if scenarios:
            results = _explore(run, task, scenarios, jobs, board, settings, times.unseen)
        results = results or []
        if (why := why_none(results)) and not cases.findings:
            raise BuildError(f"{build.name}: {why}")
        findings = _grouped(results, recognise)
        for finding in _confirm_all(task, findings, settings, times):
            confirmed.append(finding)
    except (KeyboardInterrupt, HostError, InputError):
        if results is None:
            results = board.so_far()
            findings = _grouped(results, recognise)
        _complete(report, results, [*confirmed, *findings[len(confirmed) :]], times)
        report.interrupted = True
        interrupted(report)
        raise
    _complete(report, results, confirmed, times)
    return report


@dataclass(frozen=True, slots=True)
class _Deadlines:
    """When what has to be over, by time.monotonic(); None: it takes what it takes.

    :ivar budget: seconds for exploring
    :ivar exploring: the end of that, :ivar unseen: where nothing has to be confirmed
    :ivar everything: of all
    """

    began: float
    budget: float | None
    exploring: float | None
    unseen: float | None
    everything: float | None

    @classmethod
    def of(cls, began: float, bounds: Bounds, mode: Mode) -> _Deadlines:
        """Those that a caller's bounds mean."""
        seconds, exploring = bounds.budget, None
        if seconds is None and mode.by_chance:
            seconds = _BY_CHANCE
        budget = unseen = None
        end = seconds
        if seconds is not None:
            budget, exploring = seconds * _EXPLORING, began + seconds * _LATEST
            unseen = began + seconds * _UNSEEN
        if bounds.limit is not None and (end is None or bounds.limit < end):
            exploring = unseen = began + bounds.limit * _LONGEST
            end = bounds.limit
        return cls(began, budget, exploring, unseen, None if end is None else began + end)

    @property
    def directed(self) -> float | None:
        """The end of the directed cases."""
        if self.everything is None:
            return None
        return self.began + _DIRECTED * (self.everything - self.began)

    def of_finding(self, left: int) -> float | None:
        """The end of confirming the next finding, when so many are left."""
        if self.everything is None:
            return None
        now = time.monotonic()
        return min(now + max((self.everything - now) / left, _CONFIRMING), self.everything)


def _confirm_all(
    task: ScenarioTask, findings: Sequence[Finding], settings: Settings, times: _Deadlines
) -> Iterator[Finding]:
    """Each of the findings, once it was tried again."""
    for number, finding in enumerate(findings):
        yield confirm(
            finding,
            task.build,
            settings.minimise,
            task.errnos,
            settings.crash_points,
            settings.all_io or finding.all_io,
            times.of_finding(len(findings) - number),
        )


def _complete(
    report: ExploreReport,
    results: list[ScenarioResult],
    findings: list[Finding],
    times: _Deadlines,
) -> None:
    """Put into a report what was explored and found."""
    findings.sort(key=lambda f: (bool(f.known), not f.contract, f.verdict, str(f.cause)))
    report.scenarios = results
    report.findings = [finding for finding in findings if finding.confirmed]
    report.unconfirmed = [finding for finding in findings if not finding.confirmed]
    report.seconds = time.monotonic() - times.began


def _grouped(
    results: Sequence[ScenarioResult], recognise: Callable[[Finding], str]
) -> list[Finding]:
    """What was seen, in the order in which it is confirmed, should time be short.

    New things come first, then what was seen most often, which is the soonest seen again.
    """
    sightings = [sighting for one in results for sighting in one.sightings]
    return sorted(group(sightings, recognise), key=lambda one: (bool(one.known), -one.count))


def _explore(
    run: Run,
    task: ScenarioTask,
    scenarios: Sequence[RealScenario],
    jobs: int,
    board: Board,
    settings: Settings,
    unseen: float | None,
) -> list[ScenarioResult]:
    """Explore them all; under a budget sample each of them first.

    Those that their share of the budget cut short are explored once more, with the rest. Exploring
    all schedules comes last: it spends most of its time on schedules that differ in little.

    :param unseen: the end of it where sampling shows nothing, which would have to be confirmed
    """
    began = time.monotonic()
    budget = task.budget
    if budget is None or task.mode.by_chance:
        return run(task, scenarios, jobs, board)
    sampled = replace(task, budget=budget * _SAMPLING, samples=samples(task, settings.mixed))
    order = sorted(
        range(len(scenarios)), key=lambda n: (settings.turn(scenarios[n]), shape(scenarios[n]))
    )
    first = run(sampled, [scenarios[n] for n in order], jobs, board)
    before = dict(zip(order, first, strict=True))
    if unseen is not None and not any(one.sightings for one in first):
        budget, task = unseen - began, replace(task, deadline=unseen)
        late = [n for n in order if not before[n].schedules and not before[n].skipped]
        if late:
            board.again([before[n] for n in late])
            sampled = replace(sampled, budget=unseen - time.monotonic(), deadline=unseen)
            again = run(sampled, [scenarios[n] for n in late], jobs, board)
            before.update(zip(late, again, strict=True))
    results = [before[n] for n in range(len(scenarios))]
    exhausting = replace(task, errnos=() if settings.mixed else task.errnos)
    given_up: list[tuple[int, ScenarioResult]] = []
    while True:
        left = budget - (time.monotonic() - began)
        short = [n for n, one in enumerate(results) if one.cut_short and not one.skipped]
        if not short or left < _WORTH_IT * budget:
            break
        short.sort(key=lambda n: -before[n].yielded)
        given_up += [(n, results[n]) for n in short]
        board.again([results[n] for n in short])
        again = run(replace(exhausting, budget=left), [scenarios[n] for n in short], jobs, board)
        for n, one in zip(short, again, strict=True):
            results[n] = one
    for n, one in given_up:
        results[n].add(one)
    return results


def samples(task: ScenarioTask, mixed: bool) -> tuple[Sample, ...]:
    """What is tried of each scenario at first; faults and all I/O have their share."""
    plain = Sample(PLAIN_SAMPLES, all_io=task.all_io)
    faulty = Sample(FAULTY_SAMPLES, faults=True, all_io=task.all_io)
    if mixed:
        return plain, faulty, Sample(1, all_io=True), Sample(1, faults=True, all_io=True)
    return (plain, faulty) if task.errnos else (plain,)


def shape(scenario: RealScenario) -> tuple[Any, ...]:
    """What a QEMU is set up for: those that are equal here can share one."""
    options = repr(scenario.options)
    return scenario.form, scenario.secondary, scenario.cluster, scenario.size, options
