"""`qmpshim export`: a finding as a script that needs no qmpshim."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmpshim.commands.console import OK, Console
from qmpshim.commands.options import json_option
from qmpshim.commands.results import STDOUT
from qmpshim.conformance.bundles.workload_case import CASE as WORKLOAD_CASE
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.reproducer.export import export_script
from qmpshim.conformance.pair.bundle import is_pair
from qmpshim.errors import InputError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    exporting = commands.add_parser(
        "export", help="write an explored finding as a script that needs no qmpshim"
    )
    exporting.add_argument(
        "bundle", type=Path, help="a directory that explore or check kept, or its file"
    )
    exporting.add_argument(
        "--nbd",
        action="store_true",
        help="hold the requests by an NBD server in the script even where breakpoints of blkdebug "
        "would do: follows the schedule to the letter, also on QEMU 5.1 to 6.0",
    )
    json_option(exporting)
    exporting.set_defaults(run=_export)


def _export(args: argparse.Namespace, console: Console) -> int:
    if (args.bundle / WORKLOAD_CASE).exists() or is_pair(args.bundle):
        raise InputError(
            f"{args.bundle} holds no schedule of `explore`, which alone makes a script; "
            "`qmpshim replay` shows it"
        )
    args.document.judges = False
    script = export_script(load_finding(args.bundle), breakpoints=not args.nbd)
    args.document.result = {"bundle": str(args.bundle), "nbd": args.nbd, "script": script}
    if args.json != STDOUT:  # then the script is in the document
        console.line(script.rstrip("\n"))
    return OK
