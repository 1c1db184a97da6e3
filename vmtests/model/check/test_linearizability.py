"""Which outcomes some order explains: cells may differ in that of requests, not of commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from qmpshim.model.answers import IoError, Ok
from qmpshim.model.check.linearizability import Linearizations
from qmpshim.model.check.observables import Aspect, Observable, Observations
from qmpshim.model.operations import operation
from qmpshim.model.scenario import Fault, Scenario

WRITES = (operation("primary_write", 0, 2), operation("primary_write", 0, 2))
COMMANDS = (operation("checkpoint"), operation("stop"))
NONE = (frozenset[int](), frozenset[int]())


def ended(first: int, second: int, answer: object = Ok()) -> Observations:
    """What the disk holds in its two cells."""
    return Observations(
        {
            Observable(Aspect.ANSWER, 0): Ok(),
            Observable(Aspect.ANSWER, 1): answer,
            Observable(Aspect.DISK, "secondary", 0): first,
            Observable(Aspect.DISK, "secondary", 1): second,
        }
    )


class Last:
    """In each cell the operation that comes last leaves its number."""

    def __init__(self, answer: object = Ok()) -> None:
        self._answer = answer

    def sequential(self, order: Sequence[int]) -> Observations | None:
        return ended(order[-1], order[-1], self._answer)


def judge(
    scenario: Scenario, outcome: Observations, system: Callable[[Scenario], Last], failed: bool
) -> bool:
    faults = (Fault("secondary", "write", 5),) if failed else ()
    return Linearizations(scenario, system).judge(outcome, NONE, faults) is None


@pytest.mark.parametrize(
    ("ops", "answer", "failed", "mixed"),
    [
        (WRITES, Ok(), False, True),  # a block device promises each cell, not the whole
        (COMMANDS, Ok(), False, False),  # a command happens once for all cells
        (WRITES, IoError(5), False, False),  # what ends with an error is not cut
        (WRITES, Ok(), True, False),  # a fault belongs to one order
    ],
)
def test_cells_that_come_of_different_orders(
    ops: tuple[object, ...], answer: object, failed: bool, mixed: bool
) -> None:
    scenario = Scenario("s", ops)  # type: ignore[arg-type]
    explained = [
        judge(scenario, ended(first, second, answer), lambda _: Last(answer), failed)
        for first, second in ((0, 0), (1, 1), (0, 1), (1, 0))
    ]
    assert explained == [True, True, mixed, mixed]
