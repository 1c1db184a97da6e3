"""The NBD link between a primary and its secondary: seen, stalled, cut, made lossy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from errno import EIO
from pathlib import Path

from qmpshim.errors import MachineDied
from qmpshim.machine.nbd.protocol.transmission import NbdCommand, Request, error_code
from qmpshim.machine.nbd.relay import Relay

#: Called with each change that was answered: the request and the error it got, 0 for success.
Observer = Callable[[Request, int], None]

_CHANGES = (NbdCommand.WRITE.value, NbdCommand.WRITE_ZEROES.value, NbdCommand.TRIM.value)


class _Changes:
    """An :class:`~qmpshim.machine.nbd.relay.RelayObserver` for changes only."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def begins(self, request: Request) -> int:
        return 0

    def ends(self, token: int, request: Request, error: int) -> None:
        if request.type in _CHANGES:
            self._observer(request, error)

    def lost(self, token: int, request: Request) -> None:
        self.ends(token, request, error_code(EIO))


def connector(path: Path) -> Callable[[], asyncio.Future[socket.socket]]:
    """What connects to the unix socket *path*."""

    async def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except BaseException:
            sock.close()
            raise
        return sock

    return lambda: asyncio.ensure_future(connect())


class NbdLink(Relay):
    """A relay that can be treated as a bad network.

    :param server: the secondary's NBD server, a unix socket
    :param name: the export
    :param path: where the primary's client finds it
    :param observer: called with each change once it was answered
    """

    def __init__(self, server: Path, name: str, path: Path, observer: Observer) -> None:
        super().__init__(connector(server), name, path, _Changes(observer))
        self.broken = False
        #: A write for which this holds is answered with success, and is lost.
        self.lose: Callable[[Request], bool] | None = None
        self.lost = 0
        self.waiting = 0  # requests that a stalled link keeps

    async def admit(self, request: Request) -> bool:
        """As the relay's, and loses what is to be lost."""
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1
        if self.lose is not None and self.lose(request):
            self.lost += 1
            return False
        return await super().admit(request)

    def stall(self) -> None:
        """Let nothing through any more, with no error."""
        self.pause()

    def cut(self) -> None:
        """Break all connections, and refuse new ones until :meth:`mend`."""
        self.broken = True
        for task in list(self._tasks):
            task.cancel()

    def mend(self) -> None:
        """Let requests and connections through again."""
        self.broken = False
        self.resume()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            raise MachineDied("the link is cut")
        await super()._serve(reader, writer)
