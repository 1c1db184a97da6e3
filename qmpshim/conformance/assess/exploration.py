"""The fresh exploration of an assessment: which scenarios stand for a use, and what came of them.

:func:`explore_uses` is all that the rest of this package knows of the explorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import RealScenario, pairs, vanishing
from qmpshim.conformance.explore.search.exploration import Progress, explore_real
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.known.meaning import Use
from qmpshim.conformance.known.uses import USES
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build


@dataclass(slots=True)
class Explored:
    """What exploring the scenarios of one use gave.

    :ivar scenarios: that there are, :ivar reached: those of which at least one schedule was taken
    :ivar exhausted: those of which every schedule was
    :ivar impossible: why the build cannot do any of them, or ``""``
    :ivar confirmed: findings that showed themselves again on fresh QEMUs, known ones among them
    :ivar unconfirmed: what did not, or could not be tried again
    """

    scenarios: int = 0
    reached: int = 0
    exhausted: int = 0
    schedules: int = 0
    impossible: str = ""
    confirmed: list[Finding] = field(default_factory=list)
    unconfirmed: list[Finding] = field(default_factory=list)


def scenarios_of(use: Use) -> list[RealScenario]:
    """What is explored for a use: pairs of operations (strength 2); empty: there is no check."""
    if use is Use.NBD_EXPORT:
        return [one for one in vanishing() if one.form in ("backup", "fleecing")]
    return [one for chain, uses in USES.items() if use in uses for one in pairs(chain)]


def explore_uses(
    build: Build,
    uses: Sequence[Use],
    budget: float,
    jobs: int,
    progress: Callable[[Progress], None] | None = None,
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
        )
    except BuildError as error:  # it cannot do any of them
        for explored in found.values():
            explored.impossible = str(error)
        return found
    for use, scenarios in by_use.items():
        names = {one.name for one in scenarios}
        own = [one for one in report.scenarios if one.name in names]
        explored = found[use]
        explored.reached = sum(one.schedules > 0 or bool(one.skipped) for one in own)
        explored.exhausted = sum(one.exhaustive for one in own)
        explored.schedules = sum(one.schedules for one in own)
        if own and all(one.skipped for one in own):
            explored.impossible = own[0].skipped
        explored.confirmed = [f for f in report.findings if names & set(f.scenarios)]
        explored.unconfirmed = [f for f in report.unconfirmed if names & set(f.scenarios)]
    return found
