"""Dataclasses as JSON and back: nothing is lost, and what is wrong is named with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import pytest

from qmpshim.codec import decode, decode_all, encode
from qmpshim.errors import InputError


class Colour(StrEnum):
    RED = "red"


class Pair(NamedTuple):
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Inner:
    colour: Colour
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outer:
    inner: tuple[Inner, ...]
    names: frozenset[str]
    pair: Pair | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seconds: float = 1.0


ONE = Outer((Inner(Colour.RED, (1, 2)),), frozenset("ba"), Pair(1, 2), {"z": [1], "a": None}, 2)


def test_there_and_back() -> None:
    assert decode(Outer, json.loads(json.dumps(encode(ONE))), "a test") == ONE
    assert decode(Outer, {"inner": [], "names": []}, "a test") == Outer((), frozenset())


def test_sets_and_objects_can_be_sorted() -> None:
    value = encode(ONE, order=True)
    assert value["names"] == ["a", "b"] and list(value["more"]) == ["a", "z"]
    assert list(value) == ["inner", "names", "pair", "more", "seconds"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not a test: Expected `object`"),
        ({"names": []}, "missing required field `inner`"),
        ({"inner": [{"colour": "blue"}], "names": []}, r"'blue' - at `\$.inner\[.*\].colour`"),
        ({"inner": [], "names": [1]}, r"Expected `str`, got `int` - at `\$.names\[.*\]`"),
        ({"inner": [], "names": [], "seconds": "2"}, r"Expected `float`, got `str`"),
        ({"inner": [], "names": [], "pair": [1]}, r"at `\$.pair`"),
    ],
)
def test_what_is_wrong_is_named(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode(Outer, value, "a test")


def test_any_text_can_be_written() -> None:
    """JSON's escapes can name half a character, and so can the name of a file."""
    half = Inner(Colour.RED), "\ud800"
    assert json.loads(json.dumps(encode(half)))[1] == "\ud800"
    for value in ({"\ud800": 1}, {"inner": [{"colour": "\ud800"}], "names": []}):
        with pytest.raises(InputError, match="not a test"):
            decode(Outer, value, "a test")


def test_a_field_too_many() -> None:
    value = {**encode(ONE), "colour": "red"}
    assert decode(Outer, value, "a test") == ONE
    with pytest.raises(InputError, match="not a test: nothing is known of colour"):
        decode_all(Outer, value, "a test")
