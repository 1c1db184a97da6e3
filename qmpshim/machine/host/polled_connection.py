"""A socket that the manual event loop reads: what arrives is taken while the loop is polled.

The explorer must see an answer the moment it arrives and must go on when none does, with commands
and requests of several kinds in flight; and it must be quick: its clients do nothing but cut the
stream into messages.
"""

from __future__ import annotations

import math
import socket
import time
from abc import ABC, abstractmethod

from qmpshim.machine.host.manual_event_loop import ManualEventLoop

_CHUNK = 1 << 18


class PolledConnection(ABC):
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


def _received(sock: socket.socket) -> bytes | None:
    """What came, up to ``_CHUNK`` bytes: None where nothing did, empty where the peer is gone."""
    try:
        return sock.recv(_CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def waited(began: float, limit: float) -> str:
    """In whole seconds, for how long an answer did not come."""
    return f"{min(limit, math.ceil(time.monotonic() - began)):g} s"
