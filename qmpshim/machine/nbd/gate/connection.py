"""One client of a gate: its NBD handshake, then its requests to one image."""

from __future__ import annotations

import asyncio
import errno as errnos
import logging
from typing import Protocol

from qmpshim.errors import MachineError
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.journal import Journal
from qmpshim.machine.nbd.gate.store import Store
from qmpshim.machine.nbd.protocol.handshake import (
    EXPORT_CAN_MULTI_CONN,
    EXPORT_READ_ONLY,
    EXPORT_SEND_FAST_ZERO,
    EXPORT_SEND_FLUSH,
    EXPORT_SEND_FUA,
    EXPORT_SEND_TRIM,
    EXPORT_SEND_WRITE_ZEROES,
    Export,
    Handshake,
)
from qmpshim.machine.nbd.protocol.structured_replies import (
    STATE_HOLE,
    block_status_chunk,
    data_chunk,
    error_chunk,
    hole_chunk,
    none_chunk,
)
from qmpshim.machine.nbd.protocol.transmission import (
    CMD_DF,
    CMD_FAST_ZERO,
    CMD_FUA,
    CMD_NO_HOLE,
    CMD_REQ_ONE,
    MAX_PAYLOAD,
    NbdCommand,
    Request,
    RequestParser,
    error_code,
    simple_reply,
)

log = logging.getLogger(__name__)

# What one connection may keep waiting before we stop reading from it, so that a client that never
# reads costs no more memory than this: bytes, each request counting REQUEST_WEIGHT beside its data.
_HELD_LIMIT = 64 << 20
REQUEST_WEIGHT = 64 << 10
_BATCH = 256 << 10  # replies to pipelined requests are sent together up to this many bytes

OPS = {op.value: op for op in NbdCommand}
_WRITES = frozenset({NbdCommand.WRITE, NbdCommand.TRIM, NbdCommand.WRITE_ZEROES})
_OFFERS = {
    NbdCommand.FLUSH: EXPORT_SEND_FLUSH,
    NbdCommand.TRIM: EXPORT_SEND_TRIM,
    NbdCommand.WRITE_ZEROES: EXPORT_SEND_WRITE_ZEROES,
}


class Keeper(Protocol):
    """The callbacks from a connection to its gate."""

    def lookup(self, name: str) -> Export | None: ...
    def names(self) -> list[str]: ...
    def accepted(self, connection: Connection) -> int: ...
    def opened(self, connection: Connection, name: str) -> ExportedImage: ...
    def closed(self, connection: Connection) -> None: ...
    def arrived(self, connection: Connection, image: ExportedImage, request: Request) -> None: ...


class ExportedImage:
    """An export: its store, what it offers, how much it was used.

    :ivar journal: notes what a loss of power may undo; None: not needed
    """

    def __init__(
        self, name: str, store: Store, read_only: bool, without: frozenset[NbdCommand]
    ) -> None:
        self.name = name
        self.store = store
        self.refused = False
        self.journal: Journal | None = None
        self.counts = dict.fromkeys(NbdCommand, 0)
        flags = EXPORT_SEND_FUA | EXPORT_CAN_MULTI_CONN
        flags |= EXPORT_READ_ONLY if read_only else 0
        for op, flag in _OFFERS.items():
            flags |= flag if op not in without else 0
        if store.fast_zero and NbdCommand.WRITE_ZEROES not in without:
            flags |= EXPORT_SEND_FAST_ZERO
        self.export = Export(name, store.size, flags, NbdCommand.BLOCK_STATUS not in without)


class Pending:
    """A held request.

    :ivar answer: its reply once it was performed, or what is left of it
    :ivar reply_begun: the first part of the reply was sent
    """

    __slots__ = ("answer", "connection", "io", "reply_begun", "request")

    def __init__(self, io: HeldIO, connection: Connection, request: Request) -> None:
        self.io = io
        self.connection = connection
        self.request = request
        self.answer: bytes | None = None
        self.reply_begun = False

    def performed(self) -> bytes:
        if self.answer is None:
            self.answer = self.connection.perform(self.request)
        return self.answer


class Connection(asyncio.Protocol):
    """One client: its handshake, then its requests to one image."""

    transport: asyncio.Transport
    image: ExportedImage | None = None
    number = 0
    weight = 0  # what the gate holds for us, see _HELD_LIMIT

    def __init__(self, gate: Keeper) -> None:
        self._gate = gate
        self._handshake = Handshake(gate.lookup, gate.names)
        self._parser = RequestParser()
        self._allowed: dict[int, int] = {}  # the flags each offered command may have
        self._structured = False
        self._batch: list[bytes] | None = None
        self._batched = 0
        self._waiting: list[bytes] | None = None  # replies for which one that was begun must end
        self._full = False  # the client does not read its replies
        self._leaving = False  # it sent DISC

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.number = self._gate.accepted(self)
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
        self._gate.closed(self)

    # For the gate

    def send(self, answer: bytes) -> None:
        """Send a reply: at once, or with those of the requests read together with this one."""
        if self._waiting is not None:
            self._waiting.append(answer)
            return
        if self._batch is None:
            self.transport.write(answer)
            return
        self._batch.append(answer)
        self._batched += len(answer)
        if self._batched > _BATCH:
            self._send_batch()

    @property
    def reply_begun(self) -> bool:
        """Whether the client has the first part of a reply."""
        return self._waiting is not None

    def begin_reply(self, part: bytes) -> None:
        """Send the first part of a reply; others wait from now on for :meth:`end_reply`."""
        self.send(part)
        self._waiting = []

    def end_reply(self, rest: bytes) -> None:
        """Send the rest of it, and what waited."""
        answers, self._waiting = [rest, *(self._waiting or ())], None
        for answer in answers:
            self.send(answer)

    def settled(self) -> None:
        """A held request ended: the next may be read, or none is left to wait for."""
        if self._leaving and not self.weight:
            self.transport.close()
        elif not self.transport.is_reading():
            self._pump()

    def cut(self) -> None:
        """Break the connection now."""
        self.transport.abort()
        self._gate.closed(self)

    def perform(self, request: Request) -> bytes:
        """Perform the request on the image; return the reply."""
        assert self.image is not None
        store, journal = self.image.store, self.image.journal
        flags, kind, cookie, offset, length, data = request
        op = OPS[kind]
        try:
            before = store.read(offset, length) if journal and op in _WRITES else b""
            if op is NbdCommand.READ:
                return self._read(store, request)
            if op is NbdCommand.WRITE:
                store.write(offset, data)
            elif op is NbdCommand.WRITE_ZEROES:
                store.zero(offset, length, hole=not flags & CMD_NO_HOLE)
            elif op is NbdCommand.TRIM:
                store.trim(offset, length)
            elif op is NbdCommand.BLOCK_STATUS:
                extents = store.extents(offset, length, 1 if flags & CMD_REQ_ONE else 1 << 16)
                return block_status_chunk(cookie, extents)
            if op is NbdCommand.FLUSH or flags & CMD_FUA:
                store.flush()
            if before and journal:
                journal.note(offset, before, bool(flags & CMD_FUA))
            if op is NbdCommand.FLUSH and journal:
                journal.flush_ends((self.number, cookie))
        except OSError as error:
            log.warning("%s: %s", self.image.name, error)
            return self.error(request, error.errno or errnos.EIO)
        return simple_reply(cookie)

    def content(self, request: Request, data: bytes) -> bytes:
        """The reply to a READ with this data."""
        if not self._structured:
            return simple_reply(request.cookie, data=data)
        if not data:
            return none_chunk(request.cookie)
        return data_chunk(request.cookie, request.offset, data)

    def error(self, request: Request, errno: int) -> bytes:
        """An error reply."""
        error = error_code(errno)
        if self._structured:
            return error_chunk(request.cookie, error)
        return simple_reply(request.cookie, error)

    # Below the surface

    def _begin(self, export: Export) -> None:
        """Enter the transmission phase."""
        handshake = self._handshake
        self._structured = handshake.structured
        allowed = {
            NbdCommand.READ: CMD_DF if self._structured else 0,
            NbdCommand.WRITE: 0,
            NbdCommand.DISC: 0,
        }
        allowed |= {op: 0 for op, flag in _OFFERS.items() if export.flags & flag}
        if NbdCommand.WRITE_ZEROES in allowed:
            fast = CMD_FAST_ZERO if export.flags & EXPORT_SEND_FAST_ZERO else 0
            allowed[NbdCommand.WRITE_ZEROES] = CMD_NO_HOLE | fast
        if handshake.allocation:
            allowed[NbdCommand.BLOCK_STATUS] = CMD_REQ_ONE
        self._allowed = {op.value: flags | CMD_FUA for op, flags in allowed.items()}
        self.image = self._gate.opened(self, export.name)

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

    def _take(self, image: ExportedImage, request: Request) -> None:
        errno = self._fault(image, request)
        if errno:
            log.debug("%s: refused with errno %d: %s", image.name, errno, request[:5])
            self.send(self.error(request, errno))
        elif request.type == NbdCommand.DISC.value:
            self._leaving = True
        else:
            self._gate.arrived(self, image, request)

    def _fault(self, image: ExportedImage, request: Request) -> int:
        """The errno of an unsound request ("Error values"), 0 for a sound one."""
        flags, kind, _, offset, length, _ = request
        allowed = self._allowed.get(kind)
        if allowed is None or flags & ~allowed:
            return errnos.EINVAL
        op = OPS[kind]
        if op in _WRITES and image.export.flags & EXPORT_READ_ONLY:
            return errnos.EPERM
        if length > MAX_PAYLOAD and (op is NbdCommand.READ or op is NbdCommand.WRITE):
            return errnos.EINVAL
        if offset + length > image.store.size:
            return (
                errnos.ENOSPC
                if op is NbdCommand.WRITE or op is NbdCommand.WRITE_ZEROES
                else errnos.EINVAL
            )
        if op is NbdCommand.FLUSH and (offset or length):
            return errnos.EINVAL
        if op is NbdCommand.BLOCK_STATUS and not length:
            return errnos.EINVAL
        return 0

    def _read(self, store: Store, request: Request) -> bytes:
        """A READ's reply, with holes as holes where the client can take them."""
        flags, _, cookie, at, length, _ = request
        whole = not self._structured or flags & CMD_DF or not length
        if whole or not store.has_hole(at, length):
            return self.content(request, store.read(at, length))
        chunks = []
        end = at + length
        for extent in store.extents(at, length, length):
            done = at + extent.length == end
            if extent.state & STATE_HOLE:
                chunks.append(hole_chunk(cookie, at, extent.length, done))
            else:
                data = store.read(at, extent.length)
                chunks.append(data_chunk(cookie, at, data, done))
            at += extent.length
        return b"".join(chunks)

    def _hang_up(self, error: MachineError) -> None:
        log.warning("connection %d: %s", self.number, error)
        self.cut()
