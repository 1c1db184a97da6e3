"""`qmpshim pair`: a COLO pair, its checkpoints and its failovers."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.commands.assessed import show_assessed
from qmpshim.commands.cancellation import run_cancellable
from qmpshim.commands.chosen_builds import chosen_build
from qmpshim.commands.console import DIVERGED, OK, Console
from qmpshim.commands.options import build_options, output_options, refuse_unused
from qmpshim.commands.parser import count, seconds, takes_name
from qmpshim.commands.results import BUNDLES, check_directory, not_kept
from qmpshim.conformance.bundles.again import replay_command
from qmpshim.conformance.finding_words import KNOWN_FAIL, classified
from qmpshim.conformance.known.accelerator import best_accel
from qmpshim.conformance.known.folder import known_pairs
from qmpshim.conformance.known.seen import SeenFinding, assessed, seen
from qmpshim.conformance.pair import bundle as pair_bundle
from qmpshim.conformance.pair.plan import (
    GUESTS,
    MOMENTS,
    Failover,
    PairFinding,
    PairOutcome,
    PairPlan,
)
from qmpshim.conformance.pair.run_plan import run_plan, summary
from qmpshim.errors import InputError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build, read_version


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "pair",
        help="run a COLO pair, compare all disks at each checkpoint, fail over",
        description="Starts a primary and a secondary QEMU joined as in docs/COLO-FT.txt, and "
        "compares their disks with each other and with the model at every checkpoint.",
    )
    build_options(parser, machine=False)
    other = parser.add_argument(
        "--secondary-build", metavar="NAME", help="the secondary's build (default: the primary's)"
    )
    takes_name(other, builds.names)
    parser.add_argument(
        "--checkpoints",
        type=count,
        default=10,
        metavar="N",
        help="checkpoints to take (default: 10)",
    )
    parser.add_argument(
        "--writes",
        type=count,
        default=20,
        metavar="N",
        help="writes of the primary's guest between two checkpoints, at least (default: 20)",
    )
    parser.add_argument(
        "--no-colo",
        action="store_true",
        help="block replication alone: no virtual machines, checkpoints by xen-colo-do-checkpoint",
    )
    parser.add_argument(
        "--guest",
        choices=GUESTS,
        default="boot",
        help="what runs in the virtual machines: a boot sector that writes, Linux (qmpshim guest), "
        "or none: machines without a CPU, whose writes come over NBD (default: boot)",
    )
    parser.add_argument(
        "--failover",
        choices=[kind.value for kind in Failover if kind is not Failover.NONE],
        help="in the end kill one side, cut the NBD link, or stall it; cut-late: COLO takes one "
        "more checkpoint after the cut",
    )
    parser.add_argument(
        "--moment",
        choices=MOMENTS,
        default="",
        help="with --failover primary: kill it in a checkpoint, when the secondary sends this "
        "message",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="after the failover mirror to a new secondary, and replicate again",
    )
    parser.add_argument(
        "--accel",
        choices=["auto", "tcg", "kvm"],
        default="auto",
        help="accelerator of the virtual machines (default: auto, which is tcg, or kvm for QEMUs "
        "whose COLO needs it)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="S",
        help="of the writes, not with --guest boot (default: 1)",
    )
    parser.add_argument(
        "--limit",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="seconds a step may take, or 5m for minutes (default: 30)",
    )
    output_options(parser, "logs, disks and bundles")
    parser.set_defaults(run=_pair)


def _pair(args: argparse.Namespace, console: Console) -> int:
    return run_cancellable(_run(args, console))


async def _run(args: argparse.Namespace, console: Console) -> int:
    if args.resume and not args.failover:
        raise InputError("--resume goes on after a --failover: say which")
    if args.no_colo:
        refuse_unused(args, "with --no-colo", "--guest", "--accel", "--moment")
    elif args.guest == "boot":
        refuse_unused(args, "with the boot sector, which always writes the same", "--seed")
    if args.failover != Failover.PRIMARY:
        refuse_unused(args, "without --failover primary", "--moment")
    primary = chosen_build(args)
    secondary = builds.resolve(args.secondary_build) if args.secondary_build else primary
    args.document.about(primary, secondary)
    if args.keep is not None:
        check_directory(args.keep)
    plan = PairPlan(
        colo=not args.no_colo,
        guest=args.guest,
        checkpoints=args.checkpoints,
        writes=args.writes,
        failover=Failover(args.failover or "none"),
        moment=args.moment,
        resume=args.resume,
        seed=args.seed,
        accel=best_accel((primary, secondary), args.guest) if args.accel == "auto" else args.accel,
        limit=args.limit,
    )
    console.line(f"primary:   QEMU {read_version(primary)[1]}")
    console.line(f"secondary: QEMU {read_version(secondary)[1]}")

    def show(outcome: PairOutcome, bundle: Path | None) -> None:
        _show(outcome, bundle, primary, args.strict, console)
        document = pair_bundle.to_json(outcome, (primary, secondary))
        args.document.result = {
            **{
                name: document[name]
                for name in document
                if name not in ("qmpshim", "format", "builds")
            },
            # The document is a bundle's file, too, for `replay`.
            "case": {name: document[name] for name in ("format", "kind", "plan", "findings")},
        }

    def interrupted(outcome: PairOutcome, bundle: Path | None) -> None:
        console.line("interrupted; until then:")
        show(outcome, bundle)

    outcome, bundle = await run_plan(
        plan,
        (primary, secondary),
        args.keep or BUNDLES,
        known=known_pairs(),
        progress=lambda done, text: console.progress(f"{done.seconds:7.1f} s  {text}"),
        keep=args.keep,
        interrupted=interrupted,
    )
    show(outcome, bundle)
    return DIVERGED if _failing(outcome, args.strict) else OK


def _failing(outcome: PairOutcome, strict: bool) -> list[PairFinding]:
    """What the run fails for."""
    return [finding for finding in outcome.findings if strict or not finding.known]


def _show(
    outcome: PairOutcome, bundle: Path | None, primary: Build, strict: bool, console: Console
) -> None:
    for step in outcome.steps:
        if "FOUND" not in step:
            console.line(f"  {step}")
    for name, value in outcome.figures.items():
        console.line(f"  {value:.1f} {name}, all disks compared at each")
    for finding in outcome.findings:
        found = finding.divergence
        words = classified(finding.contract, finding.known)
        console.line(f"  verdict: {found.verdict} at {found.where} ({words})")
        console.prose(f"    predicted: {found.predicted}")
        console.prose(f"    observed:  {found.observed}")
    if bundle is not None:
        console.line(f"  replay it: {replay_command(bundle, primary)}")
    if outcome.unsaved:
        console.line(f"  {not_kept(outcome.unsaved)}")
    failing = _failing(outcome, strict)
    state = "known findings only" if outcome.findings else "all as predicted"
    if failing:
        known = any(finding.known for finding in failing)
        state = "DIVERGED" + (f" ({KNOWN_FAIL})" if known else "")
    text = f"{state}: {summary(outcome)}, {outcome.seconds:.1f} s"
    console.prose(text, DIVERGED if failing else OK)
    seen_ones = seen_in(outcome)
    show_assessed(assessed(seen_ones), seen_ones, console)


def seen_in(outcome: PairOutcome) -> list[SeenFinding]:
    """What was found, with its write-ups also where the run was strict: as `assess` knows it."""
    plan, found = outcome.plan, []
    for one in outcome.findings:
        shown = (known.id for known in known_pairs() if known.shown_by(one, plan))
        found.append(seen(replace(one, known=one.known or next(shown, ""))))
    return found
