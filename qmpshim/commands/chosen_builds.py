"""The builds that were named, and running the same on each of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from qmpshim.commands.console import DIVERGED, OK, UNTESTABLE, Console
from qmpshim.conformance.document import Document
from qmpshim.errors import BuildError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build


def chosen_build(args: argparse.Namespace) -> Build:
    return builds.resolve(args.qemu or args.build)


def chosen_builds(args: argparse.Namespace) -> list[Build]:
    """All that were named, each once."""
    return [
        builds.resolve(name)
        for name in dict.fromkeys([args.qemu] if args.qemu else args.build or [None])
    ]


def on_each(
    chosen: Sequence[Build], document: Document, console: Console, run: Callable[[Build], int]
) -> int:
    """Run the same on several builds, one after another; return the worst exit status.

    A build that cannot do it does not keep the others from it; an interruption does.

    :param document: records the builds, and which of them cannot be tested
    """
    document.about(*chosen)
    if len(chosen) == 1:
        return run(chosen[0])
    statuses = {}
    for build, described in zip(chosen, document.builds, strict=True):
        console.line(f"== {build.name}")
        try:
            statuses[build.name] = run(build)
        except BuildError as error:
            console.line(f"cannot be tested: {error}")
            statuses[build.name] = UNTESTABLE
            described["cannot_be_tested"] = str(error)
        if statuses[build.name] not in (OK, DIVERGED, UNTESTABLE):
            return statuses[build.name]
        console.line()
    results = {OK: "all as predicted", DIVERGED: "DIVERGED", UNTESTABLE: "cannot be tested"}
    for name, status in statuses.items():
        console.line(f"{name:18} {results[status]}", status)
    found = set(statuses.values())
    if found == {UNTESTABLE}:
        document.error = "cannot be tested on any of these builds"
    return DIVERGED if DIVERGED in found else OK if OK in found else UNTESTABLE
