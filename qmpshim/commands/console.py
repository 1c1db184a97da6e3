"""The console: progress on a line that is rewritten, results in colour, lists of what there is."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from qmpshim.commands.streams import Output
from qmpshim.conformance.document import Document

OK, DIVERGED, UNTESTABLE = 0, 1, 125  # exit statuses
#: SGR colours of a result, by the exit status that it stands for.
INTERVAL = 2.0  # seconds between two lines of progress that is not on a terminal
_COLOURS = {OK: 32, DIVERGED: 31, UNTESTABLE: 33}


class Console:
    """Progress on one rewritten line of a terminal, or as plain lines now and then.

    Results are in colour on a terminal, unless ``NO_COLOR`` is set (no-color.org) or the terminal
    is ``dumb``, which can rewrite no line either.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._output = Output(out)
        self._terminal = out.isatty() and os.environ.get("TERM") != "dumb"
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        self._next, self._last = 0.0, ""
        self._shown = False

    def progress(self, text: str) -> None:
        """What is being done right now."""
        now = time.monotonic()
        if self._terminal:
            self._output.write(f"\r\x1b[K{text[: self._width() - 1]}")
            self._shown = True
        elif now >= self._next and text != self._last:
            self._output.write(text + "\n")
            self._next, self._last = now + INTERVAL, text

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or 80
        except OSError:
            return 80

    def line(self, text: str = "", status: int | None = None) -> None:
        """A line that stays.

        :param status: the exit status for which this line is the reason, if it is one
        """
        if self._coloured and status in _COLOURS:
            text = f"\x1b[{_COLOURS[status]}m{text}\x1b[0m"
        self._output.write(("\r\x1b[K" if self._shown else "") + text + "\n")
        self._shown = False

    def fits(self, text: str) -> bool:
        """Whether a line need not be broken; off a terminal each does not."""
        return not self._terminal or len(text) < self._width()

    def prose(self, text: str, status: int | None = None) -> None:
        """Words that stay: on a terminal a line is broken between two of them.

        A command is for :meth:`line`: it is pasted as a whole.

        :param status: as of :meth:`line`
        """
        if not self.fits(text):
            indent = len(text) - len(text.lstrip()) + 2
            lines = textwrap.wrap(
                text,
                self._width() - 1,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            text = "\n".join(lines)
        self.line(text, status)

    def ending(self, status: int) -> int:
        """The exit status of a command that ended with *status*, had all been written."""
        return self._output.ending(status)


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of a list: one thing that there is.

    :ivar about: what it is, one line
    :ivar more: what else a program may want to know
    """

    name: str
    about: str
    more: Mapping[str, Any] = field(default_factory=dict)


def show_list(items: Sequence[Listed], document: Document, console: Console) -> int:
    """Show what there is: one a line, the name first; the same as data.

    Where a line does not fit the terminal what each is stands below its name.
    """
    width = max((len(item.name) for item in items), default=0)
    lines = [f"{item.name:{width}}  {item.about}" for item in items]
    if all(map(console.fits, lines)):
        for line in lines:
            console.line(line)
    else:
        for item in items:
            console.line(item.name)
            console.prose(f"    {' '.join(item.about.split())}")
    document.judges = False
    document.result = {
        "items": [{"name": item.name, "about": item.about, **item.more} for item in items]
    }
    return OK
