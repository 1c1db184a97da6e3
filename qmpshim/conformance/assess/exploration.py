"""The fresh exploration of an assessment: what is run for a use, and what came of it.

:func:`explore_uses` is all that the rest of this package knows of the explorer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from errno import EIO

from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore.directed.cases import DIRECTED, Directed
from qmpshim.conformance.explore.directed.run import DirectedFinding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.report import AnyFinding, ExploreReport, ScenarioResult
from qmpshim.conformance.explore.scenario_sets import alone, disconnections, pairs
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.space.naming import array, point_if_named, scenarios_called
from qmpshim.conformance.known.folder import known_directed, known_findings
from qmpshim.conformance.uses import JOBS_OF_USE, USES, Use
from qmpshim.errors import BuildError, QmpshimError
from qmpshim.machine.builds.build import Build
from qmpshim.model.operations import Verb, does

#: What an export reports of its disk, beside a change of that: backup tools skip what is no data.
_REPORTED = tuple(
    f"primary_{verb}+guest_block_status,form={form}"
    for form in ("backup", "fleecing")
    for verb in ("write", "write_fua", "zero", "discard")
)
_STRENGTH = 2
FAILING = 0.15  # of the budget, in which I/Os fail
LEAST = 3  # schedules without which nothing is concluded from a scenario


@dataclass(slots=True)
class Explored:
    """What exploring the scenarios of one use, and running its directed cases, gave.

    :ivar scenarios: that there are
    :ivar reached: those of which :data:`LEAST` schedules were taken, or all that there are
    :ivar exhausted: those of which every schedule was
    :ivar skipped: those that could not be done, :ivar why: the reason of the first of them
    :ivar lacking: those of the covering array that need what the build's own schema has not, such
        as an option of later versions
    :ivar confirmed: findings that showed themselves again on fresh QEMUs, known ones among them
    :ivar unconfirmed: what did not, or could not be tried again
    :ivar cases: directed ones that there are, but for those that need what the build has not
    :ivar cases_run: those that were run
    :ivar directed: what they found, confirmed or not
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
    cases: int = 0
    cases_run: int = 0
    directed: list[DirectedFinding] = field(default_factory=list)

    @property
    def seen(self) -> list[AnyFinding]:
        """Everything that was, confirmed or not."""
        return [*self.confirmed, *self.unconfirmed, *self.directed]


def scenarios_of(use: Use) -> list[RealScenario]:
    """What is explored for a use; empty: there is no check.

    The operations of its chains, each by itself and in pairs, and what of a covering array of
    strength 2 over the scenario space is of these chains.
    """
    if use is Use.NBD_EXPORT:
        found = disconnections() + [one for name in _REPORTED for one in scenarios_called(name)]
        own = (Verb.DISCONNECT, Verb.BLOCK_STATUS, Verb.DIRTY_BITMAP)
        found += [one for one in array(_STRENGTH) if does(one.ops, *own)]
        return [one for one in found if one.form in ("backup", "fleecing")]
    chains = tuple(chain for chain, uses in USES.items() if use in uses)
    found = [one for chain in chains for one in (*alone(chain), *pairs(chain))]
    found += [one for one in array(_STRENGTH) if one.form in chains]
    wanted = JOBS_OF_USE.get(use)
    return found if wanted is None else [one for one in found if does(one.ops, *wanted)]


def cases_of(use: Use) -> list[Directed]:
    """The directed cases that are run for a use."""
    return [one for one in DIRECTED if use in one.uses]


def _of_space(one: RealScenario | ScenarioResult) -> bool:
    """Whether it is a point of the scenario space, as in the covering array."""
    return point_if_named(one.name) is not None


def _lacks(one: ScenarioResult) -> bool:
    """Whether it is of the covering array and needs what the build's own schema has not."""
    return one.lacks and _of_space(one)


def explore_uses(
    build: Build,
    uses: Sequence[Use],
    budget: float,
    jobs: int,
    progress: Callable[[Progress], None] | None = None,
    cluster: Cluster | None = None,
    decided: Collection[Use] = (),
    interrupted: Callable[[dict[Use, Explored]], None] = lambda found: None,
) -> dict[Use, Explored]:
    """Explore what stands for *uses* on *build*, within *budget* seconds (and a few more).

    :param decided: uses whose answer is known already: what stands for these alone comes last
    :param interrupted: given what there is when a KeyboardInterrupt or an error ends it, which
        is passed on
    """
    by_use = {use: scenarios_of(use) for use in uses}
    urgent = {one.name for use in uses if use not in decided for one in by_use[use]}
    every = {one.name: one for scenarios in by_use.values() for one in scenarios}
    if not every:
        return {use: not_run(use) for use in uses}
    try:
        report = explore_real(
            build,
            list(every.values()),
            [one for one in DIRECTED if set(uses) & set(one.uses)],
            # Pairs before the array: each use has some.
            settings=Settings(turn=lambda one: 2 * (one.name not in urgent) + _of_space(one)),
            bounds=Bounds(budget=budget * (1 - FAILING), jobs=jobs, cluster=cluster),
            known=WrittenUp(known_findings(), known_directed()),
            progress=progress,
            interrupted=lambda so_far: interrupted(_by_use(by_use, so_far, [])),
        )
    except BuildError as error:  # it cannot do any of them
        many = {use: len(scenarios) for use, scenarios in by_use.items()}
        return {use: Explored(many[use], skipped=many[use], why=str(error)) for use in uses}
    bounds = Bounds(budget=budget * FAILING, jobs=jobs, cluster=cluster)
    failing: list[Finding] = []
    try:
        _with_failing_io(build, list(every.values()), urgent, bounds, progress, failing)
    except (KeyboardInterrupt, QmpshimError):
        interrupted(_by_use(by_use, report, failing))
        raise
    return _by_use(by_use, report, failing)


def not_run(use: Use) -> Explored:
    """What there is before anything is explored for a use."""
    return Explored(scenarios=len(scenarios_of(use)), cases=len(cases_of(use)))


def _by_use(
    by_use: Mapping[Use, Sequence[RealScenario]], report: ExploreReport, failing: Sequence[Finding]
) -> dict[Use, Explored]:
    """What a run gave for each use.

    :param failing: findings of the pass in which I/Os fail
    """
    found = {use: Explored(scenarios=len(scenarios)) for use, scenarios in by_use.items()}
    seen = {(one.verdict, one.cause) for one in report.findings}
    more = [one for one in failing if (one.verdict, one.cause) not in seen]
    for use, scenarios in by_use.items():
        names = {one.name for one in scenarios}
        own = [one for one in report.scenarios if one.name in names]
        explored = found[use]
        explored.reached = sum(one.exhaustive or one.schedules >= LEAST for one in own)
        explored.exhausted = sum(one.exhaustive for one in own)
        explored.schedules = sum(one.schedules for one in own)
        reasons = [one.skipped for one in own if one.skipped and not _lacks(one)]
        lacking = [one.skipped for one in own if _lacks(one)]
        explored.skipped, explored.lacking = len(reasons), len(lacking)
        explored.why = next(iter(reasons + lacking), "")
        found_here = [f for f in (*report.findings, *more) if names & set(f.scenarios)]
        explored.confirmed = [f for f in found_here if f.confirmed]
        explored.unconfirmed = [f for f in found_here if not f.confirmed]
        explored.unconfirmed += [f for f in report.unconfirmed if names & set(f.scenarios)]
        cases, result = cases_of(use), report.directed
        explored.cases = sum(case.id not in result.lacking for case in cases)
        explored.cases_run = sum(case in cases for case in result.run)
        explored.directed = [one for one in result.findings if one.case in cases]
    return found


def _with_failing_io(
    build: Build,
    scenarios: Sequence[RealScenario],
    urgent: Collection[str],
    bounds: Bounds,
    progress: Callable[[Progress], None] | None,
    found: list[Finding],
) -> None:
    """Explore where I/Os fail: of single operations and pairs, or of all if none is one.

    :param found: what is found, confirmed or not, is put there, also where it is interrupted
    """

    def keep(report: ExploreReport) -> None:
        found.extend([*report.findings, *report.unconfirmed])

    named = [one for one in scenarios if not _of_space(one)]
    try:
        report = explore_real(
            build,
            named or scenarios,
            settings=Settings(faults=(EIO,), turn=lambda one: one.name not in urgent),
            bounds=bounds,
            known=WrittenUp(known_findings()),
            progress=progress,
            interrupted=keep,
        )
    except BuildError:  # it can do none of these; others it can
        return
    keep(report)
