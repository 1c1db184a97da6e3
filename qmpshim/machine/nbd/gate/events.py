"""What passes through a gate: requests, and the lines of its trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from qmpshim.machine.nbd.protocol.transmission import NbdCommand


@dataclass(frozen=True, slots=True)
class HeldIO:
    """One request of a client: ``offset`` and ``length`` in bytes, ``data`` that of a WRITE.

    ``seq`` is its place on the gate's clock; ``connection`` numbers the client's connection.
    """

    seq: int
    image: str
    op: NbdCommand
    offset: int
    length: int
    data: bytes = field(repr=False)
    fua: bool
    no_hole: bool
    connection: int

    @property
    def request(self) -> tuple[str, NbdCommand, int, int]:
        """What makes it the same request when it comes again, by another connection."""
        return self.image, self.op, self.offset, self.length

    def __str__(self) -> str:
        return f"#{self.seq} {self.image} {self.op.name.lower()} {self.offset}+{self.length}"


class EventKind(StrEnum):
    """What happened to a request (or a connection)."""

    ARRIVE = "arrive"  # held from now on
    PASS = "pass"  # arrived at an open gate: effect and reply at once
    RELEASE = "release"  # effect and reply
    APPLY = "apply"  # effect only
    REPLY = "reply"  # the reply to an applied request, or another one in its place
    FAIL = "fail"  # an error reply
    LOST = "lost"  # its connection ended while it was held
    CONNECT = "connect"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the trace. ``io`` is the request's seq; 0 and no ``op`` for a connection's."""

    seq: int
    kind: EventKind
    io: int
    image: str
    op: NbdCommand | None
    offset: int
    length: int
    connection: int
    errno: int = 0
