"""An NBD client that queries block status, so that QEMU determines and caches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import EIO
from pathlib import Path

from qmpshim.errors import MachineDied, ReplyOverrun
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.nbd.client import dirty_bitmap
from qmpshim.machine.nbd.nonblocking import NbdAnswer, NonBlockingNbd
from qmpshim.machine.nbd.protocol.handshake import (
    BASE_ALLOCATION,
    OPTION_REPLY_HEAD,
    Option,
    OptionReply,
    string,
)
from qmpshim.machine.nbd.protocol.structured_replies import CHUNK_ERROR, CHUNK_HEAD, DONE
from qmpshim.machine.nbd.protocol.transmission import NbdCommand

_ID = 4  # bytes of a context's number


@dataclass(slots=True)
class StatusAnswer(NbdAnswer):
    """How a query ended.

    Extents are as they came: for each its length and its state, four bytes each.

    :ivar data: the extents of ``base:allocation``
    :ivar marked: by dirty bitmap its extents
    """

    marked: dict[str, bytes] = field(default_factory=dict)


class StatusClient(NonBlockingNbd):
    """A separate connection, since it needs structured replies; see :class:`NonBlockingNbd`.

    Its answers are :class:`StatusAnswer`. What lets the event loop go on gets
    :class:`.ReplyOverrun` where a reply goes on after the chunk that ends it.

    :param bitmaps: dirty bitmaps that the export offers, queried beside ``base:allocation``
    """

    def __init__(
        self,
        event_loop: ManualEventLoop,
        path: Path,
        export: str,
        limit: float = 10.0,
        bitmaps: Sequence[str] = (),
    ) -> None:
        self._parts: dict[int, StatusAnswer] = {}  # of answers that have not ended
        self._bitmaps: dict[int, str] = {}  # by their context's number
        self._wanted = {BASE_ALLOCATION: "", **{dirty_bitmap(name): name for name in bitmaps}}
        super().__init__(event_loop, path, export, limit)

    def _negotiate(self) -> None:
        contexts = [context.encode() for context in self._wanted]
        many = len(contexts).to_bytes(4, "big")
        queries = b"".join(map(string, contexts))
        self._option(Option.STRUCTURED_REPLY, b"")
        self._option(Option.SET_META_CONTEXT, string(self._export.encode()) + many + queries)
        agreed = self._reply()[0] == OptionReply.ACK
        kind, body = self._reply()
        while kind == OptionReply.META_CONTEXT:
            self._bitmaps[int.from_bytes(body[:_ID], "big")] = self._wanted[body[_ID:].decode()]
            kind, body = self._reply()
        if not agreed or kind != OptionReply.ACK or len(self._bitmaps) < len(contexts):
            raise MachineDied(f"NBD connection to {self._export} has no such block status")

    def _reply(self) -> tuple[int, bytes]:
        """The kind of the server's next reply to an option, and what it carries."""
        _, _, kind, length = OPTION_REPLY_HEAD.unpack(self._received(OPTION_REPLY_HEAD.size))
        return int(kind), self._received(length)

    def query(self, size: int) -> None:
        """Query the block status of *size* bytes, and wait for the reply.

        Twice: QEMU's cache holds one range, and it does not query the part that is cached.

        :raises MachineDied: the connection ended
        :raises MachineHung: no answer
        """
        for _ in range(2):
            self.call(NbdCommand.BLOCK_STATUS, 0, size)

    def _parse(self) -> None:
        while len(self._buffer) >= CHUNK_HEAD.size:
            _, flags, kind, cookie, length = CHUNK_HEAD.unpack_from(self._buffer)
            if len(self._buffer) < CHUNK_HEAD.size + length:
                return
            body = bytes(self._buffer[CHUNK_HEAD.size : CHUNK_HEAD.size + length])
            del self._buffer[: CHUNK_HEAD.size + length]
            if cookie not in self.flying:
                raise ReplyOverrun("QEMU's NBD server goes on with a reply after its last chunk")
            answer = self._parts.setdefault(cookie, StatusAnswer(0))
            if kind & CHUNK_ERROR:
                answer.errno = int.from_bytes(body[:4], "big") or EIO
            elif name := self._bitmaps[int.from_bytes(body[:_ID], "big")]:
                answer.marked[name] = answer.marked.get(name, b"") + body[_ID:]
            else:
                answer.data += body[_ID:]
            if flags & DONE:
                self.answers[cookie] = self._parts.pop(cookie)
                self.flying.discard(cookie)
