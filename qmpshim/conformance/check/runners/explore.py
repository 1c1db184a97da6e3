"""Cases of kind ``explore``; what a schedule shows, with its diagram and maps."""

from __future__ import annotations

from pathlib import Path

from qmpshim.conformance.check.case import (
    Case,
    CaseFinding,
    CaseOutcome,
    ShownBy,
    Status,
    details_of,
)
from qmpshim.conformance.check.report.cluster_maps import maps_of_schedule
from qmpshim.conformance.check.report.sequence import steps_of_events
from qmpshim.conformance.check.runners.arguments import argument, only
from qmpshim.conformance.explore.checkers.crash_points import CrashPoints
from qmpshim.conformance.explore.report.finding_files import save_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.report import ExploreReport
from qmpshim.conformance.explore.scenarios import RealScenario, scenario_from_json
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.space.naming import scenarios_called
from qmpshim.conformance.known.folder import known_findings, summary
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import slug
from qmpshim.model.explore.explorer import MODES
from qmpshim.model.units import SECTOR

_OF_BUDGET = 0.9  # of a case's budget; the rest is for starting, and for bundles and maps


def explore(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``scenarios`` (names or scenario objects), ``mode`` (as ``explore --mode``), ``faults``
    (errnos), ``all_io`` (a bool), ``crash_points`` (as the option), ``seconds``, ``seed``."""
    only(case, "scenarios", "mode", "faults", "all_io", "crash_points", "seconds", "seed")
    scenarios: list[RealScenario] = []
    for what in argument(case, "scenarios", ["pairs"]):
        scenarios += scenarios_called(what) if isinstance(what, str) else [scenario_from_json(what)]
    mode = argument(case, "mode", "exhaustive")
    if mode not in MODES:
        raise InputError(f"{case.name}: mode {mode!r} is none of {', '.join(MODES)}")
    seconds = case.arguments.get("seconds")
    report = explore_real(
        build,
        scenarios,
        settings=Settings(
            mode=MODES[mode],
            faults=tuple(argument(case, "faults", [])),
            all_io=argument(case, "all_io", False),
            crash_points=CrashPoints.parse(argument(case, "crash_points", "none")),
            seed=argument(case, "seed", 0),
        ),
        bounds=Bounds(
            budget=None if seconds is None else float(seconds),
            # What was found is reported before the case is ended from outside, and all is lost.
            limit=case.budget * _OF_BUDGET,
        ),
        known=WrittenUp(known_findings()),
    )
    findings = [
        schedule_finding(finding, build, directory)
        for finding in (*report.findings, *report.unconfirmed)
    ]
    if report.chose_nothing and not findings:
        raise InputError(f"{case.name}: {report.chose_nothing}")
    skipped = [one for one in report.scenarios if one.skipped]
    text = (
        f"{len(report.scenarios) - len(skipped)} scenarios, {report.schedules} schedules"
        + ("" if report.exhaustive else ", NOT exhausted")
        + (f"; {len(skipped)} skipped: {skipped[0].skipped}" if skipped else "")
        + (f"; {_unsure(report)}" if report.unconfirmed else "")
    )
    return CaseOutcome(
        Status.DIVERGED if report.new or report.unexplained else Status.OK,
        text,
        tuple(findings),
        {"scenarios": len(report.scenarios), "schedules": report.schedules, "steps": report.steps},
    )


def _unsure(report: ExploreReport) -> str:
    untried = len(report.untried)
    tried = len(report.unconfirmed) - untried
    parts = [f"{tried} did not replay every time"] if tried else []
    parts += [f"{untried} seen, not confirmed: time was up"] if untried else []
    return "; ".join(parts)


def schedule_finding(finding: Finding, build: Build, directory: Path) -> CaseFinding:
    """A finding of the explorer's, kept as a bundle, with its diagram and maps."""
    assert finding.verdict is not None
    place = save_finding(directory / slug(f"{finding.verdict}-{finding.scenario.name}"), finding)
    lanes = [f"op {index}: {op}" for index, op in enumerate(finding.scenario.ops)]
    scenario = finding.scenario
    setup = ", ".join(map(str, scenario.setup))
    return CaseFinding(
        finding.verdict,
        str(finding.cause),
        finding.text,
        contract=finding.contract,
        known=finding.known,
        count=finding.count,
        trace=finding.lines,
        bundle=place.name,
        replay=ShownBy.BUNDLE,
        confirmed=finding.confirmed,
        details=details_of(
            diagram=steps_of_events(lanes, finding.events),
            maps=maps_of_schedule(finding, build),
            chain=f"{scenario.form}, {scenario.size * SECTOR} bytes, "
            f"clusters of {scenario.cluster * SECTOR}" + (f"; before: {setup}" if setup else ""),
            scenarios=list(finding.scenarios),
            replays=list(finding.replays),
            written=summary(finding.known),
        ),
        uses=finding.uses,
    )
