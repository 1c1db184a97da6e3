"""`qmpshim guest`."""

from __future__ import annotations

import argparse
import os
import subprocess
from typing import Any

from qmpshim.commands.console import OK, Console, build_options, chosen_build
from qmpshim.machine import guest, guest_image
from qmpshim.machine.workspace import dies_with_owner


def add(commands: Any) -> None:
    """Add the command to the parser."""
    building = commands.add_parser("guest", help="the small Linux that the guest checks boot")
    actions = building.add_subparsers(dest="action", required=True, metavar="ACTION")
    making = actions.add_parser("build", help="make it of Debian's packages, or say where it is")
    making.add_argument(
        "--refresh", action="store_true", help="make it again of what the mirror has today"
    )
    making.set_defaults(run=_guest_build)
    booting = actions.add_parser("boot", help="boot it here, with a shell; Ctrl-A X ends it")
    build_options(booting, machine=False)
    booting.add_argument("--machine", default="pc", help="QEMU's -machine (default pc)")
    booting.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="more of QEMU's arguments, after --"
    )
    booting.set_defaults(run=_guest_boot)


def _guest_build(args: argparse.Namespace, console: Console) -> int:
    image = guest_image.build(console.progress, refresh=args.refresh)
    manifest = image.manifest
    for package in manifest["packages"]:
        console.line(f"{package['package']:34} {package['version']:24} {package['sha256'][:16]}")
    sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in manifest["bytes"].items())
    console.line(f"modules: {' '.join(manifest['modules'])}")
    console.line(f"{image.directory}: {sizes}")
    return OK


def _guest_boot(args: argparse.Namespace, console: Console) -> int:
    build = chosen_build(args)
    image = guest_image.build(console.progress)
    more = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    words = [
        *build.command(),
        *("-machine", guest.machine(args.machine), "-nodefaults", "-no-user-config", "-nographic"),
        *guest.arguments(image, guest.GuestSpec(words=("qmpshim.console=shell",))),
        *("-serial", "mon:stdio", "-no-reboot"),
        *more,
    ]
    console.line("the workload program is /bin/workload; Ctrl-A X ends the guest")
    return subprocess.call(dies_with_owner(words), env=os.environ | build.env)
