"""Half-written JSON: where in it the cursor is, and what was written so far."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:
    ([{}\[\]:,])
    |("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |("(?:[^"\\]|\\.)*$|'(?:[^'\\]|\\.)*$)
    |([^\s{}\[\]:,"']+)
    )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(slots=True)
class Place:
    """Where the cursor is.

    :ivar root: what is complete so far
    :ivar path: keys and indices that lead to the container the cursor is in
    :ivar key: the member whose value comes next; None: a key comes next, or a list's item
    :ivar expects: ``key``, ``value``, or "" where only punctuation may stand
    :ivar part: what of the word is written already
    :ivar quote: the quote that is open, "" for none
    """

    root: Any = None
    path: list[str | int] = field(default_factory=list)
    key: str | None = None
    expects: str = "value"
    part: str = ""
    quote: str = ""


def locate(text: str) -> Place:
    """Where the end of *text* is; *text* begins with a brace."""
    place = Place()
    stack: list[Any] = []
    at = 0
    while (found := _TOKEN.match(text, at)) is not None:
        at = found.end()
        punctuation, string, open_, word = found.groups()
        if punctuation:
            _structure(punctuation, place, stack)
        elif open_:
            place.quote, place.part = open_[0], open_[1:]
        elif word and at == len(text):
            place.part = word
        else:
            _scalar(string[1:-1] if string else _plain(word), place, stack)
    return place


def _plain(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _structure(mark: str, place: Place, stack: list[Any]) -> None:
    if mark in "{[":
        made: Any = {} if mark == "{" else []
        if stack:
            place.path.append(len(stack[-1]) if place.key is None else place.key)
            _put(made, place, stack)
        else:
            place.root = made
        stack.append(made)
        place.key = None
        place.expects = "key" if mark == "{" else "value"
    elif mark in "}]":
        if stack:
            stack.pop()
        if place.path:
            place.path.pop()
        place.expects = ""
    elif mark == ":":
        place.expects = "value"
    elif stack:
        place.key = None
        place.expects = "key" if isinstance(stack[-1], dict) else "value"


def _scalar(value: Any, place: Place, stack: list[Any]) -> None:
    if place.expects == "key":
        place.key = str(value)
    elif stack:
        _put(value, place, stack)
    place.expects = ""


def _put(value: Any, place: Place, stack: list[Any]) -> None:
    if isinstance(stack[-1], dict):
        if place.key is not None:
            stack[-1][place.key] = value
    else:
        stack[-1].append(value)
