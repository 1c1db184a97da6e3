"""The lines of a trace, read: what each says, of which operation and which I/O.

A line that begins at the margin is a step of the schedule; what is indented is what QEMU did then:
it asked its disks for something, or ended an operation. :class:`~.execution.Execution` has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

_IO = r"(?P<io>.+?) \(of (?P<op>-?\d+)\)"


class What(StrEnum):
    """What a line tells."""

    START = "start"  # an operation is begun
    COMPLETE = "complete"  # an I/O is let go,
    FAIL = "fail"  # ends with an error,
    CUT = "cut"  # or with its connection, as does all that waits there
    ARRIVES = "arrives"  # an I/O is asked for, and held
    ENDS = "ends"  # an operation is answered
    NOTE = "note"  # anything else

    @property
    def is_step(self) -> bool:
        """Whether the schedule takes it."""
        return self in (What.START, What.COMPLETE, What.FAIL, What.CUT)


_LINES = {
    What.START: re.compile(r"start (?P<op>\d+): (?P<text>.*)"),
    What.COMPLETE: re.compile(f"complete {_IO}(?P<text>)"),
    What.FAIL: re.compile(f"fail {_IO} (?P<text>with errno .*)"),
    What.CUT: re.compile(f"cut the connection of {_IO}(?:;)? (?P<text>.*)"),
    What.ENDS: re.compile(r"    (?P<op>\d+) ends: (?P<text>.*)"),
    What.ARRIVES: re.compile(f"    {_IO}(?P<text>)"),
}


@dataclass(frozen=True, slots=True)
class TraceLine:
    """A line of a trace.

    :ivar op: the operation's index, ``None`` in a note
    :ivar io: the I/O's name with its number, as in ``hidden write 0+128 #2``, or ``""``
    :ivar text: the operation in words, its answer, or how the I/O ended
    """

    what: What
    op: int | None
    io: str
    text: str

    @property
    def name(self) -> str:
        """The I/O's name without its number."""
        return self.io.split(" #", 1)[0]


def read_line(line: str) -> TraceLine:
    """What a line says; what is no line of a trace is a note."""
    for what, pattern in _LINES.items():
        if found := pattern.fullmatch(line):
            told = found.groupdict()
            return TraceLine(what, int(told["op"]), told.get("io") or "", told["text"])
    return TraceLine(What.NOTE, None, "", line.strip())
