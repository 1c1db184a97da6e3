"""`qmpshim verify`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qmpshim.commands import points
from qmpshim.commands.cancellation import run_cancellable
from qmpshim.commands.chosen_builds import chosen_builds, on_each
from qmpshim.commands.console import DIVERGED, OK, Console
from qmpshim.commands.options import LIMIT, MACHINE, build_options, output_options, refuse_unused
from qmpshim.commands.parser import count, in_words, seconds, size
from qmpshim.commands.results import BUNDLES, check_directory, not_kept
from qmpshim.conformance.bundles.again import replay_command
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.finding_words import KNOWN_FAIL, classified
from qmpshim.conformance.known.folder import known_workload
from qmpshim.conformance.pointintime.verify import PointsSubject
from qmpshim.conformance.workload.geometry import Given, chain_by_seed
from qmpshim.conformance.workload.session import Result
from qmpshim.conformance.workload.verification import SHRINK_SECONDS, Subject, VerifyOutcome, verify
from qmpshim.conformance.workload.verify import ChainSubject, setup_for, split
from qmpshim.conformance.workload.workload import Workload
from qmpshim.errors import DriverMissing, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import CHAINS
from qmpshim.machine.host.files import slug
from qmpshim.machine.host.workspace import Workspace

_BOTH = ("backup", "replication")
Outcome = VerifyOutcome[Any, Any, Any]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    verifying = commands.add_parser(
        "verify",
        help="compare a real QEMU with the model under a random workload",
        description="Does random operations to the disks of a real QEMU and to the model, and "
        "compares answers, data, allocation and status. A divergence is made small and kept as a "
        "bundle, which `qmpshim replay` shows again.",
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
        how = "as predicted" if result.done else "none, nothing was done"
        until = ", until it was interrupted" if outcome.interrupted else ""
        console.line(f"  verdict: {how}{until}")
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
