"""How far an exploration is: collected from wherever it goes on, and reported now and then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qmpshim.conformance.explore.directed.run import DirectedFinding
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.report.report import ScenarioResult
from qmpshim.conformance.explore.search.search import LiveFindings

TICK = 0.2  # seconds between two words of progress


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an exploration is.

    :ivar scenarios: that were explored, if not to the end, or cannot be; :ivar of: all of them
    :ivar schedules: executions so far, :ivar distinct: outcomes of scenarios so far
    :ivar verdicts: schedules that ended with each verdict
    :ivar sightings: what went wrong in them
    :ivar directed: what went wrong in directed cases
    """

    scenarios: int
    of: int
    schedules: int
    distinct: int
    seconds: float
    verdicts: Counter[str]
    doing: str
    sightings: tuple[Sighting, ...] = ()
    directed: tuple[DirectedFinding, ...] = ()

    @property
    def rate(self) -> float:
        """Schedules per second."""
        return self.schedules / self.seconds if self.seconds else 0.0


class Board:
    """Collects what is known of each scenario.

    :ivar total: how many scenarios there are
    :ivar done: what came of those that are explored
    :ivar live: what is known of those that are being explored, by where that is
    """

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self.total = total
        self.done: list[ScenarioResult] = []
        self.live: dict[int, LiveFindings] = {}
        self._progress = progress
        self._began = time.monotonic()
        self._last = 0.0
        self._before: dict[str, ScenarioResult] = {}  # of scenarios that are explored again

    def again(self, names: Collection[str]) -> None:
        """The scenarios of these names are explored once more: they are not done after all."""
        self._before |= {one.name: one for one in self.done if one.name in names}
        self.done = [one for one in self.done if one.name not in names]

    def finish(self, result: ScenarioResult) -> None:
        """One is explored; what came of it before is counted in."""
        before = self._before.pop(result.name, None)
        self.done.append(result if before is None else result.joined(before))

    def so_far(self) -> list[ScenarioResult]:
        """What is known of the scenarios that were begun, should everything end here."""
        before = dict(self._before)
        begun = [live.result() for live in self.live.values()]
        begun = [one.joined(before.pop(one.name)) if one.name in before else one for one in begun]
        return [*self.done, *begun, *before.values()]

    def tell(self, force: bool = False) -> None:
        """Report, if it is time to."""
        now = time.monotonic()
        if self._progress is None or (not force and now - self._last < TICK):
            return
        self._last = now
        verdicts: Counter[str] = Counter()
        explored, live = [*self._before.values(), *self.done], list(self.live.values())
        reached = {one.name for one in explored if one.schedules or one.skipped}
        sightings = [one for result in explored for one in result.sightings]
        sightings += [one for scenario in live for one in scenario.sightings]
        for sighting in sightings:
            verdicts[sighting.violation.kind.value] += sighting.count
        self._progress(
            Progress(
                len(reached),
                self.total,
                sum(one.schedules for one in explored) + sum(one.schedules for one in live),
                sum(one.distinct for one in self.done) + sum(one.distinct for one in live),
                now - self._began,
                verdicts,
                ", ".join(one.scenario.name for one in live),
                tuple(sightings),
            )
        )
