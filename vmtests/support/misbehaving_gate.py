"""Ends of a held request that no storage may have: its reply is a lie, is lost, or comes twice."""

from __future__ import annotations

from qmpshim.errors import InputError
from qmpshim.machine.nbd.gate.events import EventKind, HeldIO
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.protocol.transmission import NbdCommand, simple_reply


def drop(gate: Gate, io: HeldIO) -> None:
    """Reply success to a WRITE, WRITE_ZEROES, TRIM or FLUSH without performing it.

    :raises InputError: the request wants data, which only the image or :func:`corrupt` has
    """
    if io.op in (NbdCommand.READ, NbdCommand.BLOCK_STATUS):
        raise InputError(f"{io}: only a request without data in the reply can be dropped")
    pending = gate.take(io)
    gate.end(pending, EventKind.REPLY, simple_reply(pending.request.cookie))


def lose_reply(gate: Gate, io: HeldIO) -> None:
    """Perform the request and never reply."""
    pending = gate.take(io)
    pending.performed()
    gate.end(pending, EventKind.RELEASE, b"")


def corrupt(gate: Gate, io: HeldIO, data: bytes) -> None:
    """Reply ``data`` to a READ, or put ``data`` into the image for a WRITE and reply success.

    :raises InputError: another request, or data of another length
    """
    if io.op not in (NbdCommand.READ, NbdCommand.WRITE) or len(data) != io.length:
        raise InputError(f"{io}: cannot be corrupted with {len(data)} bytes")
    pending = gate.take(io)
    connection, request = pending.connection, pending.request._replace(data=data)
    reads = io.op is NbdCommand.READ
    answer = connection.content(request, data) if reads else connection.perform(request)
    gate.end(pending, EventKind.REPLY, answer)


def reply_twice(gate: Gate, io: HeldIO) -> None:
    """Release the request, and send its reply a second time."""
    pending = gate.take(io)
    gate.end(pending, EventKind.RELEASE, pending.performed() * 2)
