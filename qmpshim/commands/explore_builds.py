"""What `explore` does with each build: explore it, show how far it is and what was found."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qmpshim.commands.assessed import show_assessed
from qmpshim.commands.cancellation import run_interruptible
from qmpshim.commands.chosen_builds import chosen_builds, on_each
from qmpshim.commands.console import DIVERGED, OK, UNTESTABLE, Console
from qmpshim.commands.results import BUNDLES, check_directory, not_kept
from qmpshim.conformance.bundles.again import directed_command, replay_command
from qmpshim.conformance.document import BUDGET
from qmpshim.conformance.explore.harness.setup_state import depends_on_version
from qmpshim.conformance.explore.report.finding_files import save_finding
from qmpshim.conformance.explore.report.findings import Finding, group
from qmpshim.conformance.explore.report.recognition import recogniser
from qmpshim.conformance.explore.report.report import ExploreReport, render, why_none
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.finding_words import KNOWN_FAIL
from qmpshim.conformance.known.folder import known_findings
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.seen import assessed, seen
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.files import slug
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict

# Explores a build: with what is called at progress, what is known, and what shows a report.
OnProgress = Callable[[Progress], None]
Known = Sequence[ExplorerWriteUp]
Show = Callable[[ExploreReport], None]
Work = Callable[[Build, OnProgress, Known, Show], ExploreReport]


def explore_builds(
    args: argparse.Namespace, console: Console, work: Work, own: Sequence[RealScenario] = ()
) -> int:
    """Explore each build that is chosen, and report on it.

    :param own: scenarios of the user's
    """
    chosen = chosen_builds(args)
    if args.keep is not None:
        check_directory(args.keep)
    reports: list[ExploreReport] = []
    untestable: list[str] = []

    def on(build: Build) -> int:
        def explore() -> int:
            _explore_build(args, build, work, console, reports)
            if reports[-1].diverged:
                return DIVERGED
            if why := why_none(reports[-1].scenarios) or _incomparable(own, build):
                console.line(why, UNTESTABLE)
                untestable.append(why)
                return UNTESTABLE
            return OK

        return run_interruptible(explore)

    status = on_each(chosen, args.document, console, on)
    documents = [report.to_json() for report in reports]  # also those of an interrupted run
    if len(chosen) > 1:
        args.document.result = {"reports": documents}
    elif documents:
        args.document.result = documents[0]
    if status == UNTESTABLE and untestable:
        args.document.error = untestable[0]
    args.document.diverged = any(report.diverged for report in reports)
    if any(report.cut_short for report in reports):
        args.document.interrupted = BUDGET
    if status == OK and (nothing := next(filter(None, (r.chose_nothing for r in reports)), "")):
        raise InputError(nothing)
    return status


def _incomparable(own: Sequence[RealScenario], build: Build) -> str:
    """Why a scenario of the user's that shows nothing is another scenario on another version.

    `git bisect` would blame the commit that changed what its setup leaves.

    :returns: one line, or ``""``: it is the same
    """
    version = read_version(build)[0]
    for scenario in own:
        if other := depends_on_version(scenario, version):
            return (
                f"cannot judge by what was not found: {other}; zeroes that keep their place "
                "everywhere are primary_zero_no_hole's"
            )
    return ""


def _explore_build(
    args: argparse.Namespace,
    build: Build,
    work: Work,
    console: Console,
    into: list[ExploreReport],
) -> None:
    began = time.monotonic()
    known = known_findings()
    recognise = recogniser(known, read_version(build)[0])
    shown: set[tuple[Verdict | None, Cause]] = set()
    cases_shown: set[str] = set()
    looked_at = 0

    def not_yet(known_as: str) -> str:
        return f"known: {known_as}" if known_as else "not confirmed yet"

    def on_progress(progress: Progress) -> None:
        nonlocal looked_at
        fresh = len(progress.sightings) != looked_at
        looked_at = len(progress.sightings)
        for finding in group(progress.sightings, recognise) if fresh else ():
            key = finding.verdict, finding.cause
            if (args.strict or not finding.known) and key not in shown:
                shown.add(key)
                where = finding.scenario.name
                console.prose(f"seen in {where}, {not_yet(finding.known)}: {finding.described}")
        for case in progress.directed:
            if (args.strict or not case.known) and case.case.id not in cases_shown:
                cases_shown.add(case.case.id)
                console.prose(f"seen in {case.case.id}, {not_yet(case.known)}: {case.described}")
        verdicts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(progress.verdicts.items()))
        if not progress.of:  # directed cases alone
            console.progress(progress.doing)
            return
        console.progress(
            f"{progress.scenarios}/{progress.of} scenarios, {progress.schedules} schedules "
            f"({progress.distinct} distinct), {progress.rate:.0f}/s, {verdicts or 'all allowed'}, "
            f"{progress.doing}"
        )

    def show(report: ExploreReport) -> None:
        report.strict = args.strict
        into.append(report)
        for line in render(report).splitlines():
            console.prose(line)
        late = args.budget is not None and time.monotonic() - began > args.budget
        # What else can be seen of a finding takes another run of it.
        evidence = None if report.interrupted or late else build
        for finding in report.failing:
            try:
                kept = _kept(finding, args.keep or BUNDLES, evidence)
                report.bundles.append((finding, kept))
            except HostError as error:  # what was found is printed above
                console.line(not_kept(str(error)))
            else:
                console.line(f"replay it: {replay_command(kept, build)}")
        for case in report.failing_cases:
            console.line(f"replay it: {directed_command(case.case.id, build)}")
        console.line()
        console.prose(_summary(report), DIVERGED if report.diverged else OK)
        found = [seen(one) for one in report.all_findings if one.verdict is not None]
        show_assessed(assessed(found), found, console)

    show(work(build, on_progress, known, show))


def _summary(report: ExploreReport) -> str:
    cases, seen = report.directed, report.all_findings
    confirmed = [one for one in seen if one.confirmed]
    others = [one for one in seen if not one.confirmed]
    untried = sum(not one.tried for one in others)
    new = sum(not one.known for one in confirmed)
    done = [f"{len(cases.run)} of {len(cases.cases)} directed cases"] if cases.cases else []
    done += [f"{report.schedules} schedules"] if report.scenarios else []
    return (
        f"{new} new finding(s), {len(confirmed) - new} known"
        + (f" ({KNOWN_FAIL})" if report.strict and len(confirmed) > new else "")
        + ", "
        f"{len(others) - untried} that did not replay every time"
        + (f", {untried} seen and not confirmed" if untried else "")
        + (" (they fail the run, too)" if any(not one.known for one in others) else "")
        + f"; {', '.join([*done, _how_far(report)])}"
    )


def _how_far(report: ExploreReport) -> str:
    if report.interrupted:
        return "interrupted"
    return "exhausted" if report.exhaustive else "NOT exhausted"


def _kept(finding: Finding, directory: Path, build: Build | None) -> Path:
    name = slug(f"explore-{finding.verdict}-{finding.scenario.name}")
    return save_finding(directory / name, finding, build)
