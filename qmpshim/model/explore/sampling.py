"""Schedules by chance, for scenarios too big to exhaust: uniform, and with bounded preemption."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from qmpshim.model.explore.system import Choice
from qmpshim.model.explore.walk import Walk


def run_random(walk: Walk, seed: int) -> None:
    """Take a uniformly chosen step each time, for ever.

    :raises OutOfBudget: the only way it ends without a violation
    """
    rng = random.Random(seed)
    while True:
        _execute(walk, lambda enabled: rng.choice(enabled))


def run_preemptive(walk: Walk, seed: int, preemptions: int) -> None:
    """Random priorities, changed at a few random places, for ever.

    The thread with the highest priority goes on until it cannot, or until one of *preemptions*
    places at which it falls behind all others.  A violation that needs d such places is found with
    a probability of at least 1/(n k^d) a schedule, for n threads and k steps (Burckhardt et al.,
    "A randomized scheduler with probabilistic guarantees of finding bugs", ASPLOS 2010).

    :raises OutOfBudget: the only way it ends without a violation
    """
    rng = random.Random(seed)
    steps = 1
    while True:
        steps = max(steps, _execute(walk, _Priorities(walk, rng, preemptions, steps).choose))


class _Priorities:
    """One execution's priorities, and the places at which they change."""

    def __init__(self, walk: Walk, rng: random.Random, preemptions: int, steps: int) -> None:
        self.walk = walk
        self.priority = list(range(walk.system.threads))
        rng.shuffle(self.priority)
        self.places = {rng.randrange(steps): place for place in range(preemptions)}

    def choose(self, enabled: Sequence[Choice]) -> Choice:
        """The step of the thread with the highest priority."""
        best = max(enabled, key=self._of)
        place = self.places.pop(len(self.walk.path), None)
        if place is not None:
            self.priority[self.walk.system.thread(best)] = -1 - place
            best = max(enabled, key=self._of)
        return best

    def _of(self, choice: Choice) -> int:
        return self.priority[self.walk.system.thread(choice)]


def _execute(walk: Walk, choose: Callable[[Sequence[Choice]], Choice]) -> int:
    walk.restart()
    walk.catch_up()
    while enabled := walk.system.enabled():
        walk.take(choose(enabled))
    steps = len(walk.path)
    walk.end()
    return steps
