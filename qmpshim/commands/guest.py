"""`qmpshim guest`."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any, get_args

from qmpshim.commands.cancellation import run_cancellable
from qmpshim.commands.chosen_builds import chosen_build
from qmpshim.commands.console import DIVERGED, OK, Console, Listed, show_list
from qmpshim.commands.options import build_options, json_option, list_option
from qmpshim.commands.results import check_directory
from qmpshim.conformance.guest.run import GuestOutcome, refuse, run_scenario
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.known.folder import known_directed
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.guest import guest
from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest.chain import Attachment, Cache, Device
from qmpshim.machine.host.workspace import dies_with_owner


def add(commands: Any) -> None:
    """Add the command to the parser."""
    building = commands.add_parser(
        "guest",
        help="the small Linux that the guest checks boot",
        description="A small Linux, made of Debian's packages, that uses its disk while "
        "checkpoints are taken and the primary writes: what it sees has to be what the model "
        "predicts.",
    )
    actions = building.add_subparsers(dest="action", required=True, metavar="ACTION")
    making = actions.add_parser("build", help="make it of Debian's packages, or show where it is")
    making.add_argument(
        "--refresh", action="store_true", help="make it again of what the mirror has today"
    )
    making.set_defaults(run=_guest_build)
    booting = actions.add_parser("boot", help="boot it here, with a shell; Ctrl-A X ends it")
    build_options(booting, machine=False)
    booting.add_argument("--machine", default="pc", help="QEMU's -machine (default: pc)")
    booting.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="further QEMU arguments, after --"
    )
    booting.set_defaults(run=_guest_boot)
    checking = actions.add_parser(
        "check",
        help="run scenarios with a guest on the chain of disks, checked by the model",
        description="Scenarios: "
        + "; ".join(f"{scenario.name} ({scenario.about})" for scenario in SCENARIOS.values()),
    )
    checking.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="the scenarios to run (default: all)"
    )
    build_options(checking, machine=False)
    checking.add_argument(
        "--device",
        choices=get_args(Device),
        default="virtio-blk",
        help="the guest's controller (default: virtio-blk)",
    )
    checking.add_argument(
        "--iothread", action="store_true", help="serve the disk in a thread of its own"
    )
    checking.add_argument(
        "--cache",
        choices=get_args(Cache),
        default="unsafe",
        help="QEMU's cache mode of the images (default: unsafe)",
    )
    checking.add_argument(
        "--aio",
        choices=("threads", "native", "io_uring"),
        default="threads",
        help="how QEMU reads and writes the images (default: threads); native needs --cache none "
        "or directsync",
    )
    checking.add_argument(
        "--seed", type=int, default=1, help="of the guest's workload (default: 1)"
    )
    checking.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep logs and images of divergences in DIR"
    )
    json_option(checking)
    list_option(checking, "the scenarios")
    checking.set_defaults(run=_guest_check)


def _guest_build(args: argparse.Namespace, console: Console) -> int:
    image = guest_image.build(console.progress, refresh=args.refresh)
    manifest = image.manifest
    for package in manifest["packages"]:
        console.line(f"{package['package']:34} {package['version']:24} {package['sha256'][:16]}")
    sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in manifest["bytes"].items())
    console.line(f"modules: {' '.join(manifest['modules'])}")
    console.line(f"{image.directory}: {sizes}")
    return OK


def _guest_check(args: argparse.Namespace, console: Console) -> int:
    wanted = args.scenarios or list(SCENARIOS)
    if unknown := [name for name in wanted if name not in SCENARIOS]:
        raise InputError(f"no guest scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    if args.list:
        shown = [Listed(name, SCENARIOS[name].about) for name in wanted]
        return show_list(shown, args.document, console)
    attachment = Attachment(args.device, args.iothread, args.cache, args.aio)
    if args.aio == "native" and not attachment.direct:
        raise InputError("--aio native needs --cache none or directsync")
    if args.keep is not None:
        check_directory(args.keep)
    build = chosen_build(args)
    args.document.about(build)
    image = guest_image.build(console.progress)
    refuse(build, attachment)
    console.line(f"QEMU {read_version(build)[1]}, {args.device}")

    outcomes: list[dict[str, Any]] = []
    args.document.result = {
        "device": args.device,
        "iothread": args.iothread,
        "cache": args.cache,
        "aio": args.aio,
        "seed": args.seed,
        "scenarios": outcomes,
    }

    async def main() -> int:
        worst = OK
        for name in wanted:
            console.progress(f"{name}: {SCENARIOS[name].about}")
            keep = args.keep / name if args.keep else None
            outcome = await run_scenario(
                *(SCENARIOS[name], build, image, attachment, args.seed),
                known=known_directed(),
                keep=keep,
            )
            outcomes.append(outcome.to_json())
            worst = max(worst, _show(outcome, console))
            args.document.diverged = worst == DIVERGED
        return worst

    return run_cancellable(main())


def _show(outcome: GuestOutcome, console: Console) -> int:
    figures, found = outcome.figures, outcome.divergence
    done = (
        f"{figures['operations']:.0f} operations, {figures['clusters']:.0f} clusters compared, "
        f"{figures['run seconds']:.1f} s (guest ready in {figures['ready seconds']:.1f} s)"
    )
    status = OK if found is None or outcome.known else DIVERGED
    known = f" (known: {outcome.known})" if outcome.known else ""
    how = "as predicted" if found is None else f"{found.verdict}{known}"
    console.prose(f"  {outcome.scenario.name:16} {how}: {done}", status)
    if found is not None:
        console.prose(f"    {found}")
    return status


def _guest_boot(args: argparse.Namespace, console: Console) -> int:
    build = chosen_build(args)
    image = guest_image.build(console.progress)
    more = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    words = [
        *build.emulator_command(),
        *("-machine", guest.machine(args.machine), "-nodefaults", "-no-user-config", "-nographic"),
        *guest.arguments(image, guest.GuestSpec(words=("qmpshim.console=shell",))),
        *("-serial", "mon:stdio", "-no-reboot"),
        *more,
    ]
    console.line("the workload program is /bin/workload; Ctrl-A X ends the guest")
    return subprocess.call(dies_with_owner(words), env=os.environ | build.env)
