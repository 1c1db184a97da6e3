"""Which outcomes are allowed: those of the straight run in some order that fits what was seen.

The specification is the straight run.  Concurrent operations must end as if each had happened at
one moment between its start and its end (linearisability, Herlihy and Wing 1990): there is an order
of all operations, in which nobody comes before somebody who ended before it started, and the
straight run in this order gives every operation's result and the final state.

A block device promises less for an operation on several clusters: each cluster's part may happen at
a moment of its own.  So when no order of whole operations fits, operations are cut at the cluster
boundaries and the pieces are ordered.  Commands are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import permutations
from typing import Any, Protocol

from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.system import Violation
from qmpshim.model.scenario import COMMANDS, PRIMARY, READS, Fault, Op, Scenario

MANY = 7  # from so many operations on their rivals are not computed


class Straight(Protocol):
    """What runs operations one after another."""

    watch: Any
    cells: Any

    def reset(self) -> None: ...
    def run_alone(self, op: int) -> bool: ...
    def sequential(self, order: Sequence[int]) -> Hashable | None: ...
    def final_state(self) -> Hashable: ...
    def fingerprint(self) -> Hashable: ...


class Linearizations:
    """The outcomes of a scenario's straight runs, in every order.

    :param straight: makes a system that runs a (changed) scenario one operation at a time
    """

    def __init__(self, scenario: Scenario, straight: Callable[[Scenario], Straight]) -> None:
        self.scenario = scenario
        self._straight = straight
        self._tables: dict[tuple[Fault, ...], dict[tuple[int, ...], Any]] = {}
        self._judged: dict[Hashable, Violation | None] = {}

    def _outcomes(self, failed: tuple[Fault, ...]) -> dict[tuple[int, ...], Any]:
        """The outcomes by order of operations, when these I/Os fail."""
        if failed not in self._tables:
            system = self._straight(replace(self.scenario, faults=failed))
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
        outcome: Any,
        precedence: Sequence[frozenset[int]],
        failed: tuple[Fault, ...] = (),
    ) -> Violation | None:
        """What is wrong with an outcome.

        :param precedence: for each operation those that had ended when it started
        :param failed: the I/Os that failed, each as a fault that fits it alone: they fail in the
            straight run, too, wherever the same operation does the same I/O
        """
        key = (outcome, tuple(precedence), failed)
        if key not in self._judged:
            self._judged[key] = self._judge(outcome, precedence, failed)
        return self._judged[key]

    def _judge(
        self, outcome: Any, precedence: Sequence[frozenset[int]], failed: tuple[Fault, ...]
    ) -> Violation | None:
        outcomes = self._outcomes(failed)
        fitting = [order for order in outcomes if fits(order, precedence)]
        if any(outcomes[order] == outcome for order in fitting):
            return None
        if not failed and _Pieces(self.scenario, self._straight).explain(outcome, precedence):
            return None
        possible = [outcomes[order] for order in fitting if outcomes[order] is not None]
        if not possible:
            return Violation(Verdict.HANG, "the straight run hangs, too")
        return min((self._differences(outcome, other) for other in possible), key=len)[0]

    def _differences(self, outcome: Any, expected: Any) -> list[Violation]:
        found = []
        (results, final), (wanted, end) = outcome, expected
        primaries = {
            self.scenario.number(index)
            for index, op in enumerate(self.scenario.ops)
            if op.do in PRIMARY
        }
        for index, (one, other) in enumerate(zip(results, wanted, strict=True)):
            if one != other:
                op = self.scenario.ops[index]
                wrong = "error" in (one[0], other[0])
                kind = Verdict.ERROR_CONTRACT if wrong else Verdict.LOST_WRITE
                text = f"{op} gives {_words(one)}; the straight run gives {_words(other)}"
                found.append(Violation(kind, text, index))
        names = ("secondary", "hidden", "active")
        for name, one, other in zip(names, final[0], end[0], strict=True):
            if one != other:
                leaked = name == "active" and primaries & (set(one) - set(other))
                kind = Verdict.CONTENT if name == "hidden" else Verdict.LOST_WRITE
                kind = Verdict.ISOLATION if leaked else kind
                text = f"{name} disk ends as {_words(one)}; the straight run gives {_words(other)}"
                found.append(Violation(kind, text))
        if final[1] != end[1]:
            text = f"allocation ends as {final[1]}; the straight run gives {end[1]}"
            found.append(Violation(Verdict.ALLOCATION, text))
        if final[2] != end[2]:
            text = f"the bitmap ends as {final[2]}; the straight run gives {end[2]}"
            found.append(Violation(Verdict.CONTENT, text))
        if final[3:] != end[3:]:
            text = f"the status ends as {final[3:]}; the straight run gives {end[3:]}"
            found.append(Violation(Verdict.PROTOCOL, text))
        return found


def fits(order: Sequence[int], precedence: Sequence[frozenset[int]]) -> bool:
    """Whether an order keeps to the precedence."""
    before: set[int] = set()
    for op in order:
        if not precedence[op] <= before:
            return False
        before.add(op)
    return True


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value and value[0] == "error":
        return f"the error {value[1]!r}"
    return "[" + ", ".join("-" if owner is None else f"{owner:+d}" for owner in value) + "]"


class _Pieces:
    """The search for an order of the operations' parts on single clusters."""

    def __init__(self, scenario: Scenario, straight: Callable[[Scenario], Straight]) -> None:
        self.scenario = scenario
        self.straight = straight
        self.pieces: list[Op] = []
        self.whole: list[int] = []  # the operation each piece is of
        size = max(128, scenario.cluster)
        for index, op in enumerate(scenario.ops):
            start = op.start
            while True:
                end = min(op.start + op.count, start - start % size + size)
                self.pieces.append(replace(op, start=start, count=end - start, after=None))
                self.whole.append(index)
                if op.do in COMMANDS or end == op.start + op.count:
                    break
                start = end

    def explain(self, outcome: Any, precedence: Sequence[frozenset[int]]) -> bool:
        """Whether some order of the pieces gives this outcome."""
        results, self.final = outcome
        failed = any(isinstance(r, tuple) and r and r[0] == "error" for r in results)
        if len(self.pieces) == len(self.scenario.ops) or failed:
            return False
        numbers = tuple(self.scenario.number(whole) for whole in self.whole)
        self.system = self.straight(
            replace(self.scenario, ops=tuple(self.pieces), numbers=numbers, faults=())
        )
        self.results = results
        self.before = [
            frozenset(
                other
                for other, whole in enumerate(self.whole)
                if whole in precedence[self.whole[piece]]
            )
            for piece in range(len(self.pieces))
        ]
        self.dead: set[Hashable] = set()
        return self._search([])

    def _search(self, done: list[int]) -> bool:
        system = self.system
        system.reset()
        if not all(system.run_alone(piece) for piece in done):
            return False
        if done and not self._as_seen(done[-1]):
            return False
        if len(done) == len(self.pieces):
            return bool(system.final_state() == self.final)
        here = (frozenset(done), system.fingerprint())
        if here in self.dead:
            return False
        for piece in range(len(self.pieces)):
            if (
                piece not in done
                and self.before[piece] <= set(done)
                and self._search([*done, piece])
            ):
                return True
        self.dead.add(here)
        return False

    def _as_seen(self, piece: int) -> bool:
        """Whether a piece's result is what was seen of its operation there."""
        result = self.system.watch.results[piece]
        if self.pieces[piece].do not in READS:
            return bool(result == self.results[self.whole[piece]])
        begin = self.scenario.ops[self.whole[piece]].start
        first = len(self.system.cells.pieces(begin, self.pieces[piece].start - begin))
        whole = self.results[self.whole[piece]]
        return bool(whole[first : first + len(result)] == result)
