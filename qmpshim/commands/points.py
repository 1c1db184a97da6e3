"""`qmpshim verify --workflow push`, ``bitmaps``, ``pull``, and the replay of their bundles."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmpshim.commands.console import (
    BUNDLES,
    DIVERGED,
    LIMIT,
    MACHINE,
    OK,
    UNTESTABLE,
    Console,
    in_words,
    not_kept,
    replay_command,
)
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.pointintime.bundle import load
from qmpshim.conformance.pointintime.verify import (
    SIZE,
    PointsOutcome,
    points_setup,
    replay_points,
    verify_points,
)
from qmpshim.conformance.pointintime.workload import PointsWorkflow
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.points import PointsSpec
from qmpshim.machine.host.workspace import Workspace

WORKFLOWS = tuple(workflow.value for workflow in PointsWorkflow)


async def verify_build(
    args: argparse.Namespace,
    build: Build,
    keep: Path | None,
    console: Console,
    into: list[PointsOutcome],
) -> int:
    """Verify one workflow on one build; the outcome is added to *into*."""
    _, version = read_version(build)
    size = SIZE if args.size == args.parser.get_default("size") else args.size
    spec = PointsSpec(size, args.cluster)
    setup = points_setup(build, spec, args.machine, args.strict, args.limit)
    console.line(f"QEMU {version}")

    def at_once(divergence: Divergence) -> None:
        console.line(f"{divergence}")
        console.line(f"  making the case small, for {args.shrink:g} s at most")

    with Workspace() as workspace:
        outcome = await verify_points(
            PointsWorkflow(args.workflow),
            setup,
            version,
            args.ops,
            args.seed,
            workspace,
            keep or BUNDLES,
            console.progress,
            keep,
            args.shrink,
            at_once,
        )
    into.append(outcome)
    _show(outcome, build, args, console)
    result = outcome.result
    console.line(
        f"{'DIVERGED' if result.divergence else 'all as predicted'}: {result.done} operations, "
        f"{result.clusters} clusters compared, {result.seconds:.1f} s"
    )
    return DIVERGED if result.divergence else OK


def _show(outcome: PointsOutcome, build: Build, args: argparse.Namespace, console: Console) -> None:
    result, spec = outcome.result, outcome.setup.spec
    console.line(
        f"{outcome.workflow}: seed {outcome.seed}, {spec.disks} disks of {in_words(spec.size)}, "
        f"{in_words(spec.cluster)} clusters"
    )
    done = (f"{number} {kind}" for kind, number in sorted(result.operations.items()))
    console.line(f"  {', '.join(done)}")
    if result.targets:
        ends = (f"{number} {ending}" for ending, number in sorted(result.targets.items()))
        console.line(f"  targets judged, by how their job ended: {', '.join(ends)}")
    console.line(
        f"  {result.done} operations and {result.checks} cross-checks "
        f"({result.clusters} clusters) in {result.seconds:.1f} s"
    )
    for known, number in sorted(result.known.items()):
        console.line(f"  left out, since it meets a known defect: {known} ({number}x)")
    found = result.divergence
    if found is None:
        console.line("  verdict: as predicted")
        return
    console.line(f"  verdict: {found.verdict} ({found.where})")
    console.line(f"    predicted: {found.predicted}")
    console.line(f"    observed:  {found.observed}")
    console.line(f"  minimal case, {len(outcome.operations)} operations:")
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


async def replay(args: argparse.Namespace, build: Build, console: Console) -> int:
    """Replay a bundle of one of these workflows."""
    case = load(args.bundle)
    setup = points_setup(build, case.spec, args.machine, limit=args.limit)
    console.line(f"QEMU {read_version(build)[1]}")
    with Workspace() as workspace:
        result = await replay_points(case, setup, workspace, console.progress)
    found = result.divergence
    shown = case.shown_by(found)
    document: dict[str, Any] = {
        "reproduced": shown,
        "observed": [] if found is None else [str(found)],
        "operations": result.done,
    }
    args.document.result |= document
    if found is None:
        how = "reproduced" if shown else "not reproduced"
        recorded = "" if case.divergence is None else f"; the bundle states {case.divergence}"
        console.line(f"{how}: {result.done} operations went as predicted{recorded}")
        return OK
    if shown:
        console.line(f"reproduced: {found}")
        return DIVERGED
    if case.divergence is None:
        console.line(f"another divergence: {found}")
        return DIVERGED
    args.document.error = f"cannot be tested: another divergence: {found}"
    console.line(args.document.error)
    return UNTESTABLE
