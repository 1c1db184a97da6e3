"""Gated storage: an NBD server whose every request can be held, released, failed or spoilt by hand.

QEMU opens its images with ``driver=nbd`` on a :class:`Gate`; each request it makes becomes a
:class:`HeldIO` that stays in :attr:`Gate.held` until somebody decides how it ends. A policy
(:meth:`Gate.hold`) says which requests wait; the others pass at once (an *open* gate).

* The effect happens at release, not at arrival: a held write has not reached the image, a held
  read sees what is there when it is released. Effects happen in the order of the calls.
  :meth:`Gate.apply` and :meth:`Gate.reply` do the two halves apart.
* Effects are durable at once: :meth:`Gate.snapshot` is what a crash now would leave. There is no
  volatile cache to model: a FLUSH is an ordinary request (of length 0) that may be held too.
* Arrival order is exact within a connection. Between connections it is the order in which the
  event loop read the sockets; only a request that QEMU sent *because of* a reply surely follows.
* The calls are plain functions for the thread of the event loop. The client must be another
  process, or a thread that lets this one run: a client that blocks the loop waits for ever.
* Replies are handed to the socket in the order of the calls; :meth:`Gate.cut` discards what the
  socket had not taken yet, as a broken network would.

The block sizes told to QEMU are minimum 1, preferred 4096, maximum 32 MiB: ``nbd_refresh_limits``
(QEMU 7.2 block/nbd.c) makes the minimum its ``request_alignment``, so 1 lets every request through
as the layer above made it, neither rounded nor read-modify-written, and 32 MiB is the most that
driver sends anyhow. QEMU keeps at most 16 requests in flight on a connection (MAX_NBD_REQUESTS).
"""

from __future__ import annotations

import asyncio
import errno as errnos
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from qmpshim.errors import HostError, InputError, MachineError
from qmpshim.machine import nbd_proto as nbd
from qmpshim.machine.nbd_proto import Op, Request
from qmpshim.machine.store import Store

log = logging.getLogger(__name__)

# What one connection may keep waiting before we stop reading from it, so that a rude client
# costs no more memory than this: bytes, each request counting _REQUEST_WEIGHT besides its data.
_HELD_LIMIT = 64 << 20
_REQUEST_WEIGHT = 64 << 10
_BATCH = 256 << 10  # replies to pipelined requests are sent together up to this many bytes

_OPS = {op.value: op for op in Op}
_WRITES = frozenset({Op.WRITE, Op.TRIM, Op.WRITE_ZEROES})
_OFFERS = {
    Op.FLUSH: nbd.EXPORT_SEND_FLUSH,
    Op.TRIM: nbd.EXPORT_SEND_TRIM,
    Op.WRITE_ZEROES: nbd.EXPORT_SEND_WRITE_ZEROES,
}


@dataclass(frozen=True, slots=True)
class HeldIO:
    """One request of a client: ``offset`` and ``length`` in bytes, ``data`` that of a WRITE.

    ``seq`` is its place on the gate's clock; ``connection`` numbers the client's connection.
    """

    seq: int
    image: str
    op: Op
    offset: int
    length: int
    data: bytes = field(repr=False)
    fua: bool
    no_hole: bool
    connection: int

    def __str__(self) -> str:
        return f"#{self.seq} {self.image} {self.op.name.lower()} {self.offset}+{self.length}"


class Kind(StrEnum):
    """What happened to a request (or a connection)."""

    ARRIVE = "arrive"  # held from now on
    PASS = "pass"  # arrived at an open gate: effect and reply at once
    RELEASE = "release"  # effect and reply
    APPLY = "apply"  # effect only
    REPLY = "reply"  # the reply to an applied request
    FAIL = "fail"  # an error reply
    DROP = "drop"  # a success reply, no effect
    CORRUPT = "corrupt"  # other data than was stored or sent
    LOST = "lost"  # its connection ended while it was held
    CONNECT = "connect"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the trace. ``io`` is the request's seq; 0 and no ``op`` for a connection's."""

    seq: int
    kind: Kind
    io: int
    image: str
    op: Op | None
    offset: int
    length: int
    connection: int
    errno: int = 0


class Gate:
    """An NBD server on a unix socket with several images, and the hand on its requests.

    :param tracing: whether :attr:`trace` grows; a plain attribute, to be changed at any time

    Held requests end by :meth:`release`, :meth:`fail`, :meth:`drop`, :meth:`corrupt`,
    :meth:`reply_twice`, :meth:`reply` after :meth:`apply`, or with their connection; each of
    these raises :class:`MachineError` when the request is not held (any more).
    """

    def __init__(self, tracing: bool = True) -> None:
        self.tracing = tracing
        self.trace: list[Event] = []  # clear it at will
        self.clock = 0  # the seq of the latest request or event
        self._last_arrival = 0
        self._images: dict[str, _Image] = {}
        self._policy: Callable[[HeldIO], bool] | None = None
        self._pending: dict[int, _Pending] = {}
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[bool]]] = []
        self._connections: dict[int, _Connection] = {}
        self._connection_count = 0
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    # Images and the server

    def add(
        self, name: str, store: Store, *, read_only: bool = False, without: Iterable[Op] = ()
    ) -> None:
        """Export ``store`` as ``name``.

        :param without: commands not to offer (FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS)
        :raises InputError: the name is taken
        """
        if name in self._images:
            raise InputError(f"the gate has an image {name!r} already")
        self._images[name] = _Image(name, store, read_only, frozenset(without))

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

    def counts(self, name: str) -> dict[Op, int]:
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

    async def start(self, path: Path) -> None:
        """Listen on the unix socket ``path``.

        :raises HostError: the socket cannot be made (a path of 108 bytes or more, for example)
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(lambda: _Connection(self), str(path))
        except OSError as error:
            raise HostError(f"cannot listen on {path}: {error}") from error
        self._path = path

    async def stop(self) -> None:
        """Drop every connection and stop listening; the stores stay open."""
        for connection in list(self._connections.values()):
            connection.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def uri(self, name: str) -> str:
        """The image's NBD URI (``nbd+unix:``), for qemu-img, libnbd and the like.

        :raises InputError: no such image, or the gate was not started
        """
        return f"nbd+unix:///{quote(self._image(name).name, safe='')}?socket={quote(self._socket)}"

    def blockdev(self, name: str) -> dict[str, object]:
        """The image as QEMU's ``BlockdevOptionsNbd``.

        :raises InputError: no such image, or the gate was not started
        """
        server = {"type": "unix", "path": self._socket}
        return {"driver": "nbd", "server": server, "export": self._image(name).name}

    # Policy and waiting

    def hold(self, *what: str | Callable[[HeldIO], bool]) -> None:
        """From now on hold the requests for these images or of these predicates; pass others.

        Without arguments every request is held. Replaces the former policy.

        :raises InputError: no such image
        """
        names = frozenset(self._image(name).name for name in what if isinstance(name, str))
        tests = [test for test in what if not isinstance(test, str)]
        if tests:
            self._policy = lambda io: io.image in names or any(test(io) for test in tests)
        else:
            self._policy = lambda io: not what or io.image in names

    def open(self) -> None:
        """From now on pass every request; what is held stays held."""
        self._policy = None

    @property
    def held(self) -> list[HeldIO]:
        """The requests that wait, in order of arrival (applied ones included)."""
        return [pending.io for pending in self._pending.values()]

    async def arrival(self, since: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until a request later than ``since`` (a seq, e.g. :attr:`clock`) has arrived.

        :param timeout: seconds
        :returns: False when the time ran out
        """
        return await self.until(lambda: self._last_arrival > since, timeout)

    async def until(
        self,
        condition: Callable[[], bool],
        timeout: float,  # noqa: ASYNC109 - running out of time is an answer here, not an error
    ) -> bool:
        """Wait until ``condition()`` is true; it is tried now and after each event.

        :param timeout: seconds
        :returns: False when the time ran out
        """
        if condition():
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        entry = (condition, waiter)
        self._waiters.append(entry)
        timer = loop.call_later(timeout, _settle, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.remove(entry)

    # How a held request ends

    def release(self, io: HeldIO) -> None:
        """Perform the request on the image (unless applied before) and reply."""
        pending = self._take(io)
        self._end(pending, Kind.RELEASE, pending.performed())

    def release_all(self) -> None:
        """Release everything that is held, in order of arrival."""
        for io in self.held:
            self.release(io)

    def fail(self, io: HeldIO, errno: int) -> None:
        """Reply with an error, without effect (or after it, if the request was applied).

        :param errno: a system errno; those NBD has no word for reach the client as EINVAL
        :raises InputError: ``errno`` is not an error
        """
        if errno <= 0:
            raise InputError(f"{errno} is no errno")
        pending = self._take(io)
        self._end(pending, Kind.FAIL, pending.connection.error(pending.request, errno), errno)

    def apply(self, io: HeldIO) -> None:
        """Perform the request on the image and go on holding the reply.

        A read takes its data now. Applying twice has no further effect.
        """
        pending = self._take(io, keep=True)
        if pending.answer is None:
            pending.performed()
            self._note(Kind.APPLY, io)

    def reply(self, io: HeldIO) -> None:
        """Send the reply of an applied request.

        :raises InputError: the request was not applied; :meth:`drop` replies without effect
        """
        if self._take(io, keep=True).answer is None:
            raise InputError(f"{io}: apply it before the reply, or drop it")
        pending = self._take(io)
        self._end(pending, Kind.REPLY, pending.performed())

    def drop(self, io: HeldIO) -> None:
        """Reply success to a WRITE, WRITE_ZEROES, TRIM or FLUSH without performing it.

        :raises InputError: the request wants data, which only the image or :meth:`corrupt` has
        """
        if io.op in (Op.READ, Op.BLOCK_STATUS):
            raise InputError(f"{io}: only a request without data in the reply can be dropped")
        pending = self._take(io)
        self._end(pending, Kind.DROP, nbd.simple_reply(pending.request.cookie))

    def corrupt(self, io: HeldIO, data: bytes) -> None:
        """Reply ``data`` to a READ, or put ``data`` into the image for a WRITE and reply success.

        :raises InputError: another request, or data of another length
        """
        if io.op not in (Op.READ, Op.WRITE) or len(data) != io.length:
            raise InputError(f"{io}: cannot be corrupted with {len(data)} bytes")
        pending = self._take(io)
        connection, request = pending.connection, pending.request._replace(data=data)
        if io.op is Op.READ:
            self._end(pending, Kind.CORRUPT, connection.content(request, data))
        else:
            self._end(pending, Kind.CORRUPT, connection.perform(request))

    def reply_twice(self, io: HeldIO) -> None:
        """Release the request, and send its reply a second time."""
        pending = self._take(io)
        self._end(pending, Kind.RELEASE, pending.performed() * 2)
        self._note(Kind.REPLY, io)

    def cut(self, what: HeldIO | int | str) -> None:
        """Drop the connection of a request, a connection by number, or all those of an image.

        What these connections had waiting is gone, without effect unless it was applied.

        :raises InputError: no such image
        :raises MachineError: no such connection (any more)
        """
        if isinstance(what, HeldIO):
            what = what.connection
        for number in self.connections(what) if isinstance(what, str) else [what]:
            connection = self._connections.get(number)
            if connection is None:
                raise MachineError(f"connection {number} has ended")
            connection.cut()

    def refuse(self, name: str, refused: bool = True) -> None:
        """Make the image unknown to clients that connect from now on, or known again.

        :raises InputError: no such image
        """
        self._image(name).refused = refused

    # What the connections tell

    def _lookup(self, name: str) -> nbd.Export | None:
        """What a new client may know of an image; None when there is none or it is refused."""
        image = self._images.get(name)
        return None if image is None or image.refused else image.export

    def _names(self) -> list[str]:
        """The images that LIST tells."""
        return [image.name for image in self._images.values() if not image.refused]

    def _accepted(self, connection: _Connection) -> int:
        """A client connected; the connection's number."""
        self._connection_count += 1
        self._connections[self._connection_count] = connection
        return self._connection_count

    def _opened(self, connection: _Connection, name: str) -> _Image:
        """A connection begins its transmission phase."""
        self._note_connection(Kind.CONNECT, connection.number, name)
        return self._images[name]

    def _closed(self, connection: _Connection) -> None:
        """A connection ended; may be told twice."""
        if self._connections.pop(connection.number, None) is None or connection.image is None:
            return
        for pending in [p for p in self._pending.values() if p.connection is connection]:
            del self._pending[pending.io.seq]
            self._note(Kind.LOST, pending.io)
        self._note_connection(Kind.DISCONNECT, connection.number, connection.image.name)

    def _arrived(self, connection: _Connection, image: _Image, request: Request) -> None:
        """A sound request came in: pass or hold it."""
        flags, kind, _, offset, length, data = request
        self.clock = self._last_arrival = seq = self.clock + 1
        op = _OPS[kind]
        image.counts[op] += 1
        policy = self._policy
        if policy is not None:
            fua, no_hole = flags & nbd.CMD_FUA != 0, flags & nbd.CMD_NO_HOLE != 0
            number = connection.number
            io = HeldIO(seq, image.name, op, offset, length, data, fua, no_hole, number)
            if policy(io):
                self._pending[seq] = _Pending(io, connection, request)
                connection.weight += _REQUEST_WEIGHT + len(data)
                self._record(Event(seq, Kind.ARRIVE, seq, image.name, op, offset, length, number))
                return
        connection.send(connection.perform(request))
        if self.tracing or self._waiters:
            self._record(
                Event(seq, Kind.PASS, seq, image.name, op, offset, length, connection.number)
            )

    # Below the surface

    @property
    def _socket(self) -> str:
        if self._path is None:
            raise InputError("the gate was not started")
        return str(self._path)

    def _image(self, name: str) -> _Image:
        try:
            return self._images[name]
        except KeyError:
            raise InputError(f"the gate has no image {name!r}") from None

    def _take(self, io: HeldIO, keep: bool = False) -> _Pending:
        pending = self._pending.get(io.seq)
        if pending is None or pending.io != io:
            raise MachineError(f"{io} is not held (any more)")
        if not keep:
            del self._pending[io.seq]
        return pending

    def _end(self, pending: _Pending, kind: Kind, answer: bytes, errno: int = 0) -> None:
        io, connection = pending.io, pending.connection
        connection.weight -= _REQUEST_WEIGHT + len(io.data)
        connection.send(answer)
        self._note(kind, io, errno)
        connection.settled()

    def _note(self, kind: Kind, io: HeldIO, errno: int = 0) -> None:
        self.clock += 1
        place = (io.seq, io.image, io.op, io.offset, io.length, io.connection)
        self._record(Event(self.clock, kind, *place, errno))

    def _note_connection(self, kind: Kind, number: int, image_name: str) -> None:
        self.clock += 1
        self._record(Event(self.clock, kind, 0, image_name, None, 0, 0, number))

    def _record(self, event: Event) -> None:
        if self.tracing:
            self.trace.append(event)
        for condition, waiter in self._waiters:
            if condition():
                _settle(waiter, True)


def _settle(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)


class _Image:
    """An export: its store, what it offers, how much it was used."""

    def __init__(self, name: str, store: Store, read_only: bool, without: frozenset[Op]) -> None:
        self.name = name
        self.store = store
        self.refused = False
        self.counts = dict.fromkeys(Op, 0)
        flags = nbd.EXPORT_SEND_FUA | nbd.EXPORT_CAN_MULTI_CONN
        flags |= nbd.EXPORT_READ_ONLY if read_only else 0
        for op, flag in _OFFERS.items():
            flags |= flag if op not in without else 0
        if store.fast_zero and Op.WRITE_ZEROES not in without:
            flags |= nbd.EXPORT_SEND_FAST_ZERO
        self.export = nbd.Export(name, store.size, flags, Op.BLOCK_STATUS not in without)


class _Pending:
    """A held request; ``answer`` is its reply once it was performed."""

    __slots__ = ("answer", "connection", "io", "request")

    def __init__(self, io: HeldIO, connection: _Connection, request: Request) -> None:
        self.io = io
        self.connection = connection
        self.request = request
        self.answer: bytes | None = None

    def performed(self) -> bytes:
        if self.answer is None:
            self.answer = self.connection.perform(self.request)
        return self.answer


class _Connection(asyncio.Protocol):
    """One client: its handshake, then its requests to one image."""

    transport: asyncio.Transport
    image: _Image | None = None
    number = 0
    weight = 0  # what the gate holds for us, see _HELD_LIMIT

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._handshake = nbd.Handshake(gate._lookup, gate._names)
        self._parser = nbd.RequestParser()
        self._allowed: dict[int, int] = {}  # the flags each offered command may have
        self._structured = False
        self._batch: list[bytes] | None = None
        self._batched = 0
        self._full = False  # the client does not read its replies
        self._leaving = False  # it sent DISC

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.number = self._gate._accepted(self)
        transport.write(self._handshake.greeting)

    def data_received(self, data: bytes) -> None:
        if self.image is None:
            try:
                self.transport.write(self._handshake.feed(data))
            except MachineError as error:
                self._hang_up(error)
                return
            if self._handshake.closed:
                self.transport.close()
            if self._handshake.export is None:
                return
            self._begin(self._handshake.export)
            data = self._handshake.rest()
        self._parser.feed(data)
        self._pump()

    def pause_writing(self) -> None:
        self._full = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self.image is None:
            self.transport.resume_reading()
        else:
            self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gate._closed(self)

    # For the gate

    def send(self, answer: bytes) -> None:
        """Send a reply: at once, or with those of the requests read together with this one."""
        if self._batch is None:
            self.transport.write(answer)
            return
        self._batch.append(answer)
        self._batched += len(answer)
        if self._batched > _BATCH:
            self._send_batch()

    def settled(self) -> None:
        """A held request ended: there may be room for the next, or nothing left to wait for."""
        if self._leaving and not self.weight:
            self.transport.close()
        elif not self.transport.is_reading():
            self._pump()

    def cut(self) -> None:
        """Break the connection now."""
        self.transport.abort()
        self._gate._closed(self)

    def perform(self, request: Request) -> bytes:
        """Do what the request asks of the image; the reply."""
        assert self.image is not None
        store = self.image.store
        flags, kind, cookie, offset, length, data = request
        op = _OPS[kind]
        try:
            if op is Op.READ:
                return self._read(store, request)
            if op is Op.WRITE:
                store.write(offset, data)
            elif op is Op.WRITE_ZEROES:
                store.zero(offset, length, hole=not flags & nbd.CMD_NO_HOLE)
            elif op is Op.TRIM:
                store.trim(offset, length)
            elif op is Op.BLOCK_STATUS:
                extents = store.extents(offset, length, 1 if flags & nbd.CMD_REQ_ONE else 1 << 16)
                return nbd.block_status_chunk(cookie, extents)
            if op is Op.FLUSH or flags & nbd.CMD_FUA:
                store.flush()
        except OSError as error:
            log.warning("%s: %s", self.image.name, error)
            return self.error(request, error.errno or errnos.EIO)
        return nbd.simple_reply(cookie)

    def content(self, request: Request, data: bytes) -> bytes:
        """The reply to a READ with this data."""
        if not self._structured:
            return nbd.simple_reply(request.cookie, data=data)
        if not data:
            return nbd.none_chunk(request.cookie)
        return nbd.data_chunk(request.cookie, request.offset, data)

    def error(self, request: Request, errno: int) -> bytes:
        """An error reply."""
        error = nbd.wire_error(errno)
        if self._structured:
            return nbd.error_chunk(request.cookie, error)
        return nbd.simple_reply(request.cookie, error)

    # Below the surface

    def _begin(self, export: nbd.Export) -> None:
        """Enter the transmission phase."""
        handshake = self._handshake
        self._structured = handshake.structured
        allowed = {Op.READ: nbd.CMD_DF if self._structured else 0, Op.WRITE: 0, Op.DISC: 0}
        allowed |= {op: 0 for op, flag in _OFFERS.items() if export.flags & flag}
        if Op.WRITE_ZEROES in allowed:
            fast = nbd.CMD_FAST_ZERO if export.flags & nbd.EXPORT_SEND_FAST_ZERO else 0
            allowed[Op.WRITE_ZEROES] = nbd.CMD_NO_HOLE | fast
        if handshake.allocation:
            allowed[Op.BLOCK_STATUS] = nbd.CMD_REQ_ONE
        self._allowed = {op.value: flags | nbd.CMD_FUA for op, flags in allowed.items()}
        self.image = self._gate._opened(self, export.name)

    def _pump(self) -> None:
        """Take requests as long as there are any and the client deserves it."""
        if self.image is None or self.transport.is_closing():
            return
        self._batch = []
        error = None
        try:
            while not self._leaving:
                if self._full or self.weight >= _HELD_LIMIT:
                    self.transport.pause_reading()
                    break
                request = self._parser.next()
                if request is None:
                    self.transport.resume_reading()
                    break
                self._take(self.image, request)
        except MachineError as reason:
            error = reason
        self._send_batch()
        self._batch = None
        if error is not None:
            self._hang_up(error)
        elif self._leaving and not self.weight:
            self.transport.close()

    def _send_batch(self) -> None:
        if self._batch:
            self.transport.write(self._batch[0] if len(self._batch) == 1 else b"".join(self._batch))
            self._batch = []
            self._batched = 0

    def _take(self, image: _Image, request: Request) -> None:
        errno = self._fault(image, request)
        if errno:
            log.debug("%s: refused with errno %d: %s", image.name, errno, request[:5])
            self.send(self.error(request, errno))
        elif request.type == Op.DISC.value:
            self._leaving = True
        else:
            self._gate._arrived(self, image, request)

    def _fault(self, image: _Image, request: Request) -> int:
        """The errno of an unsound request ("Error values"), 0 for a sound one."""
        flags, kind, _, offset, length, _ = request
        allowed = self._allowed.get(kind)
        if allowed is None or flags & ~allowed:
            return errnos.EINVAL
        op = _OPS[kind]
        if op in _WRITES and image.export.flags & nbd.EXPORT_READ_ONLY:
            return errnos.EPERM
        if length > nbd.MAX_PAYLOAD and (op is Op.READ or op is Op.WRITE):
            return errnos.EINVAL
        if offset + length > image.store.size:
            return errnos.ENOSPC if op is Op.WRITE or op is Op.WRITE_ZEROES else errnos.EINVAL
        if op is Op.FLUSH and (offset or length):
            return errnos.EINVAL
        if op is Op.BLOCK_STATUS and not length:
            return errnos.EINVAL
        return 0

    def _read(self, store: Store, request: Request) -> bytes:
        """A READ's reply, with holes as holes where the client can take them."""
        flags, _, cookie, at, length, _ = request
        if not self._structured or flags & nbd.CMD_DF or not store.has_hole(at, length):
            return self.content(request, store.read(at, length))
        chunks = []
        end = at + length
        for extent in store.extents(at, length, length):
            done = at + extent.length == end
            if extent.state & nbd.STATE_HOLE:
                chunks.append(nbd.hole_chunk(cookie, at, extent.length, done))
            else:
                data = store.read(at, extent.length)
                chunks.append(nbd.data_chunk(cookie, at, data, done))
            at += extent.length
        return b"".join(chunks)

    def _hang_up(self, error: MachineError) -> None:
        log.warning("connection %d: %s", self.number, error)
        self.cut()
