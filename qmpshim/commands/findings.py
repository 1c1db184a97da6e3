"""`qmpshim findings`: what is known of QEMU's defects, to read, to report and to write."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qmpshim.codec import encode
from qmpshim.commands.console import OK, Console, Listed, show_list
from qmpshim.commands.options import json_option
from qmpshim.commands.parser import takes_name
from qmpshim.commands.results import STDOUT, check_writable
from qmpshim.conformance.known.bundle_kinds import drafts
from qmpshim.conformance.known.draft import draft_text
from qmpshim.conformance.known.folder import by_severity, write_up, write_ups
from qmpshim.conformance.known.meaning import TO_WRITE, Severity
from qmpshim.conformance.known.tracker import (
    command_of,
    diagram_of,
    script_of,
    steps_of,
    takes_guest,
    tracker_text,
)
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import USE_NAMES, uses_named
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.host.files import write_file

_NAME = "of a finding, as `qmpshim findings list` shows it"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "findings",
        help="the defects of QEMU that are written up",
        description="What is known to go wrong in QEMU: what happens, when and why, in which "
        "versions, what it means, how it is avoided, and how to see it.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all of them, the worst first")
    choosing = listing.add_argument(
        "--build",
        metavar="NAME",
        help="only those written up for this build's version; `qmpshim assess` tries which it has",
    )
    takes_name(choosing, builds.names)
    listing.add_argument(
        "--affects", choices=USE_NAMES, help="only of this use; colo: of either side of it"
    )
    listing.add_argument(
        "--severity",
        choices=[one.value for one in Severity],
        help="only those that are this bad or worse",
    )
    json_option(listing)
    listing.set_defaults(run=_list)
    showing = actions.add_parser("show", help="what happens, when, why, and how to avoid it")
    takes_name(showing.add_argument("name", help=_NAME), _names)
    json_option(showing)
    showing.set_defaults(run=_show)
    reporting = actions.add_parser("report", help="a text for QEMU's tracker, with a script")
    takes_name(reporting.add_argument("name", help=_NAME), _names)
    reporting.add_argument(
        "--attach",
        type=Path,
        metavar="FILE",
        help="write the script there instead of into the text",
    )
    json_option(reporting)
    reporting.set_defaults(run=_report)
    drafting = actions.add_parser("new", help="a draft of a write-up, from a bundle")
    drafting.add_argument(
        "bundle", type=Path, help="what explore, verify, pair, check or a session by hand kept"
    )
    drafting.add_argument(
        "--out", type=Path, metavar="FILE", help="write it there (default: stdout)"
    )
    json_option(drafting)
    drafting.set_defaults(run=_new)


def _names() -> list[str]:
    return [one.name for one in write_ups()]


def entry_object(one: WriteUp) -> dict[str, Any]:
    """A write-up in a document."""
    return {
        "id": one.id,
        "title": one.title,
        "versions": one.versions,
        "contract": one.contract,
        "meaning": encode(one.meaning),
        "reason": one.reason,
        "source": one.source,
        "suggestion": one.suggestion,
        "related": list(one.related),
        "again": command_of(one),
    }


def _list(args: argparse.Namespace, console: Console) -> int:
    found = by_severity(write_ups())
    if args.build:
        build = builds.resolve(args.build)
        args.document.about(build)
        version = read_version(build)[0]
        found = [one for one in found if one.concerns(version)]
    if args.affects:
        uses = set(uses_named(args.affects))
        found = [one for one in found if uses & set(one.meaning.affects)]
    if args.severity:
        worst = Severity(args.severity).rank
        found = [one for one in found if one.meaning.severity.rank <= worst]
    width = max((len(one.meaning.severity.words) for one in found), default=0)
    items = [
        Listed(one.name, f"{one.meaning.severity.words:{width}}  {one.title}", entry_object(one))
        for one in found
    ]
    return show_list(items, args.document, console)


def _show(args: argparse.Namespace, console: Console) -> int:
    one = write_up(args.name)
    meaning = one.meaning
    diagram = diagram_of(one)
    args.document.judges = False
    args.document.result = {"finding": {"name": one.name, **entry_object(one)}, "diagram": diagram}
    console.line(one.title)
    console.line()
    for name, text in (
        ("affects", ", ".join(use.words for use in meaning.affects)),
        ("severity", f"{meaning.severity.words}, {meaning.trigger.words}"),
        ("when", meaning.situation),
        ("then", meaning.consequence),
        ("avoid it", meaning.workaround),
        ("versions", f"{one.versions}; seen on {', '.join(meaning.seen) or 'none that was run'}"),
        ("upstream", f"{meaning.upstream.value}{f'; {meaning.fix}' if meaning.fix else ''}"),
        ("why", one.reason),
        ("where", one.source),
        ("mend it", one.suggestion),
        ("see also", ", ".join(one.related)),
    ):
        if not text:
            continue
        console.prose(f"{name + ':':10} {text}")
    console.line(f"see it:    {command_of(one)}")
    if diagram:
        console.line()
        console.line(diagram)
    return OK


def _report(args: argparse.Namespace, console: Console) -> int:
    one = write_up(args.name)
    script = script_of(one)
    check_writable(args.attach)
    if args.attach is not None:
        write_file(args.attach, script.encode())
    if takes_guest(one):
        print(
            "attach the guest's kernel and initramfs, too: `qmpshim guest build` says where",
            file=sys.stderr,
        )
    text = tracker_text(one, args.attach.name if args.attach else "")
    args.document.judges = False
    args.document.result = {"finding": one.name, "text": text, "script": script}
    if args.json != STDOUT:
        console.line(text.rstrip("\n"))
    return OK


def _new(args: argparse.Namespace, console: Console) -> int:
    check_writable(args.out)
    args.document.judges = False
    draft, steps = drafts(args.bundle)
    args.document.result = {"draft": draft, "steps": steps}
    text = draft_text(draft)
    if args.out is not None:
        for path, content in ((args.out, text), (steps_of(args.out), steps)):
            if content:
                write_file(path, content.encode())
                fill = f"fill in what says {TO_WRITE}, and " if TO_WRITE in content else ""
                console.line(f"{path}: {fill}check the rest")
    elif args.json != STDOUT:
        console.line(text.rstrip("\n"))
    return OK
