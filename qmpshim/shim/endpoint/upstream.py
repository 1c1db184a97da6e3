"""The shim's own connection to QEMU: commands out under numbers of ours, replies and events in."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmpshim.errors import MachineDied, MachineError
from qmpshim.shim.endpoint.interleaved import Interleaved
from qmpshim.shim.endpoint.link import Batch, Link
from qmpshim.shim.endpoint.session import GENERIC
from qmpshim.shim.json.grammar import Dialect
from qmpshim.shim.json.text import Value, as_qemu_reads

log = logging.getLogger(__name__)

#: Bad JSON and a bad request: the error texts show which of QEMU's parsers and writers this is.
_PROBE = b'[1 2]\n{"id": 0.0078125}\n'
_ID_FIRST = re.compile(rb'\{"id": (\d+), ')


class Reply:
    """QEMU's answer to one command, its id taken out.

    :ivar body: the reply as JSON text without the id
    """

    __slots__ = ("body",)

    def __init__(self, body: bytes) -> None:
        self.body = body

    def with_id(self, id_: bytes | None) -> bytes:
        """The reply for a client that gave *id_*, ready to send."""
        if id_ is None:
            return self.body + b"\r\n"
        if self.failed:  # where QEMU's dictionary has it
            return b'{"id": ' + id_ + b", " + self.body[1:] + b"\r\n"
        return self.body[:-1] + b', "id": ' + id_ + b"}\r\n"

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self.body.startswith(b'{"error"')

    def value(self) -> dict[str, Any]:
        """The reply, parsed."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


class Overdue(Reply):
    """In the place of a reply that did not come in time: an error.

    :ivar desc: its text
    """

    def __init__(self, desc: str) -> None:
        self.desc = desc
        error = {"class": GENERIC, "desc": desc}
        super().__init__(b'{"error": ' + json.dumps(error).encode() + b"}")


#: Called with the reply, or None when QEMU disconnected first.
Callback = Callable[[Reply | None], None]


@dataclass(slots=True)
class _Request:
    """A request to QEMU, and the callback for its reply."""

    name: str
    callback: Callback
    late: Callable[[Reply], None] = lambda reply: None


class Upstream:
    """One negotiated QMP connection to QEMU.

    :param on_event: called with each event as the text QEMU sent, line end included
    :param on_gone: called once, when the connection ends
    :param on_text: called with what QEMU prints, when its standard output is this connection, too
    :ivar on_late: called when a reply comes that was given up, and for how many seconds QEMU sent
        nothing
    """

    def __init__(
        self,
        sock: socket.socket,
        batch: Batch,
        on_event: Callable[[bytes], None],
        on_gone: Callable[[], None],
        on_text: Callable[[bytes], None] | None = None,
    ) -> None:
        self.batch = batch
        self._on_event = on_event
        self._on_gone = on_gone
        self._on_text = on_text
        self._interleaved = Interleaved()
        self._on_greeting: Callable[[], None] | None = None
        self._buffer = b""
        self._pretty: list[bytes] = []
        self._pending: dict[int, _Request] = {}
        self._late: dict[int, _Request] = {}  # those that were given up
        self._since = 0.0  # the latest moment at which it was not silent
        self.on_late: Callable[[float], None] = lambda silent: None
        self._number = 0
        self.greeting: dict[str, Any] = {}
        self.oob = False
        self.dialect = Dialect.CLASSIC
        self.coarse = False
        self._dialect_probe = False  # the answers to _PROBE are due
        self.gone = False
        self.link = Link(sock, self, batch)

    def start(self, ready: Callable[[MachineError | None], None]) -> None:
        """Read the greeting and negotiate, out-of-band execution included where it is offered."""

        def negotiated(reply: Reply | None) -> None:
            if reply is None:
                ready(MachineDied("QEMU closed its monitor before it answered"))
            elif self._dialect_probe:
                ready(MachineError("QEMU did not say how it complains of bad JSON"))
            elif reply.failed:
                ready(MachineError(f"QEMU refused to negotiate: {reply.value()['error']['desc']}"))
            else:
                ready(None)

        def greeted() -> None:
            self.oob = "oob" in self.greeting["QMP"]["capabilities"]
            enable: list[Value] = ["oob"] if self.oob else []
            self._dialect_probe = True
            self.link.write(_PROBE)
            self.send("qmp_capabilities", {"enable": enable} if enable else None, negotiated)

        self._on_greeting = greeted
        self._pending[0] = _Request("", negotiated)  # before the greeting: its callback
        self.link.read()

    def send(
        self,
        name: str,
        arguments: dict[str, Value] | None,
        callback: Callback,
        oob: bool = False,
        fd: int | None = None,
        late: Callable[[Reply], None] = lambda reply: None,
    ) -> None:
        """Send a command; *callback* gets its reply.

        :param late: gets the reply, should it come after *callback* got an :class:`Overdue`
        """
        if self.gone:
            callback(None)
            return
        if not self._pending and not self._late:
            self.restart_clock()
        self._number += 1
        self._pending[self._number] = _Request(name, callback, late)
        text = b'{"exec-oob": ' if oob else b'{"execute": '
        text += json.dumps(name).encode()
        if arguments is not None:
            text += b', "arguments": ' + as_qemu_reads(arguments)
        self.link.write(text + b', "id": %d}\n' % self._number, fd)

    # -- a QEMU that hangs -------------------------------------------------------------

    def restart_clock(self) -> None:
        """QEMU owes nothing yet, or has just shown that it lives."""
        self._since = time.monotonic()

    @property
    def silent_for(self) -> float:
        """For how many seconds there was no reply, though there should have been; 0.0: it owes
        none.
        """
        return time.monotonic() - self._since if self._pending or self._late else 0.0

    @property
    def owed(self) -> list[str]:
        """The commands that QEMU has not answered."""
        return [request.name for one in (self._late, self._pending) for request in one.values()]

    def give_up(self, desc: str) -> None:
        """End all pending requests with an error of this text."""
        given_up, self._pending = self._pending, {}
        self._late.update(given_up)
        with self.batch:
            for request in given_up.values():
                request.callback(Overdue(desc))

    # -- callbacks of the link -------------------------------------------------------

    def received(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Cut what QEMU sends into messages: each is one line, or with ``pretty=on`` several."""
        assert not fds
        if self._on_text is not None:
            for is_message, piece in self._interleaved.feed(data):
                (self._message if is_message else self._on_text)(piece)
            return
        lines = (self._buffer + data).split(b"\n") if b"\n" in data else None
        if lines is None:
            self._buffer += data
            return
        self._buffer = lines.pop()
        for line in lines:
            line = line.rstrip(b"\r")
            if self._pretty or line == b"{":
                self._pretty.append(line)
                if line == b"}":
                    whole = json.loads(b"\n".join(self._pretty))
                    self._pretty = []
                    self._message(json.dumps(whole).encode())
            elif line:
                self._message(line)

    def _message(self, line: bytes) -> None:
        if line.startswith(b'{"timestamp": '):
            self._on_event(line + b"\r\n")
            return
        at = line.rfind(b', "id": ')
        if at > 0 and (number := line[at + 8 : -1]).isdigit():
            # Digits and the last brace follow it: no string and no inner object can end so.
            self._reply(int(number), line[:at] + b"}")
        elif found := _ID_FIRST.match(line):
            self._reply(int(found[1]), b"{" + line[found.end() :])
        else:
            self._odd(line)

    def _odd(self, line: bytes) -> None:
        """A message whose members come in no order QEMU ever used, or the greeting."""
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            log.error("QEMU sent no JSON object: %r", line[:200])
        elif "QMP" in value:
            self.greeting = value
            self._pending.pop(0, None)
            if self._on_greeting is not None:
                greeted, self._on_greeting = self._on_greeting, None
                greeted()
        elif "event" in value:
            self._on_event(line + b"\r\n")
        elif self._dialect_probe and "error" in value:
            if "id" not in value:
                placed = value["error"]["desc"][:1].isdigit()
                self.dialect = Dialect.PLACED if placed else Dialect.CLASSIC
            else:
                self.coarse = value["id"] != 0.0078125
                self._dialect_probe = False
        elif isinstance(number := value.pop("id", None), int):
            self._reply(number, json.dumps(value).encode())
        else:
            log.error("QEMU answered an unknown request: %r", line[:200])

    def _reply(self, number: int, body: bytes) -> None:
        silent, reply = self.silent_for, Reply(body)
        self.restart_clock()
        request = self._pending.pop(number, None)
        if request is not None:
            request.callback(reply)
        elif (request := self._late.pop(number, None)) is not None:
            self.on_late(silent)
            request.late(reply)
        else:
            log.error("QEMU answered twice, or an unknown request: %r", body[:200])

    def ended(self, gone: bool) -> None:
        """QEMU closed its side: pending callbacks are called first, then ``on_gone``."""
        if self.gone:
            return
        self.gone = True
        if self._on_text is not None and (rest := self._interleaved.end()):
            self._on_text(rest)
        self.link.close()
        self._late.clear()
        pending, self._pending = self._pending, {}
        for request in pending.values():
            request.callback(None)
        self._on_gone()

    def drained(self) -> None:
        """Nothing waits for this."""

    def close(self) -> None:
        """Close the connection without calling any callback."""
        self.gone = True
        self._pending.clear()
        self.link.close()
