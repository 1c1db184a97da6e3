"""The parser alone: chunks make no difference, limits hold, what it reads it can write."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpshim.shim.json.grammar import Dialect, Malformed, Parsed
from qmpshim.shim.json.stream import JsonStream
from qmpshim.shim.json.text import as_qemu_reads, as_qemu_writes

BOTH = pytest.mark.parametrize("dialect", list(Dialect))
PIECES = st.lists(
    st.one_of(
        st.sampled_from(list("{}[]:,'\"\\ \n\t0123456789-+.eEtruefalsn%\x00\x7f\u00e9")),
        st.sampled_from(["true", "null", "'a'", '"b"', "1.5e3", "\\u00e9", "\\ud83d\\ude00"]),
    ),
    max_size=40,
).map(lambda pieces: "".join(pieces).encode())
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=10),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc\n\u00e9", max_size=5), inner),
    max_leaves=20,
)


def _all(stream: JsonStream, *chunks: bytes) -> list[Any]:
    out = []
    for chunk in chunks:
        stream.feed(chunk)
        while (item := stream.next()) is not None:
            out.append(item)
    return out


@BOTH
@given(data=PIECES, cuts=st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=300)
def test_chunks_make_no_difference(dialect: Dialect, data: bytes, cuts: list[int]) -> None:
    data += b"\n\xff "
    whole = _all(JsonStream(dialect), data)
    assert _all(JsonStream(dialect), *(data[i : i + 1] for i in range(len(data)))) == whole
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]
    assert _all(JsonStream(dialect), *pieces) == whole


@BOTH
@given(
    values=st.lists(VALUES, min_size=1, max_size=3),
    cut=st.integers(0, 40),
    junk=st.sampled_from([b"", b"\n", b" ,", b"}", b"'", b'{"a": 1, "a": 2}', b'{"x": [1.5]} ']),
)
@settings(max_examples=300)
def test_whole_objects_are_read_as_by_the_byte(
    dialect: Dialect, values: list[Any], cut: int, junk: bytes
) -> None:
    """What is read in one go is what the machine reads; places in complaints stay right, too."""
    texts = [json.dumps({"execute": "x", "arguments": {"v": v}}).encode() for v in values]
    data = junk.join(texts).replace(b"Infinity", b"1").replace(b"NaN", b"2") + b"\n{] "
    by_byte = _all(JsonStream(dialect), *(data[i : i + 1] for i in range(len(data))))
    assert repr(_all(JsonStream(dialect), data)) == repr(by_byte)
    assert repr(_all(JsonStream(dialect), data[:cut], data[cut:])) == repr(by_byte)


@given(value=VALUES)
@settings(max_examples=200)
def test_it_reads_what_json_writes_and_what_it_writes_itself(value: Any) -> None:
    def same(one: Any, two: Any) -> bool:
        return repr(one) == repr(two)

    for text in (json.dumps(value).encode(), as_qemu_reads(value)):
        if b"Infinity" in text or b"NaN" in text:
            continue
        (item,) = _all(JsonStream(), text + b"\n")
        if isinstance(item, Malformed):
            assert "valid Unicode" in item.desc  # a noncharacter
            continue
        assert same(item.value, value)


def test_numbers() -> None:
    def one(text: str) -> Any:
        (item,) = _all(JsonStream(), text.encode() + b" ")
        assert isinstance(item, Parsed)
        return item.value

    assert repr(one("-0")) == "0"
    assert repr(one("18446744073709551615")) == "18446744073709551615"
    assert repr(one("18446744073709551616")) == "1.8446744073709552e+19"
    assert one("9" * 5000) == math.inf
    assert as_qemu_writes([1.0, 0.1, math.inf, 1e20]) == b"[1, 0.10000000000000001, inf, 1e+20]"
    assert as_qemu_writes([1.0, 0.0078125], coarse=True) == b"[1, 0.007812]"
    assert as_qemu_reads([1.0, math.inf]) == b"[1.0, 1e999]"


@BOTH
def test_nesting_ends_where_qemu_ends_it(dialect: Dialect) -> None:
    (fits,) = _all(JsonStream(dialect), b"[" * 1024 + b"]" * 1024)
    assert isinstance(fits, Parsed)
    assert as_qemu_writes(fits.value) == b"[" * 1024 + b"]" * 1024
    first, *rest = _all(JsonStream(dialect), b"[" * 1025 + b"]" * 1025)
    assert first == Malformed("JSON nesting depth limit exceeded")
    # The classic parser forgets that anything was open; each ] is then an error of its own.
    assert len(rest) == (1025 if dialect is Dialect.CLASSIC else 0)


@pytest.mark.full
@BOTH
def test_sizes(dialect: Dialect) -> None:
    big = 64 << 20
    too_long = Malformed("JSON token size limit exceeded")
    chunk = b"a" * (1 << 16)

    def string(length: int) -> list[Any]:
        stream = JsonStream(dialect)
        out = _all(stream, b"'")
        for _ in range((length - 2) // len(chunk)):
            out += _all(stream, chunk)
        return out + _all(stream, b"a" * ((length - 2) % len(chunk)) + b"' ")

    assert isinstance(string(big - 1)[0], Parsed)
    assert string(big)[0] == too_long
    assert string(big + 5)[0] == too_long


def test_a_byte_at_a_time_is_no_way_to_eat_the_processor() -> None:
    stream = JsonStream()
    begin = time.process_time()
    stream.feed(b"'")
    for _ in range(100_000):
        stream.feed(b"a")
        assert stream.next() is None
    assert time.process_time() - begin < 5
