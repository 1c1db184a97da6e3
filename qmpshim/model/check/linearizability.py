"""Whether some order of the operations, run by the sequential model, explains an execution's end.

What can be observed, and how an order explains it, is in :mod:`.observables`; here are the orders,
and what an unexplained observable means as a verdict. Where no order of whole operations gives all
of it, each cell may have an order of its own, in which the commands come as in the others. Where
I/Os failed it may not, since a fault belongs to one place in one order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import permutations
from typing import Any, Protocol

from qmpshim.model.answers import IoError, ReportedError
from qmpshim.model.check.observables import (
    COMMON,
    Aspect,
    Observable,
    Observations,
    Unexplained,
    unexplained,
)
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.system import Violation
from qmpshim.model.scenario import Fault, Scenario

MANY = 7  # from so many operations on their rivals are not computed


class Sequential(Protocol):
    """What runs operations one after another."""

    def sequential(self, order: Sequence[int]) -> Observations | None: ...


class Linearizations:
    """What a scenario's sequential executions give, in every order.

    :param sequential: makes a system that runs a (changed) scenario one operation at a time
    """

    def __init__(self, scenario: Scenario, sequential: Callable[[Scenario], Sequential]) -> None:
        self.scenario = scenario
        self._sequential = sequential
        self._tables: dict[tuple[Fault, ...], dict[tuple[int, ...], Observations | None]] = {}
        self._judged: dict[Hashable, Violation | None] = {}

    def _outcomes(self, failed: tuple[Fault, ...]) -> dict[tuple[int, ...], Observations | None]:
        """The outcomes by order of operations, when these I/Os fail."""
        if failed not in self._tables:
            system = self._sequential(replace(self.scenario, faults=failed))
            self._tables[failed] = {
                order: system.sequential(order)
                for order in permutations(range(len(self.scenario.ops)))
                if self._keeps_after(order)
            }
        return self._tables[failed]

    def _keeps_after(self, order: Sequence[int]) -> bool:
        at = {op: place for place, op in enumerate(order)}
        return all(
            op.after is None or at[op.after] < at[index]
            for index, op in enumerate(self.scenario.ops)
        )

    @cached_property
    def rivals(self) -> list[list[int]]:
        """For each operation those whose order with it can make a difference."""
        count = len(self.scenario.ops)
        if count >= MANY or self.scenario.faults:
            return [[j for j in range(count) if j != i] for i in range(count)]
        rivals: list[set[int]] = [set() for _ in range(count)]
        outcomes = self._outcomes(())
        for order, outcome in outcomes.items():
            for place in range(count - 1):
                one, other = order[place : place + 2]
                swapped = (*order[:place], other, one, *order[place + 2 :])
                if outcomes.get(swapped) != outcome:
                    rivals[one].add(other)
                    rivals[other].add(one)
        return [sorted(found) for found in rivals]

    def judge(
        self,
        outcome: Observations,
        precedence: Sequence[frozenset[int]],
        failed: tuple[Fault, ...] = (),
    ) -> Violation | None:
        """What is wrong with an outcome.

        :param precedence: for each operation those that had ended when it started
        :param failed: the I/Os that failed, each as a fault that fits it alone: they fail in the
            sequential execution, too, wherever the same operation does the same I/O
        """
        key = (outcome, tuple(precedence), failed)
        if key not in self._judged:
            self._judged[key] = self._judge(outcome, precedence, failed)
        return self._judged[key]

    def _judge(
        self, outcome: Observations, precedence: Sequence[frozenset[int]], failed: tuple[Fault, ...]
    ) -> Violation | None:
        outcomes = self._outcomes(failed)
        by_commands: dict[tuple[int, ...], list[Observations]] = defaultdict(list)
        for order, end in outcomes.items():
            if end is not None and fits(order, precedence):
                commands = tuple(op for op in order if self.scenario.ops[op].is_command)
                by_commands[commands].append(end)
        possible = [end for ends in by_commands.values() for end in ends]
        if outcome in possible:
            return None
        if not possible:
            return Violation(Verdict.HANG, "the sequential execution hangs, too")
        group = _whole if failed or _has_error(outcome) else _together
        # A command happens at one moment for all cells: they may differ in the order of the
        # requests, and not in that of the commands.
        if any(unexplained(outcome, ends, group) is None for ends in by_commands.values()):
            return None
        wrong = unexplained(outcome, possible, group)
        return self._violation(wrong or Unexplained(COMMON))

    def _violation(self, wrong: Unexplained) -> Violation:
        one, given = wrong.observable, " or ".join(sorted(map(describe, wrong.predicted)))
        if one is None:
            where = "" if wrong.group == COMMON else f" in cell {wrong.group}"
            return Violation(Verdict.CONTENT, f"what is observed{where} fits no order")
        found = describe(wrong.observed)
        match one:
            case Observable(Aspect.ANSWER, int(op)):
                text = f"{self.scenario.ops[op]} answers {found}; predicted is {given}"
                return Violation(Verdict.ERROR_CONTRACT, text, op)
            case Observable(Aspect.DATA, int(op), cell):
                text = f"{self.scenario.ops[op]} returns {found} in cell {cell}; predicted {given}"
                return Violation(Verdict.LOST_WRITE, text, op)
            case Observable(Aspect.DISK, name, cell):
                new = {
                    self.scenario.number(index)
                    for index, op in enumerate(self.scenario.ops)
                    if op.is_primary
                }
                kind = Verdict.CONTENT if name == "hidden" else Verdict.LOST_WRITE
                if name == "active" and wrong.observed in new - set(wrong.predicted):
                    kind = Verdict.ISOLATION
                text = f"{name} disk ends with {found} in cell {cell}; predicted {given}"
                return Violation(kind, text)
            case Observable(Aspect.ALLOCATION, name, cell):
                text = f"{name} disk's allocation ends as {found} in cell {cell}; predicted {given}"
                return Violation(Verdict.ALLOCATION, text)
            case Observable(Aspect.COPIED, _, cell):
                text = f"the bitmap ends as {found} in cell {cell}; predicted {given}"
                return Violation(Verdict.CONTENT, text)
        return Violation(Verdict.PROTOCOL, f"the status ends as {found}; predicted {given}")


def _has_error(outcome: Observations) -> bool:
    """Whether an operation ended with an error: then it is not cut into its parts."""
    return any(
        isinstance(value, IoError | ReportedError)
        for one, value in outcome.items()
        if one.aspect is Aspect.ANSWER
    )


def _together(one: Observable) -> Hashable:
    """Answers and the status have to be explained by one order, what has a place cell by cell."""
    return COMMON if one.place < 0 else one.place


def _whole(one: Observable) -> Hashable:
    """Everything has to be explained by one order."""
    return COMMON


def fits(order: Sequence[int], precedence: Sequence[frozenset[int]]) -> bool:
    """Whether an order keeps to the precedence."""
    before: set[int] = set()
    for op in order:
        if not precedence[op] <= before:
            return False
        before.add(op)
    return True


def describe(value: Any) -> str:
    """A value of an observable to read."""
    return f"{value:+d}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
