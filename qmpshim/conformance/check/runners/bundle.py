"""Cases of kind ``bundle``: whether a build shows what a bundle of whatever command shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import AnyCase, replay_case
from qmpshim.conformance.bundles.case_file import BundleCase
from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.bundles.workload_case import CASE, write_json
from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.runners.arguments import only
from qmpshim.conformance.check.runners.explore import schedule_finding
from qmpshim.conformance.check.runners.pair import case_findings
from qmpshim.conformance.check.runners.verify import workload_finding
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.known.bundle_kinds import kind_of
from qmpshim.conformance.pair.bundle import PairCase
from qmpshim.conformance.pair.run_plan import run_plan, summary
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.machine.builds.build import Build


def bundle(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``content``: of a bundle's case file, of verify, explore or pair; does this build show it?"""
    only(case, "content")
    content, path = case.arguments["content"], Path(case.name)
    wanted = kind_of(content, path).read(content, path)
    return _RUNNERS[type(wanted)](build, wanted, directory)


def workload_case(
    build: Build, wanted: AnyCase, directory: Path
) -> tuple[CaseOutcome, Divergence | None]:
    place = directory / "bundle"
    place.mkdir()
    write_json(place / CASE, wanted.to_json())
    result = asyncio.run(replay_case(wanted, build))
    found = result.divergence
    if found is None:
        return CaseOutcome(Status.OK, f"{result.done} operations as predicted"), None
    same = wanted.shown_by(found)
    finding = workload_finding(wanted, found, place)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(same, str(found), finding)), found


def _workload(build: Build, wanted: AnyCase, directory: Path) -> CaseOutcome:
    return workload_case(build, wanted, directory)[0]


def _schedule(build: Build, wanted: Finding, directory: Path) -> CaseOutcome:
    if wanted.verdict is None:  # recorded by hand, with nothing wrong
        return _recorded(build, wanted, directory)
    shown = show_again(wanted, build)
    if (found := shown.finding) is not None:
        finding = schedule_finding(replace(found, known=""), build, directory)
        return CaseOutcome(Status.DIVERGED, *_same_or_not(True, found.text, finding))
    if shown.others:
        return shown_otherwise(shown.others[0], build, directory)
    if shown.unsure:
        return CaseOutcome(Status.SKIPPED, f"not seen, but {shown.unsure}")
    return CaseOutcome(Status.OK, f"not seen: {shown.unrequested or 'in no schedule'}")


def shown_otherwise(finding: Finding, build: Build, directory: Path) -> CaseOutcome:
    """What went wrong instead of what was looked for."""
    shown = replay_schedule(finding, build).shows(finding)
    finding = replace(finding, known="", replays=(int(shown), 1))
    found = schedule_finding(finding, build, directory)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(False, finding.text, found))


def pair_case(build: Build, wanted: PairCase, directory: Path) -> CaseOutcome:
    outcome, place = asyncio.run(run_plan(wanted.plan, (build, build), directory))
    if not outcome.findings:
        return CaseOutcome(Status.OK, summary(outcome))
    findings = case_findings(outcome, place, directory)
    same = wanted.shown is not None and any(map(wanted.shown.shown_by, outcome.findings))
    text, _, figures = _same_or_not(same, findings[0].title, findings[0])
    return CaseOutcome(Status.DIVERGED, text, findings, figures)


def _recorded(build: Build, wanted: Finding, directory: Path) -> CaseOutcome:
    again = replay_schedule(wanted, build)
    wrong = again.violation
    if wrong is None:
        return CaseOutcome(Status.OK, "as it was recorded")
    found = replace(
        wanted, verdict=wrong.kind, cause=wrong.cause, text=wrong.text, events=again.events
    )
    finding = schedule_finding(found, build, directory)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(False, found.text, finding))


def _same_or_not(same: bool, text: str, finding: CaseFinding) -> tuple[Any, ...]:
    how = "reproduced" if same else "another divergence"
    return f"{how}: {text}", (finding,), {"reproduced": int(same)}


_RUNNERS: dict[type[BundleCase], Callable[[Build, Any, Path], CaseOutcome]] = {
    Finding: _schedule,
    PairCase: pair_case,
    ChainCase: _workload,
    PointsCase: _workload,
}
