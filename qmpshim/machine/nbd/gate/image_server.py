"""An NBD server on a unix socket: the images it exports, and the clients that use them.

What becomes of a client's requests a subclass decides (:class:`.gate.Gate`).

The advertised block sizes are minimum 1, preferred 4096, maximum 32 MiB: ``nbd_refresh_limits``
(QEMU 7.2 block/nbd.c) makes the minimum its ``request_alignment``, so 1 lets every request through
as the layer above made it, neither rounded nor read-modify-written, and 32 MiB is the most that
driver sends anyhow. QEMU keeps at most 16 requests in flight on a connection (MAX_NBD_REQUESTS).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from qmpshim.errors import HostError, InputError
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.nbd.gate.connection import Connection, ExportedImage
from qmpshim.machine.nbd.gate.journal import Journal
from qmpshim.machine.nbd.gate.polled import PolledServer
from qmpshim.machine.nbd.gate.store import Store
from qmpshim.machine.nbd.protocol.handshake import Export
from qmpshim.machine.nbd.protocol.transmission import NbdCommand, Request
from qmpshim.machine.nbd.uri import nbd_uri


class ImageServer(ABC):
    """Several images on one socket, each under its name."""

    def __init__(self) -> None:
        self._images: dict[str, ExportedImage] = {}
        self._connections: dict[int, Connection] = {}
        self._connection_count = 0
        self._server: asyncio.Server | PolledServer | None = None
        self._path: Path | None = None

    # Images

    def add(
        self,
        name: str,
        store: Store,
        *,
        read_only: bool = False,
        without: Iterable[NbdCommand] = (),
    ) -> None:
        """Export ``store`` as ``name``.

        :param without: commands not to offer (FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS)
        :raises InputError: the name is taken
        """
        if name in self._images:
            raise InputError(f"the gate has an image {name!r} already")
        self._images[name] = ExportedImage(name, store, read_only, frozenset(without))

    def remove(self, name: str) -> None:
        """Export an image no longer; its store stays open, its connections are dropped.

        :raises InputError: no such image
        """
        for number in self.connections(name):
            self._connections[number].cut()
        del self._images[name]

    def store(self, name: str) -> Store:
        """The store behind an image.

        :raises InputError: no such image
        """
        return self._image(name).store

    def snapshot(self, name: str) -> bytes:
        """The image's exact bytes at this instant.

        :raises InputError: no such image
        """
        return self.store(name).snapshot()

    def keep_journals(self) -> None:
        """Note from now on what a loss of power may undo; all that is there is durable."""
        for image in self._images.values():
            if image.journal is None:
                image.journal = Journal(image.store)
            image.journal.restart()

    def journal(self, name: str) -> Journal:
        """What a loss of power may undo of an image.

        :raises InputError: no such image, or no journals are kept
        """
        journal = self._image(name).journal
        if journal is None:
            raise InputError("the gate keeps no journals")
        return journal

    def counts(self, name: str) -> dict[NbdCommand, int]:
        """How many requests of each kind arrived for an image, held or passed.

        :raises InputError: no such image
        """
        return dict(self._image(name).counts)

    def connections(self, name: str) -> list[int]:
        """The connections that are using an image now.

        :raises InputError: no such image
        """
        image = self._image(name)
        return [number for number, conn in self._connections.items() if conn.image is image]

    def refuse(self, name: str, refused: bool = True) -> None:
        """Make the image unknown to clients that connect from now on, or known again.

        :raises InputError: no such image
        """
        self._image(name).refused = refused

    # The server

    async def start(self, path: Path) -> None:
        """Listen on the unix socket ``path``.

        :raises HostError: the socket cannot be made (a path of 108 bytes or more, for example)
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), str(path))
        except OSError as error:
            raise HostError(f"cannot listen on {path}: {error}") from error
        self._path = path

    def serve(self, event_loop: ManualEventLoop, path: Path) -> None:
        """As :meth:`start`; clients are served while a loop of this kind is polled."""
        try:
            self._server = PolledServer(event_loop, path, lambda: Connection(self))
        except OSError as error:
            raise HostError(f"cannot listen on {path}: {error}") from error
        self._path = path

    def close(self) -> None:
        """Drop every connection and stop listening; the stores stay open."""
        for connection in list(self._connections.values()):
            connection.cut()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def stop(self) -> None:
        """As :meth:`close`, after :meth:`start`; returns when asyncio's server is closed."""
        server = self._server
        self.close()
        if isinstance(server, asyncio.Server):
            await server.wait_closed()

    def uri(self, name: str) -> str:
        """The image's NBD URI (``nbd+unix:``), for qemu-img, libnbd and the like.

        :raises InputError: no such image, or the gate was not started
        """
        return nbd_uri(self._image(name).name, self._socket)

    def blockdev(self, name: str) -> dict[str, object]:
        """The image as QEMU's ``BlockdevOptionsNbd``.

        :raises InputError: no such image, or the gate was not started
        """
        server = {"type": "unix", "path": self._socket}
        return {"driver": "nbd", "server": server, "export": self._image(name).name}

    # Callbacks of the connections

    def lookup(self, name: str) -> Export | None:
        """What a new client may know of an image; None when there is none or it is refused."""
        image = self._images.get(name)
        return None if image is None or image.refused else image.export

    def names(self) -> list[str]:
        """The images that LIST names."""
        return [image.name for image in self._images.values() if not image.refused]

    def accepted(self, connection: Connection) -> int:
        """A client connected; the connection's number."""
        self._connection_count += 1
        self._connections[self._connection_count] = connection
        return self._connection_count

    @abstractmethod
    def opened(self, connection: Connection, name: str) -> ExportedImage:
        """A connection begins its transmission phase."""

    @abstractmethod
    def closed(self, connection: Connection) -> None:
        """A connection ended; may be called twice."""

    @abstractmethod
    def arrived(self, connection: Connection, image: ExportedImage, request: Request) -> None:
        """A sound request came in."""

    # Below the surface

    @property
    def _socket(self) -> str:
        if self._path is None:
            raise InputError("the gate was not started")
        return str(self._path)

    def _image(self, name: str) -> ExportedImage:
        try:
            return self._images[name]
        except KeyError:
            raise InputError(f"the gate has no image {name!r}") from None
