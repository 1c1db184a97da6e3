"""The fresh exploration of an assessment: which scenarios stand for a use, and what came of them.

:func:`explore_uses` is all that the rest of this package knows of the explorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import RealScenario, disconnections, pairs
from qmpshim.conformance.explore.search.exploration import Progress, explore_real
from qmpshim.conformance.explore.space.naming import array, is_name
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.known.meaning import Use
from qmpshim.conformance.known.uses import USES
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build
from qmpshim.model.operations import Verb, does

#: What a scenario has to do for a use whose chain stands for several.
_WANTED: Mapping[Use, tuple[Verb, ...]] = {
    Use.FULL_BACKUP: (Verb.BACKUP_FULL, Verb.BACKUP_AND_BITMAP),
    Use.INCREMENTAL_BACKUP: (Verb.BACKUP_INCREMENTAL, Verb.BACKUP_ALWAYS, Verb.BACKUP_NEVER),
}
_STRENGTH = 2
LEAST = 3  # schedules without which nothing is concluded from a scenario


@dataclass(slots=True)
class Explored:
    """What exploring the scenarios of one use gave.

    :ivar scenarios: that there are
    :ivar reached: those of which :data:`LEAST` schedules were taken, or all that there are
    :ivar exhausted: those of which every schedule was
    :ivar skipped: those that could not be done, :ivar why: the reason of the first of them
    :ivar lacking: those of the covering array that need what the build has not, such as an option
        of later versions
    :ivar confirmed: findings that showed themselves again on fresh QEMUs, known ones among them
    :ivar unconfirmed: what did not, or could not be tried again
    """

    scenarios: int = 0
    reached: int = 0
    exhausted: int = 0
    schedules: int = 0
    skipped: int = 0
    lacking: int = 0
    why: str = ""
    confirmed: list[Finding] = field(default_factory=list)
    unconfirmed: list[Finding] = field(default_factory=list)


def scenarios_of(use: Use) -> list[RealScenario]:
    """What is explored for a use; empty: there is no check.

    The pairs of operations of its chains, and what of a covering array of strength 2 over the
    scenario space is of these chains.
    """
    if use is Use.NBD_EXPORT:
        found = disconnections() + [
            one for one in array(_STRENGTH) if does(one.ops, Verb.DISCONNECT)
        ]
        return [one for one in found if one.form in ("backup", "fleecing")]
    chains = tuple(chain for chain, uses in USES.items() if use in uses)
    found = [one for chain in chains for one in pairs(chain)]
    found += [one for one in array(_STRENGTH) if one.form in chains]
    wanted = _WANTED.get(use)
    return found if wanted is None else [one for one in found if does(one.ops, *wanted)]


def explore_uses(
    build: Build,
    uses: Sequence[Use],
    budget: float,
    jobs: int,
    progress: Callable[[Progress], None] | None = None,
    cluster: Cluster | None = None,
) -> dict[Use, Explored]:
    """Explore what stands for *uses* on *build*, within *budget* seconds (and a few more)."""
    by_use = {use: scenarios_of(use) for use in uses}
    every = {one.name: one for scenarios in by_use.values() for one in scenarios}
    found = {use: Explored(scenarios=len(by_use[use])) for use in uses}
    if not every:
        return found
    try:
        report = explore_real(
            build,
            list(every.values()),
            budget=budget,
            jobs=jobs,
            known=known_findings(),
            progress=progress,
            cluster=cluster,
            turn=lambda one: int(is_name(one.name)),  # pairs first: each use has some
        )
    except BuildError as error:  # it cannot do any of them
        for explored in found.values():
            explored.skipped, explored.why = explored.scenarios, str(error)
        return found
    for use, scenarios in by_use.items():
        names = {one.name for one in scenarios}
        own = [one for one in report.scenarios if one.name in names]
        explored = found[use]
        explored.reached = sum(one.exhaustive or one.schedules >= LEAST for one in own)
        explored.exhausted = sum(one.exhaustive for one in own)
        explored.schedules = sum(one.schedules for one in own)
        reasons = [one.skipped for one in own if one.skipped]
        explored.lacking = sum(bool(one.skipped) and is_name(one.name) for one in own)
        explored.skipped = len(reasons) - explored.lacking
        explored.why = next(iter(reasons), "")
        explored.confirmed = [f for f in report.findings if names & set(f.scenarios)]
        explored.unconfirmed = [f for f in report.unconfirmed if names & set(f.scenarios)]
    return found
