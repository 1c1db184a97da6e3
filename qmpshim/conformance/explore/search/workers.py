"""Where scenarios are explored, and how far: this process, processes of its own, a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.report.report import ScenarioResult
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.progress import TICK, Board
from qmpshim.conformance.explore.search.search import (
    LiveFindings,
    ScenarioTask,
    explore_scenario,
    sample_scenario,
)
from qmpshim.errors import HostError, QmpshimError
from qmpshim.machine.host.processors import one_processor

_LEAVE = 5.0  # seconds for a process to end its QEMU
_MOST_AT_ONCE = 8  # scenarios that a worker of a cluster is given: each time it starts a QEMU
_LATE = 2.0  # seconds after the deadline until a process is not waited for any more


def share_of_time(task: ScenarioTask, began: float, waiting: int, jobs: int) -> float | None:
    """How long the next scenario may take."""
    if task.budget is None:
        return None
    left = task.budget - (time.monotonic() - began)
    return max(0.05, left * jobs / max(waiting, jobs))


def _visit(task: ScenarioTask) -> Callable[..., ScenarioResult]:
    return sample_scenario if task.samples else explore_scenario


@one_processor()
def in_this_process(
    task: ScenarioTask, scenarios: Sequence[RealScenario], jobs: int, board: Board
) -> list[ScenarioResult]:
    pool = QemuPool(task.build)
    began = time.monotonic()
    results: list[ScenarioResult] = []

    def tick(live: LiveFindings) -> None:
        board.live[0] = live
        board.tell()

    try:
        for number, scenario in enumerate(scenarios):
            seconds = share_of_time(task, began, len(scenarios) - number, 1)
            results.append(_visit(task)(pool, scenario, task, seconds, tick))
            board.finish(results[-1])
            board.live.clear()
        board.tell(force=True)
    finally:
        pool.close()
    return results


def _worker(
    pipe: Connection,
    task: ScenarioTask,
    began: float,
    jobs: int,
    environment: Mapping[str, str],
    processor: int,
) -> None:
    """A process of its own: explores what it is given until that is nothing.

    :param environment: for what it starts
    :param processor: number of the one on which it runs, with its QEMU
    """
    os.environ.clear()
    os.environ.update(environment)
    with one_processor(processor):
        _serve(pipe, task, began, jobs)


def _serve(pipe: Connection, task: ScenarioTask, began: float, jobs: int) -> None:
    pool = QemuPool(task.build)
    last, seen = 0.0, 0

    def tick(live: LiveFindings) -> None:
        nonlocal last, seen
        # What is new is sent at once: it must not be lost, whatever happens to this process.
        if time.monotonic() - last > TICK or len(live.sightings) != seen:
            last, seen = time.monotonic(), len(live.sightings)
            pipe.send(("at", live))

    try:
        while (given := pipe.recv()) is not None:
            place, scenario, waiting = given
            seconds = share_of_time(task, began, waiting, jobs)
            result = _visit(task)(pool, scenario, task, seconds, tick)
            pipe.send(("done", (place, result)))
    except QmpshimError as error:
        with contextlib.suppress(OSError):  # another one sent it first
            pipe.send(("failed", error))
    except (EOFError, BrokenPipeError):
        pass  # the other end is closed
    finally:
        pool.close()


def in_processes(
    task: ScenarioTask, scenarios: Sequence[RealScenario], jobs: int, board: Board
) -> list[ScenarioResult]:
    """Explore in so many processes, each of which has a pipe of its own to this one.

    What has not come a little after the task's deadline is cut short.

    :raises HostError: one of them ended without a word; what it was exploring is not explored
    """
    processes = _Processes(task, scenarios, board)
    try:
        processes.start(min(jobs, len(scenarios)), jobs)
        processes.collect()
    finally:
        processes.stop()
    results = processes.results
    for place, scenario in enumerate(scenarios):
        if place not in results:
            results[place] = _cut_short(scenario, board)
    board.tell(force=True)
    return [results[place] for place in sorted(results)]


class _Processes:
    """The processes that explore scenarios, by this one's end of their pipes.

    :ivar results: of the scenarios that are done, by their place
    """

    def __init__(self, task: ScenarioTask, scenarios: Sequence[RealScenario], board: Board) -> None:
        self._task, self._board, self._many = task, board, len(scenarios)
        self._todo = deque(enumerate(scenarios))
        self._workers: dict[Connection, SpawnProcess] = {}
        self._at: dict[Connection, str] = {}  # the scenario that each explores
        self.results: dict[int, ScenarioResult] = {}

    def start(self, many: int, jobs: int) -> None:
        """Start so many, each with a scenario; *jobs* share the time."""
        context = multiprocessing.get_context("spawn")
        began = time.monotonic()
        for number in range(many):
            pipe, theirs = context.Pipe()
            given = (theirs, self._task, began, jobs, dict(os.environ), number)
            worker = context.Process(target=_worker, args=given, daemon=True)
            self._workers[pipe] = worker
            with theirs, _safe_path(), _deaf_to_ctrl_c():
                worker.start()
            self._give(pipe)

    def collect(self) -> None:
        """Take what they send until all scenarios are done, or it is too late.

        :raises HostError: one of them ended without a word
        """
        deadline = self._task.deadline
        while len(self.results) < self._many:
            left = None if deadline is None else deadline + _LATE - time.monotonic()
            ready = wait(list(self._at), left if left is None else max(0.0, left))
            if not ready:
                return
            for pipe in [one for one in self._at if one in ready]:
                self._take(pipe)
                self._board.tell()

    def stop(self) -> None:
        """End them all."""
        for pipe in self._workers:
            pipe.close()  # the explorer sees its end closed
        leave = time.monotonic() + _LEAVE
        for worker in self._workers.values():
            worker.join(max(0.0, leave - time.monotonic()))
            if worker.is_alive():
                worker.terminate()
                worker.join()

    def _give(self, pipe: Connection) -> None:
        """Send the next scenario, or that there is none."""
        self._at.pop(pipe, None)
        given = None
        if self._todo:
            place, scenario = self._todo.popleft()
            self._at[pipe] = scenario.name
            given = place, scenario, len(self._todo) + 1
        with contextlib.suppress(OSError):  # it has ended: the next look at its pipe shows it
            pipe.send(given)

    def _take(self, pipe: Connection) -> None:
        """Take what one has sent."""
        worker, board = self._workers[pipe], self._board
        try:
            what, value = pipe.recv()
        except (EOFError, OSError) as error:
            raise _ended(worker, self._at[pipe]) from error
        number = worker.pid or 0
        if what == "at":
            board.live[number] = value
        elif what == "failed":
            raise value
        else:
            place, result = value
            self.results[place] = result
            board.finish(result)
            board.live.pop(number, None)
            self._give(pipe)


def on_cluster(
    cluster: Cluster,
    task: ScenarioTask,
    scenarios: Sequence[RealScenario],
    jobs: int,
    board: Board,
) -> list[ScenarioResult]:
    """Explore on a cluster, a few scenarios at a time on each worker.

    What a worker that dies had is explored once more, elsewhere.

    :raises ExecutorLost: the cluster went away
    :raises WorkerLost: several workers died of the same scenarios
    """
    began = time.monotonic()
    size = max(1, min(_MOST_AT_ONCE, len(scenarios) // (4 * jobs)))
    batches = [scenarios[at : at + size] for at in range(0, len(scenarios), size)]
    results: dict[int, list[ScenarioResult]] = {}

    def arguments(place: int) -> tuple[ScenarioTask, Sequence[RealScenario], float | None]:
        waiting = len(scenarios) - place * size
        seconds, left = share_of_time(task, began, waiting, jobs), None
        if seconds is not None:
            seconds *= len(batches[place])
        if task.deadline is not None:
            left = task.deadline - time.monotonic()
        return replace(task, budget=seconds, deadline=None), batches[place], left

    calls = [partial(arguments, place) for place in range(len(batches))]
    for place, result in cluster.run(_elsewhere, calls):
        results[place] = result()
        for one in results[place]:
            board.finish(one)
        board.tell(force=True)
    return [one for place in sorted(results) for one in results[place]]


def _elsewhere(
    task: ScenarioTask, scenarios: Sequence[RealScenario], left: float | None
) -> list[ScenarioResult]:
    """On a worker of a cluster, whose clock is its own.

    :param left: seconds until the deadline
    """
    if left is not None:
        task = replace(task, deadline=time.monotonic() + left)
    return in_this_process(task, scenarios, 1, Board(len(scenarios), None))


def _cut_short(scenario: RealScenario, board: Board) -> ScenarioResult:
    """What is known of a scenario whose process did not come back in time."""
    for number, live in list(board.live.items()):
        if live.scenario == scenario:
            del board.live[number]
            result = live.result()
            break
    else:
        result = ScenarioResult(scenario.name, scenario.contract, cut_short=True)
    board.finish(result)
    return result


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """A Python started in here imports nothing from the working directory.

    multiprocessing starts it by ``-c`` and gives it the import path of this process, but only after
    its first imports.
    """
    before = dict(os.environ)
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.pop("PYTHONPATH", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process started in here ignores Ctrl-C: it ends when the other end of its pipe closes."""
    resource_tracker.ensure_running()  # it would let SIGINT through again when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(worker: SpawnProcess, scenario: str) -> HostError:
    """Why a process ended in the middle of a scenario."""
    worker.join(_LEAVE)
    how = f"status {worker.exitcode}"
    if (worker.exitcode or 0) < 0:
        how = signal.Signals(-(worker.exitcode or 0)).name
    return HostError(
        f"a process that explored {scenario} ended with {how}: nothing is known of that scenario; "
        "if memory was short, explore with fewer jobs"
    )
