"""How many schedules a system has: what an exploration without reduction must take."""

from __future__ import annotations

from collections.abc import Hashable

from qmpshim.model.explore.explorer import UNLIMITED
from qmpshim.model.explore.system import System
from qmpshim.model.explore.walk import Walk


def count_schedules(system: System) -> int:
    """How many schedules there are, without taking each of them.

    The system's states must be comparable.
    """
    walk = Walk(system, UNLIMITED, stop=False)
    counts: dict[Hashable, int] = {}

    def count() -> int:
        here = system.fingerprint()
        if here not in counts:
            enabled = tuple(system.enabled())
            total = 0 if enabled else 1
            for choice in enabled:
                walk.take(choice)
                total += count()
                walk.back()
            counts[here] = total
        return counts[here]

    return count()
