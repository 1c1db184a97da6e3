"""Which scenarios are explored next under a budget, and how far.

Each is sampled first. Those that gave the most are then explored with what is left. Exploring all
schedules comes last: it spends most of its time on schedules that differ in little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from qmpshim.conformance.explore.report.report import ScenarioResult
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.progress import Board
from qmpshim.conformance.explore.search.search import Sample, ScenarioTask
from qmpshim.conformance.explore.search.settings import Settings

PLAIN_SAMPLES, FAULTY_SAMPLES = 3, 2  # schedules of a scenario's samples
SAMPLES_OF_EACH_IO = 40  # few operations have more I/Os: of clusters of 512 bytes some hundred
WORTH_IT = 0.1  # of a budget: with less nothing is begun
_SAMPLING = 0.9  # of a budget, at most

#: Explores scenarios as a task has it; one result for each.
Explore = Callable[[ScenarioTask, Sequence[RealScenario]], list[ScenarioResult]]


class Agenda:
    """Scenarios, and what came of each by now."""

    def __init__(
        self, scenarios: Sequence[RealScenario], settings: Settings, explore: Explore, board: Board
    ) -> None:
        self._scenarios, self._explore, self._board = scenarios, explore, board
        self._mixed = settings.mixed
        self._order = sorted(
            range(len(scenarios)),
            key=lambda n: (settings.turn(scenarios[n]), *_place(scenarios[n])),
        )
        self._sampled: dict[int, ScenarioResult] = {}
        self._latest: dict[int, ScenarioResult] = {}

    @property
    def unfinished(self) -> list[int]:
        """Those that were cut short."""
        return [n for n, one in self._latest.items() if one.cut_short and not one.skipped]

    def turn(self, task: ScenarioTask, budget: float) -> None:
        """Spend so many seconds, on those first that were not reached before."""
        end = time.monotonic() + budget
        if new := [n for n in self._order if not self._reached(n)]:
            sampling = replace(sampled(task, self._mixed), budget=budget * _SAMPLING)
            self._sampled.update(zip(new, self._run(sampling, new), strict=True))
        task = replace(task, errnos=() if self._mixed else task.errnos)
        while (left := end - time.monotonic()) >= WORTH_IT * budget and (short := self.unfinished):
            short.sort(key=lambda n: (-self._sampled[n].yielded, n))
            self._run(replace(task, budget=left), short)

    def _reached(self, number: int) -> bool:
        before = self._latest.get(number)
        return before is not None and bool(before.schedules or before.skipped)

    def _run(self, task: ScenarioTask, numbers: Sequence[int]) -> list[ScenarioResult]:
        scenarios = [self._scenarios[n] for n in numbers]
        self._board.again({one.name for one in scenarios})
        results = self._explore(task, scenarios)
        self._latest.update(zip(numbers, results, strict=True))
        return results


def sampled(task: ScenarioTask, mixed: bool) -> ScenarioTask:
    """As *task*, with what is tried of each scenario at first; faults and all I/O have their share.

    Of an operation by itself each I/O fails once, and the power after each step: that takes few
    schedules, since hardly any two I/Os of it go on at the same time.
    """
    samples = [Sample(PLAIN_SAMPLES, all_io=task.all_io)]
    if not task.errnos:
        return replace(task, samples=tuple(samples), samples_alone=tuple(samples))
    samples.append(Sample(FAULTY_SAMPLES, faults=1, all_io=task.all_io))
    if mixed:
        samples += [Sample(1, all_io=True), Sample(1, faults=1, all_io=True)]
    alone = (
        Sample(1, all_io=True, crash_points=task.crash_points_alone),
        Sample(SAMPLES_OF_EACH_IO, faults=1, each_io=True, all_io=True),
    )
    return replace(task, samples=tuple(samples), samples_alone=alone)


def _place(scenario: RealScenario) -> tuple[Any, ...]:
    """Operations by themselves come first, they are soon done; then those of one shape."""
    return len(scenario.ops) > 1, shape(scenario)


def shape(scenario: RealScenario) -> tuple[Any, ...]:
    """What a QEMU is set up for: those that are equal here can share one."""
    options = repr(scenario.options)
    return scenario.form, scenario.secondary, scenario.cluster, scenario.size, options
