"""The handshake: which export a client uses, and what it learns of it.

Sections "Fixed newstyle negotiation", "Option types" and "Option reply types".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from qmpshim.errors import MachineError
from qmpshim.machine.nbd.protocol.structured_replies import ALLOCATION_CONTEXT_ID
from qmpshim.machine.nbd.protocol.transmission import MAX_PAYLOAD

NBD_MAGIC = 0x4E42444D41474943  # ASCII "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # ASCII "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9

HANDSHAKE_FIXED_NEWSTYLE = 1 << 0  # the client answers with the same two bits
HANDSHAKE_NO_ZEROES = 1 << 1

EXPORT_HAS_FLAGS = 1 << 0  # transmission flags: what this export can do
EXPORT_READ_ONLY = 1 << 1
EXPORT_SEND_FLUSH = 1 << 2
EXPORT_SEND_FUA = 1 << 3
EXPORT_SEND_TRIM = 1 << 5
EXPORT_SEND_WRITE_ZEROES = 1 << 6
EXPORT_SEND_DF = 1 << 7  # only with structured replies
EXPORT_CAN_MULTI_CONN = 1 << 8
EXPORT_SEND_FAST_ZERO = 1 << 11

BASE_ALLOCATION = "base:allocation"

MIN_BLOCK = 1
PREFERRED_BLOCK = 4096
MAX_NAME = 4096  # "MUST be no longer than 4096 bytes"
MAX_OPTION = 64 << 10  # bytes; our limit: enough for a name and many metadata queries


class Option(IntEnum):
    """The options a client may send before transmission ("Option types")."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """How an option is answered ("Option reply types")."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_INVALID = 1 << 31 | 3
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_TOO_BIG = 1 << 31 | 9


class Info(IntEnum):
    """The information types of the replies to INFO and GO (``NBD_REP_INFO``)."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


@dataclass(frozen=True, slots=True)
class Export:
    """What a client learns about one export; ``size`` in bytes, ``flags`` of ``EXPORT_*`` bits."""

    name: str
    size: int
    flags: int
    allocation: bool = True
    description: str = ""


GREETING = Struct(">QQH")  # NBD_MAGIC, OPTION_MAGIC, flags
OPTION_HEAD = Struct(">QII")  # magic, option, length
OPTION_REPLY_HEAD = Struct(">QIII")  # magic, option, kind of reply, length
EXPORT_INFO = Struct(">QH")  # size, flags
_U16 = Struct(">H")
_U32 = Struct(">I")


class Handshake:
    """One connection's negotiation: from :attr:`greeting` to :attr:`export`.

    :param lookup: gives the export of a name, or None where there is none (now)
    :param names: the export names in the reply to LIST

    Feed it what the client sends and send what :meth:`feed` returns. It is over when
    :attr:`export` is set (transmission begins, :meth:`rest` has what the client sent beyond the
    handshake) or :attr:`closed` is true (send the last bytes, then hang up).
    """

    greeting = GREETING.pack(
        NBD_MAGIC, OPTION_MAGIC, HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES
    )

    def __init__(
        self, lookup: Callable[[str], Export | None], names: Callable[[], Iterable[str]]
    ) -> None:
        self.export: Export | None = None
        self.closed = False
        self.structured = False
        self._lookup = lookup
        self._names = names
        self._buffer = bytearray()
        self._skip = 0  # bytes of an oversized option's data still to come
        self._client_flags: int | None = None
        self._context_for: str | None = None  # the export base:allocation was selected for

    @property
    def allocation(self) -> bool:
        """Whether base:allocation was negotiated for the chosen export."""
        return self.export is not None and self._context_for == self.export.name

    def rest(self) -> bytes:
        """What the client sent after the handshake's last byte."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client; give the bytes to send.

        :raises MachineError: the client does not speak fixed newstyle NBD; hang up
        """
        self._buffer += data
        out = bytearray()
        if self._client_flags is None and not self._take_client_flags():
            return b""
        while self.export is None and not self.closed:
            if self._skip:
                skipped = min(self._skip, len(self._buffer))
                del self._buffer[:skipped]
                self._skip -= skipped
                if self._skip:
                    break
            if len(self._buffer) < 16:
                break
            magic, option, length = OPTION_HEAD.unpack_from(self._buffer)
            if magic != OPTION_MAGIC:
                raise MachineError(f"NBD client out of step: option magic {magic:#x}")
            if length > MAX_OPTION:
                if option == Option.EXPORT_NAME:  # has no error reply
                    raise MachineError(f"NBD client sent an export name of {length} bytes")
                del self._buffer[:16]
                self._skip = length
                known = option in Option.__members__.values()
                out += _reply(option, OptionReply.ERR_TOO_BIG if known else OptionReply.ERR_UNSUP)
                continue
            if len(self._buffer) < 16 + length:
                break
            body = bytes(self._buffer[16 : 16 + length])
            del self._buffer[: 16 + length]
            out += self._answer(option, body)
        return bytes(out)

    def _take_client_flags(self) -> bool:
        if len(self._buffer) < 4:
            return False
        (flags,) = _U32.unpack_from(self._buffer)
        if flags & ~(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES):
            raise MachineError(f"NBD client set unknown handshake flags {flags:#x}")
        del self._buffer[:4]
        self._client_flags = flags
        return True

    def _answer(self, option: int, body: bytes) -> bytes:
        try:
            if option == Option.EXPORT_NAME:
                return self._export_name(body)
            if option == Option.ABORT:
                self.closed = True
                return _reply(option, OptionReply.ACK)
            if option == Option.LIST:
                return self._list(body)
            if option in (Option.INFO, Option.GO):
                return self._info(option, body)
            if option == Option.STRUCTURED_REPLY:
                _Fields(body).end()
                self.structured = True
                return _reply(option, OptionReply.ACK)
            if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
                return self._meta_context(option, body)
        except ValueError as error:  # ours, or UnicodeDecodeError
            return _reply(option, OptionReply.ERR_INVALID, str(error).encode())
        return _reply(option, OptionReply.ERR_UNSUP)

    def _flags(self, export: Export) -> int:
        return export.flags | EXPORT_HAS_FLAGS | (EXPORT_SEND_DF if self.structured else 0)

    def _export_name(self, body: bytes) -> bytes:
        export = self._lookup(body.decode(errors="replace"))
        if export is None:
            raise MachineError(f"NBD client asked for the unknown export {body!r}")
        self.export = export
        padding = 0 if (self._client_flags or 0) & HANDSHAKE_NO_ZEROES else 124
        return EXPORT_INFO.pack(export.size, self._flags(export)) + bytes(padding)

    def _list(self, body: bytes) -> bytes:
        _Fields(body).end()
        entries = (string(name.encode()) for name in self._names())
        servers = b"".join(_reply(Option.LIST, OptionReply.SERVER, entry) for entry in entries)
        return servers + _reply(Option.LIST, OptionReply.ACK)

    def _info(self, option: int, body: bytes) -> bytes:
        fields = _Fields(body)
        name = fields.string()
        requested = {fields.u16() for _ in range(fields.u16())}
        fields.end()
        export = self._lookup(name)
        if export is None:
            return _reply(option, OptionReply.ERR_UNKNOWN, b"no such export")
        # Block sizes are sent unrequested, which the protocol allows.
        infos = [
            _U16.pack(Info.EXPORT) + EXPORT_INFO.pack(export.size, self._flags(export)),
            Struct(">HIII").pack(Info.BLOCK_SIZE, MIN_BLOCK, PREFERRED_BLOCK, MAX_PAYLOAD),
        ]
        if Info.NAME in requested:
            infos.append(_U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in requested and export.description:
            infos.append(_U16.pack(Info.DESCRIPTION) + export.description.encode())
        if option == Option.GO:
            self.export = export
        replies = b"".join(_reply(option, OptionReply.INFO, info) for info in infos)
        return replies + _reply(option, OptionReply.ACK)

    def _meta_context(self, option: int, body: bytes) -> bytes:
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._context_for = None  # "replaces all previously-set ... including when it fails"
        if not self.structured:
            raise ValueError("structured replies come first")
        fields = _Fields(body)
        name = fields.string()
        queries = {fields.string() for _ in range(fields.u32())}
        fields.end()
        export = self._lookup(name)
        if export is None:
            return _reply(option, OptionReply.ERR_UNKNOWN, b"no such export")
        wildcard = not setting and (not queries or "base:" in queries)
        found = b""
        if export.allocation and (wildcard or BASE_ALLOCATION in queries):
            context_id = ALLOCATION_CONTEXT_ID if setting else 0
            self._context_for = name if setting else self._context_for
            context = _U32.pack(context_id) + BASE_ALLOCATION.encode()
            found = _reply(option, OptionReply.META_CONTEXT, context)
        return found + _reply(option, OptionReply.ACK)


class _Fields:
    """Reads an option's data field by field; ValueError where it is not well formed."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def _take(self, length: int) -> bytes:
        start, self._at = self._at, self._at + length
        if self._at > len(self._body):
            raise ValueError("option data too short")
        return self._body[start : self._at]

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> str:
        length = self.u32()
        if length > MAX_NAME:
            raise ValueError(f"a string of {length} bytes")
        return self._take(length).decode()

    def end(self) -> None:
        if self._at < len(self._body):
            raise ValueError("option data too long")


def _reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    return OPTION_REPLY_HEAD.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def string(data: bytes) -> bytes:
    """A string as an option carries it."""
    return _U32.pack(len(data)) + data


def option_message(option: Option, data: bytes) -> bytes:
    """An option as a client sends it."""
    return OPTION_HEAD.pack(OPTION_MAGIC, option, len(data)) + data
