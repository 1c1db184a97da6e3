"""The migration channel between a primary and its secondary, with COLO's messages recognised.

COLO speaks over the channel that the migration used. What the secondary answers is easy to read:
32-bit numbers (``COLOMessage`` of qapi/migration.json), after the frames of the return path if
that capability is on (``MIG_RP_MSG_*`` of migration/savevm.h: 16 bits type, 16 bits length; type 0
is invalid, and CHECKPOINT_READY is the number 0, so the two cannot be confused). What the primary
sends (the RAM, among it COLO's requests) only passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from qmpshim.errors import HostError
from qmpshim.machine.colo.nbd_link import connector

log = logging.getLogger(__name__)

_CHUNK = 1 << 18


class ColoMessage(IntEnum):
    """``COLOMessage``; only some are sent by the secondary."""

    CHECKPOINT_READY = 0
    CHECKPOINT_REQUEST = 1
    CHECKPOINT_REPLY = 2
    VMSTATE_SEND = 3
    VMSTATE_SIZE = 4
    VMSTATE_RECEIVED = 5
    VMSTATE_LOADED = 6

    @property
    def spelling(self) -> str:
        """QEMU's spelling, e.g. ``checkpoint-ready``."""
        return self.name.lower().replace("_", "-")


class MigrationChannel:
    """Relays the migration channel, and can hold the secondary's messages.

    :param target: the secondary's ``-incoming`` socket
    :param path: where the primary migrates to
    :ivar on_message: called with each message of the secondary before it passes
    :ivar messages: the secondary's messages so far, with the time (``time.monotonic()``)
    :ivar strange: the first bytes of the secondary that are no message, or ``b""``
    :ivar sent: bytes that the primary sent
    """

    def __init__(self, target: Path, path: Path) -> None:
        self.path = path
        self.on_message: Callable[[ColoMessage], None] | None = None
        self.messages: list[tuple[ColoMessage, float]] = []
        self.strange = b""
        self.sent = 0
        self.closed_by = ""  # the side that closed it first
        self._connect = connector(target)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: frozenset[ColoMessage] = frozenset()
        self._pass = asyncio.Event()
        self._waiting: ColoMessage | None = None
        self._changed = asyncio.Condition()
        self._colo = False
        self._unread = b""

    @property
    def uri(self) -> str:
        """What to give to ``migrate``."""
        return f"unix:{self.path}"

    @property
    def loaded(self) -> int:
        """How many checkpoints the secondary has loaded."""
        return sum(message is ColoMessage.VMSTATE_LOADED for message, _ in self.messages)

    @property
    def waiting(self) -> ColoMessage | None:
        """The message that is held now."""
        return self._waiting

    async def start(self) -> None:
        """Listen.

        :raises HostError: the socket cannot be made
        """
        try:
            self._server = await asyncio.start_unix_server(self._client, str(self.path))
        except OSError as error:
            raise HostError(f"cannot listen on {self.path}: {error}") from error

    def hold(self, *messages: ColoMessage) -> None:
        """From now on hold these messages of the secondary, each until :meth:`release`."""
        self._held = frozenset(messages)

    def release(self) -> None:
        """Let the message that waits pass."""
        self._pass.set()

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``condition()`` holds; it is tried after each message and when a side ends.

        :returns: False when the time ran out
        """
        deadline = time.monotonic() + seconds
        async with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, 0.25)):
                        await self._changed.wait()
        return True

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def cut(self) -> None:
        """Break the channel."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Stop listening and hang up."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            below, other = await asyncio.open_unix_connection(sock=await self._connect())
            pumps = [
                asyncio.ensure_future(self._there(reader, other)),
                asyncio.ensure_future(self._back(below, writer)),
            ]
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            self.closed_by = "primary" if pumps[0] in done else "secondary"
        except OSError as error:
            log.info("migration channel: %s", error)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for side in (writer, other):
                if side is not None:
                    side.transport.abort()
            self._tasks.discard(task)
            await self._notify()

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            self.sent += len(data)
            writer.write(data)
            await writer.drain()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            self._unread += data
            while (piece := self._next()) is not None:
                raw, message = piece
                if message is not None:
                    await self._admit(message)
                writer.write(raw)
            await writer.drain()

    def _next(self) -> tuple[bytes, ColoMessage | None] | None:
        """The next whole piece of what the secondary sent, and the message that it is."""
        data = self._unread
        if self.strange:
            self._unread = b""
            return (data, None) if data else None
        if len(data) < 4:
            return None
        number = int.from_bytes(data[:4], "big")
        length, message = 4, None
        if self._colo or number == 0:
            self._colo = True
            try:
                message = ColoMessage(number)
            except ValueError:
                self.strange, length = data[:32], len(data)
        else:  # a frame of the return path
            length += number & 0xFFFF
            if len(data) < length:
                return None
        self._unread = data[length:]
        return data[:length], message

    async def _admit(self, message: ColoMessage) -> None:
        self.messages.append((message, time.monotonic()))
        if self.on_message is not None:
            self.on_message(message)
        if message in self._held:
            self._pass.clear()
            self._waiting = message
            await self._notify()
            await self._pass.wait()
            self._waiting = None
        await self._notify()
