"""An incremental JSON lexer and parser that takes and refuses exactly what QEMU's does.

Restates QEMU 7.2 ``qobject/json-lexer.c`` (the same in 5.2 and 10.0; in 11.1 it counts lines and
columns): single-quoted strings, several values in a row without separators, and recovery after an
error at the next structural or control character. What a sequence of tokens means is the business
of :mod:`qmpshim.shim.json.grammar`.

The lexer is a state machine over runs of bytes. Most tokens arrive whole, and one regular
expression recognises those; the machine sees the rest, and its state survives between packets, so
that a client that sends 64 MiB a byte at a time costs no more than one that sends it at once.
"""

from __future__ import annotations

import json
import re

from qmpshim.shim.json.grammar import (
    MAX_TOKEN_SIZE,
    Dialect,
    Malformed,
    Parsed,
    TokenKind,
    framer_of,
)
from qmpshim.shim.json.text import Value, for_message

_NOT_IN_STRING = rb"\x00-\x1f\xfe\xff"
# A whole token and, for one that has no end of its own, a look at the byte that ends it.
_TOKEN = re.compile(
    rb"""[ \t\r\n]*(?:
    ([{}\[\]:,])
    |("[^"\\%(no)s]*+(?:\\[\x20-\xfd][^"\\%(no)s]*+)*+"
     |'[^'\\%(no)s]*+(?:\\[\x20-\xfd][^'\\%(no)s]*+)*+')
    |(-?(?:0(?=[^0-9.])|[1-9][0-9]*(?=[^0-9.eE])))
    |(-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][-+]?[0-9]+(?=[^0-9])|(?=[^0-9eE]))
     |-?[1-9][0-9]*[eE][-+]?[0-9]+(?=[^0-9]))
    |([a-z]+(?=[^a-z]))
    )"""
    % {b"no": _NOT_IN_STRING},
    re.VERBOSE | re.DOTALL,
)
_KINDS = (TokenKind.PUNCTUATION, *TokenKind)  # by group number
_BLANK = re.compile(rb"[ \t\r\n]*")
_RECOVERY = re.compile(rb"[^\x00-\x08\x0a-\x1f\xfe\xff\[\]{}:,]*")


_QUICK_BYTES = 1 << 16  # of a value that is read in one go
_QUICK_NESTING = 64


def _distinct(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("QEMU complains of a key that comes twice")
    return made


def _small(digits: str) -> int:
    if len(digits) > 18 or digits == "-0":
        raise ValueError("QEMU may read it otherwise")
    return int(digits)


def _refuse(text: str) -> Value:
    raise ValueError(text)


# What this takes QEMU takes, too, and for the same value, if there is no backslash in it.
_QUICK = json.JSONDecoder(
    object_pairs_hook=_distinct, parse_int=_small, parse_float=_refuse, parse_constant=_refuse
)


class _State:
    """A state inside a token: bytes that keep it, bytes that lead on, and what any other does.

    :ivar run: matches the bytes that keep the state
    :ivar moves: the next state by byte
    :ivar accept: the kind of token that any other byte ends, that byte not being part of it
    :ivar forbidden: bytes that are an error although *accept* is set
    :ivar closer: the byte that ends the token as its last
    """

    def __init__(
        self,
        run: bytes = b"",
        accept: TokenKind | None = None,
        forbidden: bytes = b"",
        closer: int = -1,
    ) -> None:
        self.run = re.compile(run)
        self.moves: dict[int, _State] = {}
        self.accept = accept
        self.forbidden = frozenset(forbidden)
        self.closer = closer

    def on(self, bytes_: bytes, state: _State) -> None:
        """Lead to *state* on any of *bytes_*."""
        self.moves.update(dict.fromkeys(bytes_, state))


def _string_state(quote: bytes) -> _State:
    body = _State(rb"[^\\%s%s]*" % (quote, _NOT_IN_STRING), closer=quote[0])
    escape = _State()
    body.on(b"\\", escape)
    escape.on(bytes(range(0x20, 0xFE)), body)
    return body


def _start() -> dict[int, _State]:
    digits, nonzero = b"0123456789", b"123456789"
    exponent = _State(rb"[0-9]*", TokenKind.FLOAT)
    exponent_sign, exponent_e = _State(), _State()
    exponent_sign.on(digits, exponent)
    exponent_e.on(digits, exponent)
    exponent_e.on(b"-+", exponent_sign)
    fraction = _State(rb"[0-9]*", TokenKind.FLOAT)
    fraction.on(b"eE", exponent_e)
    point = _State()
    point.on(digits, fraction)
    zero = _State(accept=TokenKind.INTEGER, forbidden=digits)
    zero.on(b".", point)
    integer = _State(rb"[0-9]*", TokenKind.INTEGER)
    integer.on(b".", point)
    integer.on(b"eE", exponent_e)
    sign = _State()
    sign.on(b"0", zero)
    sign.on(nonzero, integer)
    start = _State()
    start.on(b'"', _string_state(b'"'))
    start.on(b"'", _string_state(b"'"))
    start.on(b"0", zero)
    start.on(nonzero, integer)
    start.on(b"-", sign)
    start.on(bytes(range(ord("a"), ord("z") + 1)), _State(rb"[a-z]*", TokenKind.KEYWORD))
    return start.moves


_START = _start()


class JsonStream:
    """QEMU's JSON parser as bytes in, values out; :meth:`next` gives one value at a time.

    :param dialect: which QEMU's
    """

    def __init__(self, dialect: Dialect = Dialect.CLASSIC) -> None:
        self._framer = framer_of(dialect)
        self._buffer = b""
        self._at = 0
        self._line, self._column = 1, 1  # of the buffer's first byte
        self._ahead = -1  # offset of a byte that ended a token without being part of it
        self._state: _State | None = None  # inside a token that did not arrive whole
        self._token = bytearray()
        self._token_place = (1, 1)
        self._recovering = False
        self._text: str | None = None  # of the buffer, where it is ASCII

    def feed(self, data: bytes) -> None:
        """Take bytes; they are kept until :meth:`next` has used them."""
        self._line, self._column = self._place(self._at)
        self._ahead -= self._at
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0
        self._text = self._buffer.decode() if self._buffer.isascii() else None

    @property
    def waiting(self) -> int:
        """Bytes fed that :meth:`next` has not looked at."""
        return len(self._buffer) - self._at

    def _place(self, offset: int) -> tuple[int, int]:
        """Line and column of a byte in the buffer, both from 1."""
        lines = self._buffer.count(b"\n", 0, offset)
        if lines:
            return self._line + lines, offset - self._buffer.rfind(b"\n", 0, offset)
        return self._line, self._column + offset

    def _start_of(self, offset: int) -> tuple[int, int]:
        """Where QEMU thinks a token begins: one byte late when the byte had ended another."""
        line, column = self._place(offset)
        return line, column + (offset == self._ahead)

    def next(self) -> Parsed | Malformed | None:
        """The next value or error, or None until more bytes are fed."""
        if self._text is not None and (quick := self._whole(self._text)) is not None:
            return quick
        buffer = self._buffer
        while self._at < len(buffer):
            result: Parsed | Malformed | None
            if self._recovering:
                found = _RECOVERY.match(buffer, self._at)
                assert found is not None
                self._ahead = self._at = found.end()
                self._recovering = self._at == len(buffer)
                continue
            if self._state is not None:
                result = self._step(self._state)
            elif (whole := _TOKEN.match(buffer, self._at)) and len(whole[0]) <= MAX_TOKEN_SIZE:
                group = whole.lastindex
                assert group is not None
                start, end = whole.span(group)
                self._at = end
                result = self._framer.token(_KINDS[group], buffer[start:end], self._start_of, start)
                if group > 2:
                    self._ahead = end
            else:
                blank = _BLANK.match(buffer, self._at)
                assert blank is not None
                self._at = blank.end()
                result = self._begin() if self._at < len(buffer) else None
            if result is not None:
                return result
        return None

    def _whole(self, text: str) -> Parsed | None:
        """A value as clients mostly send it: a whole object of plain JSON; None: look closer."""
        if self._recovering or self._state is not None or not self._framer.idle:
            return None
        blank = _BLANK.match(self._buffer, self._at)
        assert blank is not None
        at = blank.end()
        if not text.startswith("{", at):
            return None
        try:
            value, end = _QUICK.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        buffer = self._buffer
        nested = buffer.count(b"{", at, end) + buffer.count(b"[", at, end)
        if end - at > _QUICK_BYTES or nested > _QUICK_NESTING or buffer.find(b"\\", at, end) >= 0:
            return None
        self._at = end
        return Parsed(value)

    def _begin(self) -> Malformed | None:
        """Enter the state machine with a token's first byte."""
        byte = self._buffer[self._at]
        self._token_place = self._start_of(self._at)
        self._at += 1
        self._token = bytearray((byte,))
        self._state = _START.get(byte)
        return self.stray() if self._state is None else None

    def _step(self, state: _State) -> Parsed | Malformed | None:
        """One run of bytes and the byte that ends it."""
        buffer = self._buffer
        found = state.run.match(buffer, self._at)
        assert found is not None
        room = MAX_TOKEN_SIZE + 1 - len(self._token)
        run = found[0][:room]
        self._token += run
        self._at += len(run)
        if len(self._token) > MAX_TOKEN_SIZE:
            return self._complete(TokenKind.STRING)  # too long, whatever it is
        if self._at == len(buffer):
            return None
        byte = buffer[self._at]
        if state.accept is not None and byte not in state.moves and byte not in state.forbidden:
            result = self._complete(state.accept)
            self._ahead = self._at
            return result
        self._at += 1
        self._token.append(byte)
        if byte == state.closer:
            return self._complete(TokenKind.STRING)
        if byte in state.moves:
            self._state = state.moves[byte]
            return None
        return self.stray()

    def _complete(self, kind: TokenKind) -> Parsed | Malformed | None:
        self._state = None
        token, self._token = bytes(self._token), bytearray()
        return self._framer.token(kind, token, lambda _: self._token_place, 0)

    def stray(self) -> Malformed | None:
        """The error of a character that begins no token; what follows is passed over."""
        self._state = None
        self._recovering = True
        return self._framer.stray(for_message(bytes(self._token)), self._token_place)
