"""`qmpshim verify` and `qmpshim replay`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qmpshim.commands import pair, points
from qmpshim.commands.bundle_argument import bundle_argument, finding_named
from qmpshim.commands.cancellation import run_cancellable, run_interruptible
from qmpshim.commands.chosen_builds import chosen_build, chosen_builds, on_each
from qmpshim.commands.console import DIVERGED, OK, UNTESTABLE, Console
from qmpshim.commands.options import (
    LIMIT,
    MACHINE,
    build_options,
    json_option,
    output_options,
    refuse_unused,
)
from qmpshim.commands.parser import count, in_words, seconds, size
from qmpshim.commands.results import BUNDLES, check_directory, not_kept
from qmpshim.conformance.bundles.again import replay_command
from qmpshim.conformance.bundles.any_workload import load_case, replay_case
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.document import Document
from qmpshim.conformance.explore.directed.cases import run_directed
from qmpshim.conformance.explore.directed.run import cases_named
from qmpshim.conformance.explore.harness.setup_state import other_state
from qmpshim.conformance.explore.report.finding_files import is_schedule, load_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.finding_words import KNOWN_FAIL, classified
from qmpshim.conformance.known.folder import known_workload
from qmpshim.conformance.known.matching import DirectedWriteUp
from qmpshim.conformance.pair.bundle import is_pair
from qmpshim.conformance.pointintime.verify import PointsSubject
from qmpshim.conformance.workload.geometry import Given, chain_by_seed
from qmpshim.conformance.workload.session import Result
from qmpshim.conformance.workload.verification import (
    SHRINK_SECONDS,
    Subject,
    VerifyOutcome,
    verify,
)
from qmpshim.conformance.workload.verify import ChainSubject, setup_for, split
from qmpshim.conformance.workload.workload import Workload
from qmpshim.errors import DriverMissing, InputError, name_errnos
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import CHAINS
from qmpshim.machine.host.files import slug
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.check.cause import Phase

_BOTH = ("backup", "replication")
Outcome = VerifyOutcome[Any, Any, Any]


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    verifying = commands.add_parser(
        "verify", help="compare a real QEMU with the model under a random workload"
    )
    build_options(verifying, several=True)
    verifying.add_argument(
        "--workflow",
        choices=[*CHAINS, "both", *points.WORKFLOWS],
        default="both",
        help="the chain of disks to build: backup (blockdev-backup sync=none), replication (COLO's "
        "secondary), fleecing (copy-before-write and snapshot-access, QEMU 7.0 and later), or "
        "both: backup, then replication (default: both); or two disks with dirty bitmaps: push "
        "(backup jobs that write to targets), bitmaps (alone, over restarts of QEMU), pull "
        "(snapshots that are read by NBD)",
    )
    verifying.add_argument(
        "--ops", type=count, default=4000, metavar="N", help="operations in all (default: 4000)"
    )
    verifying.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="S",
        help="of the random workload, and of the disks where no option says how they are "
        "(default: 1)",
    )
    verifying.add_argument(
        "--size",
        type=size,
        help="virtual size of the disks in bytes, or with k, M, G (default: by the seed)",
    )
    verifying.add_argument(
        "--cluster",
        type=size,
        help="qcow2 cluster size in bytes, or with k, M (default: by the seed)",
    )
    verifying.add_argument(
        "--secondary",
        choices=["raw", "qcow2"],
        help="format of the secondary disk (default: by the seed; where it chooses all three, it "
        "chooses options of the nodes, too)",
    )
    verifying.add_argument(
        "--shrink",
        type=seconds,
        default=SHRINK_SECONDS,
        metavar="TIME",
        help="seconds to spend on minimizing a divergence, or 5m for minutes "
        f"(default: {SHRINK_SECONDS:g})",
    )
    output_options(verifying, "images, logs and bundles")
    verifying.set_defaults(run=_verify)

    replaying = commands.add_parser(
        "replay",
        help="show a bundle's divergence again",
        epilog="Exit status: 1 where the bundle's divergence shows itself (any, if the bundle is "
        "one of a run that showed none), 0 where all went as predicted, 125 where neither can "
        "be concluded: another divergence came first, the build does other I/O than the schedule "
        "is of, the setup leaves another state, or the build cannot do the scenario.",
    )
    bundle_argument(replaying, "a directory that verify, explore, pair or check kept")
    build_options(replaying)
    json_option(replaying)
    replaying.set_defaults(run=_replay)


def _verify(args: argparse.Namespace, console: Console) -> int:
    of_points = args.workflow in points.WORKFLOWS
    if of_points:
        refuse_unused(args, f"with --workflow {args.workflow}", "--secondary")
    workflows = [*_BOTH] if args.workflow == "both" else [args.workflow]
    if args.ops < 40 * len(workflows):
        raise InputError(
            f"--ops {args.ops} is too few to see anything; take at least 40 a workflow"
        )
    chosen = chosen_builds(args)
    if args.keep is not None:
        check_directory(args.keep)
    outcomes: list[Outcome] = []
    documents: list[dict[str, Any]] = []

    def on(build: Build) -> int:
        keep = args.keep
        if keep is not None and len(chosen) > 1:
            keep = keep / slug(build.name)
            check_directory(keep)
        try:
            before = len(outcomes)
            try:
                work = _verify_build(args, build, workflows, keep, console, outcomes)
                return run_cancellable(work)
            finally:  # also those of an interrupted run
                documents.extend(_document(one, build) for one in outcomes[before:])
        except DriverMissing as error:
            if len(chosen) > 1:
                raise
            # It can do the other workflow: the command requests too much.
            raise InputError(str(error)) from error

    status = on_each(chosen, args.document, console, on)
    found = [one.result.divergence for one in outcomes if one.result.divergence]
    args.document.diverged = bool(found)
    args.document.result = {
        "verdicts": [divergence.verdict for divergence in found],
        "runs": documents,
    }
    return status


def _document(outcome: Outcome, build: Build) -> dict[str, Any]:
    return {**outcome.to_json(), "known_as": _known_as(outcome, build)}


def _known_as(outcome: Outcome, build: Build) -> str:
    """The id of the write-up of what was found, ``""``: there is none, or nothing was found."""
    found = outcome.result.divergence
    if found is None:
        return ""
    version, met = read_version(build)[0], outcome.result.met
    return known_workload(found, outcome.operations, version, met)


async def _verify_build(
    args: argparse.Namespace,
    build: Build,
    workflows: list[str],
    keep: Path | None,
    console: Console,
    into: list[Outcome],
) -> int:
    _, version = read_version(build)
    runs: list[tuple[Subject[Any, Any, Any], list[Any]]] = []
    given = Given(args.size, args.cluster, args.secondary)
    for workflow, share in split(args.ops, workflows).items():
        if workflow in points.WORKFLOWS:
            disks = points.subject(args, build, given)
            runs.append((disks, list(points.workload(disks, args.seed).take(share))))
            continue
        spec = chain_by_seed(workflow, args.seed, given)
        setup = setup_for(build, spec, args.machine, args.strict, args.limit)
        runs.append((ChainSubject(setup), list(Workload(spec, args.seed).take(share))))
    console.line(f"QEMU {version}")
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        into.append(outcome)
        _show(outcome, build, args, console)

    def at_once(divergence: Divergence) -> None:
        console.line(f"{divergence}")
        console.line(f"  making the case small, for {args.shrink:g} s at most")

    with Workspace() as workspace:
        for subject, operations in runs:
            outcome = await verify(
                subject,
                operations,
                version,
                args.seed,
                workspace,
                keep or BUNDLES,
                console.progress,
                keep,
                args.shrink,
                at_once,
                done,
            )
            done(outcome)
    diverged = [outcome for outcome in outcomes if outcome.result.divergence]
    total = sum(outcome.result.done for outcome in outcomes)
    seconds = sum(outcome.result.seconds for outcome in outcomes)
    clusters = sum(outcome.result.clusters for outcome in outcomes)
    status = DIVERGED if diverged else OK
    known = args.strict and any(_known_as(outcome, build) for outcome in diverged)
    state = "DIVERGED" + (f" ({KNOWN_FAIL})" if known else "") if diverged else "all as predicted"
    console.line(
        f"{state}: {total} operations, {clusters} clusters compared, {seconds:.1f} s",
        status,
    )
    return status


def _heading(subject: ChainSubject, seed: int, result: Result) -> Iterator[str]:
    """The first lines about a run on a chain."""
    spec = subject.setup.spec
    yield (
        f"{spec.workflow}: seed {seed}, {in_words(spec.size)} disk, "
        f"{in_words(spec.cluster)} clusters, {spec.secondary} secondary"
        + "".join(f", {node} {key}={what}" for node, key, what in spec.options)
    )
    sides: dict[str, list[str]] = {}
    for name, number in sorted(result.operations.items()):
        side, _, kind = name.partition(" ")
        sides.setdefault(side, []).append(f"{number} {kind}")
    for side, kinds in sides.items():
        yield f"  {side:8} {', '.join(kinds)}"


def _show(outcome: Outcome, build: Build, args: argparse.Namespace, console: Console) -> None:
    result, subject = outcome.result, outcome.subject
    met = "known defect, as predicted"
    if isinstance(subject, PointsSubject):
        lines = points.heading(subject, outcome.seed, result)
        met = "left out, since it meets a known defect"
    else:
        assert isinstance(subject, ChainSubject)
        lines = _heading(subject, outcome.seed, result)
    for line in lines:
        console.line(line)
    if outcome.never:
        console.line(f"  never: {', '.join(name.removeprefix('chain ') for name in outcome.never)}")
    console.line(
        f"  {result.done} operations and {result.checks} cross-checks "
        f"({result.clusters} clusters) in {result.seconds:.1f} s"
    )
    for known, number in sorted(result.known.items()):
        console.line(f"  {met}: {known} ({number}x)")
    found = result.divergence
    if found is None:
        how = "as predicted, until it was interrupted" if outcome.interrupted else "as predicted"
        console.line(f"  verdict: {how}")
        return
    state = classified(True, _known_as(outcome, build))  # workloads keep to QEMU's documents
    console.line(f"  verdict: {found.verdict} at {found.where} ({state})", DIVERGED)
    console.prose(f"    predicted: {found.predicted}")
    console.prose(f"    observed:  {found.observed}")
    smallest = "smallest case so far" if outcome.interrupted else "minimal case"
    console.line(f"  {smallest}, {len(outcome.operations)} operations:")
    shown = outcome.operations if outcome.unsaved else outcome.operations[:30]
    for operation in shown:
        console.line(f"    {operation}")
    if len(outcome.operations) > len(shown):
        console.line(f"    ... and {len(outcome.operations) - len(shown)} more")
    if outcome.unsaved:
        console.line(f"  {not_kept(outcome.unsaved)}")
    if outcome.bundle is not None:
        words = ["--machine", args.machine] if args.machine != MACHINE else []
        words += ["--limit", f"{args.limit:g}"] if args.limit != LIMIT else []
        console.line(f"  replay it: {replay_command(outcome.bundle, build, *words)}")


def _replay(args: argparse.Namespace, console: Console) -> int:
    args.document.result = {"bundle": str(args.bundle)}
    entry = finding_named(args.bundle)
    if isinstance(entry, DirectedWriteUp):
        refuse_unused(args, "with a directed case, which says it itself", "--machine", "--limit")
        return run_interruptible(lambda: _replay_directed(entry, args, console))
    if entry is not None:
        args.bundle = entry.path
    if is_pair(args.bundle) or is_schedule(args.bundle):
        kind = "a pair" if is_pair(args.bundle) else "an explored schedule"
        refuse_unused(
            args, f"with a bundle of {kind}, which says it itself", "--machine", "--limit"
        )
    if is_pair(args.bundle):
        build = _on(args)
        return run_cancellable(pair.replay(args.bundle, build, args.document, console))
    if is_schedule(args.bundle):
        return run_interruptible(lambda: _replay_schedule(args, console))
    return run_cancellable(_replay_workload(args, console))


def _on(args: argparse.Namespace) -> Build:
    """The build to replay on."""
    build = chosen_build(args)
    args.document.about(build)
    return build


def _replay_directed(entry: DirectedWriteUp, args: argparse.Namespace, console: Console) -> int:
    """The fixed commands and I/O of the case that has the write-up's name."""
    (case,) = cases_named(entry.name)
    build = _on(args)
    console.line(f"QEMU {read_version(build)[1]}")
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


def _replay_schedule(args: argparse.Namespace, console: Console) -> int:
    finding = load_finding(args.bundle)
    build = _on(args)
    console.line(f"QEMU {read_version(build)[1]}")
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
    if again.violation is not None:
        wrong = f"{again.violation.kind}: {name_errnos(again.violation.text)}"
        if not again.shows(finding):
            began = again.violation.cause.phase is not Phase.SETUP
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
    console.line("the schedule could not be followed on this build: all of its scenario are tried")
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


async def _replay_workload(args: argparse.Namespace, console: Console) -> int:
    case, build = load_case(args.bundle), _on(args)
    console.line(f"QEMU {read_version(build)[1]}")
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


def _another(wrong: str, nothing_wanted: bool, document: Document, console: Console) -> int:
    """Another failure, which is a result only where none was expected."""
    if nothing_wanted:
        console.line(f"another divergence: {wrong}")
        return DIVERGED
    document.error = f"cannot be tested: another divergence: {wrong}"
    console.line(document.error)
    return UNTESTABLE
