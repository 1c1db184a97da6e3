"""The NBD wire format against bytes packed by hand from the protocol document."""

from __future__ import annotations

import errno
import struct
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.errors import MachineError
from qmpshim.machine.nbd.protocol.handshake import EXPORT_SEND_FLUSH, Export, Handshake
from qmpshim.machine.nbd.protocol.structured_replies import (
    Extent,
    block_status_chunk,
    data_chunk,
    error_chunk,
    hole_chunk,
    none_chunk,
)
from qmpshim.machine.nbd.protocol.transmission import (
    Request,
    RequestParser,
    error_code,
    simple_reply,
)

EXPORTS = {
    "disk": Export("disk", 1 << 20, EXPORT_SEND_FLUSH, description="a disk"),
    "bare": Export("bare", 512, 0, allocation=False),
}
ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN, TOO_BIG = (1 << 31 | n for n in (1, 3, 6, 9))


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def string(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def go(name: str, *infos: int, number: int = 7) -> bytes:
    return option(number, string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos))


def meta(number: int, name: str, *queries: str) -> bytes:
    count = struct.pack(">I", len(queries))
    return option(number, string(name) + count + b"".join(map(string, queries)))


def negotiate(*pieces: bytes, flags: int = 3, step: int | None = None) -> tuple[Handshake, bytes]:
    """Feed client flags and options, ``step`` bytes at a time; the handshake and its answer."""
    handshake = Handshake(EXPORTS.get, lambda: EXPORTS)
    stream = struct.pack(">I", flags) + b"".join(pieces)
    step = step or len(stream)
    chunks = (stream[i : i + step] for i in range(0, len(stream), step))
    return handshake, b"".join([handshake.feed(chunk) for chunk in chunks])


def replies(answer: bytes) -> list[tuple[int, int, bytes]]:
    """Option replies as (option, type, data)."""
    found = []
    while answer:
        magic, number, kind, length = struct.unpack_from(">QIII", answer)
        assert magic == 0x3E889045565A9
        found.append((number, kind, answer[20 : 20 + length]))
        answer = answer[20 + length :]
    return found


def kinds(*pieces: bytes) -> list[tuple[int, int]]:
    return [(number, kind) for number, kind, _ in replies(negotiate(*pieces)[1])]


def test_greeting() -> None:
    assert Handshake.greeting == b"NBDMAGICIHAVEOPT\x00\x03"


def test_go_reports_size_flags_and_what_was_requested() -> None:
    handshake, answer = negotiate(option(8), go("disk", 1, 2, 3, 99))
    infos = [data for _, kind, data in replies(answer) if kind == INFO]
    assert struct.pack(">HQH", 0, 1 << 20, 0b1000_0101) in infos  # HAS_FLAGS, FLUSH, DF
    assert struct.pack(">HIII", 3, 1, 4096, 32 << 20) in infos
    assert b"\0\1disk" in infos and b"\0\2a disk" in infos
    assert len(infos) == 4 and replies(answer)[-1] == (7, ACK, b"")
    assert handshake.export is EXPORTS["disk"] and handshake.structured


def test_info_does_not_begin_transmission() -> None:
    handshake, answer = negotiate(go("disk", number=6))
    assert replies(answer)[-1] == (6, ACK, b"") and handshake.export is None


def test_what_follows_go_is_left_for_transmission() -> None:
    handshake, _ = negotiate(go("disk"), b"next")
    assert handshake.rest() == b"next"


@pytest.mark.parametrize(("flags", "padding"), [(1, 124), (3, 0), (0, 124)])
def test_export_name(flags: int, padding: int) -> None:
    handshake, answer = negotiate(option(1, b"disk"), flags=flags)
    assert answer == struct.pack(">QH", 1 << 20, 0b101) + bytes(padding)
    assert handshake.export is EXPORTS["disk"]


def test_list() -> None:
    _, answer = negotiate(option(3))
    assert replies(answer) == [
        (3, SERVER, string("disk")),
        (3, SERVER, string("bare")),
        (3, ACK, b""),
    ]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([go("other")], [(7, UNKNOWN)]),
        ([go("other", number=6)], [(6, UNKNOWN)]),
        ([option(5), option(3, b"x")], [(5, UNSUP), (3, INVALID)]),
        ([option(4711, b"data"), option(8)], [(4711, UNSUP), (8, ACK)]),
        ([option(7, b"\0\0")], [(7, INVALID)]),
        ([option(7, string("disk") + b"\0\2\0\0")], [(7, INVALID)]),
        ([option(7, string("disk") + b"\0\0\0")], [(7, INVALID)]),
        ([option(7, b"\0\0\0\1\xff\0\0")], [(7, INVALID)]),  # not UTF-8
        ([option(8, b"x")], [(8, INVALID)]),
        ([option(7, bytes(65537))], [(7, TOO_BIG)]),
        ([option(99, bytes(200000)), option(8)], [(99, UNSUP), (8, ACK)]),
        ([meta(10, "disk", "base:allocation")], [(10, INVALID)]),  # not structured
        ([option(8), meta(10, "other", "base:allocation")], [(8, ACK), (10, UNKNOWN)]),
        ([option(8), meta(10, "disk")], [(8, ACK), (10, ACK)]),
        ([option(8), meta(10, "disk", "base:", "qemu:x")], [(8, ACK), (10, ACK)]),
        ([option(8), meta(9, "disk")], [(8, ACK), (9, META), (9, ACK)]),
        ([option(8), meta(9, "disk", "base:")], [(8, ACK), (9, META), (9, ACK)]),
        ([option(8), meta(9, "bare")], [(8, ACK), (9, ACK)]),
    ],
)
def test_options_are_answered_as_the_protocol_says(
    pieces: list[bytes], expected: list[tuple[int, int]]
) -> None:
    assert kinds(*pieces) == expected


def test_metadata_context_counts_for_its_export_only() -> None:
    select = meta(10, "disk", "x:y", "base:allocation")
    handshake, answer = negotiate(option(8), select, go("disk"))
    assert (10, META, struct.pack(">I", 1) + b"base:allocation") in replies(answer)
    assert handshake.allocation
    assert not negotiate(option(8), select, go("bare"))[0].allocation
    assert not negotiate(option(8), select, meta(10, "disk"), go("disk"))[0].allocation
    assert not negotiate(option(8), select, option(10, b"?"), go("disk"))[0].allocation


def test_abort() -> None:
    handshake, answer = negotiate(option(2, b"why not"))
    assert replies(answer) == [(2, ACK, b"")] and handshake.closed


@pytest.mark.parametrize(
    ("pieces", "flags"),
    [
        ([], 4),  # unknown handshake flag
        ([b"GET / HTTP/1.1\r\n"], 3),
        ([option(1, b"other")], 3),
        ([option(1, bytes(65537))], 3),
    ],
)
def test_hopeless_clients(pieces: list[bytes], flags: int) -> None:
    with pytest.raises(MachineError):
        negotiate(*pieces, flags=flags)


OPTIONS = st.lists(
    st.one_of(
        st.sampled_from(
            [option(3), option(8), go("none"), go("disk", 3, number=6), meta(9, "disk", "base:")]
        ),
        st.builds(option, st.integers(3, 40), st.binary(max_size=24)),
    ),
    max_size=6,
)


@given(OPTIONS, st.integers(1, 30))
def test_negotiation_does_not_depend_on_how_the_bytes_arrive(
    pieces: list[bytes], step: int
) -> None:
    chopped, answer = negotiate(*pieces, go("disk"), step=step)
    whole, expected = negotiate(*pieces, go("disk"))
    assert answer == expected
    assert chopped.export == whole.export
    finals = [n for n, kind, _ in replies(answer) if kind == ACK or kind >> 31]
    sent = [struct.unpack_from(">I", piece, 8)[0] for piece in [*pieces, go("disk")]]
    assert finals == sent[: len(finals)]  # each option one final reply, in order
    assert len(finals) == len(sent) or whole.export is not None


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_for(noise: bytes) -> None:
    handshake = Handshake(EXPORTS.get, lambda: EXPORTS)
    parser = RequestParser()
    try:
        handshake.feed(noise)
        parser.feed(noise)
        while parser.next():
            pass
    except MachineError:
        pass


# Transmission


def wire(request: Request) -> bytes:
    """A request message packed by hand ("Request message")."""
    flags, kind, cookie, offset, length, data = request
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length) + data


U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
WRITES = st.builds(
    lambda flags, cookie, offset, data: Request(flags, 1, cookie, offset, len(data), data),
    *(U16, U64, U64, st.binary(max_size=300)),
)
OTHERS = st.builds(Request, U16, U16.filter(lambda n: n != 1), U64, U64, U32, st.just(b""))


def parsed(parser: RequestParser, chunks: Iterable[bytes]) -> list[Request]:
    found = []
    for chunk in chunks:
        parser.feed(chunk)
        while (request := parser.next()) is not None:
            found.append(request)
    return found


@given(st.lists(WRITES | OTHERS, max_size=8), st.integers(1, 120))
def test_requests_survive_any_cutting(requests: list[Request], step: int) -> None:
    stream = b"".join(map(wire, requests))
    chunks = [stream[i : i + step] for i in range(0, len(stream), step)]
    assert parsed(RequestParser(), chunks) == requests


@given(st.lists(WRITES | OTHERS, min_size=1, max_size=5), st.data())
def test_a_spoilt_magic_is_noticed(requests: list[Request], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(requests) - 1))
    messages = [bytearray(wire(request)) for request in requests]
    messages[place][data.draw(st.integers(0, 3))] ^= data.draw(st.integers(1, 255))
    parser = RequestParser()
    with pytest.raises(MachineError, match="magic"):
        parsed(parser, [b"".join(messages)])


def test_an_oversized_write_is_skipped_without_being_stored() -> None:
    size = (32 << 20) + 1
    big = Request(0, 1, 7, 0, size, b"")
    after = Request(0, 0, 8, 0, 512, b"")
    parser = RequestParser()
    chunk = bytes(1 << 20)
    tracemalloc.start()
    assert parsed(parser, [wire(big), *[chunk] * 32]) == []
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert parsed(parser, [b"\0" + wire(after)]) == [big, after]
    assert parsed(RequestParser(), [wire(big) + bytes(size) + wire(after)]) == [big, after]


def test_replies() -> None:
    chunk = struct.Struct(">IHHQI")
    magic, cookie = 0x668E33EF, 0x1122334455667788
    assert simple_reply(cookie, 5) == struct.pack(">IIQ", 0x67446698, 5, cookie)
    assert simple_reply(1, data=b"abc").endswith(b"\x01abc")
    assert none_chunk(cookie) == chunk.pack(magic, 1, 0, cookie, 0)
    expected = chunk.pack(magic, 1, 1, cookie, 11) + struct.pack(">Q", 4096) + b"abc"
    assert data_chunk(cookie, 4096, b"abc") == expected
    expected = chunk.pack(magic, 0, 2, cookie, 12) + struct.pack(">QI", 4096, 512)
    assert hole_chunk(cookie, 4096, 512, done=False) == expected
    expected = chunk.pack(magic, 1, 5, cookie, 20) + struct.pack(">5I", 1, 512, 0, 1024, 3)
    assert block_status_chunk(cookie, [Extent(512, 0), Extent(1024, 3)]) == expected
    error = error_chunk(cookie, 28)
    length, code, message = struct.unpack(">IIH", error[16:26])
    assert error[:16] == chunk.pack(magic, 1, 0x8001, cookie, 0)[:16]
    assert (length, code, message) == (len(error) - 20, 28, len(error) - 26)


@pytest.mark.parametrize(
    ("system", "wire"),
    [
        *((errno.EPERM, 1), (errno.EROFS, 1), (errno.EIO, 5), (errno.ENOMEM, 12)),
        *((errno.EINVAL, 22), (errno.ENOSPC, 28), (errno.EDQUOT, 28), (errno.EFBIG, 28)),
        *((errno.EOVERFLOW, 75), (errno.ENOTSUP, 95), (errno.ESHUTDOWN, 108)),
        (errno.ENOENT, 22),
    ],
)
def test_error_codes(system: int, wire: int) -> None:
    assert error_code(system) == wire
