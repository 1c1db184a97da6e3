"""Structured replies, which come in chunks.

Sections "Structured reply chunk message" and "Structured reply types".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

CHUNK_MAGIC = 0x668E33EF

STATE_HOLE = 1 << 0  # base:allocation
STATE_ZERO = 1 << 1

ALLOCATION_CONTEXT_ID = 1  # ours to choose; 0 is what LIST_META_CONTEXT answers


class Chunk(IntEnum):
    """The types of structured reply chunks ("Structured reply types")."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1


CHUNK_ERROR = 1 << 15  # the bit of the types that are errors


class Extent(NamedTuple):
    """A run of ``length`` bytes with the same base:allocation ``state`` (HOLE and ZERO bits)."""

    length: int
    state: int


CHUNK_HEAD = Struct(">IHHQI")  # magic, flags, type, cookie, length
_DATA_CHUNK = Struct(">IHHQIQ")
_U16 = Struct(">H")
_U32 = Struct(">I")

DONE = 1  # NBD_REPLY_FLAG_DONE


def error_chunk(cookie: int, error: int) -> bytes:
    """A structured reply that is one error chunk, with the error's name as its message."""
    message = os.strerror(error).encode()
    payload = _U32.pack(error) + _U16.pack(len(message)) + message
    return CHUNK_HEAD.pack(CHUNK_MAGIC, DONE, Chunk.ERROR, cookie, len(payload)) + payload


def data_chunk(cookie: int, offset: int, data: bytes, done: bool = True) -> bytes:
    """A structured READ reply's content; ``data`` must not be empty."""
    return _DATA_CHUNK.pack(CHUNK_MAGIC, done, 1, cookie, 8 + len(data), offset) + data


def hole_chunk(cookie: int, offset: int, length: int, done: bool = True) -> bytes:
    """A structured READ reply's content where ``length`` bytes are zeroes."""
    return _DATA_CHUNK.pack(CHUNK_MAGIC, done, 2, cookie, 12, offset) + _U32.pack(length)


def none_chunk(cookie: int) -> bytes:
    """A structured reply without content: success."""
    return CHUNK_HEAD.pack(CHUNK_MAGIC, DONE, Chunk.NONE, cookie, 0)


def block_status_chunk(cookie: int, extents: Sequence[Extent]) -> bytes:
    """A BLOCK_STATUS reply for base:allocation; ``extents`` must not be empty."""
    words = [word for extent in extents for word in extent]
    body = Struct(f">I{len(words)}I").pack(ALLOCATION_CONTEXT_ID, *words)
    return CHUNK_HEAD.pack(CHUNK_MAGIC, DONE, Chunk.BLOCK_STATUS, cookie, len(body)) + body
