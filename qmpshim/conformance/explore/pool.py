"""Where scenarios are explored, here or in processes of their own, and how far they are."""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

from qmpshim.conformance.explore.report import ScenarioResult
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search import Task, explore_scenario
from qmpshim.conformance.explore.stage import Stage
from qmpshim.conformance.explore.system import RealSystem
from qmpshim.errors import QmpshimError

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


class Board:
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


def _share(task: Task, began: float, waiting: int, jobs: int) -> float | None:
    """How long the next scenario may take."""
    if task.budget is None:
        return None
    left = task.budget - (time.monotonic() - began)
    return max(0.05, left * jobs / max(waiting, jobs))


def here(
    task: Task, scenarios: Sequence[RealScenario], jobs: int, board: Board
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


def _worker(number: int, task: Task, todo: Any, results: Any, began: float, jobs: int) -> None:
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


def in_processes(
    task: Task, scenarios: Sequence[RealScenario], jobs: int, board: Board
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
