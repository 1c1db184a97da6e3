"""Where clients come in: private unix sockets, loopback TCP, and TLS for everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import re
import resource
import select
import socket
import ssl
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qmpshim.errors import HostError, InputError, os_errors

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_HANDSHAKE_LIMIT = 10.0  # seconds
_LAST_WORDS = 5.0  # seconds a client has to take them
_BACKLOG = 1024
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: a unix socket's path, or a host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """``unix:PATH``, a path, or ``HOST:PORT`` (``tcp:`` may precede it).

        A path without a slash in it is taken for one when a socket is there.

        :raises InputError: it is none of these
        """
        if text.startswith("unix:"):
            text = text[5:]
            if not text:
                raise InputError("unix: needs a path")
            return cls(path=Path(text))
        if "/" in text:
            return cls(path=Path(text))
        found = re.fullmatch(r"(?:tcp:)?(?:\[([0-9a-fA-F:]+)\]|([^:\[\]]*)):(\d{1,5})", text)
        if found is None or int(found[3]) > 65535:
            if Path(text).is_socket():
                return cls(path=Path(text))
            raise InputError(
                f"{text!r} is no address, and no socket is there: write unix:PATH or HOST:PORT"
            )
        return cls(host=found[1] or found[2] or "localhost", port=int(found[3]))

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    async def connect(self) -> socket.socket:
        """Connect to it.

        :raises InputError: nothing listens there
        """
        loop = asyncio.get_running_loop()
        with os_errors(InputError, f"cannot connect to {self}"):
            if self.path is not None:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.setblocking(False)
                try:
                    await loop.sock_connect(sock, str(self.path))
                except OSError:
                    sock.close()
                    raise
                return sock
            family, kind, proto, _, place = (
                await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            )[0]
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, place)
            except OSError:
                sock.close()
                raise
            return sock


def tls_context(directory: Path) -> ssl.SSLContext:
    """A server's TLS from *directory*: the files QEMU's and libvirt's own x509 setup uses.

    Clients must show a certificate of the same authority.

    :raises InputError: a file is missing or wrong
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(directory / "ca-cert.pem")
        context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"{directory}: needs ca-cert.pem, server-cert.pem and server-key.pem: {error}"
        ) from error
    return context


def raise_fd_limit() -> int:
    """Raise the limit of open files to the hard limit; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Listener:
    """Listens at an address and passes each accepted connection to *attach*.

    :param allow_remote: take an address others can reach; needs *tls*
    :raises InputError: the address is taken, unusable, or open to others without TLS
    """

    def __init__(
        self,
        address: Address,
        attach: Callable[[socket.socket], object],
        allow_remote: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        sock = _bound(address, allow_remote, tls, listening=True)
        self._begin(sock, address, attach, tls if address.path is None else None)

    @classmethod
    def inherited(cls, sock: socket.socket, attach: Callable[[socket.socket], object]) -> Listener:
        """Take over a listening socket, whatever it listens at."""
        made = cls.__new__(cls)
        made._begin(sock, None, attach, None)
        return made

    def _begin(
        self,
        sock: socket.socket,
        address: Address | None,
        attach: Callable[[socket.socket], object],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._sock = sock
        self._attach = attach
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._inode: tuple[int, int] | None = None
        self.refused = 0
        self.address = self._actual(address) if address is not None else Address()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)

    def _actual(self, address: Address) -> Address:
        if address.path is not None:
            status = address.path.stat()
            self._inode = status.st_dev, status.st_ino
            return address
        host, port = self._sock.getsockname()[:2]
        return Address(host=host, port=port)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                # Too many are here; the others wait in the kernel until one leaves.
                self._loop.remove_reader(self._sock)
                self._loop.call_later(0.1, self._again)
                return
            if sock.family == socket.AF_UNIX and not _is_friend(sock):
                self.refused += 1
                sock.close()
            elif self._tls is not None:
                task = self._loop.create_task(self._over_tls(sock, self._tls))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._attach(sock)

    def _again(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    async def _over_tls(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        """Speak TLS outside and plain text to a socket pair inside."""
        try:
            async with asyncio.timeout(_HANDSHAKE_LIMIT):
                reader, writer = await _server_side(sock, tls)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            self.refused += 1
            log.info("TLS handshake failed: %s", error)
            sock.close()
            return
        ours, theirs = socket.socketpair()
        inner_reader, inner_writer = await asyncio.open_unix_connection(sock=ours)
        self._attach(theirs)
        copies = (_copy(reader, inner_writer), _copy(inner_reader, writer))
        tasks = {asyncio.ensure_future(copy) for copy in copies}
        try:
            rest, gone = tasks, False
            while rest:
                _, rest = await asyncio.wait(rest, timeout=_LAST_WORDS)
                if gone:  # and was a moment ago: the client takes nothing
                    break
                gone = _hung_up(ours)
        finally:
            for task in tasks:
                task.cancel()
            for end in (inner_writer, writer):
                end.transport.abort()

    async def close(self) -> None:
        """Stop listening; connections that exist go on."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        path = self.address.path
        if path is not None:
            with contextlib.suppress(OSError):
                status = path.stat()
                if (status.st_dev, status.st_ino) == self._inode:
                    path.unlink()


async def _server_side(
    sock: socket.socket, tls: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_CHUNK)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _hung_up(sock: socket.socket) -> bool:
    """Whether the other end of a socket pair is closed, whatever is still to be read."""
    poll = select.poll()
    poll.register(sock, 0)
    return sock.fileno() >= 0 and bool(poll.poll(0))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):
            writer.write_eof()
    else:
        writer.close()


def check_address(
    address: Address, allow_remote: bool = False, tls: ssl.SSLContext | None = None
) -> None:
    """Check that a :class:`Listener` can listen there, and leave nothing: no client may connect
    yet.

    :raises InputError: as :class:`Listener`
    """
    _bound(address, allow_remote, tls, listening=False).close()
    if address.path is not None:
        address.path.unlink(missing_ok=True)


def _bound(
    address: Address, allow_remote: bool, tls: ssl.SSLContext | None, listening: bool
) -> socket.socket:
    if not address.is_loopback and not allow_remote:
        raise InputError(
            f"{address} can be reached from other machines, and whoever reaches QMP owns "
            "QEMU: use a unix socket or localhost, or --allow-remote with --tls DIR"
        )
    if not address.is_loopback and tls is None:
        raise InputError(f"{address}: --allow-remote needs --tls DIR")
    with os_errors(InputError, f"cannot listen at {address}"):
        return _bind(address, listening)


def _bind(address: Address, listening: bool) -> socket.socket:
    where: object
    if address.path is None:
        info = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = info[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        _clear(address.path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        where = str(address.path)
    # The socket must never exist with a mode that lets others in.
    before = os.umask(0o177)
    try:
        sock.bind(where)
        if listening:
            sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _clear(path: Path) -> None:
    """Remove a socket that has no listener any more, and nothing else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InputError(f"{path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise HostError(f"{path}: {error.strerror or error}") from error
    raise InputError(f"another server listens at {path}")


def _is_friend(sock: socket.socket) -> bool:
    """Whether the peer is of the same user, or root (which could do it anyway)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return uid in (os.geteuid(), 0)
