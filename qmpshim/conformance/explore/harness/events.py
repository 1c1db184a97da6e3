"""A history's events: the steps of the schedule, and what QEMU did after each.

An event is rendered as one line. A line that begins at the margin is a step of the schedule; what
is indented is what QEMU did then: it sent a request to a disk, or ended an operation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from qmpshim.conformance.explore.harness.choices import Cut, IoId, io_id
from qmpshim.model.answers import Answer, answer_from_json, answer_to_json
from qmpshim.model.operations import Operation


class What(StrEnum):
    """What an event is, as bundles and reports name it."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CUT = "cut"
    ARRIVES = "arrives"
    ENDS = "ends"
    PAUSED = "paused"
    NOTE = "note"

    @property
    def is_step(self) -> bool:
        """Whether the schedule takes it."""
        return self in (What.START, What.COMPLETE, What.FAIL, What.CUT)


@dataclass(frozen=True, slots=True)
class Started:
    """An operation was begun.

    :ivar op: its index
    """

    op: int
    operation: Operation

    what = What.START

    @property
    def text(self) -> str:
        """The operation to read."""
        return str(self.operation)

    def __str__(self) -> str:
        return f"start {self.op}: {self.text}"


@dataclass(frozen=True, slots=True)
class _OfIo:
    """An event of an I/O."""

    io: IoId

    @property
    def op(self) -> int:
        """The index of the operation that it belongs to."""
        return self.io.op

    @property
    def text(self) -> str:
        """How it ended, to read."""
        return ""

    def _held(self) -> str:
        return f"{self.io} (of {self.op})"


@dataclass(frozen=True, slots=True)
class Completed(_OfIo):
    """A held I/O was done and answered."""

    what = What.COMPLETE

    def __str__(self) -> str:
        return f"complete {self._held()}"


@dataclass(frozen=True, slots=True)
class Failed(_OfIo):
    """A held I/O ended with an error, or with its connection, as did all that waited there.

    :ivar fault: an errno, or a :class:`Cut`
    """

    fault: int

    @property
    def what(self) -> What:
        """Whether its connection went away with it."""
        return What.CUT if self.fault in _CUTS else What.FAIL

    @property
    def text(self) -> str:
        """How it ended, to read."""
        return _CUTS.get(self.fault) or f"with errno {self.fault}"

    def __str__(self) -> str:
        match self.fault:
            case Cut.FOR_GOOD:
                return f"cut the connection of {self._held()} {self.text}"
            case Cut.RECONNECT:
                return f"cut the connection of {self._held()}; {self.text}"
        return f"fail {self._held()} {self.text}"


@dataclass(frozen=True, slots=True)
class Arrived(_OfIo):
    """QEMU sent a request, which is held."""

    what = What.ARRIVES

    def __str__(self) -> str:
        return f"    {self._held()}"


@dataclass(frozen=True, slots=True)
class Ended:
    """An operation was answered.

    :ivar op: its index
    """

    op: int
    answer: Answer

    what = What.ENDS

    @property
    def text(self) -> str:
        """The answer to read."""
        return str(self.answer)

    def __str__(self) -> str:
        return f"    {self.op} ends: {self.text}"


@dataclass(frozen=True, slots=True)
class JobPaused:
    """An error has paused the backup job; at this moment an operation starts, or all have ended."""

    what = What.PAUSED
    op = None

    @property
    def text(self) -> str:
        """The event to read."""
        return "an error has paused the backup job"

    def __str__(self) -> str:
        return f"    {self.text}"


@dataclass(frozen=True, slots=True)
class Note:
    """A remark that no schedule takes and that belongs to no operation."""

    text: str

    what = What.NOTE
    op = None

    def __str__(self) -> str:
        return self.text


Event: TypeAlias = Started | Completed | Failed | Arrived | Ended | JobPaused | Note

#: How a connection that was cut goes on, as bundles have it.
_CUTS: dict[int, str] = {Cut.FOR_GOOD: "for good", Cut.RECONNECT: "it may be made again"}
_FAULTS = {text: fault for fault, text in _CUTS.items()}
_ERRNO = re.compile(r"with errno (-?\d+)")


def event_to_json(event: Event) -> list[Any]:
    """As :func:`event_from_json` reads it: what, operation, I/O, and what else there is to it."""
    what = event.what.value
    match event:
        case Started(op, operation):
            return [what, op, "", str(operation)]
        case Ended(op, answer):
            return [what, op, "", answer_to_json(answer)]
        case JobPaused() | Note():
            return [what, None, "", event.text]
        case Failed(io, fault):
            return [what, io.op, str(io), _CUTS.get(fault) or f"with errno {fault}"]
    return [what, event.op, str(event.io), ""]


def event_from_json(value: Any, ops: Sequence[Operation]) -> Event:
    """The reverse of :func:`event_to_json`.

    :param ops: the scenario's concurrent operations
    :raises TypeError, ValueError: it is none
    """
    what, op, io, text = value
    return _event(What(what), op, str(io), str(text), ops)


def _event(what: What, op: Any, io: str, text: str, ops: Sequence[Operation]) -> Event:
    match what:
        case What.NOTE:
            return Note(text)
        case What.PAUSED:
            return JobPaused()
        case What.START if int(op) >= len(ops):  # the scenario was edited, and the record was not
            return Note(f"start {op}: {text}")
        case What.START:
            return Started(int(op), ops[int(op)])
        case What.ENDS:
            return Ended(int(op), answer_from_json(text))
    name, _, nth = io.partition(" #")
    id_ = io_id(int(op), name, int(nth) - 1 if nth else 0)
    match what:
        case What.COMPLETE:
            return Completed(id_)
        case What.ARRIVES:
            return Arrived(id_)
    return Failed(id_, _fault(text))


def _fault(text: str) -> int:
    if found := _ERRNO.fullmatch(text):
        return int(found[1])
    if text not in _FAULTS:
        raise ValueError(f"no fault: {text!r}")
    return _FAULTS[text]


# -- bundles of format 1 have the lines alone --------------------------------------------------

_IO = r"(?P<io>.+?) \(of (?P<op>-?\d+)\)"
_LINES = {
    What.START: re.compile(r"start (?P<op>\d+): (?P<text>.*)"),
    What.COMPLETE: re.compile(f"complete {_IO}(?P<text>)"),
    What.FAIL: re.compile(f"fail {_IO} (?P<text>with errno .*)"),
    What.CUT: re.compile(f"cut the connection of {_IO};? (?P<text>{'|'.join(_FAULTS)})"),
    What.ENDS: re.compile(r"    (?P<op>\d+) ends: (?P<text>.*)"),
    What.ARRIVES: re.compile(f"    {_IO}(?P<text>)"),
}


def event_from_line(line: str, ops: Sequence[Operation]) -> Event:
    """The event of a line of an old bundle's trace; what is none is a note.

    :param ops: the scenario's concurrent operations
    :raises ValueError: it names no I/O
    """
    for what, pattern in _LINES.items():
        if found := pattern.fullmatch(line):
            fields = found.groupdict()
            return _event(what, fields["op"], fields.get("io") or "", fields["text"], ops)
    return Note(line.strip())


def events_from_lines(lines: Iterable[str], ops: Sequence[Operation]) -> tuple[Event, ...]:
    """The events of an old bundle's trace, see :func:`event_from_line`."""
    return tuple(event_from_line(line, ops) for line in lines)
