"""How many schedules a system has: what an exploration without reduction must take."""

from __future__ import annotations

import math
from collections.abc import Hashable

from qmpshim.model.explore.explorer import UNLIMITED
from qmpshim.model.explore.system import System
from qmpshim.model.explore.walk import Walk


def count_schedules(system: System, most: float = math.inf) -> int:
    """How many schedules there are, without taking each of them.

    The system's states must be comparable.

    :param most: where there are more, the result is some number above it
    """
    walk = Walk(system, UNLIMITED, stop=False)
    counts: dict[Hashable, int] = {}
    found = 0

    def count() -> None:
        nonlocal found
        here = system.fingerprint()
        if here in counts:
            found += counts[here]
            return
        before = found
        enabled = tuple(system.enabled())
        found += not enabled
        for choice in enabled:
            if found > most:
                return
            walk.take(choice)
            count()
            walk.back()
        counts[here] = found - before

    count()
    return found
