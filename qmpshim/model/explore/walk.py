"""Walking a system: steps taken and taken back, counted, within a budget."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from qmpshim.model.explore.system import Choice, Footprint, System, Violation

Schedule = tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """When to give up.

    :ivar seconds: of wall-clock time; ``None``: no limit
    :ivar schedules: executions; ``None``: no limit
    """

    seconds: float | None = None
    schedules: int | None = None


@dataclass(slots=True)
class Statistics:
    """What an exploration cost.

    :ivar schedules: executions, whole ones and ones cut short
    :ivar complete: executions that reached an end
    :ivar steps: steps taken, those to get back to a state among them
    :ivar states: different states, where the system can compare them
    :ivar known: executions cut because they came to a known state
    :ivar asleep: steps not taken because another order of the same steps was taken already
    :ivar unneeded: steps not taken because no other step depends on their place
    :ivar depth: steps of the longest execution
    :ivar seconds: wall-clock time
    """

    schedules: int = 0
    complete: int = 0
    steps: int = 0
    states: int = 0
    known: int = 0
    asleep: int = 0
    unneeded: int = 0
    depth: int = 0
    seconds: float = 0.0


class OutOfBudget(Exception):
    """The budget is used up."""


@dataclass(slots=True)
class Findings:
    """What an exploration saw.

    :ivar outcomes: every outcome
    :ivar violations: with the schedules they were seen in, one a kind and operation
    """

    outcomes: set[Hashable] = field(default_factory=set)
    violations: dict[tuple[str, int | None], tuple[Violation, Schedule]] = field(
        default_factory=dict
    )


class FirstViolation(Exception):
    """Something was found, and nothing more is wanted."""


class Walk:
    """One system being explored.

    :param stop: raise :class:`FirstViolation` at the first violation
    """

    def __init__(self, system: System, budget: Budget, stop: bool) -> None:
        self.system = system
        self.budget = budget
        self.stop = stop
        self.statistics = Statistics()
        self.findings = Findings()
        self.path: list[Choice] = []  # to the state the exploration is at
        self._taken = 0  # steps of the path that the system has taken; -1: it begins again first
        self._began = time.monotonic()
        system.reset()

    def take(self, choice: Choice) -> Footprint:
        """Take a step from the state at the end of :attr:`path`."""
        self.catch_up()
        footprint = self.system.take(choice)
        self.path.append(choice)
        self._taken += 1
        self.statistics.steps += 1
        self._look()
        return footprint

    def back(self) -> None:
        """Go back by one step; the system follows when it has to."""
        self.path.pop()
        self._taken = -1

    def catch_up(self) -> None:
        """Bring the system to the state at the end of :attr:`path`."""
        if self._taken != len(self.path):
            self.system.reset()
            for choice in self.path:
                self.system.take(choice)
            self.statistics.steps += len(self.path)
            self._taken = len(self.path)

    def end(self) -> None:
        """The execution is over: nothing is enabled."""
        outcome = self.system.finish()
        self._taken = -1
        self.findings.outcomes.add(outcome)
        self.statistics.complete += 1
        self._look()
        self.cut()

    def cut(self) -> None:
        """The execution ends here.

        :raises OutOfBudget: it was the last one
        """
        statistics, budget = self.statistics, self.budget
        statistics.schedules += 1
        statistics.depth = max(statistics.depth, len(self.path))
        statistics.seconds = time.monotonic() - self._began
        if budget.schedules is not None and statistics.schedules >= budget.schedules:
            raise OutOfBudget
        if budget.seconds is not None and statistics.seconds >= budget.seconds:
            raise OutOfBudget

    def _look(self) -> None:
        violation = self.system.violation
        if violation is not None:
            key = (violation.kind, violation.op)
            if key not in self.findings.violations:
                self.findings.violations[key] = (violation, tuple(self.path))
            if self.stop:
                raise FirstViolation

    def restart(self, path: Sequence[Choice] = ()) -> None:
        """Go to the state that *path* leads to."""
        self.path = list(path)
        if self._taken:
            self._taken = -1
