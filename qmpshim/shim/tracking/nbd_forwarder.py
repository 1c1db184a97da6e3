"""Takes the address of QEMU's NBD server, forwards every byte, and reports the clients.

A client that connects there bypasses the shim's endpoints: what it writes is not seen, but that it
came is, and which export it requests. TLS, structured replies and whatever a version adds pass as
they are. Restates the NBD protocol document, section "Option haggling".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from struct import Struct

from qmpshim.machine.nbd.protocol.handshake import OPTION_HEAD, OPTION_MAGIC, Option

_CHUNK = 1 << 18
_FLAGS = 4  # bytes, the first that a client sends
_LENGTH = Struct(">I")
_MOST = 1 << 16  # bytes of an option that is read


class _Haggling:
    """A client's option haggling.

    :param on_export: called with the name of each export that the client requests; None: it cannot
        be known which
    """

    def __init__(self, on_export: Callable[[str | None], None]) -> None:
        self._on_export = on_export
        self._data = b""
        self._at = _FLAGS
        self._over = False

    def feed(self, data: bytes) -> None:
        """Take what the client sends, before QEMU gets it."""
        if self._over:
            return
        self._data += data
        while not self._over and len(self._data) >= self._at + OPTION_HEAD.size:
            magic, kind, length = OPTION_HEAD.unpack_from(self._data, self._at)
            if magic != OPTION_MAGIC:  # a request: the haggling is over
                self._end()
            elif kind == Option.STARTTLS or length > _MOST:
                self._on_export(None)
                self._end()
            elif len(self._data) < self._at + OPTION_HEAD.size + length:
                return
            else:
                self._option(kind, self._data[self._at + OPTION_HEAD.size :][:length])
                self._at += OPTION_HEAD.size + length

    def _option(self, kind: int, data: bytes) -> None:
        if kind == Option.EXPORT_NAME.value:
            self._on_export(data.decode(errors="replace"))
            self._end()
        elif kind == Option.GO.value:
            (length,) = _LENGTH.unpack_from(data.ljust(_LENGTH.size, b"\0"))
            self._on_export(data[_LENGTH.size :][:length].decode(errors="replace"))

    def _end(self) -> None:
        self._over, self._data = True, b""


class NbdForwarder:
    """Listens at a unix socket and passes connections on to another.

    :param path: where clients expect QEMU
    :param behind: where QEMU listens
    :param on_export: called with the name of the export that a client requests, before QEMU gets
        it; None: it cannot be known which
    :ivar requested: those names so far
    """

    def __init__(self, path: Path, behind: Path, on_export: Callable[[str | None], None]) -> None:
        self.requested: set[str | None] = set()
        self._path = path
        self._behind = behind
        self._on_export = on_export
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen; as QEMU does, in the place of whatever is at the path.

        :raises OSError: the path cannot be used
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            self._sock.bind(str(self._path))
            self._identity = self._path.stat().st_ino
            self._sock.listen(128)
        except OSError:
            self._sock.close()
            raise
        self._sock.setblocking(False)
        self._begin(self._accept())

    def _begin(self, what: object) -> None:
        assert asyncio.iscoroutine(what)
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._sock)
            self._begin(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        qemu = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with client, qemu, contextlib.suppress(OSError):
            client.setblocking(False)
            qemu.setblocking(False)
            await loop.sock_connect(qemu, str(self._behind))
            haggling = _Haggling(self._note_export)
            await asyncio.gather(
                _pass_on(client, qemu, haggling.feed), _pass_on(qemu, client, lambda _: None)
            )

    def _note_export(self, export: str | None) -> None:
        self.requested.add(export)
        self._on_export(export)

    async def close(self) -> None:
        """Take the socket and the connections down."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._identity:  # not replaced by another by now
                os.unlink(self._path)


async def _pass_on(from_: socket.socket, to: socket.socket, look: Callable[[bytes], None]) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(from_, _CHUNK):
        look(data)
        await loop.sock_sendall(to, data)
    to.shutdown(socket.SHUT_WR)
