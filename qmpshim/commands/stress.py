"""`qmpshim stress`: load and abuse for a QMP endpoint, and what is left of it."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qmpshim.commands.chosen_builds import chosen_build
from qmpshim.commands.console import DIVERGED, OK, Console
from qmpshim.commands.options import build_options, json_option, refuse_unused
from qmpshim.commands.parser import count
from qmpshim.errors import BuildError, MachineError
from qmpshim.machine.host.safe_path import our_python
from qmpshim.machine.host.workspace import Workspace, dies_with_owner
from qmpshim.shim.endpoint.listener import Address, raise_fd_limit
from qmpshim.shim.stress import Figures, check_shim, stress


def add(commands: Any) -> None:
    """Add the command to the parser."""
    stressing = commands.add_parser(
        "stress",
        help="load a shim: many short-lived, malformed and stuck clients",
        description="Connects many clients to a shim: short-lived ones, ones that send what is "
        "no QMP, ones that read nothing; and looks whether the others are served as they should "
        "be.",
    )
    stressing.add_argument(
        "address",
        nargs="?",
        help="unix:PATH or HOST:PORT of a shim (default: start one with a QEMU)",
    )
    build_options(stressing, machine=False)
    stressing.add_argument(
        "--clients",
        type=count,
        default=1000,
        metavar="N",
        help="short-lived clients (default: 1000)",
    )
    stressing.add_argument(
        "--messages",
        type=count,
        default=20_000,
        metavar="N",
        help="malformed messages (default: 20000)",
    )
    stressing.add_argument(
        "--seed", type=int, default=1, metavar="S", help="of the malformed messages (default: 1)"
    )
    json_option(stressing)
    stressing.set_defaults(run=_stress)


def _stress(args: argparse.Namespace, console: Console) -> int:
    if args.address:
        refuse_unused(args, "on a shim that runs already", "--build", "--qemu")
    raise_fd_limit()
    with _endpoint(args) as address:
        try:
            if args.address:
                console.progress(f"seeing whether a shim answers at {address}")
                check_shim(address)
            figures = stress(address, args.clients, args.messages, args.seed, console.progress)
        except MachineError as error:
            args.document.result = {"address": str(address), "left": str(error)}
            console.line(f"it did not stand it: {error}")
            return DIVERGED
    args.document.result = {"address": str(address), **figures.to_json()}
    return _show(figures, console)


@contextmanager
def _endpoint(args: argparse.Namespace) -> Iterator[Address]:
    if args.address:
        yield Address.parse(args.address)
        return
    args.document.about(chosen_build(args))
    which = ["--qemu", args.qemu] if args.qemu else ["--build", args.build] if args.build else []
    with Workspace() as workspace:
        address = Address(path=workspace.path / "stressed.sock")
        command = our_python("qmpshim", "serve", "--listen", str(address), *which)
        stderr = workspace.path / "stderr"
        with stderr.open("wb") as err:
            server = subprocess.Popen(
                dies_with_owner(command),
                stdout=subprocess.PIPE,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        try:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise BuildError(stderr.read_text().strip() or "qmpshim serve did not start")
            yield address
        finally:
            server.terminate()
            server.wait()


def _show(figures: Figures, console: Console) -> int:
    served = f"{figures.clients} ({figures.clients / figures.clients_seconds:,.0f}/s)"
    survived = f"{figures.malformed} ({figures.malformed / figures.malformed_seconds:,.0f}/s)"
    console.line(f"clients served       {served}, half of them left in the middle of a request")
    console.line(f"malformed messages   {survived} survived, and one of 65 MiB")
    console.line(
        "stuck client         "
        + ("stopped, the others were served" if figures.cut_off else "was never stopped")
    )
    before, after = figures.before, figures.after
    if before is None or after is None:
        console.line("memory               cannot be seen: the endpoint is no unix socket of ours")
    else:
        was, now = before.memory >> 10, after.memory >> 10
        console.line(f"memory               {was} KiB before, {now} KiB after ({now - was:+d} KiB)")
        console.line(f"descriptors          {before.descriptors} before, {after.descriptors} after")
    console.line(f"left behind: {figures.left}" if figures.left else "stood it")
    return DIVERGED if figures.left else OK
