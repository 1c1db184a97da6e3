"""A gate's clients on a manual event loop, in place of asyncio's server and transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from qmpshim.machine.host.files import Bytes
from qmpshim.machine.host.manual_event_loop import ManualEventLoop

_CHUNK = 1 << 18  # bytes that are read at once
_FULL = 64 << 10  # bytes that may wait to be sent until the client counts as one that does not read


class PolledTransport(asyncio.Transport):
    """A connected socket; does for a protocol what asyncio's transports do, as far as a gate needs.

    Unlike there ``connection_lost`` is called at once, from :meth:`abort` too.
    """

    def __init__(
        self, event_loop: ManualEventLoop, sock: socket.socket, protocol: asyncio.Protocol
    ) -> None:
        super().__init__()
        self._event_loop, self._sock, self._protocol = event_loop, sock, protocol
        self._file = sock.fileno()
        self._unsent = bytearray()
        self._reading = self._closing = self._paused = False
        sock.setblocking(False)
        self.resume_reading()
        protocol.connection_made(self)

    def write(self, data: Bytes) -> None:
        """Send at once what the socket takes, and the rest when it takes more."""
        if self._file < 0:
            return
        if not self._unsent:
            sent = self._send(data)
            if sent == len(data):
                return
            data = data[sent:]
            self._event_loop.on_writable(self._file, self._writable)
        self._unsent += data
        if len(self._unsent) > _FULL and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def _send(self, data: Bytes) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the client is gone; the next read sees its end
            return len(data)

    def _writable(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        if self._unsent:
            return
        self._event_loop.on_writable(self._file, None)
        if self._closing:
            self.abort()
        elif self._paused:
            self._paused = False
            self._protocol.resume_writing()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._protocol.data_received(data)
        else:
            self.abort()

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._event_loop.on_readable(self._file, None)

    def resume_reading(self) -> None:
        if not self._reading and not self.is_closing():
            self._reading = True
            self._event_loop.on_readable(self._file, self._readable)

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing or self._file < 0

    def close(self) -> None:
        """Close once everything is sent."""
        self.pause_reading()
        self._closing = True
        if not self._unsent:
            self.abort()

    def abort(self) -> None:
        """Close now, whatever is not sent."""
        if self._file < 0:
            return
        self._event_loop.forget(self._file)
        self._file, self._reading = -1, False
        self._unsent.clear()
        self._sock.close()
        self._protocol.connection_lost(None)


class PolledServer:
    """A unix socket that is listened on while the event loop is polled.

    :param connected: makes the protocol of a new client
    :raises OSError: the socket cannot be made
    """

    def __init__(
        self, event_loop: ManualEventLoop, path: Path, connected: Callable[[], asyncio.Protocol]
    ) -> None:
        self._event_loop, self._connected = event_loop, connected
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.bind(str(path))
            self._sock.listen(100)
        except OSError:
            self._sock.close()
            raise
        self._sock.setblocking(False)
        event_loop.on_readable(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._sock.accept()
        except OSError:  # it went away before we came to it
            return
        PolledTransport(self._event_loop, client, self._connected())

    def close(self) -> None:
        """Listen no longer; what is connected stays."""
        self._event_loop.forget(self._sock.fileno())
        self._sock.close()
