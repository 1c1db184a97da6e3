"""Explorations of which every execution was followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.model.explore.explorer import Exploration, Mode, explore
from qmpshim.model.explore.walk import Budget

_TIMES = 4
S = TypeVar("S", bound=RealSystem)


def followed(
    made: Callable[[], S], mode: Mode, budget: Budget, seed: int = 0
) -> tuple[S, Exploration]:
    """Explore a new system; all of it once more, where an execution could not be followed.

    As :func:`~qmpshim.conformance.explore.search.search.explore_scenario` does: a block job's timer
    may come between.
    """
    for _ in range(_TIMES):
        system = made()
        done = explore(system, mode, budget, stop=False, seed=seed)
        if not system.derailed:
            break
    assert done.outcomes - {"lost"} and not system.derailed
    return system, done
