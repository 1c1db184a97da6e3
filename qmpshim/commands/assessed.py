"""How `explore`, `check` and `pair` end: the answer of `assess`, and how to avoid the worst."""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.commands.console import Console
from qmpshim.conformance.known.seen import SeenFinding, avoiding


def show_assessed(
    answer: str, found: Sequence[SeenFinding], console: Console, build: str = ""
) -> None:
    """Show what `assess` would conclude of findings.

    :param answer: that, in one line
    :param build: on which they were seen, where there may be others
    """
    on = f", {build}" if build else ""
    console.prose(f"assess would say of this{on}: {answer}")
    if command := avoiding(found):
        console.line(f"  how to avoid it: {command}")
