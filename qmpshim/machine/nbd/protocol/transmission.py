"""The transmission phase: requests, and replies that are not structured.

Sections "Request message", "Request types", "Simple reply message" and "Error values".
"""

from __future__ import annotations

import errno
from enum import Enum
from struct import Struct
from typing import NamedTuple

from qmpshim.errors import MachineError

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

CMD_FUA = 1 << 0
CMD_NO_HOLE = 1 << 1
CMD_DF = 1 << 2
CMD_REQ_ONE = 1 << 3
CMD_FAST_ZERO = 1 << 4

MAX_PAYLOAD = 32 << 20


class NbdCommand(Enum):
    """The commands of the transmission phase ("Request types"); no IntEnum: READ is no false."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7

    # A member equals itself alone.  Enum's hash is a Python function, called for each request.
    __hash__ = object.__hash__


class Request(NamedTuple):
    """One request message as received; ``type`` and ``flags`` may be unknown ones.

    ``data`` is a WRITE's payload; it is empty when ``length`` exceeds :data:`MAX_PAYLOAD`,
    in which case the parser has skipped the payload.
    """

    flags: int
    type: int
    cookie: int
    offset: int
    length: int
    data: bytes


REQUEST_HEAD = Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY_HEAD = Struct(">IIQ")  # magic, error, cookie

# "Error values": the errors a server may send; the rest become EINVAL.
_ERROR_CODES = {
    errno.EPERM: 1,
    errno.EACCES: 1,
    errno.EROFS: 1,
    errno.EIO: 5,
    errno.ENOMEM: 12,
    errno.EINVAL: 22,
    errno.ENOSPC: 28,
    errno.EDQUOT: 28,
    errno.EFBIG: 28,
    errno.EOVERFLOW: 75,
    errno.ENOTSUP: 95,
    errno.ESHUTDOWN: 108,
}


def error_code(code: int) -> int:
    """The NBD error that stands for a system ``errno`` (EINVAL where NBD has none)."""
    return _ERROR_CODES.get(code, 22)


def request_message(
    kind: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0
) -> bytes:
    """A request; the data of a WRITE follows it."""
    return REQUEST_HEAD.pack(REQUEST_MAGIC, flags, kind, cookie, offset, length)


def simple_reply(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    """A simple reply; ``data`` only for a READ without structured replies."""
    return SIMPLE_REPLY_HEAD.pack(SIMPLE_REPLY_MAGIC, error, cookie) + data


class RequestParser:
    """Cuts a client's byte stream of the transmission phase into requests.

    A WRITE above :data:`MAX_PAYLOAD` costs no memory: its payload is skipped as it comes in.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0  # where in the buffer the next request begins
        self._skip = 0  # payload bytes of an oversized WRITE still to come
        self._oversized: Request | None = None

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data

    def next(self) -> Request | None:
        """The next request, or None until more bytes are fed.

        :raises MachineError: the stream is out of step (wrong magic); the connection is lost
        """
        if self._skip:
            return None
        if self._oversized is not None:
            oversized, self._oversized = self._oversized, None
            return oversized
        buffer, start = self._buffer, self._at
        end = start + 28
        if len(buffer) < end:
            return None
        magic, flags, kind, cookie, offset, length = REQUEST_HEAD.unpack_from(buffer, start)
        if magic != REQUEST_MAGIC:
            raise MachineError(f"NBD client out of step: request magic {magic:#x}")
        data = b""
        if kind == 1:
            start, end = end, end + length
            if length > MAX_PAYLOAD:
                self._oversized = Request(flags, kind, cookie, offset, length, b"")
                self._at = min(end, len(buffer))
                self._skip = end - self._at
                return self.next()
            if len(buffer) < end:
                return None
            with memoryview(buffer) as view:
                data = bytes(view[start:end])
        self._at = end
        return Request(flags, kind, cookie, offset, length, data)
