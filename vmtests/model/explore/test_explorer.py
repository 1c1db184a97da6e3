"""The explorer's modes, budgets and tools, on the model and on a system with no fingerprint."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import comb

import pytest

from qmpshim.conformance.explore.search.model_run import replay_model
from qmpshim.errors import InputError
from qmpshim.model.chain.protocols import CowRequestProtocol
from qmpshim.model.explore.explorer import Mode, explore, shortest
from qmpshim.model.explore.model_system import ModelSystem
from qmpshim.model.explore.system import Choice, Footprint, Violation
from qmpshim.model.explore.walk import Budget
from qmpshim.model.mutants import MUTANTS
from qmpshim.model.scenarios import SCENARIOS
from vmtests.support.schedules import count_schedules


class Counters:
    """Threads that each take some steps on places of their own, or on one they share."""

    def __init__(self, steps: Sequence[int], shared: bool, knows: bool = True) -> None:
        self.steps = steps
        self.shared = shared
        self.knows = knows
        self.violation: Violation | None = None
        self.threads = len(steps)

    def reset(self) -> None:
        self.taken = [0] * self.threads
        self.order: list[int] = []

    def enabled(self) -> Sequence[Choice]:
        return [("io", t, n) for t, n in enumerate(self.taken) if n < self.steps[t]]

    def take(self, choice: Choice) -> Footprint:
        thread = self.thread(choice)
        self.taken[thread] += 1
        if self.shared:
            self.order.append(thread)
        return Footprint(0, 1 if self.shared else 2 << thread)

    def finish(self) -> Hashable:
        return tuple(self.order)

    def fingerprint(self) -> Hashable | None:
        return (tuple(self.taken), tuple(self.order)) if self.knows else None

    def thread(self, choice: Choice) -> int:
        assert isinstance(choice[1], int)
        return choice[1]

    def movers(self, thread: int) -> Sequence[Choice] | None:
        return [choice for choice in self.enabled() if choice[1] == thread]


@pytest.mark.parametrize("knows", [True, False])
def test_independent_threads_need_one_schedule(knows: bool) -> None:
    result = explore(Counters((3, 3, 3), shared=False, knows=knows))
    assert result.mode is (Mode.STATEFUL if knows else Mode.DPOR)
    assert result.exhaustive and result.statistics.schedules == 1
    assert result.statistics.depth == 9


@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.DPOR, Mode.NAIVE])
def test_dependent_threads_need_all(mode: Mode) -> None:
    result = explore(Counters((3, 3), shared=True), mode)
    assert len(result.outcomes) == comb(6, 3)
    assert result.statistics.complete == comb(6, 3)


def test_schedules_are_counted_without_taking_them() -> None:
    assert count_schedules(Counters((3, 3), shared=False)) == comb(6, 3)
    system = ModelSystem(SCENARIOS["write-write"], CowRequestProtocol, CowRequestProtocol)
    naive = explore(system, Mode.NAIVE)
    assert naive.statistics.complete == count_schedules(system)


def test_budget_ends_it() -> None:
    result = explore(Counters((4, 4), shared=True), Mode.NAIVE, Budget(schedules=5))
    assert not result.exhaustive and result.statistics.schedules == 5
    result = explore(Counters((9, 9), shared=True), Mode.NAIVE, Budget(seconds=0.05))
    assert not result.exhaustive and result.statistics.seconds < 1


@pytest.mark.parametrize("mode", [Mode.RANDOM, Mode.PREEMPTION])
def test_chance_finds_what_there_is_to_find(mode: Mode) -> None:
    mutant = MUTANTS["reader-skips-begin"]
    result = explore(
        mutant.system(SCENARIOS["write-read"]), mode, Budget(schedules=500), preemptions=2
    )
    assert result.violations and not result.exhaustive
    again = explore(
        mutant.system(SCENARIOS["write-read"]), mode, Budget(schedules=500), preemptions=2
    )
    assert again.violations == result.violations  # the seed decides


def test_shortest_is_shortest_and_replays() -> None:
    mutant = MUTANTS["none"]
    scenario = SCENARIOS["write-read"]
    schedule = shortest(mutant.system(scenario), 12)
    assert schedule is not None
    assert replay_model(mutant.system(scenario), schedule)
    assert shortest(mutant.system(scenario), len(schedule) - 1) is None
    with pytest.raises(InputError, match="not enabled"):
        replay_model(mutant.system(scenario), schedule[1:])


def test_executions_are_deterministic() -> None:
    system = ModelSystem(SCENARIOS["write-read-checkpoint"], CowRequestProtocol)

    def run() -> list[object]:
        system.reset()
        seen: list[object] = []
        while enabled := system.enabled():
            seen.append(system.take(enabled[-1]))
            seen.append(system.fingerprint())
        return [*seen, system.finish()]

    first = run()
    assert run()[-1] == first[-1]
    assert run() == run()


@pytest.mark.parametrize("steps", [(3, 3), (0, 0)])
def test_every_schedule_by_chance_begins_anew_and_once(steps: tuple[int, ...]) -> None:
    resets: list[int] = []

    class Counted(Counters):
        def reset(self) -> None:
            super().reset()
            resets.append(1)

        def finish(self) -> Hashable:
            assert len(resets) == len(finished) + 1
            finished.append(1)
            return super().finish()

    finished: list[int] = []
    explore(Counted(steps, shared=True), Mode.RANDOM, Budget(schedules=4))
    assert len(resets) == len(finished) == 4
