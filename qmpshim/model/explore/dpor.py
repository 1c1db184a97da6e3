"""Dynamic partial-order reduction without memory: source sets and sleep sets.

For systems whose states cannot be compared, like a real QEMU.  Restates Algorithm 1 of Abdulla,
Aronis, Jonsson and Sagonas, "Optimal dynamic partial order reduction" (POPL 2014).  An event here
is a choice: it is offered from the step that made it possible until it is taken, and taken once; so
"happens before" is "made it possible" and "came first of two that conflict", closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qmpshim.model.explore.system import Choice, Footprint
from qmpshim.model.explore.walk import Walk


@dataclass(slots=True)
class _Event:
    """A step that was taken, at its place in the present execution."""

    choice: Choice
    footprint: Footprint
    before: int  # the events that happened before it, a bit each


@dataclass(slots=True)
class _State:
    """The state before the event at the same place."""

    enabled: tuple[Choice, ...]
    backtrack: list[Choice] = field(default_factory=list)


class SourceDpor:
    """Explores one execution of every class of equivalent ones, and few more."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self._events: list[_Event] = []
        self._states: list[_State] = []
        self._offered: dict[Choice, int] = {}  # the place from which each choice was enabled

    def run(self) -> None:
        """Explore everything."""
        self._visit({})

    def _visit(self, sleep: dict[Choice, Footprint]) -> None:
        walk, place = self.walk, len(self._events)
        walk.catch_up()
        state = _State(tuple(walk.system.enabled()))
        if not state.enabled:
            walk.end()
            return
        fresh = [choice for choice in state.enabled if choice not in self._offered]
        for choice in fresh:
            self._offered[choice] = place
        self._states.append(state)
        awake = [choice for choice in state.enabled if choice not in sleep]
        if awake:
            state.backtrack.append(awake[0])
        else:
            walk.cut()
        sleep = dict(sleep)
        for choice in state.backtrack:  # it grows meanwhile
            if choice in sleep:
                continue
            footprint = walk.take(choice)
            if len(state.enabled) > 1 and not walk.system.enabled():  # it ended everybody else, too
                state.backtrack += [c for c in state.enabled if c not in state.backtrack]
            self._events.append(_Event(choice, footprint, self._past(choice, footprint)))
            self._races()
            below = {c: f for c, f in sleep.items() if not f.conflicts(footprint)}
            self._visit(below)
            self._events.pop()
            walk.back()
            sleep[choice] = footprint
        statistics = walk.statistics
        statistics.asleep += sum(choice in sleep for choice in state.enabled)
        statistics.asleep -= len(state.backtrack)
        statistics.unneeded += len(state.enabled) - len(state.backtrack)
        self._states.pop()
        for choice in fresh:
            del self._offered[choice]

    def _past(self, choice: Choice, footprint: Footprint) -> int:
        before = 0
        made_possible = self._offered[choice] - 1
        for place, event in enumerate(self._events):
            if place == made_possible or event.footprint.conflicts(footprint):
                before |= event.before | 1 << place
        return before

    def _races(self) -> None:
        """Look for events that the newest one could have come before, and plan for that."""
        events = self._events
        last = len(events) - 1
        new = events[last]
        offered = self._offered[new.choice]
        indirect = 0
        for place in range(last - 1, -1, -1):
            if not new.before >> place & 1 or indirect >> place & 1:
                continue
            indirect |= events[place].before
            if place != offered - 1:
                self._reverse(place)

    def _reverse(self, place: int) -> None:
        """Make sure that what does not depend on the event at *place* also comes before it."""
        events = self._events
        others = [
            i
            for i in range(place + 1, len(events))
            if i == len(events) - 1 or not events[i].before >> place & 1
        ]
        mask = sum(1 << i for i in others)
        initials = [events[i].choice for i in others if not events[i].before & mask]
        backtrack = self._states[place].backtrack
        if not any(choice in backtrack for choice in initials):
            backtrack.append(initials[0])
