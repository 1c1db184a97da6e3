"""Strings and numbers of QEMU's JSON, both ways: modified UTF-8, escapes, 64-bit integers.

Restates QEMU 7.2 ``util/unicode.c``, ``qobject/json-parser.c`` (``parse_string``,
``parse_literal``) and ``qobject/json-writer.c``; these did not change from 5.2 to 11.1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

#: What QEMU's parser makes of JSON text (the union is recursive; ``Any`` would hide mistakes).
Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]

_PLAIN = re.compile(rb"[\x20-\x5b\x5d-\x7f]*")
_PIECE = re.compile(rb"[\x01-\x5b\x5d-\x7f]+|\\|[\x80-\xff]|\x00")
_HEX4 = re.compile(rb"[0-9A-Fa-f]{4}")
_ESCAPES = {
    ord(key): text
    for key, text in zip(
        "\"'\\/bfnrt", ['"', "'", "\\", "/", "\b", "\f", "\n", "\r", "\t"], strict=True
    )
}
_OVERLONG = (0x80, 0x800, 0x10000, 0x200000, 0x4000000)


class BadString(Exception):
    """A string that the lexer accepts and the parser does not; the message is QEMU's."""


def is_character(codepoint: int) -> bool:
    """Whether QEMU takes *codepoint*: Unicode, no surrogate, none of the 66 noncharacters."""
    return (
        codepoint <= 0x10FFFF
        and not 0xFDD0 <= codepoint <= 0xFDEF
        and codepoint & 0xFFFE != 0xFFFE
        and not 0xD800 <= codepoint <= 0xDFFF
    )


def _codepoint(text: bytes, at: int) -> tuple[int, int]:
    """The codepoint at *at*, or -1, and where the next begins (``mod_utf8_codepoint``)."""
    byte = text[at]
    at += 1
    if byte < 0x80:
        return byte, at
    if byte >= 0xFE or not byte & 0x40:
        return -1, at
    length = 8 - (byte ^ 0xFF).bit_length()
    codepoint = byte & (0x7F >> length)
    for _ in range(length - 1):
        if at >= len(text) or text[at] & 0xC0 != 0x80:
            return -1, at
        codepoint = codepoint << 6 | text[at] & 0x3F
        at += 1
    overlong = codepoint < _OVERLONG[length - 2] and not (codepoint == 0 and length == 2)
    return (-1 if overlong or not is_character(codepoint) else codepoint), at


def for_message(text: bytes) -> str:
    """*text* as QEMU prints it in an error's description: cut at NUL, bad bytes replaced."""
    text = text.partition(b"\0")[0]
    out: list[str] = []
    at = 0
    while at < len(text):
        codepoint, at = _codepoint(text, at)
        out.append("\ufffd" if codepoint < 0 else chr(codepoint))
    return "".join(out)


def parse_string(token: bytes) -> str:
    """The value of a string token, quotes included.

    :raises BadString: with the words that follow ``JSON parse error,``
    """
    if _PLAIN.fullmatch(token):  # no escapes, no multi-byte characters: nearly always
        return token[1:-1].decode("ascii")
    out: list[str] = []
    at, end = 1, len(token) - 1
    while at < end:
        found = _PIECE.match(token, at, end)
        assert found is not None
        first = token[at]
        if first == 0x5C:
            text, at = _escape(token, at)
            out.append(text)
        elif first < 0x80:
            out.append(found[0].decode("ascii"))
            at = found.end()
        else:
            codepoint, at = _codepoint(token, at)
            if codepoint < 0:
                raise BadString("invalid UTF-8 sequence in string")
            out.append(chr(codepoint))
    return "".join(out)


def _escape(token: bytes, begin: int) -> tuple[str, int]:
    """The character that the backslash at *begin* introduces, and where the text goes on."""
    kind = token[begin + 1]
    if kind in _ESCAPES:
        return _ESCAPES[kind], begin + 2
    if kind != ord("u"):
        raise BadString("invalid escape sequence in string")
    codepoint = _hex4(token, begin + 2)
    at = begin + 6
    if 0xD800 <= codepoint <= 0xDBFF and token[at : at + 2] == b"\\u":
        trailing = _hex4(token, at + 2)
        if 0xDC00 <= trailing <= 0xDFFF:
            codepoint = 0x10000 + ((codepoint & 0x3FF) << 10 | trailing & 0x3FF)
            at += 6
        else:
            codepoint = -1
    if codepoint < 0 or not is_character(codepoint):
        shown = for_message(token[begin:at])
        raise BadString(f"{shown} is not a valid Unicode character")
    return chr(codepoint), at


def _hex4(token: bytes, at: int) -> int:
    found = _HEX4.match(token, at)
    return int(found[0], 16) if found else -1


def parse_integer(token: bytes) -> int | float:
    """An integer token: int64 or uint64 where it fits, else a double."""
    number = int(token) if len(token) < 30 else None
    if number is not None and -(1 << 63) <= number < 1 << 64:
        return number
    return float(token)


def _double_out(number: float) -> str:
    # json_writer_double() prints %.17g, which is no JSON for an infinity.
    return "%.17g" % number  # noqa: UP031 (an f-string has no g with C's exponent form)


def _double_out_coarsely(number: float) -> str:
    # qnum_to_string() to 5.2: six decimals, however small the number.
    text = "%f" % number  # noqa: UP031
    return text.rstrip("0").removesuffix(".") if "." in text else text


def double_in(number: float) -> str:
    """A number as text from which QEMU reads the same double."""
    if math.isinf(number):
        return "1e999" if number > 0 else "-1e999"
    return repr(number)


def as_qemu_writes(value: Value, coarse: bool = False) -> bytes:
    """*value* as QEMU's writer prints it: a double may become an integer, or ``inf``.

    :param coarse: as the writer of 5.2 and older prints it
    """
    return _dump(value, _double_out_coarsely if coarse else _double_out)


def as_qemu_reads(value: Value) -> bytes:
    """*value* as text from which QEMU's parser makes the very same value."""
    return _dump(value, double_in)


_LAYOUT = re.compile(rb'"(?:[^"\\]|\\.)*"|\{\}|\[\]|[{[\]}]|, ?')


def indented(text: bytes) -> bytes:
    """Messages of QEMU's writer as a monitor with ``pretty=on`` prints them.

    Source: QEMU 7.2 ``qobject/json-writer.c``; ``monitor_puts_locked`` makes each line end CRLF.

    :param text: whole messages, a line each
    """
    depth = 0

    def laid_out(found: re.Match[bytes]) -> bytes:
        nonlocal depth
        token = found[0]
        if token[:1] == b'"':
            return token
        if token in (b"{", b"["):
            depth += 1
            return token + _new_line(depth)
        if token in (b"}", b"]"):
            depth -= 1
            return _new_line(depth) + token
        if token in (b"{}", b"[]"):
            return token[:1] + _new_line(depth) + token[1:]
        return b"," + _new_line(depth)

    return _LAYOUT.sub(laid_out, text)


def _new_line(depth: int) -> bytes:
    return b"\r\n" + b"    " * depth


def _dump(value: Value, double: Callable[[float], str]) -> bytes:
    if value is None or isinstance(value, (bool, int, str)):
        return json.dumps(value).encode()
    # A stack of our own: QEMU nests 1,024 deep, Python's recursion ends sooner.
    out: list[str] = []
    todo: list[tuple[bool, Value | str]] = [(False, value)]
    while todo:
        literal, item = todo.pop()
        if literal:
            assert isinstance(item, str)
            out.append(item)
        elif isinstance(item, float):
            out.append(double(item))
        elif isinstance(item, dict):
            out.append("{")
            todo.append((True, "}"))
            for number, (key, inner) in enumerate(reversed(item.items())):
                if number:
                    todo.append((True, ", "))
                todo += [(False, inner), (True, json.dumps(key) + ": ")]
        elif isinstance(item, list):
            out.append("[")
            todo.append((True, "]"))
            for number, inner in enumerate(reversed(item)):
                if number:
                    todo.append((True, ", "))
                todo.append((False, inner))
        else:
            out.append(json.dumps(item))
    return "".join(out).encode()
