"""`qmpshim builds`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from qmpshim.codec import encode
from qmpshim.commands.console import OK, Console, Listed, show_list
from qmpshim.commands.options import json_option
from qmpshim.commands.parser import takes_name
from qmpshim.commands.results import STDOUT
from qmpshim.conformance.document import build_object
from qmpshim.errors import InputError, QmpshimError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.builds.debian import fetch
from qmpshim.machine.builds.probe import probe
from qmpshim.machine.builds.programs import run_with

_NAME = "a build by its name in `qmpshim builds list`"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    building = commands.add_parser(
        "builds",
        help="manage the QEMU builds to test",
        description="Names QEMU builds, so that other commands take them by --build, and fetches "
        "Debian's, without root and with nothing installed.",
    )
    actions = building.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all registered builds and the system's")
    # Without a FILE, as it once was: to stdout.
    json_option(listing, nargs="?", const=STDOUT)
    listing.set_defaults(run=_builds_list)
    adding = actions.add_parser("add", help="name a binary, a build tree or an unpacked prefix")
    adding.add_argument("name", help="the short name to register it under")
    adding.add_argument("place", help="path of the binary, build tree or prefix")
    adding.set_defaults(run=_builds_add)
    fetching = actions.add_parser("fetch", help="download builds from Debian, without root")
    fetching.add_argument(
        "specs",
        nargs="+",
        metavar="debian:SUITE[@VERSION]",
        help="a Debian suite, e.g. debian:trixie, and a version of its QEMU package (default: the "
        "newest)",
    )
    fetching.set_defaults(run=_builds_fetch)
    running = actions.add_parser(
        "run",
        help="run a command with a build's QEMU",
        description="Run a command that finds this build's qemu-system-x86_64, qemu-img, qemu-io "
        "and qemu-nbd first in PATH, and the first two as $QEMU and $QEMU_IMG. Its exit status is "
        "the command's.",
        epilog="Example:\n\n  qmpshim builds run debian:sid -- python3 reproducer.py",
    )
    takes_name(running.add_argument("name", help=_NAME), builds.names)
    running.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="the command and its arguments, after --",
    )
    running.set_defaults(run=_builds_run)
    for action, text, run in (
        ("probe", "what a build can do", _builds_probe),
        ("remove", "forget a build; a fetched one is deleted", _builds_remove),
    ):
        naming = actions.add_parser(action, help=text)
        takes_name(naming.add_argument("name", help=_NAME), builds.names)
        if action == "probe":
            json_option(naming)
        naming.set_defaults(run=run)


def _builds_list(args: argparse.Namespace, console: Console) -> int:
    rows = builds.list_builds()
    args.document.builds = [
        build_object(row.name, row.version, row.place) for row in rows if not row.problem
    ]
    items = [
        Listed(
            row.name,
            f"{row.kind:10} {row.discipline:18} {row.problem or row.version}  {row.place}".strip(),
            asdict(row),
        )
        for row in rows
    ]
    return show_list(items, args.document, console)


def _builds_add(args: argparse.Namespace, console: Console) -> int:
    build = builds.add(args.name, args.place)
    console.line(f"{build.name}: {read_version(build)[1]}")
    return OK


def _builds_fetch(args: argparse.Namespace, console: Console) -> int:
    """Each of them, whatever becomes of the others; the first error is the exit status."""
    failed: list[QmpshimError] = []
    wanted = list(dict.fromkeys(args.specs))
    for spec in wanted:
        try:
            build = fetch(spec, console.line)
            console.line(f"{build.name}: {read_version(build)[1]}")
        except QmpshimError as error:
            if len(wanted) == 1:
                raise
            console.line(f"{spec}: {error}")
            failed.append(error)
    if failed:
        console.line(f"{len(failed)} of {len(wanted)} could not be fetched")
        return failed[0].exit_code
    return OK


def _builds_probe(args: argparse.Namespace, console: Console) -> int:
    build = builds.resolve(args.name)
    args.document.judges = False
    args.document.about(build)
    can = probe(build)
    args.document.result = encode(can, order=True)
    console.line(f"{can.version_text}")
    console.line(f"  discipline   {can.discipline}")
    console.line(f"  replication  {'yes' if can.replication else 'no'}")
    console.line(f"  commands     {len(can.commands)}")
    console.line(f"  drivers      {' '.join(sorted(can.drivers))}")
    console.line(f"  migration    {' '.join(sorted(can.migration))}")
    console.line(f"  trace events {len(can.trace_events)}")
    console.line(f"  sha256       {can.sha256}")
    return OK


def _builds_run(args: argparse.Namespace, console: Console) -> int:
    if not args.words:
        raise InputError("no command: qmpshim builds run NAME -- COMMAND ...")
    return run_with(builds.resolve(args.name), args.words)


def _builds_remove(args: argparse.Namespace, console: Console) -> int:
    builds.remove(args.name)
    console.line(f"{args.name}: removed")
    return OK
