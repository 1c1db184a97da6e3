"""Mutants of the clients of QEMU's exports: their requests, and the answers."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.nonblocking import NbdAnswer, NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from vmtests.support.directed import Mutant


def answered_early(machine: GatedMachine) -> None:
    """The primary's write is answered at once."""
    client = machine.clients["primary"]
    send = client.send

    def at_once(*words: Any) -> int:
        cookie = send(*words)
        client.answers[cookie] = NbdAnswer(0, b"")
        return cookie

    client.send = at_once  # type: ignore[method-assign, assignment]


def on_connect(export: str, change: Callable[[NonBlockingNbd], None]) -> Mutant:
    """Each client of an export is changed."""

    def mutant(machine: GatedMachine) -> None:
        connect = machine.connect

        def other(name: str) -> None:
            connect(name)
            if name == export:
                change(machine.clients[name])

        machine.connect = other  # type: ignore[method-assign]
        if export in machine.clients:
            machine.connect(export)

    return mutant


def client_doing(export: str, op: Nbd, instead: Callable[..., NbdAnswer]) -> Mutant:
    """Requests of a kind that a client of an export waits for are done in another way.

    :param instead: has the client's ``call``, and the arguments that follow the kind
    """

    def change(client: NonBlockingNbd) -> None:
        call = client.call
        client.call = (  # type: ignore[method-assign]
            lambda one, *words: instead(call, *words) if one is op else call(one, *words)
        )

    return on_connect(export, change)


def client_with(export: str, op: Nbd, answer: NbdAnswer) -> Mutant:
    """Requests of a kind are not sent, and have this answer."""
    return client_doing(export, op, lambda call, *words: answer)


def _inverted(call: Callable[..., NbdAnswer], *words: Any) -> NbdAnswer:
    return NbdAnswer(0 if call(Nbd.READ, *words).errno else EINVAL, b"")


def _widened(unit: int) -> Callable[..., NbdAnswer]:
    """Discards all of what a discard has a part of, in units of so many bytes."""

    def discard(call: Callable[..., NbdAnswer], offset: int, length: int, *more: Any) -> NbdAnswer:
        start = offset // unit * unit
        return call(Nbd.TRIM, start, -(-(offset + length) // unit) * unit - start)

    return discard


def _beyond(offset: int, answer: NbdAnswer) -> Callable[..., NbdAnswer]:
    """Reads that end beyond *offset* have this answer."""
    return lambda call, start, length: (
        answer if start + length > offset else call(Nbd.READ, start, length)
    )


def _copying(call: Callable[..., NbdAnswer], offset: int, length: int, data: bytes) -> NbdAnswer:
    call(Nbd.READ, offset, len(data))
    return call(Nbd.WRITE, offset, length, data)


DONE = NbdAnswer(0, b"")
copied_zeroes = client_with("primary", Nbd.WRITE_ZEROES, DONE)  # there are no zeroes to copy
kept = client_with("guest", Nbd.TRIM, DONE)  # what the reader of the snapshot discards is there
read_differently = client_doing("guest", Nbd.READ, _inverted)  # fails where it should not
whole_discarded = client_doing("guest", Nbd.TRIM, _widened(CLUSTER))  # clusters
blocks_discarded = client_doing("blocks", Nbd.TRIM, _widened(4096))
second_readable = client_doing("guest", Nbd.READ, _beyond(CLUSTER, DONE))
copied_first = client_doing("primary", Nbd.WRITE, _copying)  # reads what it writes to


def only_unreadable(machine: GatedMachine) -> None:
    """A whole cluster that the reader of the snapshot discards is copied, and cannot be read."""
    discarded: list[int] = []

    def discard(call: Callable[..., NbdAnswer], offset: int, length: int) -> NbdAnswer:
        if length == CLUSTER:
            discarded.append(offset)
        return DONE

    def read(call: Callable[..., NbdAnswer], offset: int, length: int) -> NbdAnswer:
        if any(offset < one + CLUSTER and one < offset + length for one in discarded):
            return NbdAnswer(EINVAL, b"")
        return call(Nbd.READ, offset, length)

    client_doing("guest", Nbd.TRIM, discard)(machine)
    client_doing("guest", Nbd.READ, read)(machine)


def without_flags(export: str, *ops: Nbd) -> Mutant:
    """Requests of these kinds of a client of an export, or all, lose their flags."""

    def change(client: NonBlockingNbd) -> None:
        send = client.send
        client.send = (  # type: ignore[method-assign]
            lambda op, offset=0, length=0, data=b"", flags=0: send(
                op, offset, length, data, 0 if not ops or op in ops else flags
            )
        )

    return on_connect(export, change)


class _Answers(dict[int, NbdAnswer]):
    """Answers of a client, some of which become another one."""

    def __init__(self, answer: NbdAnswer) -> None:
        super().__init__()
        self.answer = answer
        self.cookies: set[int] = set()

    def __setitem__(self, cookie: int, answer: NbdAnswer) -> None:
        super().__setitem__(cookie, self.answer if cookie in self.cookies else answer)


def client_ending(export: str, op: Nbd, answer: NbdAnswer) -> Mutant:
    """Requests of a kind have this answer, when QEMU's has come."""

    def change(client: NonBlockingNbd) -> None:
        send, answers = client.send, _Answers(answer)

        def sent(one: Nbd, *words: Any) -> int:
            cookie = send(one, *words)
            if one is op:
                answers.cookies.add(cookie)
            return cookie

        client.send, client.answers = sent, answers  # type: ignore[method-assign, assignment]

    return on_connect(export, change)
