"""`qmpshim export`: a finding as a script that needs no qmpshim."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmpshim.commands.bundle_argument import bundle_argument, finding_named
from qmpshim.commands.console import OK, Console
from qmpshim.commands.options import json_option
from qmpshim.commands.results import STDOUT, check_writable
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.known.bundle_kinds import load_bundle
from qmpshim.conformance.known.tracker import script_of, script_of_bundle, script_of_schedule
from qmpshim.errors import InputError
from qmpshim.machine.host.files import write_file


def add(commands: Any) -> None:
    """Add the command to the parser."""
    exporting = commands.add_parser(
        "export",
        help="write a finding as a script that needs no qmpshim",
        description="Writes a Python script that shows a finding with QEMU and nothing else, for "
        "a bug tracker or for `git bisect run`. It ends with 1 where it sees the defect, 0 where "
        "not, 125 where it cannot tell.",
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
    exporting.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there (default: stdout)"
    )
    json_option(exporting)
    exporting.set_defaults(run=_export)


def _export(args: argparse.Namespace, console: Console) -> int:
    check_writable(args.out)
    args.document.judges = False
    entry = finding_named(args.bundle)
    if args.nbd:
        case = load_bundle(args.bundle) if entry is None else entry.case
        if not isinstance(case, Finding):
            raise InputError(f"{args.bundle} has no schedule of `explore`, which alone takes --nbd")
        script = script_of_schedule(case, breakpoints=False)
    else:
        script = script_of_bundle(args.bundle) if entry is None else script_of(entry)
    args.document.result = {"bundle": str(args.bundle), "nbd": args.nbd, "script": script}
    if args.out is not None:
        write_file(args.out, script.encode())
        console.line(f"{args.out}: python3 {args.out} [QEMU-SYSTEM-BINARY]")
    elif args.json != STDOUT:  # then the script is in the document
        console.line(script.rstrip("\n"))
    return OK
