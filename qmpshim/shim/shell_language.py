"""What a line of the shell means: JSON, ``command key=value``, or a ``:word`` of its own."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from qmpshim.errors import InputError
from qmpshim.shim.json_grammar import Malformed
from qmpshim.shim.json_stream import JsonStream

_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)")
_FLOAT = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?")
_SIZE = re.compile(r"(\d+)([kmgt]?)b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """A QMP request."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Local:
    """A command of the shell's own."""

    name: str
    words: tuple[str, ...]


def size(text: str) -> int:
    """Bytes, with an optional suffix k, m, g or t.

    :raises InputError: it is no size
    """
    found = _SIZE.fullmatch(text)
    number = int(found[1]) << 10 * " kmgt".index((found[2] or " ").lower()) if found else -1
    if not 0 <= number < 1 << 63:
        raise InputError(f"{text!r} is no number of bytes: write 512, 64k or 1M")
    return number


def parse(line: str) -> Request | Local | None:
    """What to do; None for a blank line or a comment.

    :raises InputError: it cannot be understood
    """
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise InputError("this line is not UTF-8 text") from error
    if line.startswith(":"):
        words = _words(line[1:])
        if not words:
            raise InputError("a word must follow the colon: try :help")
        return Local(words[0], tuple(words[1:]))
    if line.startswith("{"):
        return Request(_json(line))
    words = _words(line)
    arguments: dict[str, Any] = {}
    for word in words[1:]:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise InputError(f"{word!r}: arguments are written key=value")
        _put(arguments, key, text)
    message: dict[str, Any] = {"execute": words[0]}
    if arguments:
        message["arguments"] = arguments
    return Request(message)


def complete(line: str) -> bool:
    """Whether a line can stand alone; if not, the next line belongs to it."""
    text = line.strip()
    if line.endswith("\\"):
        return False
    if not text.startswith("{"):
        return True
    stream = JsonStream()
    stream.feed(text.encode(errors="replace") + b"\n")
    return stream.next() is not None


def _json(line: str) -> dict[str, Any]:
    stream = JsonStream()
    stream.feed(line.encode() + b"\n")
    item = stream.next()
    if item is None:
        raise InputError("the JSON does not end")
    if isinstance(item, Malformed):
        raise InputError(item.desc)
    if not isinstance(item.value, dict):
        raise InputError("a request is a JSON object")
    return item.value


def _words(line: str) -> list[str]:
    """Split at blanks outside of quotes, brackets and braces."""
    words: list[str] = []
    word = ""
    depth = 0
    quote = ""
    for char in line.replace("\\\n", " "):
        if quote:
            word += char
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
            word += char
        elif char.isspace() and not depth:
            if word:
                words.append(word)
            word = ""
        else:
            depth += (char in "[{") - (char in "]}")
            word += char
    if quote or depth > 0:
        raise InputError(f"the {'quote' if quote else 'bracket'} is not closed")
    return [*words, word] if word else words


def _put(arguments: dict[str, Any], key: str, text: str) -> None:
    """Set a dotted *key*."""
    place = arguments
    *outer, last = key.split(".")
    for name in outer:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key}: {name} has a value already")
        place = inner
    if last in place:
        raise InputError(f"{key} is given twice")
    place[last] = _value(text)


def _value(text: str) -> Any:
    if text in ("true", "false", "null"):
        return json.loads(text)
    if _NUMBER.fullmatch(text):
        return int(text, 0) if "x" in text.lower() else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text[:1] in "[{" and text:
        stream = JsonStream()
        stream.feed(text.encode() + b"\n")
        item = stream.next()
        if item is None or isinstance(item, Malformed):
            raise InputError(f"{text}: {'does not end' if item is None else item.desc}")
        return item.value
    if text[:1] in ("'", '"'):
        try:
            return "".join(shlex.split(text))
        except ValueError as error:
            raise InputError(f"{text}: {error}") from error
    return text
