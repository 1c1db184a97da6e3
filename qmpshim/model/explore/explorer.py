"""The explorer: every schedule of a system up to equivalence, or many of them by chance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from qmpshim.model.explore.dpor import SourceDpor
from qmpshim.model.explore.sampling import run_preemptive, run_random
from qmpshim.model.explore.stateful import Stateful
from qmpshim.model.explore.system import Choice, System, Violation
from qmpshim.model.explore.walk import (
    Budget,
    FirstViolation,
    OutOfBudget,
    Schedule,
    Statistics,
    Walk,
)

UNLIMITED = Budget()

_MOST_STEPS = 50_000  # of shortest(); it keeps every path it has taken


class Mode(StrEnum):
    """How to explore."""

    AUTO = "auto"  # STATEFUL if the system's states can be compared, else DPOR
    STATEFUL = "stateful"  # persistent sets, sleep sets, known states
    DPOR = "dpor"  # source sets and sleep sets
    STATES = "states"  # every step of every state, each state once
    NAIVE = "naive"  # every schedule
    RANDOM = "random"
    PREEMPTION = "preemption"

    @property
    def by_chance(self) -> bool:
        """Whether it never ends by itself: only a budget ends it."""
        return self in (Mode.RANDOM, Mode.PREEMPTION)


#: How modes are called on the command line and in suites: two words for people, and their names.
MODES: Mapping[str, Mode] = {
    "exhaustive": Mode.AUTO,
    "pct": Mode.PREEMPTION,
    **{mode.value: mode for mode in Mode},
}


@dataclass(frozen=True, slots=True)
class Exploration:
    """What an exploration found.

    :ivar exhaustive: every schedule was taken or is equivalent to one that was
    :ivar violations: with the schedule that leads to each
    :ivar outcomes: what finished executions ended as
    """

    mode: Mode
    exhaustive: bool
    statistics: Statistics
    violations: tuple[tuple[Violation, Schedule], ...]
    outcomes: frozenset[Hashable]


def explore(
    system: System,
    mode: Mode = Mode.AUTO,
    budget: Budget = UNLIMITED,
    *,
    stop: bool = True,
    seed: int = 0,
    preemptions: int = 3,
) -> Exploration:
    """Explore a system.

    :param stop: at the first violation; otherwise go on and collect one of every kind
    :param seed: for the modes that go by chance, which need a budget to end
    :param preemptions: for :attr:`Mode.PREEMPTION`
    """
    walk = Walk(system, budget, stop)
    if mode is Mode.AUTO:
        mode = Mode.DPOR if system.fingerprint() is None else Mode.STATEFUL
    exhaustive = False
    try:
        if mode is Mode.RANDOM:
            run_random(walk, seed)
        elif mode is Mode.PREEMPTION:
            run_preemptive(walk, seed, preemptions)
        elif mode is Mode.DPOR:
            SourceDpor(walk).run()
        elif mode is Mode.NAIVE:
            _run_naive(walk)
        else:
            reduce = mode is Mode.STATEFUL
            Stateful(walk, reduce=reduce, sleepers=reduce).run()
        exhaustive = True
    except (OutOfBudget, FirstViolation):
        pass
    findings = walk.findings
    return Exploration(
        mode,
        exhaustive,
        walk.statistics,
        tuple(findings.violations.values()),
        frozenset(findings.outcomes),
    )


def _run_naive(walk: Walk) -> None:
    walk.catch_up()
    enabled = tuple(walk.system.enabled())
    if not enabled:
        walk.end()
    for choice in enabled:
        walk.take(choice)
        _run_naive(walk)
        walk.back()


def shortest(system: System, limit: int) -> Schedule | None:
    """The shortest schedule with a violation, breadth first.

    :param limit: longer schedules are not looked at
    :returns: ``None`` if there is none, or more steps would have to be looked at than _MOST_STEPS
    """
    walk = Walk(system, UNLIMITED, stop=True)
    level: list[tuple[Choice, ...]] = [()]
    seen: set[Hashable] = set()
    for _ in range(limit + 1):
        following: list[tuple[Choice, ...]] = []
        for path in level:
            if walk.statistics.steps > _MOST_STEPS:
                return None
            walk.restart(path)
            try:
                walk.catch_up()
                if system.violation is not None:
                    return path
                here = system.fingerprint()
                if here is not None and here in seen:
                    continue
                seen.add(here)
                enabled = tuple(system.enabled())
                if not enabled:
                    walk.end()
            except FirstViolation:
                return path
            following += [(*path, choice) for choice in enabled]
        level = following
    return None
