"""To any client the shim is QEMU: the same bytes, the same answers, on every build there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpshim.machine.builds.build import Build
from vmtests.support.qmp_arguments import Schema
from vmtests.support.shim_harness import Died, Loop, Pair, normal, pair

#: QEMU's own tests/qtest/qmp-test.c (test_malformed), and what its texts do not say.
MALFORMED = [
    b"{]\n",
    b"{\xff",
    b"{\x01",
    b"{'bad \xff",
    b"{'execute': 'nonexistent', 'id':'\n",
    b"%p",
    b"%%p",
    b"null",
    b"{}",
    b"{ 'execute': true }",
    b"{ 'execute': 'no-such-cmd', 'arguments': [] }",
    b"{ 'execute': 'no-such-cmd', 'extra': true }",
    b"{ 'execute': 'no-such-cmd', 'id': 'cookie#1' }",
    b"{'execute': 'x', 'execute': 'y'}",
    b"{'execute' 'x'}",
    b"{'execute': 'x' 'id': 1}",
    b"{'execute': 'x', }",
    b"{['execute']: 'x'}",
    b"{1: 'x'}",
    b"{'execute': tru}",
    b"{'execute': nulls, 'id': 1}",
    b"[1 2] [1,,2] [,] [1,] :",
    b"5 -0 01 1.5 1. 1.e 1e5 1e 1e+ 0e5 -x --1 +1 0x10 .5",
    b"true\nfalse\nnull\ntrue ",
    b"'\\ud800' '\\ud800\\u0041' '\\ud83d\\ude00' '\\udc00' '\\uFFFE' '\\ufdd0' '\\u12' '\\u'",
    b"'\\x' '\\'' \"\\'\" '\"' \"'\" '\\\"' '\\\x01",
    b"'\xc3\xa9' '\xed\xa0\x80' '\xc0\x80' '\xc0\xaf' '\xf5\x80\x80\x80' '\xef\xbf\xbe' '\xc3' ",
    b"\xc3\xa9 \xe2\x82 \xfe \xff \x00 \x7f",
    b"'a\x7fb' 'a\x00b' 'tab\tin'",
    b"{'execute': 'a\\u0000b', 'id': '\\u0000\xc0\x80'}",
    b"{'a': {'b': [}]}, 'c': 1}",
    b"[[[[]}]]]{'execute':'x'}",
    b"{'a':[}{}{'execute': 'x', 'id': 7}",
    b"[" * 1024 + b"]" * 1024,
    b"[" * 1025 + b"]" * 1025,
    b"{'a':" * 1025 + b"1" + b"}" * 1025,
    b"{'execute':'query-name','id':" + b"[" * 1023 + b"]" * 1023 + b"}",
    b"k" * 2000 + b" ",
    b"{'execute': 'query-version', 'id': 1e400}",
    b"{'execute': 'query-version', 'id': [1.0, -0, 1e20, 0.1, 1e-400, 1e22, 123456789.125]}",
    b"{'execute': 'query-version', 'id': [9223372036854775807, -9223372036854775808, "
    b"9223372036854775808, 18446744073709551615, 18446744073709551616, -9223372036854775809]}",
    b"{'execute': 'x', 'id': {'b': {}, 'a': [], '': null, 'c\\u00e9\xe2\x82\xac\\n\\t': false}}",
    b"{'a':1,'b':2,'execute':1,'exec-oob':3,'arguments':0,'zzz':1}",
    b"{'zz':1,'yy':2,'xx':3,'arguments':0,'id':1}",
    b"{'exec-oob': 'x'} {'exec-oob': 1, 'id': 2} {'exec-oob': 'x', 'execute': 'y'}",
    b"{'execute': 'query-version'}{'execute': 'query-name'}  {'execute':\n'query-uuid'}",
    b"{'execute': 'qmp_capabilities', 'arguments': {'enable': ['no-such']}}",
    b"{'execute': 'qmp_capabilities', 'arguments': {'enabl': ['oob']}}",
    b"{'execute': 'qmp_capabilities', 'arguments': {'enable': 3}, 'id': 3}",
    b"{'execute': 'human-monitor-command', 'id': 2}",
    b"{'execute': 'human-monitor-command', 'arguments': {'command-line': 'info nope'}}",
    b"{'execute': 'qom-set', 'arguments': {'path': '/machine', 'property': 'rtc-time'}}",
    b"{'execute': 'getfd', 'arguments': {'fdname': 'x'}}",
    b"{'execute': 'add-fd'}",
    b"{'execute': 'stop'} {'execute': 'stop'} {'execute': 'cont', 'id': 'c'}",
]

TOKENS = [
    *(b"{", b"}", b"[", b"]", b":", b",", b" ", b"\n", b"\t", b"'", b'"', b"\\", b"-", b"0"),
    *(b"1", b"e", b".", b"+", b"true", b"null", b"x", b"\xff", b"\x00", b"\xc3\xa9", b"%p"),
    *(b"'execute':", b'"execute": ', b"'exec-oob':", b"'arguments':", b"'id':", b"'query-name'"),
    *(b"'\\u00e9'", b"'\\ud800'", b"''", b"18446744073709551616", b"-1.5e3", b"{'execute':'x'}"),
    *(b"'query-version'", b"{'execute': 'query-name', 'id': ", b"'\xed\xa0\x80'"),
]
GARBAGE = st.lists(
    st.one_of(st.sampled_from(TOKENS), st.sampled_from(TOKENS), st.binary(max_size=4)), max_size=30
).map(b"".join)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 65), 1 << 65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def module_loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def talking(each_build: Build, module_loop: Loop) -> Iterator[Pair]:
    """A negotiated pair, one for a whole module: what is sent changes nothing that matters."""
    with pair(module_loop, each_build) as made:
        assert made.direct.negotiate() == made.through.negotiate()
        yield made


def test_before_and_after_negotiation(each_build: Build, loop: Loop) -> None:
    with pair(loop, each_build) as both:
        assert both.direct.message() == both.through.message()  # the greeting
        for phase in ("before", "after"):
            for case in MALFORMED:
                for chunk in (None, 1) if len(case) < 200 else (None,):
                    difference = both.compare(case, chunk)
                    assert difference is None, f"{phase}: {difference}"
            assert both.compare(b"{'execute': 'qmp_capabilities', 'id': 0}") is None


def test_with_oob(each_build: Build, loop: Loop) -> None:
    with pair(loop, each_build) as both:
        assert both.direct.negotiate(oob=True) == both.through.negotiate(oob=True)
        for case in MALFORMED:
            # Which of an in-band and an out-of-band answer comes first is chance in QEMU, too.
            difference = both.compare(case, ordered=False)
            assert difference is None, difference
        for name in ("migrate-pause", "query-cpus-fast", "nope", "qmp_capabilities"):
            difference = both.compare(b"{'exec-oob': '%s', 'id': 1}" % name.encode())
            assert difference is None, difference


def test_every_chunking(talking: Pair) -> None:
    case = b"{'execute': 'query-version', 'id': [\"\\ud83d\\ude00\", -1.5e+3, true]} {] 12 'x'\n"
    for chunk in range(1, 24):
        assert talking.compare(case, chunk) is None


@settings(
    max_examples=150,
)
@given(data=GARBAGE, chunk=st.sampled_from([None, 1, 3]))
def test_garbage(talking: Pair, data: bytes, chunk: int | None) -> None:
    difference = talking.compare(data, chunk)
    assert difference is None, difference


@settings(
    max_examples=60,
)
@given(
    id_=JSON,
    arguments=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    extra=st.dictionaries(
        st.sampled_from(["execute", "exec-oob", "arguments", "id", "a", "zz", "x-y", "ä"]),
        JSON,
        max_size=4,
    ),
)
def test_requests(
    talking: Pair, id_: Any, arguments: dict[str, Any], extra: dict[str, Any]
) -> None:
    for message in (
        {"execute": "query-name", "id": id_},
        {"execute": "object-del", "arguments": arguments, "id": id_},
        {"execute": "blockdev-add", "arguments": {"driver": "null-co", **arguments}},
        extra,
    ):
        difference = talking.compare(json.dumps(message).encode())
        assert difference is None, difference


def test_every_command(each_build: Build, loop: Loop, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # "right" arguments make files named x
    with pair(loop, each_build) as both:
        both.direct.negotiate()
        schema = Schema(both.direct.ask("query-qmp-schema")["return"])
    cases = [case for command in schema.commands for case in schema.cases(command)]
    assert len(schema.commands) > 150
    assert len(cases) > 800
    todo = iter(cases)
    killers = []
    while True:
        with pair(loop, each_build) as both:
            both.direct.negotiate()
            both.through.negotiate()
            killer = _until_death(both, todo)
            if killer is None:
                break
            killers.append(killer["execute"])
    # Found with this test: with no machine, these abort (or dereference null in) QEMU.
    known = {"object-add", "rtc-reset-reinjection", "xen-load-devices-state"}
    assert set(killers) <= known, killers


def _until_death(both: Pair, cases: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """Compare; the request that QEMU dies of must look like it through the shim."""
    for case in cases:
        data = json.dumps(case).encode()
        try:
            difference = both.compare(data)
        except Died:
            both.through.send(data)
            error, event = both.through.rest()[-2:]
            assert error["error"]["desc"] == "QEMU went away before it answered"
            assert error["id"] == normal(case["id"])
            assert event["event"] == "X_SHIM_QEMU_GONE"
            return case
        assert difference is None, difference
    return None


def test_the_end(each_build: Build, loop: Loop) -> None:
    with pair(loop, each_build) as both:
        ends = []
        for wire in (both.direct, both.through):
            wire.negotiate()
            wire.send(b"{'execute': 'quit', 'id': 1}")
            ends.append([normal(message) for message in wire.rest()])
        assert ends[0] == ends[1]
        assert {"return": {}, "id": 1} in ends[1]  # before SHUTDOWN to 5.2, after it since
        assert "SHUTDOWN" in [message.get("event") for message in ends[1]]


@pytest.mark.full
def test_token_limit(talking: Pair) -> None:
    """QEMU reads a monitor byte by byte: 64 MiB would take minutes, so see test_json_stream."""
    for numbers in ((1 << 20) - 1, 1 << 20):
        case = b"[" + b"0," * (numbers - 1) + b"0]"
        talking.direct.sock.settimeout(120)
        talking.through.sock.settimeout(120)
        difference = talking.compare(case)
        assert difference is None, str(difference)[:2000]
