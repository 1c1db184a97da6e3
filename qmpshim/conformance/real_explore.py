"""``qmpshim explore``: many scenarios' schedules on one real QEMU build, in several processes.

:func:`explore_real` does it all: it explores, groups what it found by cause, makes each finding
small, proves it by running it again on fresh QEMUs, and sets aside what is known.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue
from typing import Any

from qmpshim.conformance.findings import Finding, Known, Sighting, confirm, group
from qmpshim.conformance.real_judge import Judge
from qmpshim.conformance.real_scenarios import RealScenario
from qmpshim.conformance.real_stage import Stage
from qmpshim.conformance.real_system import RealSystem
from qmpshim.errors import BuildError, MachineError, QmpshimError
from qmpshim.machine.builds import Build, read_version
from qmpshim.model.behaviour import behaviour_of
from qmpshim.model.explorer import Mode, explore
from qmpshim.model.system import Choice
from qmpshim.model.walk import Budget

log = logging.getLogger(__name__)

_TICK = 0.2  # seconds between two words of progress


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an exploration is.

    :ivar schedules: executions so far, :ivar distinct: outcomes of scenarios so far
    :ivar verdicts: schedules that ended with each verdict
    """

    scenarios: int
    of: int
    schedules: int
    distinct: int
    seconds: float
    verdicts: Counter[str]
    doing: str

    @property
    def rate(self) -> float:
        """Schedules per second."""
        return self.schedules / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class ScenarioResult:
    """What exploring one scenario gave.

    :ivar exhaustive: every schedule was taken, or is equivalent to one that was
    :ivar derailed: executions that could not be followed; too many mean a harness at fault
    :ivar skipped: why this build cannot do the scenario, or ``""``
    """

    name: str
    contract: bool
    exhaustive: bool = False
    schedules: int = 0
    steps: int = 0
    depth: int = 0
    distinct: int = 0
    seconds: float = 0.0
    derailed: int = 0
    skipped: str = ""
    sightings: list[Sighting] = field(default_factory=list)


@dataclass(slots=True)
class ExploreReport:
    """An exploration's result.

    :ivar build: name and version
    :ivar findings: new ones first, then known ones; each showed itself again on fresh QEMUs
    :ivar unconfirmed: what did not do so every time; no finding, but a reason to look closer
    """

    build: str
    version: tuple[int, ...]
    mode: str
    seed: int
    faults: bool
    scenarios: list[ScenarioResult]
    findings: list[Finding]
    seconds: float
    jobs: int
    unconfirmed: list[Finding] = field(default_factory=list)

    @property
    def new(self) -> list[Finding]:
        """Findings that nobody has written up yet and that replay."""
        return [finding for finding in self.findings if not finding.known]

    @property
    def schedules(self) -> int:
        return sum(one.schedules for one in self.scenarios)

    @property
    def steps(self) -> int:
        return sum(one.steps for one in self.scenarios)

    @property
    def exhaustive(self) -> bool:
        """Whether every scenario that this build can do was exhausted."""
        return all(one.exhaustive or one.skipped for one in self.scenarios)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "build": self.build,
            "version": list(self.version),
            "mode": self.mode,
            "seed": self.seed,
            "faults": self.faults,
            "seconds": round(self.seconds, 3),
            "jobs": self.jobs,
            "schedules": self.schedules,
            "steps": self.steps,
            "exhaustive": self.exhaustive,
            "scenarios": [
                {
                    "name": one.name,
                    "contract": one.contract,
                    "exhaustive": one.exhaustive,
                    "schedules": one.schedules,
                    "steps": one.steps,
                    "depth": one.depth,
                    "distinct": one.distinct,
                    "seconds": round(one.seconds, 3),
                    "derailed": one.derailed,
                    "skipped": one.skipped,
                }
                for one in self.scenarios
            ],
            "findings": [finding.to_json() for finding in self.findings],
            "unconfirmed": [finding.to_json() for finding in self.unconfirmed],
        }


def explore_real(
    build: Build,
    scenarios: Sequence[RealScenario],
    mode: Mode = Mode.DPOR,
    faults: Sequence[int] = (),
    budget: float | None = None,
    jobs: int = 1,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    known: Sequence[Known] = (),
    minimise: bool = True,
) -> ExploreReport:
    """Explore *scenarios* on *build*.

    :param mode: ``DPOR`` (exhaustive), ``NAIVE``, ``RANDOM`` or ``PREEMPTION``
    :param faults: errnos a held I/O may end with instead; empty: no faults
    :param budget: seconds for exploring, shared out among the scenarios; those by chance need one
    :param jobs: processes, each with a QEMU of its own
    :param known: findings that are written up
    :raises BuildError: the build cannot do any of the scenarios
    """
    version = read_version(build)[0]
    began = time.monotonic()
    task = _Task(build, version, mode, tuple(faults), budget, seed)
    if mode in (Mode.RANDOM, Mode.PREEMPTION) and budget is None:
        task.budget = budget = 60.0
    board = _Board(len(scenarios), progress)
    run = _in_processes if jobs > 1 and len(scenarios) > 1 else _here
    results = run(task, scenarios, jobs, board)
    if results and all(one.skipped for one in results):
        raise BuildError(f"{build.name}: {results[0].skipped}")
    findings = group([sighting for one in results for sighting in one.sightings], version, known)
    confirmed = [confirm(finding, build, minimise, task.errnos) for finding in findings]
    confirmed.sort(key=lambda f: (bool(f.known), not f.contract, f.verdict, f.cause))
    seconds = time.monotonic() - began
    return ExploreReport(
        build.name,
        version,
        mode.value,
        seed,
        bool(faults),
        results,
        [finding for finding in confirmed if finding.confirmed],
        seconds,
        jobs,
        [finding for finding in confirmed if not finding.confirmed],
    )


# -- one scenario ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Task:
    """What is the same for all scenarios of a run."""

    build: Build
    version: tuple[int, ...]
    mode: Mode
    errnos: tuple[int, ...]
    budget: float | None
    seed: int


class _Counting(RealSystem):
    """Tells now and then how far it is."""

    def __init__(self, *words: Any, tick: Callable[[RealSystem], None], **named: Any) -> None:
        super().__init__(*words, **named)
        self._tick = tick

    def finish(self) -> Any:
        outcome = super().finish()
        self._tick(self)
        return outcome


def explore_scenario(
    stage: Stage,
    scenario: RealScenario,
    task: _Task,
    seconds: float | None,
    tick: Callable[[RealSystem], None] = lambda system: None,
) -> ScenarioResult:
    """Explore one scenario on *stage*, for at most so many *seconds*."""
    result = ScenarioResult(scenario.name, scenario.contract)
    judge = Judge(scenario, behaviour_of(task.version))
    began = time.monotonic()
    chance = task.mode in (Mode.RANDOM, Mode.PREEMPTION)
    found: dict[tuple[str, str], Sighting] = {}
    outcomes: set[Any] = set()
    plans: list[dict[Choice, int]] = [{}]
    result.exhaustive = True
    while plans:
        plan = plans.pop()
        errnos = task.errnos if chance else ()
        system = _Counting(stage, scenario, judge=judge, errnos=errnos, plan=plan, tick=tick)
        left = None if seconds is None else seconds - (time.monotonic() - began)
        if left is not None and left <= 0:
            result.exhaustive = False
            break
        try:
            explored = explore(system, task.mode, Budget(left), stop=False, seed=task.seed)
        except BuildError as error:
            result.skipped = str(error)
            return result
        except MachineError as error:  # QEMU does not even reach the beginning
            result.skipped = f"the setup fails: {error}"
            return result
        if not plan and not chance:
            # Every I/O that was seen fails once, in all schedules.
            plans = [{name: errno} for name in sorted(system.names) for errno in task.errnos]
        statistics = explored.statistics
        result.exhaustive = result.exhaustive and explored.exhaustive
        result.schedules += statistics.schedules
        result.steps += statistics.steps
        result.depth = max(result.depth, statistics.depth)
        result.derailed += system.derailed
        outcomes |= explored.outcomes
        _collect(system, scenario, found)
    result.distinct, result.seconds = len(outcomes), time.monotonic() - began
    result.sightings = list(found.values())
    return result


def _collect(
    system: RealSystem, scenario: RealScenario, found: dict[tuple[str, str], Sighting]
) -> None:
    """Add what was seen, keeping the shortest schedule of each cause."""
    for (kind, cause), seen in system.found.items():
        old = found.get((kind, cause))
        count = seen.count + (old.count if old else 0)
        if old is not None and len(old.schedule) <= len(seen.schedule):
            found[kind, cause] = replace(old, count=count)
        else:
            found[kind, cause] = Sighting(
                scenario, seen.violation, seen.schedule, seen.lines, count
            )


# -- where it runs -----------------------------------------------------------------------------


class _Board:
    """Collects progress from wherever it comes."""

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self.total = total
        self.progress = progress
        self.began = time.monotonic()
        self.done: list[ScenarioResult] = []
        self.live: dict[int, tuple[str, int, int, dict[str, int]]] = {}
        self._last = 0.0

    def tell(self, force: bool = False) -> None:
        """Report, if it is time to."""
        now = time.monotonic()
        if self.progress is None or (not force and now - self._last < _TICK):
            return
        self._last = now
        verdicts: Counter[str] = Counter()
        for one in self.done:
            for sighting in one.sightings:
                verdicts[sighting.violation.kind.value] += sighting.count
        for _, _, _, counts in self.live.values():
            verdicts.update(counts)
        schedules = sum(one.schedules for one in self.done)
        schedules += sum(live[1] for live in self.live.values())
        self.progress(
            Progress(
                len(self.done),
                self.total,
                schedules,
                sum(one.distinct for one in self.done),
                now - self.began,
                verdicts,
                ", ".join(live[0] for live in self.live.values()),
            )
        )


def _state(system: RealSystem) -> tuple[str, int, int, dict[str, int]]:
    counts: Counter[str] = Counter()
    for (kind, _), found in system.found.items():
        counts[kind.value] += found.count
    return system.scenario.name, system.finished, system.derailed, dict(counts)


def _share(task: _Task, began: float, waiting: int, jobs: int) -> float | None:
    """How long the next scenario may take."""
    if task.budget is None:
        return None
    left = task.budget - (time.monotonic() - began)
    return max(0.05, left * jobs / max(waiting, jobs))


def _here(
    task: _Task, scenarios: Sequence[RealScenario], jobs: int, board: _Board
) -> list[ScenarioResult]:
    stage = Stage(task.build)
    began = time.monotonic()

    def tick(system: RealSystem) -> None:
        board.live[0] = _state(system)
        board.tell()

    try:
        for number, scenario in enumerate(scenarios):
            seconds = _share(task, began, len(scenarios) - number, 1)
            board.done.append(explore_scenario(stage, scenario, task, seconds, tick))
            board.live.clear()
        board.tell(force=True)
    finally:
        stage.close()
    return board.done


def _worker(number: int, task: _Task, todo: Any, results: Any, began: float, jobs: int) -> None:
    """A process of its own: takes scenarios until there are none."""
    stage = Stage(task.build)
    last = 0.0

    def tick(system: RealSystem) -> None:
        nonlocal last
        if time.monotonic() - last > _TICK:
            last = time.monotonic()
            results.put((number, "at", _state(system)))

    try:
        while True:
            try:
                place, scenario, waiting = todo.get_nowait()
            except queue.Empty:
                break
            seconds = _share(task, began, waiting, jobs)
            result = explore_scenario(stage, scenario, task, seconds, tick)
            results.put((number, "done", (place, result)))
    except QmpshimError as error:
        results.put((number, "failed", error))
    except KeyboardInterrupt:
        pass
    finally:
        stage.close()
        results.put((number, "left", None))


def _in_processes(
    task: _Task, scenarios: Sequence[RealScenario], jobs: int, board: _Board
) -> list[ScenarioResult]:
    context = multiprocessing.get_context("spawn")
    todo: Queue[Any] = context.Queue()
    results: Queue[Any] = context.Queue()
    for place, scenario in enumerate(scenarios):
        todo.put((place, scenario, len(scenarios) - place))
    began = time.monotonic()
    workers = [
        context.Process(
            target=_worker, args=(number, task, todo, results, began, jobs), daemon=True
        )
        for number in range(min(jobs, len(scenarios)))
    ]
    for worker in workers:
        worker.start()
    ordered: dict[int, ScenarioResult] = {}
    working = set(range(len(workers)))
    failure: QmpshimError | None = None
    try:
        while working:
            try:
                number, what, value = results.get(timeout=1.0)
            except queue.Empty:
                for number in list(working):
                    if not workers[number].is_alive():
                        working.discard(number)
                continue
            if what == "at":
                board.live[number] = value
            elif what == "done":
                place, result = value
                ordered[place] = result
                board.done.append(result)
                board.live.pop(number, None)
            elif what == "failed":
                failure = value
            else:
                working.discard(number)
            board.tell()
    finally:
        for worker in workers:
            worker.join(2.0)
            if worker.is_alive():
                worker.terminate()
                worker.join()
    if failure is not None:
        raise failure
    board.tell(force=True)
    return [ordered[place] for place in sorted(ordered)]


# -- to read -----------------------------------------------------------------------------------


def render(report: ExploreReport) -> str:
    """The report as text."""
    version = ".".join(map(str, report.version))
    contract = [one for one in report.scenarios if one.contract]
    lines = [
        f"{report.build} (QEMU {version}), {report.mode}: {len(report.scenarios)} scenarios "
        f"({len(contract)} within the contract), {report.schedules} schedules, "
        f"{report.steps} steps in {report.seconds:.1f} s with {report.jobs} "
        f"{'process' if report.jobs == 1 else 'processes'}"
        + (", with faults" if report.faults else ""),
    ]
    left = [one.name for one in report.scenarios if not one.exhaustive and not one.skipped]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        lines.append(f"not exhausted: {', '.join(left[:8])}{more}")
    for one in report.scenarios:
        if one.skipped:
            lines.append(f"skipped {one.name}: {one.skipped}")
    derailed = sum(one.derailed for one in report.scenarios)
    if derailed:
        lines.append(f"{derailed} schedules could not be followed (a timer of QEMU's came between)")
    if not report.findings:
        lines.append("no divergence")
    for finding in report.findings:
        side = "contract" if finding.contract else "robustness"
        state = f"known: {finding.known}" if finding.known else "NEW"
        lines.append("")
        lines.append(f"{finding.verdict.upper()} ({side}, {state}): {finding.text}")
        lines.append(
            f"  {finding.count} schedules in {', '.join(finding.scenarios[:6])}"
            + (" ..." if len(finding.scenarios) > 6 else "")
            + f"; replays {finding.replays[0]} of {finding.replays[1]} on fresh QEMUs"
        )
        lines += [f"    {line}" for line in finding.lines]
    for finding in report.unconfirmed:
        lines.append("")
        lines.append(
            f"not confirmed (replays {finding.replays[0]} of {finding.replays[1]}): "
            f"{finding.verdict}: {finding.text}"
        )
    return "\n".join(lines)
