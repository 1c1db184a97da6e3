"""A history's events: steps of the schedule, and what QEMU did then; rendered as lines, last.

A line that begins at the margin is a step of the schedule; what is indented is what QEMU did then:
it asked its disks for something, or ended an operation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class What(StrEnum):
    """What an event is."""

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


#: How the connection of an I/O that is cut goes on.
FOR_GOOD = "for good"
MADE_AGAIN = "it may be made again"


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event of a history.

    :ivar op: the operation's index, ``None`` in a note
    :ivar io: the I/O's name with its number, as in ``hidden write 0+128 #2``, or ``""``
    :ivar text: the operation in words, its answer, or how the I/O ended
    """

    what: What
    op: int | None = None
    io: str = ""
    text: str = ""

    @property
    def name(self) -> str:
        """The I/O's name without its number."""
        return self.io.split(" #", 1)[0]

    def __str__(self) -> str:
        held = f"{self.io} (of {self.op})"
        match self.what:
            case What.START:
                return f"start {self.op}: {self.text}"
            case What.COMPLETE:
                return f"complete {held}"
            case What.FAIL:
                return f"fail {held} {self.text}"
            case What.CUT:
                return f"cut the connection of {held}{_CUT[self.text]}{self.text}"
            case What.ENDS:
                return f"    {self.op} ends: {self.text}"
            case What.ARRIVES:
                return f"    {held}"
        return self.text

    def to_json(self) -> list[Any]:
        """As :func:`event_from_json` reads it."""
        return [self.what.value, self.op, self.io, self.text]


def note(text: str) -> TraceEvent:
    """An event that no schedule takes and no operation is concerned with."""
    return TraceEvent(What.NOTE, text=text)


def event_from_json(value: Any) -> TraceEvent:
    """The reverse of :meth:`TraceEvent.to_json`.

    :raises TypeError, ValueError: it is none
    """
    what, op, io, text = value
    return TraceEvent(What(what), None if op is None else int(op), str(io), str(text))


# -- bundles of format 1 have the lines alone --------------------------------------------------

_CUT = {FOR_GOOD: " ", MADE_AGAIN: "; "}
_IO = r"(?P<io>.+?) \(of (?P<op>-?\d+)\)"
_LINES = {
    What.START: re.compile(r"start (?P<op>\d+): (?P<text>.*)"),
    What.COMPLETE: re.compile(f"complete {_IO}(?P<text>)"),
    What.FAIL: re.compile(f"fail {_IO} (?P<text>with errno .*)"),
    What.CUT: re.compile(f"cut the connection of {_IO};? (?P<text>{FOR_GOOD}|{MADE_AGAIN})"),
    What.ENDS: re.compile(r"    (?P<op>\d+) ends: (?P<text>.*)"),
    What.ARRIVES: re.compile(f"    {_IO}(?P<text>)"),
}


def event_from_line(line: str) -> TraceEvent:
    """What a line of an old bundle's trace says; what is none is a note."""
    for what, pattern in _LINES.items():
        if found := pattern.fullmatch(line):
            fields = found.groupdict()
            return TraceEvent(what, int(fields["op"]), fields.get("io") or "", fields["text"])
    return note(line.strip())
