"""Dynamic partial-order reduction with memory: persistent sets, sleep sets and known states.

Caching states breaks the usual reduction, which plans detours by looking back along the path it
came: what follows a known state would plan none.  So here every state plans its own, from what
can still happen after each of its steps; that depends on the state alone and can be kept with it:

* A state's *future* is, for each thread, all that its steps may touch from there on.
* After a step t the state looks at t's future.  For each thread with something in conflict with t
  it adds a step that this thread cannot go on without.  When nothing more is added the steps chosen
  are a persistent set (Godefroid, "Partial-Order Methods", 1996, chapter 4): nothing that can
  happen without them conflicts with them.  (Flanagan and Godefroid's dynamic argument, POPL 2005.)
* A sleeping step is not taken, since its executions are covered elsewhere, but its future was seen
  there and goes on counting here.
* A known state is left only if the steps that slept at it then sleep now, too (Godefroid, ch. 5).

Systems must come to an end: no state may be reached again from itself.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from qmpshim.model.explore.system import Choice, Footprint
from qmpshim.model.explore.walk import Walk

Future = list[Footprint]  # by thread


class _Sleeper(NamedTuple):
    footprint: Footprint
    future: Future


class _Known(NamedTuple):
    sleep: frozenset[Choice]
    future: Future


class Stateful:
    """Explores every state that matters once.

    :param reduce: choose persistent sets; otherwise every step of every state is taken
    :param sleepers: use sleep sets
    """

    def __init__(self, walk: Walk, reduce: bool = True, sleepers: bool = True) -> None:
        self.walk = walk
        self.reduce = reduce
        self.sleepers = sleepers
        self._known: dict[Hashable, _Known] = {}

    def run(self) -> None:
        """Explore everything."""
        self._visit({})

    def _visit(self, sleep: dict[Choice, _Sleeper]) -> Future:
        walk = self.walk
        here = walk.system.fingerprint()
        assert here is not None, "the system's states cannot be compared"
        known = self._known.get(here)
        if known is not None:
            if known.sleep <= sleep.keys():
                walk.statistics.known += 1
                walk.cut()
                return known.future
            sleep = {choice: sleep[choice] for choice in sleep if choice in known.sleep}
        else:
            walk.statistics.states += 1
        future = self._explore(sleep)
        self._known[here] = _Known(frozenset(sleep), future)
        return future

    def _explore(self, sleep: dict[Choice, _Sleeper]) -> Future:
        walk = self.walk
        system = walk.system
        enabled = tuple(system.enabled())
        movers = [system.movers(thread) for thread in range(system.threads)]
        future = [Footprint(0, 0)] * system.threads
        for choice, sleeper in sleep.items():
            _add(future, system.thread(choice), sleeper)
        if not enabled:
            walk.end()
            return future
        awake = [choice for choice in enabled if choice not in sleep]
        if not awake:
            walk.statistics.asleep += len(enabled)
            walk.cut()
            return future
        chosen = [awake[0]] if self.reduce else list(enabled)
        slept = dict(sleep)
        for choice in chosen:  # it grows meanwhile
            if choice in slept:
                sleeper = slept[choice]
                walk.statistics.asleep += 1
            else:
                footprint = walk.take(choice)
                if len(enabled) > 1 and not system.enabled():  # it ended everybody else, too
                    chosen += [other for other in enabled if other not in chosen]
                below = {c: s for c, s in slept.items() if not s.footprint.conflicts(footprint)}
                sleeper = _Sleeper(footprint, self._visit(below))
                walk.back()
                _add(future, system.thread(choice), sleeper)
                if self.sleepers:
                    slept[choice] = sleeper
            for thread, touched in enumerate(sleeper.future):
                if sleeper.footprint.conflicts(touched):
                    needed = movers[thread]
                    needed = enabled if needed is None else needed
                    chosen += [choice for choice in needed if choice not in chosen]
        walk.statistics.unneeded += len(enabled) - len(chosen)
        return future


def _add(future: Future, thread: int, step: _Sleeper) -> None:
    """A step of *thread*, and what may come after it, belong to this future."""
    for index, (one, other) in enumerate(zip(future, step.future, strict=True)):
        future[index] = Footprint(one.reads | other.reads, one.writes | other.writes)
    reads, writes = future[thread]
    future[thread] = Footprint(reads | step.footprint.reads, writes | step.footprint.writes)
