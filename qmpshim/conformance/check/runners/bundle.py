"""Cases of kind ``bundle``: whether a build shows what a bundle of whatever command shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import load_case, replay_case
from qmpshim.conformance.bundles.workload_case import CASE as WORKLOAD_CASE
from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.runners.arguments import only
from qmpshim.conformance.check.runners.explore import schedule_finding
from qmpshim.conformance.check.runners.verify import workload_finding
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.pair import checks as pair_checks
from qmpshim.machine.builds.build import Build


def bundle(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``content``: of a bundle's case file, of verify, explore or pair; does this build show it?"""
    only(case, "content")
    content = case.arguments["content"]
    if "schedule" in content:
        return _schedule_bundle(build, finding_from_json(content), directory)
    if content.get("kind") == "pair":
        return pair_case(build, content, directory)
    return workload_bundle(build, content, directory)[0]


def workload_bundle(
    build: Build, content: Mapping[str, Any], directory: Path
) -> tuple[CaseOutcome, Divergence | None]:
    place = directory / "bundle"
    place.mkdir()
    (place / WORKLOAD_CASE).write_text(json.dumps(content))
    wanted = load_case(place)
    result = asyncio.run(replay_case(wanted, build))
    found = result.divergence
    if found is None:
        return CaseOutcome(Status.OK, f"{result.done} operations as predicted"), None
    same = wanted.shown_by(found)
    finding = workload_finding(wanted, found, place)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(same, str(found), finding)), found


def _schedule_bundle(build: Build, wanted: Finding, directory: Path) -> CaseOutcome:
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


def pair_case(build: Build, content: Mapping[str, Any], directory: Path) -> CaseOutcome:
    outcome, findings, same = pair_checks.again(build, content, directory)
    if not findings:
        return CaseOutcome(Status.OK, pair_checks.summary(outcome))
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
