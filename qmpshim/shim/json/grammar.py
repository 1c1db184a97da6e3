"""What a sequence of JSON tokens means to QEMU: a value, or an error in QEMU's own words.

There are two dialects. To 10.2, QEMU collects a value's tokens until its brackets and braces are
even and then parses them (``qobject/json-streamer.c`` and ``json-parser.c`` of 5.2, 7.2, 10.0).
In 11.1 it parses as tokens come, complains at once, naming line and column, and then skips the
rest of the value. The second is known from its patches on the qemu-devel list and from what an
11.1 answers; the differential tests hold this module against both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from qmpshim.shim.json.text import BadString, Value, parse_integer, parse_string

MAX_TOKEN_SIZE = 64 << 20  # bytes of one token, and of all tokens of one value
MAX_TOKEN_COUNT = 2 << 20
MAX_NESTING = 1 << 10

Place = tuple[int, int]  # line and column


class Dialect(Enum):
    """Whose parser."""

    CLASSIC = "to 10.2"
    PLACED = "11.1"  # its errors name a place


@dataclass(frozen=True, slots=True)
class Parsed:
    """A complete value."""

    value: Value


@dataclass(frozen=True, slots=True)
class Malformed:
    """QEMU's error for text that is no value; parsing goes on after it."""

    desc: str


class TokenKind(Enum):
    """The kinds of tokens."""

    PUNCTUATION = auto()
    STRING = auto()
    INTEGER = auto()
    FLOAT = auto()
    KEYWORD = auto()


class _Expect(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()  # after [
    KEY = auto()
    KEY_OR_END = auto()  # after {
    COLON = auto()
    LIST_SEPARATOR = auto()  # , or the end
    DICT_SEPARATOR = auto()


_KEYS = (_Expect.KEY, _Expect.KEY_OR_END)
_SEPARATORS = (_Expect.LIST_SEPARATOR, _Expect.DICT_SEPARATOR)
_KEYWORDS: dict[bytes, Value] = {b"true": True, b"false": False, b"null": None}
_COMPLAINTS = {
    Dialect.CLASSIC: {
        _Expect.VALUE: "expecting value",
        _Expect.VALUE_OR_END: "expecting value",
        _Expect.KEY: "expecting value",
        _Expect.KEY_OR_END: "expecting value",
        _Expect.COLON: "missing : in object pair",
        _Expect.LIST_SEPARATOR: "expected separator in list",
        _Expect.DICT_SEPARATOR: "expected separator in dict",
    },
    Dialect.PLACED: {
        _Expect.VALUE: "expecting value",
        _Expect.VALUE_OR_END: "expecting value",
        _Expect.KEY: "expecting key",
        _Expect.KEY_OR_END: "expecting key",
        _Expect.COLON: "expecting ':'",
        _Expect.LIST_SEPARATOR: "expected ',' or ']'",
        _Expect.DICT_SEPARATOR: "expected ',' or '}'",
    },
}


class _Grammar:
    """Makes one value of its tokens, up to the first that does not fit.

    :ivar error: what is wrong, as soon as something is
    :ivar value: the value, once it is complete
    """

    __slots__ = ("_complaints", "_containers", "_expect", "_keys", "_placed", "error", "value")

    def __init__(self, dialect: Dialect) -> None:
        self._placed = dialect is Dialect.PLACED
        self._complaints = _COMPLAINTS[dialect]
        self.error: str | None = None
        self.value: Value = None
        self._expect = _Expect.VALUE
        self._containers: list[dict[str, Value] | list[Value]] = []
        self._keys: list[str | None] = []  # of the pairs under way, one for each dict

    def token(self, kind: TokenKind, text: bytes) -> None:
        """Take the next token."""
        expect = self._expect
        if kind is not TokenKind.PUNCTUATION:
            unfit = expect is _Expect.COLON or expect in _SEPARATORS
            if unfit or (self._placed and expect in _KEYS and kind is not TokenKind.STRING):
                self._unexpected()
            else:
                self._scalar(kind, text)
        elif text == b"{" or text == b"[":
            unfit = expect is _Expect.COLON or expect in _SEPARATORS
            if unfit or (self._placed and expect in _KEYS):
                self._unexpected()
            elif text == b"{":
                self._containers.append({})
                self._keys.append(None)
                self._expect = _Expect.KEY_OR_END
            else:
                self._containers.append([])
                self._expect = _Expect.VALUE_OR_END
        elif text == b":":
            if expect is _Expect.COLON:
                self._expect = _Expect.VALUE
            else:
                self._unexpected()
        elif text == b",":
            if expect is _Expect.DICT_SEPARATOR:
                self._expect = _Expect.KEY
            elif expect is _Expect.LIST_SEPARATOR:
                self._expect = _Expect.VALUE
            else:
                self._unexpected()
        else:
            self._close(text)

    def _fail(self, error: str) -> None:
        self.error = error
        self._containers.clear()  # QEMU keeps the tokens; nothing needs them
        self._keys.clear()

    def _unexpected(self) -> None:
        self._fail(self._complaints[self._expect])

    def _scalar(self, kind: TokenKind, text: bytes) -> None:
        if kind is TokenKind.STRING:
            try:
                self._complete(parse_string(text))
            except BadString as error:
                self._fail(str(error))
        elif kind is TokenKind.INTEGER:
            self._complete(parse_integer(text))
        elif kind is TokenKind.FLOAT:
            self._complete(float(text))
        elif text in _KEYWORDS:
            self._complete(_KEYWORDS[text])
        else:
            # vsnprintf() into 1,024 bytes; nothing else can be that long, and this is ASCII.
            self._fail(f"invalid keyword '{text.decode('ascii')}'"[:1023])

    def _close(self, text: bytes) -> None:
        ends = (
            (_Expect.DICT_SEPARATOR, _Expect.KEY_OR_END)
            if text == b"}"
            else (_Expect.LIST_SEPARATOR, _Expect.VALUE_OR_END)
        )
        if self._expect not in ends:
            self._unexpected()
            return
        container = self._containers.pop()
        if isinstance(container, dict):
            self._keys.pop()
        self._complete(container)

    def _complete(self, value: Value) -> None:
        """A value has come to its end: put it where it belongs."""
        if not self._containers:
            self.value = value
            return
        container = self._containers[-1]
        if isinstance(container, list):
            container.append(value)
            self._expect = _Expect.LIST_SEPARATOR
        elif (key := self._keys[-1]) is None:
            if not isinstance(value, str):
                self._fail("key is not a string in object")
                return
            self._keys[-1] = value
            self._expect = _Expect.COLON
        elif key in container:
            self._fail("duplicate key")
        else:
            container[key] = value
            self._keys[-1] = None
            self._expect = _Expect.DICT_SEPARATOR


class Framer(ABC):
    """Finds where a value ends in the stream of tokens."""

    dialect: ClassVar[Dialect]

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._braces = self._brackets = self._count = self._size = 0
        self._failed = False
        self._grammar = _Grammar(self.dialect)

    @property
    def idle(self) -> bool:
        """Whether no value has begun."""
        return not self._count

    def _balance(self, kind: TokenKind, text: bytes) -> None:
        if kind is TokenKind.PUNCTUATION:
            self._braces += (text == b"{") - (text == b"}")
            self._brackets += (text == b"[") - (text == b"]")

    @abstractmethod
    def token(
        self, kind: TokenKind, text: bytes, place: Callable[[int], Place], at: int
    ) -> Parsed | Malformed | None:
        """Take a token, which is at ``place(at)``; gives a value or an error when one is due."""

    @abstractmethod
    def stray(self, text: str, place: Place) -> Malformed | None:
        """Bytes came that are no token."""


class _Classic(Framer):
    """Parses when brackets and braces are even; reports the first error then."""

    dialect = Dialect.CLASSIC

    def token(
        self, kind: TokenKind, text: bytes, place: Callable[[int], Place], at: int
    ) -> Parsed | Malformed | None:
        self._balance(kind, text)
        grammar = self._grammar
        self._count += 1
        if self._size + len(text) + 1 > MAX_TOKEN_SIZE:
            grammar.error = "JSON token size limit exceeded"
        elif self._count > MAX_TOKEN_COUNT:
            grammar.error = "JSON token count limit exceeded"
        elif self._brackets + self._braces > MAX_NESTING:
            grammar.error = "JSON nesting depth limit exceeded"
        else:
            self._size += len(text)
            if grammar.error is None:
                grammar.token(kind, text)
            open_ = self._braces > 0 or self._brackets > 0
            if open_ and self._braces >= 0 and self._brackets >= 0:
                return None
            self._reset()
            if grammar.error is None:
                return Parsed(grammar.value)
            return Malformed(f"JSON parse error, {grammar.error}")
        self._reset()
        return Malformed(grammar.error)

    def stray(self, text: str, place: Place) -> Malformed | None:
        self._reset()
        return Malformed(f"JSON parse error, stray '{text}'")


class _Placed(Framer):
    """Parses and complains at once; after an error skips until all that is open is closed."""

    dialect = Dialect.PLACED

    def token(
        self, kind: TokenKind, text: bytes, place: Callable[[int], Place], at: int
    ) -> Parsed | Malformed | None:
        self._size += len(text)
        self._count += 1
        self._balance(kind, text)
        if self._braces < 0 or self._brackets < 0:
            self._braces = self._brackets = 0
        result: Parsed | Malformed | None = None
        if not self._failed:
            result = self._parse(kind, text, place, at)
            self._failed = isinstance(result, Malformed)
        if not (self._braces or self._brackets):
            if result is None and not self._failed:
                result = Parsed(self._grammar.value)
            self._reset()
        return result

    def _parse(
        self, kind: TokenKind, text: bytes, place: Callable[[int], Place], at: int
    ) -> Malformed | None:
        if self._size >= MAX_TOKEN_SIZE:
            return Malformed("JSON token size limit exceeded")
        if self._count > MAX_TOKEN_COUNT:
            return Malformed("JSON token count limit exceeded")
        if self._brackets + self._braces > MAX_NESTING:
            return Malformed("JSON nesting depth limit exceeded")
        self._grammar.token(kind, text)
        if self._grammar.error is None:
            return None
        return _placed(place(at), self._grammar.error)

    def stray(self, text: str, place: Place) -> Malformed | None:
        failed = self._failed
        self._reset()
        return None if failed else _placed(place, f"stray '{text}'")


def _placed(place: Place, error: str) -> Malformed:
    return Malformed(f"{place[0]}:{place[1]}: JSON parse error, {error}")


def framer_of(dialect: Dialect) -> Framer:
    """The framer of a dialect."""
    return _Placed() if dialect is Dialect.PLACED else _Classic()
