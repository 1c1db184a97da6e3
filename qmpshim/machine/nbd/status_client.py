"""An NBD client that queries block status, so that QEMU determines and caches it."""

from __future__ import annotations

from errno import EIO
from struct import Struct

from qmpshim.errors import MachineDied
from qmpshim.machine.nbd.protocol.handshake import Option, OptionReply
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.machine.qmp.nonblocking import NbdAnswer, NonBlockingNbd

_CONTEXT = b"base:allocation"
_REPLY = Struct(">QIII")
_CHUNK = Struct(">IHHQI")
# The replies to STRUCTURED_REPLY and SET_META_CONTEXT, if the server has both.
_AGREED = OptionReply.ACK, OptionReply.META_CONTEXT, OptionReply.ACK
_ERROR = 1 << 15  # the error bit of a chunk's type
_LAST = 1  # the flag of a reply's last chunk


class StatusClient(NonBlockingNbd):
    """A separate connection, since it needs structured replies.

    The data of an answer are its extents, as they came: for each its length and its state.
    """

    def _negotiate(self) -> None:
        self._parts: dict[int, NbdAnswer] = {}  # of answers that have not ended
        name = self._export.encode()
        context = b"".join(
            (
                *(len(name).to_bytes(4, "big"), name, (1).to_bytes(4, "big")),
                *(len(_CONTEXT).to_bytes(4, "big"), _CONTEXT),
            )
        )
        self._option(Option.STRUCTURED_REPLY, b"")
        self._option(Option.SET_META_CONTEXT, context)
        for expected in _AGREED:
            if self._reply() != expected:
                raise MachineDied(f"NBD connection to {self._export} has no block status")

    def _reply(self) -> int:
        """The kind of the server's next reply to an option."""
        _, _, kind, length = _REPLY.unpack(self._received(_REPLY.size))
        self._received(length)
        return int(kind)

    def query(self, size: int) -> None:
        """Query the block status of *size* bytes, and wait for the reply.

        Twice: QEMU's cache holds one range, and it does not query the part that is cached.

        :raises MachineDied: the connection ended
        :raises MachineHung: no answer
        """
        for _ in range(2):
            self.call(NbdCommand.BLOCK_STATUS, 0, size)

    def _parse(self) -> None:
        while len(self._buffer) >= _CHUNK.size:
            _, flags, kind, cookie, length = _CHUNK.unpack_from(self._buffer)
            if len(self._buffer) < _CHUNK.size + length:
                return
            body = bytes(self._buffer[_CHUNK.size : _CHUNK.size + length])
            del self._buffer[: _CHUNK.size + length]
            before = self._parts.pop(cookie, NbdAnswer(0))
            if kind & _ERROR:
                self._parts[cookie] = NbdAnswer(int.from_bytes(body[:4], "big") or EIO)
            else:  # a context's number, and its extents
                self._parts[cookie] = NbdAnswer(before.errno, before.data + body[4:])
            if flags & _LAST:
                self.answers[cookie] = self._parts.pop(cookie)
                self.flying.discard(cookie)
