"""`qmpshim export`: a finding as a script that needs no qmpshim."""

from __future__ import annotations

import argparse
from typing import Any

from qmpshim.commands.bundle_argument import bundle_argument, finding_named
from qmpshim.commands.console import OK, Console
from qmpshim.commands.options import json_option, refuse_unused
from qmpshim.commands.results import STDOUT
from qmpshim.conformance.explore.report.finding_files import is_schedule, load_finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.known.matching import ExplorerWriteUp
from qmpshim.conformance.known.steps.of_bundle import bundle_script
from qmpshim.conformance.known.tracker import script_of
from qmpshim.errors import InputError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    exporting = commands.add_parser(
        "export", help="write a finding as a script that needs no qmpshim"
    )
    bundle_argument(
        exporting, "a directory that explore, verify, check, pair or a session kept, or its file"
    )
    exporting.add_argument(
        "--nbd",
        action="store_true",
        help="of explore's: hold the requests by an NBD server in the script even where "
        "breakpoints of blkdebug would do: follows the schedule to the letter, also on QEMU 5.1 to "
        "6.0",
    )
    json_option(exporting)
    exporting.set_defaults(run=_export)


def _export(args: argparse.Namespace, console: Console) -> int:
    args.document.judges = False
    entry = finding_named(args.bundle)
    if entry is not None and not (args.nbd and isinstance(entry, ExplorerWriteUp)):
        refuse_unused(args, "with a finding that has no schedule", "--nbd")
        script = script_of(entry)
    elif entry is not None:
        script = export_script(load_finding(entry.path), breakpoints=False)
    elif is_schedule(args.bundle):
        script = export_script(load_finding(args.bundle), breakpoints=not args.nbd)
    elif args.nbd:
        raise InputError(f"{args.bundle} holds no schedule of `explore`, which alone takes --nbd")
    else:
        script = bundle_script(args.bundle)
    args.document.result = {"bundle": str(args.bundle), "nbd": args.nbd, "script": script}
    if args.json != STDOUT:  # then the script is in the document
        console.line(script.rstrip("\n"))
    return OK
