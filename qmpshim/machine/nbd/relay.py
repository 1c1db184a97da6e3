"""An NBD endpoint in front of a QEMU export: forwards requests and reports them to an observer.

The client's negotiation is answered here (:class:`.protocol.handshake.Handshake`); to QEMU there
is one connection for each client's, with simple replies. Restates the NBD protocol document,
sections "Fixed newstyle negotiation", "Request message" and "Simple reply message".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from qmpshim.errors import MachineDied, MachineError, QmpshimError
from qmpshim.machine.nbd.protocol.handshake import (
    EXPORT_INFO,
    GREETING,
    HANDSHAKE_FIXED_NEWSTYLE,
    HANDSHAKE_NO_ZEROES,
    NBD_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_HEAD,
    Export,
    Handshake,
    Info,
    Option,
    OptionReply,
    option_message,
    string,
)
from qmpshim.machine.nbd.protocol.structured_replies import data_chunk, error_chunk, none_chunk
from qmpshim.machine.nbd.protocol.transmission import (
    CMD_FAST_ZERO,
    CMD_FUA,
    CMD_NO_HOLE,
    SIMPLE_REPLY_HEAD,
    NbdCommand,
    Request,
    RequestParser,
    request_message,
    simple_reply,
)
from qmpshim.machine.nbd.uri import nbd_uri

log = logging.getLogger(__name__)

_CHUNK = 1 << 18
_KEPT_FLAGS = CMD_FUA | CMD_NO_HOLE | CMD_FAST_ZERO  # those of structured replies may not pass

#: Makes a connection to QEMU's NBD server.
Connect = Callable[[], Awaitable[socket.socket]]


class RelayObserver(Protocol):
    """Sees what passes a relay."""

    def begins(self, request: Request) -> int:
        """A request goes to QEMU; gives what :meth:`ends` is to be called with."""

    def ends(self, token: int, request: Request, error: int) -> None:
        """QEMU has answered, 0 for success; the reply is not yet sent to the client."""

    def lost(self, token: int, request: Request) -> None:
        """QEMU will not answer any more."""


class _Upstream:
    """A connection to QEMU's NBD server, negotiated up to the transmission phase."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.size = 0
        self.flags = 0

    @classmethod
    async def connect(cls, connect: Connect, name: str) -> _Upstream:
        sock = await connect()
        made = cls(*await asyncio.open_connection(sock=sock))
        try:
            await made._negotiate(name)
        except BaseException:
            made.writer.transport.abort()
            raise
        return made

    async def _negotiate(self, name: str) -> None:
        magic, option_magic, _ = GREETING.unpack(await self.reader.readexactly(GREETING.size))
        if magic != NBD_MAGIC or option_magic != OPTION_MAGIC:
            raise MachineError("QEMU's NBD server does not speak fixed newstyle NBD")
        flags = HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES
        self.writer.write(flags.to_bytes(4, "big"))
        no_requests = (0).to_bytes(2, "big")
        self.writer.write(option_message(Option.GO, string(name.encode()) + no_requests))
        while True:
            head = await self.reader.readexactly(OPTION_REPLY_HEAD.size)
            _, _, kind, length = OPTION_REPLY_HEAD.unpack(head)
            body = await self.reader.readexactly(length)
            if kind == OptionReply.ACK:
                return
            if kind != OptionReply.INFO:
                raise MachineError(
                    f"QEMU refuses the export {name}: {body.decode(errors='replace')}"
                )
            if int.from_bytes(body[:2], "big") == Info.EXPORT:
                self.size, self.flags = EXPORT_INFO.unpack_from(body, 2)


class Relay:
    """Listens at a unix socket and relays to one export.

    :param connect: makes a connection to QEMU's NBD server
    :param name: the export's name
    :param path: where to listen
    :param observer: its methods are called for each request
    """

    def __init__(self, connect: Connect, name: str, path: Path, observer: RelayObserver) -> None:
        self._connect = connect
        self.name = name
        self.path = path
        self.observer = observer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.in_flight = 0

    @property
    def uri(self) -> str:
        """The endpoint's NBD URI."""
        return nbd_uri(self.name, self.path)

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._client, str(self.path))
        self.path.chmod(0o600)

    def pause(self) -> None:
        """Let no further request through until :meth:`resume`."""
        self._open.clear()

    async def settled(self) -> None:
        """Wait until QEMU has answered all that went through."""
        while self.in_flight:  # noqa: ASYNC110 (a few milliseconds; no other event marks it)
            await asyncio.sleep(0.001)

    def resume(self) -> None:
        """Let requests through again."""
        self._open.set()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, QmpshimError) as error:
            log.info("NBD relay %s: %s", self.name, error)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above = await _Upstream.connect(self._connect, self.name)
        try:
            export = Export(self.name, above.size, above.flags & ~(1 << 7), allocation=False)
            shake = Handshake(
                lambda name: export if name in ("", self.name) else None, lambda: [self.name]
            )
            writer.write(shake.greeting)
            while shake.export is None:
                data = await reader.read(_CHUNK)
                if not data:
                    return
                writer.write(shake.feed(data))
                if shake.closed:
                    await writer.drain()
                    return
            conversation = _Conversation(self, shake.structured, above, reader, writer)
            await conversation.run(shake.rest())
        finally:
            above.writer.transport.abort()

    async def admit(self, request: Request) -> bool:
        """Wait while paused, then count a request as under way.

        :returns: False when QEMU is never to see it, and the client gets a success for nothing
        """
        await self._open.wait()
        self.in_flight += 1
        return True

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


class _Conversation:
    """One client's transmission phase."""

    def __init__(
        self,
        relay: Relay,
        structured: bool,
        above: _Upstream,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._relay = relay
        self._structured = structured
        self._above = above
        self._reader = reader
        self._writer = writer
        self._pending: dict[int, tuple[Request, int]] = {}  # with the observer's token
        self._answered = asyncio.Event()
        self._gone = False  # the client left

    async def run(self, rest: bytes) -> None:
        """Forward until one side disconnects and QEMU has answered all requests it received."""
        down = asyncio.ensure_future(self._down())
        up = asyncio.ensure_future(self._up(rest))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if down.done():
                down.result()
                return
            self._gone = True
            # QEMU completes what it received even without a client: wait for the results.
            while self._pending and not down.done():
                self._answered.clear()
                waiting = asyncio.ensure_future(self._answered.wait())
                await asyncio.wait((waiting, down), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            self._above.writer.write(request_message(NbdCommand.DISC.value, 0))
            await asyncio.wait((down,), timeout=5.0)
            if not down.done():
                log.info("QEMU's NBD server did not hang up")
            up.result()
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for request, token in self._pending.values():
                self._relay.in_flight -= 1
                self._relay.observer.lost(token, request)

    async def _up(self, data: bytes) -> None:
        parser = RequestParser()
        number = 0
        while True:
            parser.feed(data)
            while (request := parser.next()) is not None:
                if request.type == NbdCommand.DISC.value:
                    return
                if not await self._relay.admit(request):
                    self._writer.write(self._reply(request, 0, b""))
                    continue
                number += 1
                self._pending[number] = request, self._relay.observer.begins(request)
                head = request_message(
                    request.type,
                    number,
                    request.offset,
                    request.length,
                    request.flags & _KEPT_FLAGS,
                )
                self._above.writer.write(head + request.data)
            await self._above.writer.drain()
            data = await self._reader.read(_CHUNK)
            if not data:
                return

    async def _down(self) -> None:
        reader = self._above.reader
        while True:
            try:
                head = await reader.readexactly(SIMPLE_REPLY_HEAD.size)
            except asyncio.IncompleteReadError as error:
                if error.partial or self._pending:
                    raise MachineDied("QEMU's NBD server hung up in a request") from error
                self._writer.close()
                return
            _, code, number = SIMPLE_REPLY_HEAD.unpack(head)
            request, token = self._pending.pop(number)
            data = b""
            if request.type == NbdCommand.READ.value and not code:
                data = await reader.readexactly(request.length)
            self._relay.in_flight -= 1
            self._relay.observer.ends(token, request, code)
            self._answered.set()
            if not self._gone:
                with contextlib.suppress(OSError):
                    self._writer.write(self._reply(request, code, data))
                    await self._writer.drain()

    def _reply(self, request: Request, code: int, data: bytes) -> bytes:
        if not self._structured:
            return simple_reply(request.cookie, code, data)
        if code:
            return error_chunk(request.cookie, code)
        if data:
            return data_chunk(request.cookie, request.offset, data)
        return none_chunk(request.cookie)
