"""The command line: thin doors to the floors below."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TextIO

import qmpshim
from qmpshim.conformance import bundle as bundles
from qmpshim.conformance.verify import Outcome, replay, setup_for, split, verify
from qmpshim.errors import HostError, InputError, QmpshimError
from qmpshim.machine import builds
from qmpshim.machine.builds import Build, read_version
from qmpshim.machine.debian import fetch
from qmpshim.machine.probe import probe
from qmpshim.machine.secondary import ChainSpec
from qmpshim.machine.workspace import Workspace
from qmpshim.model.chain import Workflow

OK, DIVERGED, WRONG, UNTESTABLE = 0, 1, 2, 125


class Console:
    """Progress on one rewritten line of a terminal, or as plain lines now and then."""

    def __init__(self, out: TextIO, interval: float = 2.0) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._interval = interval
        self._next = 0.0
        self._shown = False

    def progress(self, text: str) -> None:
        """What is being done right now."""
        now = time.monotonic()
        if self._terminal:
            self._out.write(f"\r\x1b[K{text[: self._width() - 1]}")
            self._shown = True
        elif now >= self._next:
            self._out.write(text + "\n")
            self._next = now + self._interval
        self._out.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or 80
        except OSError:
            return 80

    def line(self, text: str = "") -> None:
        """A line that stays."""
        if self._shown:
            self._out.write("\r\x1b[K")
            self._shown = False
        self._out.write(text + "\n")
        self._out.flush()


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size(text: str) -> int:
    """Bytes, with an optional suffix k, M, G or T."""
    found = re.fullmatch(r"(\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write e.g. 512, 64k or 1G")
    return int(found[1]) * _UNITS[found[2]]


def count(text: str) -> int:
    """A positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qmpshim",
        description="Makes QEMU's live block backup and block replication (COLO) checkable.",
    )
    parser.add_argument("--version", action="version", version=f"qmpshim {qmpshim.__version__}")
    parser.add_argument("--debug", action="store_true", help="log what is done to stderr")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    verifying = commands.add_parser(
        "verify", help="hold a real QEMU against the model with a random workload"
    )
    _build_options(verifying)
    verifying.add_argument("--workflow", choices=["backup", "replication", "both"], default="both")
    verifying.add_argument(
        "--ops", type=count, default=4000, metavar="N", help="operations in all (default 4000)"
    )
    verifying.add_argument("--seed", type=int, default=1, metavar="S")
    verifying.add_argument(
        "--size", type=size, default=64 << 20, help="virtual size of the disks (default 64M)"
    )
    verifying.add_argument(
        "--cluster", type=size, default=64 << 10, help="qcow2 cluster size (default 64k)"
    )
    verifying.add_argument("--secondary", choices=["raw", "qcow2"], default="raw")
    verifying.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    verifying.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep images, logs and bundles in DIR "
        "(without it only bundles are kept, in ./qmpshim-bundles)",
    )
    verifying.add_argument(
        "--strict", action="store_true", help="report known defects of QEMU as divergences, too"
    )
    verifying.set_defaults(run=_verify)

    replaying = commands.add_parser("replay", help="show a bundle's divergence again")
    replaying.add_argument("bundle", type=Path)
    _build_options(replaying)
    replaying.set_defaults(run=_replay)

    building = commands.add_parser("builds", help="the QEMU builds there are")
    actions = building.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="all registered builds and the system's").set_defaults(
        run=_builds_list
    )
    adding = actions.add_parser("add", help="name a binary, a build tree or an unpacked prefix")
    adding.add_argument("name")
    adding.add_argument("place")
    adding.set_defaults(run=_builds_add)
    fetching = actions.add_parser("fetch", help="get one from Debian, e.g. debian:trixie")
    fetching.add_argument("spec")
    fetching.set_defaults(run=_builds_fetch)
    for action, text, run in (
        ("probe", "what a build can do", _builds_probe),
        ("remove", "forget a build; a fetched one is deleted", _builds_remove),
    ):
        naming = actions.add_parser(action, help=text)
        naming.add_argument("name")
        naming.set_defaults(run=run)
    return parser


def _build_options(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--build", metavar="NAME", help="a build `qmpshim builds list` shows")
    where.add_argument("--qemu", metavar="PATH", help="a QEMU binary (default: the system's)")
    parser.add_argument("--machine", default="none", help="QEMU's -machine (default none)")
    parser.add_argument(
        "--limit",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="after this long without an answer QEMU counts as hung (default 30)",
    )


def _chosen(args: argparse.Namespace) -> Build:
    return builds.resolve(args.qemu or args.build)


def _run(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end; SIGINT and SIGTERM cancel it, so that everything is taken down."""

    async def guarded() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        caught: list[int] = []

        def cancel(number: int) -> None:
            caught.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, cancel, number)
        try:
            return await task
        except asyncio.CancelledError:
            print("interrupted; QEMU was ended and its files removed", file=sys.stderr)
            return 128 + caught[0] if caught else WRONG

    return asyncio.run(guarded())


# -- verify ------------------------------------------------------------


def _verify(args: argparse.Namespace, console: Console) -> int:
    return _run(_verify_all(args, console))


async def _verify_all(args: argparse.Namespace, console: Console) -> int:
    workflows = list(Workflow) if args.workflow == "both" else [Workflow(args.workflow)]
    if args.ops < 40 * len(workflows):
        raise InputError(
            f"--ops {args.ops} is too few to see anything; take at least 40 a workflow"
        )
    build = _chosen(args)
    _, version = read_version(build)
    setups = {
        workflow: setup_for(
            build,
            ChainSpec(workflow, args.size, args.cluster, args.secondary),
            args.machine,
            args.strict,
            args.limit,
        )
        for workflow in workflows
    }
    if args.json is not None:
        _check_writable(args.json)
    console.line(f"{version}")
    outcomes: list[Outcome] = []
    with Workspace() as workspace:
        for workflow, share in split(args.ops, workflows).items():
            outcome = await verify(
                setups[workflow],
                version,
                share,
                args.seed,
                workspace,
                args.keep or Path("qmpshim-bundles"),
                console.progress,
                args.keep,
            )
            outcomes.append(outcome)
            _show(outcome, console)
    diverged = [outcome for outcome in outcomes if outcome.result.divergence]
    if args.json is not None:
        _write_json(args.json, outcomes)
    total = sum(outcome.result.done for outcome in outcomes)
    seconds = sum(outcome.result.seconds for outcome in outcomes)
    clusters = sum(outcome.result.clusters for outcome in outcomes)
    console.line(
        f"{'DIVERGED' if diverged else 'all as predicted'}: {total} operations, "
        f"{clusters} clusters compared, {seconds:.1f} s"
    )
    return DIVERGED if diverged else OK


def _show(outcome: Outcome, console: Console) -> None:
    result, spec = outcome.result, outcome.setup.spec
    console.line(
        f"{spec.workflow}: seed {outcome.seed}, {spec.size >> 10} KiB disk, "
        f"{spec.cluster >> 10} KiB clusters, {spec.secondary} secondary"
        if spec.cluster >= 1024
        else f"{spec.workflow}: seed {outcome.seed}, {spec.size} byte disk, "
        f"{spec.cluster} byte clusters, {spec.secondary} secondary"
    )
    sides: dict[str, list[str]] = {}
    for name, number in sorted(result.operations.items()):
        side, _, kind = name.partition(" ")
        sides.setdefault(side, []).append(f"{number} {kind}")
    for side, kinds in sides.items():
        console.line(f"  {side:8} {', '.join(kinds)}")
    console.line(
        f"  {result.done} operations and {result.checks} cross-checks "
        f"({result.clusters} clusters) in {result.seconds:.1f} s"
    )
    for known, number in result.known.items():
        console.line(f"  known defect seen {number} times, as predicted: {known}")
    found = result.divergence
    if found is None:
        console.line("  verdict: as predicted")
        return
    console.line(f"  verdict: {found.verdict} ({found.where})")
    console.line(f"    predicted: {found.predicted}")
    console.line(f"    observed:  {found.observed}")
    console.line(f"  minimal case, {len(outcome.operations)} operations:")
    for operation in outcome.operations[:30]:
        console.line(f"    {operation}")
    if len(outcome.operations) > 30:
        console.line(f"    ... and {len(outcome.operations) - 30} more")
    console.line(f"  replay it: qmpshim replay {outcome.bundle}")


def _check_writable(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _write_json(path: Path, outcomes: Sequence[Outcome]) -> None:
    value = {
        "qmpshim": qmpshim.__version__,
        "verdicts": [o.result.divergence.verdict for o in outcomes if o.result.divergence],
        "runs": [outcome.to_json() for outcome in outcomes],
    }
    try:
        path.write_text(json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


# -- replay ------------------------------------------------------------


def _replay(args: argparse.Namespace, console: Console) -> int:
    return _run(_replay_one(args, console))


async def _replay_one(args: argparse.Namespace, console: Console) -> int:
    case = bundles.load(args.bundle)
    build = _chosen(args)
    setup = setup_for(build, case.spec, args.machine, limit=args.limit)
    console.line(read_version(build)[1])
    with Workspace() as workspace:
        result = await replay(case, setup, workspace, console.progress)
    found = result.divergence
    if found is None:
        console.line(
            f"not reproduced: {result.done} operations went as predicted; "
            f"the bundle says {case.divergence}"
        )
        return OK
    same = found.signature == case.divergence.signature
    console.line(("reproduced: " if same else "another divergence: ") + str(found))
    return DIVERGED


# -- builds ------------------------------------------------------------


def _builds_list(_args: argparse.Namespace, console: Console) -> int:
    for row in builds.list_builds():
        console.line(
            f"{row.name:18} {row.kind:10} {row.discipline:18} {row.problem or row.version}"
        )
        console.line(f"{'':18} {row.place}")
    return OK


def _builds_add(args: argparse.Namespace, console: Console) -> int:
    build = builds.add(args.name, args.place)
    console.line(f"{build.name}: {read_version(build)[1]}")
    return OK


def _builds_fetch(args: argparse.Namespace, console: Console) -> int:
    build = fetch(args.spec, console.line)
    console.line(f"{build.name}: {read_version(build)[1]}")
    return OK


def _builds_probe(args: argparse.Namespace, console: Console) -> int:
    can = probe(builds.resolve(args.name))
    console.line(f"{can.version_text}")
    console.line(f"  discipline   {can.discipline}")
    console.line(f"  replication  {'yes' if can.replication else 'no'}")
    console.line(f"  commands     {len(can.commands)}")
    console.line(f"  drivers      {' '.join(sorted(can.drivers))}")
    console.line(f"  migration    {' '.join(sorted(can.migration))}")
    console.line(f"  trace events {len(can.trace_events)}")
    console.line(f"  sha256       {can.sha256}")
    return OK


def _builds_remove(args: argparse.Namespace, console: Console) -> int:
    builds.remove(args.name)
    console.line(f"{args.name}: removed")
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status (see the README)."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.debug else logging.CRITICAL,
        format="%(relativeCreated)6d ms %(name)s: %(message)s",
    )
    run: Callable[[argparse.Namespace, Console], int] = args.run
    try:
        return run(args, Console(sys.stdout))
    except QmpshimError as error:
        print(f"qmpshim: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"qmpshim: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return WRONG
    except BrokenPipeError:
        return WRONG
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
