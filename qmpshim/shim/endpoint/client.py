"""One client of the shim: its socket's side of the protocol, its turn and its backlog."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from qmpshim.shim.endpoint.link import READ_SIZE, Batch, Link
from qmpshim.shim.endpoint.outbox import Outbox
from qmpshim.shim.endpoint.session import Answer, Command, Session
from qmpshim.shim.endpoint.upstream import Upstream
from qmpshim.shim.endpoint.window import Window
from qmpshim.shim.json.text import indented

_BURST = 64  # requests of one client answered before the others get a turn


class Dispatcher(Protocol):
    """What a client turns to: see :class:`~qmpshim.shim.endpoint.server.Shim`."""

    upstream: Upstream
    batch: Batch
    backlog_limit: int
    window: Window

    def take(self, client: Client, work: Answer | Command) -> None:
        """Something has to be done for *client*."""

    def leave(self, client: Client) -> None:
        """The client is gone."""

    def spread(self) -> None:
        """Give everybody the events that came."""


class Client:
    """One connection: the socket's side of a :class:`Session`.

    :param pretty: print JSON as a monitor with ``pretty=on`` does
    """

    def __init__(self, dispatcher: Dispatcher, sock: socket.socket, pretty: bool = False) -> None:
        self.dispatcher = dispatcher
        self.session = Session(dispatcher.upstream.dialect, dispatcher.upstream.coarse)
        self.link = Link(sock, self, dispatcher.batch, dispatcher.backlog_limit)
        self._pretty = pretty
        self.outbox = Outbox(self.link.write)
        self._input_ended = False
        self._again = False

    def write(self, data: bytes) -> None:
        """Send whole messages now, whatever waits in the outbox."""
        self.link.write(self._formatted(data))

    def happened(self, events: bytes) -> None:
        """QEMU has sent events."""
        self.outbox.event(self._formatted(events))

    def printed(self, text: bytes) -> None:
        """QEMU has printed on the standard output that is this client's."""
        self.dispatcher.spread()  # the events QEMU sent before it
        self.outbox.event(text)

    def _formatted(self, messages: bytes) -> bytes:
        return indented(messages) if self._pretty else messages

    def received(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Bytes from the client."""
        self.session.feed(data, fds)
        self.pump()

    def ended(self, gone: bool) -> None:
        """The client sends no more: it may still want answers to what it sent."""
        self._input_ended = True
        if gone:
            self.dispatcher.leave(self)
        else:
            self.pump()

    def drained(self) -> None:
        """The client has read what there was."""
        self.pump()

    def pump(self) -> None:
        """Take up what the session has to be done, and read on or stop reading."""
        if self.link.closed:
            return
        window = self.dispatcher.window
        if self.link.backlog <= READ_SIZE:
            for _ in range(_BURST):
                work = self.session.next(window.has_capacity)
                if work is None:
                    break
                self.dispatcher.take(self, work)
                if self.link.closed or self.link.backlog > READ_SIZE:
                    break
            else:
                self._soon()
            if not window.has_capacity and self.session.wants_turn:
                window.line_up(self)
        if self._input_ended:
            if self.session.idle and not self.link.backlog:
                self.dispatcher.leave(self)
            else:
                self.link.when_drained()
            return
        self.link.read(self.session.waiting < READ_SIZE and self.link.backlog <= READ_SIZE)
        if self.link.backlog:
            self.link.when_drained()

    def _soon(self) -> None:
        if not self._again:
            self._again = True
            asyncio.get_running_loop().call_soon(self._pump_again)

    def _pump_again(self) -> None:
        self._again = False
        with self.dispatcher.batch:
            self.pump()

    def answered(self, reply: bytes, oob: bool) -> None:
        """A request has its reply."""
        self.dispatcher.spread()  # the events QEMU sent before it
        self.outbox.reply(self._formatted(reply), oob)
        self.session.done(oob)

    def expects(self, oob: bool) -> None:
        """QEMU has sent a reply that needs work: what QEMU sends after it comes after it."""
        self.dispatcher.spread()
        self.outbox.reserve(oob)
