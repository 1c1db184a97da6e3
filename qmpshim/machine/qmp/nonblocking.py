"""Non-blocking QMP and NBD clients: answers arrive while the manual event loop is polled.

The explorer must see an answer the moment it arrives and must go on when none does, with commands
and requests of several kinds in flight; and it must be quick: these clients do nothing but cut the
stream into messages.
"""

from __future__ import annotations

import json
import math
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from qmpshim.errors import (
    CommandFailed,
    IOFailed,
    MachineDied,
    MachineHung,
    OptionMissing,
    ProtocolBroken,
)
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.nbd.protocol.handshake import (
    HANDSHAKE_FIXED_NEWSTYLE,
    HANDSHAKE_NO_ZEROES,
    OPTION_MAGIC,
    Option,
)
from qmpshim.machine.nbd.protocol.transmission import REQUEST_MAGIC, NbdCommand

_CHUNK = 1 << 18
_LOG = 300  # QMP messages


class _Connection(ABC):
    """A socket that is read from the event loop without waiting.

    :ivar lost: the connection ended
    """

    def __init__(self, event_loop: ManualEventLoop, sock: socket.socket) -> None:
        self._event_loop = event_loop
        self._sock = sock
        self.lost = False
        sock.setblocking(False)
        event_loop.on_readable(sock.fileno(), self._readable)

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """Process what was received."""

    def _readable(self) -> None:
        data = _received(self._sock)
        if data is None:
            return
        if not data:
            self.lost = True
            self._event_loop.on_readable(self._sock.fileno(), None)
            return
        self._take(data)


class NonBlockingQmp(_Connection):
    """A QMP connection over a connected socket; answers are kept by id until they are taken.

    :ivar wrong: what came is not QMP, and no more is read
    :ivar log: the latest messages of both sides
    :ivar commands: those that there are; None: all that are sent
    """

    def __init__(self, event_loop: ManualEventLoop, sock: socket.socket) -> None:
        super().__init__(event_loop, sock)
        self._buffer = b""
        self._count = 0
        self._unanswered: set[int] = set()
        self.answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.greeting: dict[str, Any] | None = None
        self.log: deque[dict[str, Any]] = deque(maxlen=_LOG)
        self.wrong: ProtocolBroken | None = None
        self.commands: Collection[str] | None = None

    def send(self, command: str, arguments: Mapping[str, Any] | None = None) -> int:
        """Send a command.

        :returns: the key its answer will have in :attr:`answers`
        :raises OptionMissing: there is no such command
        """
        if self.commands is not None and command not in self.commands:
            raise OptionMissing(f"this program has no {command}")
        self._count += 1
        message: dict[str, Any] = {"execute": command, "id": self._count}
        if arguments:
            message["arguments"] = dict(arguments)
        self.log.append(message)
        self._unanswered.add(self._count)
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.lost = True
        return self._count

    def take(self, command: str, number: int) -> Any:
        """The value a command returned; it must have been answered.

        :raises CommandFailed: it was answered with an error
        """
        answer = self.answers.pop(number)
        if "error" in answer:
            raise CommandFailed(command, answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def call(
        self, command: str, arguments: Mapping[str, Any] | None = None, limit: float = 20.0
    ) -> Any:
        """Send a command and wait for what it returns.

        :raises CommandFailed: it was answered with an error
        :raises MachineDied: the connection ended
        :raises MachineHung: no answer within *limit* seconds, or none that can come any more
        :raises ProtocolBroken: something else came
        """
        number = self.send(command, arguments)
        self.wait(command, number, limit)
        return self.take(command, number)

    def wait(self, command: str, number: int, limit: float = 20.0) -> None:
        """Wait for an answer; see :meth:`call`."""
        began = time.monotonic()
        if not self._event_loop.until(lambda: number in self.answers or self.over, limit):
            raise MachineHung(f"{command}: no answer in {_waited(began, limit)}")
        if number not in self.answers:
            raise self.wrong or MachineDied(f"QEMU went away during {command}")

    @property
    def over(self) -> bool:
        """Whether nothing more will come: the connection ended, or what came is not QMP."""
        return self.lost or self.wrong is not None

    def _take(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.strip() and (fault := self.take_message(line)):
                text = line.strip().decode(errors="replace")[:200]
                self.wrong = ProtocolBroken(f"QEMU's monitor said {text!r}: {fault}")
                self._event_loop.on_readable(self._sock.fileno(), None)
                return

    def take_message(self, line: bytes) -> str:
        """Keep a message; what is wrong with it, if anything."""
        try:
            message = json.loads(line)
        except ValueError:
            return "that is no JSON"
        if not isinstance(message, dict):
            return "that is no message"
        self.log.append(message)
        if "event" in message:
            self.events.append(message)
        elif "QMP" in message:
            self.greeting = message
        elif "return" not in message and not _is_error(message.get("error")):
            return "neither an event nor an answer"
        elif not isinstance(number := message.get("id"), int) or number not in self._unanswered:
            return "an answer to nothing that was asked"
        else:
            self._unanswered.remove(number)
            self.answers[number] = message
        return ""

    def close(self) -> None:
        """Close the connection."""
        self._event_loop.forget(self._sock.fileno())
        self._sock.close()


def _received(sock: socket.socket) -> bytes | None:
    """What came, up to ``_CHUNK`` bytes: None where nothing did, empty where the peer is gone."""
    try:
        return sock.recv(_CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _waited(began: float, limit: float) -> str:
    """In whole seconds, for how long an answer did not come."""
    return f"{min(limit, math.ceil(time.monotonic() - began)):g} s"


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and {"class", "desc"} <= value.keys()


@dataclass(slots=True)
class NbdAnswer:
    """How an NBD request ended: an errno (0: well), and the data of a read."""

    errno: int
    data: bytes = b""


_REQUEST = Struct(">IHHQQI")
_REPLY = Struct(">IIQ")
_OPTION = Struct(">QII")
_EXPORT_INFO = Struct(">QH")
_GREETING = 18  # bytes


class NonBlockingNbd(_Connection):
    """A connection to one NBD export of QEMU, with simple replies; offsets and lengths are bytes.

    Simple replies, so that a read reaches the filters above the image as a guest's would (see
    :class:`~qmpshim.machine.nbd.client.NbdClient`).

    :param limit: seconds that each of the server's replies in the negotiation may take
    :raises MachineDied: QEMU does not know the export, or there is no server
    :raises MachineHung: it does not answer
    """

    def __init__(
        self, event_loop: ManualEventLoop, path: Path, export: str, limit: float = 10.0
    ) -> None:
        self._export = export
        self._limit = limit
        self._buffer = bytearray()
        self._unsent = bytearray()  # requests, or the rest of one, that the socket has not taken
        self._sending = False  # the event loop waits for the socket to take more
        self._count = 0
        self._lengths: dict[int, int] = {}  # of the reads in flight
        self.flying: set[int] = set()
        self.answers: dict[int, NbdAnswer] = {}
        self._ready = False
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            text = f"NBD connection to {export}: {error.strerror}"
            raise MachineDied(text, last_words=str(error.strerror)) from error
        super().__init__(event_loop, sock)
        try:
            self._enter()
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        """Negotiate: fixed newstyle with EXPORT_NAME, the shortest there is."""
        flags = HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES
        self._send(flags.to_bytes(4, "big"))
        self._received(_GREETING)
        self._negotiate()
        self._option(Option.EXPORT_NAME, self._export.encode())
        self.size, _ = _EXPORT_INFO.unpack(self._received(_EXPORT_INFO.size))
        self._ready = True

    def _negotiate(self) -> None:
        """Negotiate more than the export."""

    def _option(self, option: Option, data: bytes) -> None:
        self._send(_OPTION.pack(OPTION_MAGIC, option, len(data)) + data)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            self.lost = True

    def _received(self, size: int) -> bytes:
        """Wait for the next *size* bytes of the server's negotiation.

        :raises MachineDied: it closed the connection, which is how it refuses EXPORT_NAME
        :raises MachineHung: it does not answer
        """
        began = time.monotonic()
        answered = self._event_loop.until(
            lambda: len(self._buffer) >= size or self.lost, self._limit
        )
        if not answered:
            waited = _waited(began, self._limit)
            raise MachineHung(f"NBD connection to {self._export}: no answer in {waited}")
        if len(self._buffer) < size:
            raise MachineDied(f"NBD connection to {self._export} was refused")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def send(
        self,
        op: NbdCommand,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        flags: int = 0,
    ) -> int:
        """Send a request.

        :param flags: NBD_CMD_FLAG_*
        :returns: the key its answer will have in :attr:`answers`
        """
        self._count += 1
        cookie = self._count
        if op is NbdCommand.READ:
            self._lengths[cookie] = length
        self.flying.add(cookie)
        size = len(data) or length
        packet = _REQUEST.pack(REQUEST_MAGIC, flags, op.value, cookie, offset, size)
        self._unsent += packet + data
        if not self._sending:
            self._writable()
        return cookie

    def _writable(self) -> None:
        """Send what the socket takes now, and the rest when it takes more.

        QEMU reads no request while the export is drained (``nbd_drained_begin``, nbd/server.c),
        and that may last as long as the gate holds an I/O: to wait here would be for ever.
        """
        loop, file = self._event_loop, self._sock.fileno()
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.lost = True
            self._unsent.clear()
        if self._unsent and not self._sending:
            loop.on_writable(file, self._writable)
        elif self._sending and not self._unsent:
            loop.on_writable(file, None)
        self._sending = bool(self._unsent)

    def call(
        self,
        op: NbdCommand,
        offset: int = 0,
        length: int = 0,
        data: bytes = b"",
        limit: float = 20.0,
    ) -> NbdAnswer:
        """Send a request and wait for its answer.

        :raises MachineDied: the connection ended
        :raises MachineHung: no answer within *limit* seconds, or none that can come any more
        """
        cookie, began = self.send(op, offset, length, data), time.monotonic()
        if not self._event_loop.until(lambda: cookie in self.answers or self.lost, limit):
            raise MachineHung(f"an NBD {op.name} was not answered in {_waited(began, limit)}")
        if cookie not in self.answers:
            raise MachineDied(f"the NBD connection broke during a {op.name}")
        return self.answers.pop(cookie)

    # Each returns when QEMU has answered. What the gate holds is not: MachineHung.

    def read(self, length: int, offset: int) -> bytes:
        """Read *length* bytes at *offset*.

        :raises IOFailed: QEMU answered with an error
        :raises MachineDied: the connection ended
        :raises MachineHung: no answer
        """
        return self._done(NbdCommand.READ, offset, length)

    def write(self, data: bytes, offset: int) -> None:
        """Write *data*, 32 MiB at most, at *offset* bytes; raises as :meth:`read` does."""
        self._done(NbdCommand.WRITE, offset, len(data), data)

    def zero(self, length: int, offset: int) -> None:
        """Write *length* zeroes at *offset* bytes, or punch a hole; raises as :meth:`read` does."""
        self._done(NbdCommand.WRITE_ZEROES, offset, length)

    def discard(self, length: int, offset: int) -> None:
        """Discard (trim) *length* bytes at *offset*; raises as :meth:`read` does."""
        self._done(NbdCommand.TRIM, offset, length)

    def flush(self) -> None:
        """Flush; raises as :meth:`read` does."""
        self._done(NbdCommand.FLUSH)

    def _done(self, op: NbdCommand, offset: int = 0, length: int = 0, data: bytes = b"") -> bytes:
        answer = self.call(op, offset, length, data)
        if answer.errno:
            raise IOFailed(f"NBD {op.name.lower()}", answer.errno)
        return answer.data

    def _take(self, data: bytes) -> None:
        self._buffer += data
        if self._ready:
            self._parse()

    def _parse(self) -> None:
        while len(self._buffer) >= _REPLY.size:
            _, errno, cookie = _REPLY.unpack_from(self._buffer)
            length = self._lengths.get(cookie, 0) if errno == 0 else 0
            end = _REPLY.size + length
            if len(self._buffer) < end:
                return
            self.answers[cookie] = NbdAnswer(errno, bytes(self._buffer[_REPLY.size : end]))
            del self._buffer[:end]
            self.flying.discard(cookie)
            self._lengths.pop(cookie, None)

    def close(self) -> None:
        """Close the connection, with whatever is in flight."""
        if self._sock.fileno() >= 0:
            self._event_loop.forget(self._sock.fileno())
            self._sock.close()
        self._unsent.clear()
        self._sending = False
        self.lost = True
