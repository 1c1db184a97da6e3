"""What `qmpshim check` writes: the plan, how far it is, what was found."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

from qmpshim.commands.assessed import show_assessed
from qmpshim.commands.console import Console
from qmpshim.conformance.check.case import Status
from qmpshim.conformance.check.report.compare import Comparison, State, headline
from qmpshim.conformance.check.run import campaign
from qmpshim.conformance.check.run.again import replay_command
from qmpshim.conformance.check.run.journal import HTML, JUNIT, RESULTS, TAP, Journal
from qmpshim.conformance.finding_words import CANNOT_BE_TESTED, classified
from qmpshim.errors import name_errnos


def announce(journal: Journal, console: Console) -> None:
    """Write which builds and cases a run has."""
    plan = journal.plan
    for build in plan.builds:
        console.line(f"{build.name:18} QEMU {build.version}")
    done = f", {len(journal.outcomes)} of them done before" if journal.outcomes else ""
    console.line(
        f"suite {plan.suite}: {len(plan.cases)} cases on {len(plan.builds)} build(s), "
        f"{len(plan.keys)} in all{done}"
    )


def progress(standing: campaign.RunStatus, console: Console) -> None:
    """Show how far a run is."""
    parts = [f"{standing.done}/{standing.of} done"]
    for status in (Status.DIVERGED, Status.BROKEN, Status.SKIPPED):
        if number := standing.statuses.get(status):
            parts.append(f"{number} {status.words}")
    left = standing.left()
    if left is not None:
        parts.append(f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left")
    now = time.monotonic()
    running = [
        f"{build} {case}" + (f" ({now - since:.0f} s)" if now - since > 5 else "")
        for (build, case), since in list(standing.running.items())[:2]
    ]
    console.progress(", ".join(parts) + (f": {'; '.join(running)}" if running else ""))


def show(comparison: Comparison, directory: Path, console: Console) -> None:
    """Write what came of a run that is complete.

    :param directory: where the reports are
    """
    show_found(comparison, directory, console)
    _show_rest(comparison, directory, console)


def show_found(comparison: Comparison, directory: Path, console: Console) -> None:
    """By build how its cases ended, and each finding that fails the run."""
    results = comparison.results
    console.line()
    width = max(len(build.name) for build in results.builds)
    for build in results.builds:
        own = [o for (name, _), o in results.outcomes.items() if name == build.name]
        counts = {status: sum(o.status is status for o in own) for status in Status}
        states = [
            row.sights[build.name].state for row in comparison.rows if build.name in row.sights
        ]
        console.prose(
            f"{build.name:{width}}  "
            + ", ".join(f"{counts[status]} {status.words}" for status in Status)
            + "; findings: "
            + ", ".join(f"{states.count(state)} {state}" for state in reversed(State))
            + f"; {sum(o.seconds for o in own):.0f} s"
        )
    for row in comparison.rows:
        sight = row.smallest
        if not any(map(comparison.fails, row.sights.values())):
            continue
        finding = sight.best
        words = classified(finding.contract, finding.known, row.state is not State.UNCONFIRMED)
        console.line()
        console.prose(f"{finding.verdict.upper()} ({words}): {name_errnos(finding.title)}")
        for one in row.sights.values():
            other = f", not {comparison.reference}" if one.differs else ""
            console.prose(
                f"  on {one.build}: {one.state}, {one.count}x in {len(one.cases)} case(s){other}"
            )
        console.line(f"  smallest case, of {sight.smallest} on {sight.build}:")
        for what, text in (("predicted", finding.predicted), ("observed", finding.observed)):
            if text not in finding.title:
                console.prose(f"    {what + ':':10} {textwrap.shorten(name_errnos(text), 300)}")
        for line in finding.trace[:12]:
            console.prose(f"    {name_errnos(line)}")
        if len(finding.trace) > 12:
            console.line(f"    ... and {len(finding.trace) - 12} more")
        key = (sight.build, sight.smallest)
        command = replay_command(comparison.results.plan, key, finding, directory)
        console.line(f"  again: {command}")


def _show_rest(comparison: Comparison, directory: Path, console: Console) -> None:
    known = [
        row.key
        for row in comparison.rows
        if row.state is State.KNOWN and not any(map(comparison.fails, row.sights.values()))
    ]
    if known:
        console.line()
        console.prose(f"known, as expected: {', '.join(known)}")
    for row in comparison.rows:
        for sight in row.sights.values():
            if row.state is State.KNOWN and sight.differs:
                console.prose(f"known, but not {comparison.reference}: {row.key} on {sight.build}")
    for one in comparison.gone:
        console.prose(f"{one.build}: not seen here: {one.key} (expected: {one.why})")
    for build, case, why in comparison.broken:
        console.prose(f"could not be carried out on {build}: {case}: {why}")
    by_reason: dict[tuple[str, str], list[str]] = {}
    for build, case, why in comparison.skipped:
        by_reason.setdefault((build, why), []).append(case)
    for (build, why), cases in by_reason.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        console.prose(f"{CANNOT_BE_TESTED} on {build}: {cases[0]}{more}: {why}")
    console.line()
    console.line(f"reports: {directory}/{{{HTML},{RESULTS},{JUNIT},{TAP}}}")
    console.prose(headline(comparison), comparison.exit_status)
    for tested in comparison.results.builds:
        found = comparison.seen_on(tested.name)
        show_assessed(comparison.answer_on(tested.name), found, console, tested.name)
