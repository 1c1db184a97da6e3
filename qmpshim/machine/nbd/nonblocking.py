"""A non-blocking NBD client: answers arrive while the manual event loop is polled."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qmpshim.errors import IOFailed, MachineDied, MachineHung
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.host.polled_connection import PolledConnection, waited
from qmpshim.machine.nbd.protocol.handshake import (
    EXPORT_INFO,
    GREETING,
    HANDSHAKE_FIXED_NEWSTYLE,
    HANDSHAKE_NO_ZEROES,
    Option,
    option_message,
)
from qmpshim.machine.nbd.protocol.transmission import SIMPLE_REPLY_HEAD, NbdCommand, request_message


@dataclass(slots=True)
class NbdAnswer:
    """How an NBD request ended: an errno (0: well), and the data of a read."""

    errno: int
    data: bytes = b""


class NonBlockingNbd(PolledConnection):
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
        self._received(GREETING.size)
        self._negotiate()
        self._option(Option.EXPORT_NAME, self._export.encode())
        self.size, _ = EXPORT_INFO.unpack(self._received(EXPORT_INFO.size))
        self._ready = True

    def _negotiate(self) -> None:
        """Negotiate more than the export."""

    def _option(self, option: Option, data: bytes) -> None:
        self._send(option_message(option, data))

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
        what = f"NBD connection to {self._export}: no answer"
        self._until(lambda: len(self._buffer) >= size, self._limit, what)
        if len(self._buffer) < size:
            raise MachineDied(f"NBD connection to {self._export} was refused")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _until(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        """Wait for ``condition()``, or for the end of the connection.

        :param limit: seconds
        :param what: the error, without how long it took
        :raises MachineHung: neither comes
        """
        began = time.monotonic()
        if not self._event_loop.until(lambda: condition() or self.lost, limit):
            raise MachineHung(f"{what} in {waited(began, limit)}")

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
        self._unsent += request_message(op.value, cookie, offset, size, flags) + data
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
        cookie = self.send(op, offset, length, data)
        self._until(lambda: cookie in self.answers, limit, f"an NBD {op.name} was not answered")
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
        while len(self._buffer) >= SIMPLE_REPLY_HEAD.size:
            _, errno, cookie = SIMPLE_REPLY_HEAD.unpack_from(self._buffer)
            length = self._lengths.get(cookie, 0) if errno == 0 else 0
            end = SIMPLE_REPLY_HEAD.size + length
            if len(self._buffer) < end:
                return
            self.answers[cookie] = NbdAnswer(
                errno, bytes(self._buffer[SIMPLE_REPLY_HEAD.size : end])
            )
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
