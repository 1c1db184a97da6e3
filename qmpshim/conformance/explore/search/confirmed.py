"""Findings that are confirmed as they come, while more is explored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.report.findings import Finding, group
from qmpshim.conformance.explore.search.minimize import confirm
from qmpshim.conformance.explore.search.search import ScenarioTask
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict

_Key = tuple[Verdict | None, Cause, str, bool]


class Confirmed:
    """What was found so far, and which of it was confirmed.

    :param task: what was explored
    :param minimise: make what is found small
    :param recognise: the id of the known finding that one is, or ``""``
    """

    def __init__(
        self, task: ScenarioTask, minimise: bool, recognise: Callable[[Finding], str]
    ) -> None:
        self._task, self._minimise, self._recognise = task, minimise, recognise
        self._done: dict[_Key, Finding] = {}

    def confirm(self, sightings: Sequence[Sighting], end_of: Callable[[int], float | None]) -> None:
        """Confirm what was seen and is not confirmed yet.

        New things come first, then what was seen most often, which is the soonest seen again.

        :param end_of: when the next one has to be over, by time.monotonic(), if so many are left;
            None: it takes what it takes
        """
        fresh = [one for one in group(sightings, self._recognise) if self._is_fresh(one)]
        fresh.sort(key=lambda one: (bool(one.known), -one.count))
        task = self._task
        for number, finding in enumerate(fresh):
            self._done[_key(finding)] = confirm(
                finding,
                task.build,
                self._minimise,
                task.errnos,
                task.crash_points_alone,  # where it is about a crash
                task.all_io or finding.all_io,
                end_of(len(fresh) - number),
                self._recognise,
            )

    def findings(self, sightings: Sequence[Sighting]) -> list[Finding]:
        """What these sightings are: new things first, each as it was confirmed, if it was."""
        found: dict[_Key, Finding] = {}
        for one in group(sightings, self._recognise):
            done = self._done.get(_key(one), one)
            done = replace(done, count=one.count, scenarios=one.scenarios)
            key = _key(done)
            found[key] = found[key].joined(done) if key in found else done
        return sorted(
            found.values(), key=lambda f: (bool(f.known), not f.contract, f.verdict, str(f.cause))
        )

    def _is_fresh(self, finding: Finding) -> bool:
        """Whether it was not tried, or only in a scenario that keeps to no document."""
        done = self._done.get(_key(finding))
        return done is None or not done.tried or (finding.contract and not done.contract)


def _key(finding: Finding) -> _Key:
    return finding.verdict, finding.cause, finding.known, finding.several_failed
