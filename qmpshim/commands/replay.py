"""`qmpshim replay`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

from qmpshim.commands.bundle_argument import bundle_argument, finding_named
from qmpshim.commands.cancellation import run_cancellable, run_interruptible
from qmpshim.commands.chosen_builds import chosen_build
from qmpshim.commands.console import DIVERGED, OK, UNTESTABLE, Console
from qmpshim.commands.options import build_options, json_option, refuse_unused
from qmpshim.commands.results import BUNDLES
from qmpshim.conformance.bundles.any_workload import AnyCase, replay_case
from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.document import Document
from qmpshim.conformance.explore.directed.cases import run_directed
from qmpshim.conformance.explore.directed.run import cases_named
from qmpshim.conformance.explore.harness.setup_state import other_state
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.known.bundle_kinds import load_bundle
from qmpshim.conformance.known.matching import DirectedWriteUp
from qmpshim.conformance.pair.bundle import PairCase
from qmpshim.conformance.pair.run_plan import run_plan, summary
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.errors import name_errnos
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.check.cause import Phase


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "replay",
        help="show a bundle's divergence again",
        description="Does what a bundle or a write-up holds once more, on any build.",
        epilog="Exit status: 1 where the bundle's divergence shows itself (any, if the bundle is "
        "one of a run that showed none), 0 where all went as predicted, 125 where neither can "
        "be concluded: another divergence came first, the build does other I/O than the schedule "
        "is of, the setup leaves another state, or the build cannot do the scenario.",
    )
    bundle_argument(parser, "a directory that verify, explore, pair or check kept")
    build_options(parser)
    json_option(parser)
    parser.set_defaults(run=_replay)


def _replay(args: argparse.Namespace, console: Console) -> int:
    args.document.result = {"bundle": str(args.bundle)}
    entry = finding_named(args.bundle)
    what = load_bundle(args.bundle) if entry is None else entry.case or entry
    replay, fixed = _REPLAYS[type(what)]
    if fixed:
        refuse_unused(args, f"with {fixed}, which says it itself", "--machine", "--limit")
    if inspect.iscoroutinefunction(replay):
        return run_cancellable(replay(what, args, console))
    return run_interruptible(lambda: replay(what, args, console))


def _on(args: argparse.Namespace, console: Console) -> Build:
    """The build to replay on."""
    build = chosen_build(args)
    args.document.about(build)
    console.line(f"QEMU {read_version(build)[1]}")
    return build


def _replay_directed(entry: DirectedWriteUp, args: argparse.Namespace, console: Console) -> int:
    """The fixed commands and I/O of the case that has the write-up's name."""
    (case,) = cases_named(entry.name)
    build = _on(args, console)
    console.prose(f"  {case.about}")
    found = run_directed(case, build)
    same = found is not None and entry.explains(found.kind, found.cause, entry.contract)
    wrong = "" if found is None else f"{found.kind}: {name_errnos(found.text)}"
    args.document.result |= {"reproduced": same, "observed": [wrong] if wrong else []}
    if found is not None and not same:
        return _another(wrong, False, args.document, console)
    if same:
        console.line(f"reproduced: {wrong}", DIVERGED)
        return DIVERGED
    console.line("not reproduced: the case went as promised")
    return OK


def _replay_schedule(finding: Finding, args: argparse.Namespace, console: Console) -> int:
    build = _on(args, console)
    again = replay_schedule(finding, build)
    seen = again.violation
    args.document.result |= {
        "reproduced": again.shows(finding),
        "observed": [] if seen is None else [f"{seen.kind}: {seen.text}"],
        "followed": again.followed,
        "trace": list(again.lines),
    }
    for line in again.lines:
        console.line(f"  {name_errnos(line)}")
    if seen is not None:
        wrong = f"{seen.kind}: {name_errnos(seen.text)}"
        if not again.shows(finding):
            began = seen.cause.phase is not Phase.SETUP
            return _another(wrong, finding.verdict is None and began, args.document, console)
        console.line(f"reproduced: {wrong}", DIVERGED)
        return DIVERGED
    if again.shows(finding):
        console.line("reproduced: as allowed")
        return OK
    if other := other_state(finding, build):
        args.document.error = f"cannot be tested: {other}"
        console.line(args.document.error)
        return UNTESTABLE
    if not again.followed:
        return _replay_scenario(finding, build, args.document, console)
    console.line(
        f"not reproduced: the schedule went as allowed; the bundle says {name_errnos(finding.text)}"
    )
    return OK


def _replay_scenario(finding: Finding, build: Build, document: Document, console: Console) -> int:
    """Where a build does other I/O than the schedule is of: by all schedules of the scenario."""
    console.line(
        "the schedule could not be followed on this build: all schedules of its scenario are tried"
    )
    shown = show_again(finding, build)
    if shown.finding is not None:
        document.result |= {"reproduced": True, "trace": list(shown.finding.lines)}
        for line in shown.finding.lines:
            console.line(f"  {name_errnos(line)}")
        console.line(f"reproduced: {shown.finding.described}", DIVERGED)
        return DIVERGED
    shows = f"the bundle says {name_errnos(finding.text)}"
    if shown.unsure:
        document.error = f"cannot be tested: {shown.unsure}; {shows}"
        console.line(document.error)
        return UNTESTABLE
    why = shown.unrequested or "no schedule of the scenario shows it"
    console.line(f"not reproduced: {why}; {shows}")
    return OK


async def _replay_workload(case: AnyCase, args: argparse.Namespace, console: Console) -> int:
    build = _on(args, console)
    result = await replay_case(case, build, console.progress, args.machine, args.limit)
    found = result.divergence
    args.document.result |= {
        "reproduced": case.shown_by(found),
        "observed": [] if found is None else [str(found)],
        "operations": result.done,
    }
    if found is None:
        how = "reproduced" if case.shown_by(None) else "not reproduced"
        note = "" if case.divergence is None else f"; the bundle says {case.shows}"
        console.line(f"{how}: {result.done} operations went as predicted{note}")
        return OK
    if not case.shown_by(found):
        return _another(str(found), case.divergence is None, args.document, console)
    console.line(f"reproduced: {found}", DIVERGED)
    return DIVERGED


async def _replay_pair(case: PairCase, args: argparse.Namespace, console: Console) -> int:
    build, wanted = _on(args, console), case.shown
    outcome, again = await run_plan(
        case.plan,
        (build, build),
        BUNDLES,
        progress=lambda done, text: console.progress(f"{done.seconds:7.1f} s  {text}"),
    )
    same = [one for one in outcome.findings if wanted is not None and wanted.shown_by(one)]
    args.document.result |= {
        "reproduced": bool(same),
        "observed": [str(finding.divergence) for finding in outcome.findings],
    }
    for finding in outcome.findings:
        how = "reproduced" if finding in same else "another finding"
        console.line(f"{how}: {finding.divergence}")
    if again is not None:
        console.line(f"  bundle: {again}")
    if outcome.unsaved:
        console.line(f"  no bundle of it: {outcome.unsaved}")
    if not outcome.findings:
        console.line(f"not reproduced: {summary(outcome)}")
        return OK
    if wanted and not same:
        console.line("cannot be tested: something else went wrong than what the bundle shows")
        return UNTESTABLE
    return DIVERGED


def _another(wrong: str, nothing_wanted: bool, document: Document, console: Console) -> int:
    """Another failure, which is a result only where none was expected."""
    if nothing_wanted:
        console.line(f"another divergence: {wrong}")
        return DIVERGED
    document.error = f"cannot be tested: another divergence: {wrong}"
    console.line(document.error)
    return UNTESTABLE


#: What replays a case of a type; and what has its own machine and limits, not those of options.
_REPLAYS: dict[type, tuple[Callable[[Any, argparse.Namespace, Console], Any], str]] = {
    Finding: (_replay_schedule, "a bundle of an explored schedule"),
    PairCase: (_replay_pair, "a bundle of a pair"),
    ChainCase: (_replay_workload, ""),
    PointsCase: (_replay_workload, ""),
    DirectedWriteUp: (_replay_directed, "a directed case"),
}
