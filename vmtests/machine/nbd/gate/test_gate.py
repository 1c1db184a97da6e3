"""The gated NBD server: stores, real NBD clients at the open gate, and the hand on requests."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpshim.errors import HostError, InputError, MachineError
from qmpshim.machine.nbd.gate.events import EventKind, HeldIO
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.gate.store import BLOCK, MemoryStore, Store
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from vmtests.support import misbehaving_gate
from vmtests.support.file_store import FileStore
from vmtests.support.processes import run
from vmtests.support.waiting import until

nbd = pytest.importorskip("nbd")

KB, MB = 1 << 10, 1 << 20
LIMIT = 60.0  # seconds; nothing here should take one


@asynccontextmanager
async def gated(tmp_path: Path, **images: Store) -> AsyncIterator[Gate]:
    gate = Gate()
    for name, store in images.items():
        gate.add(name, store)
    await gate.start(tmp_path / "s")
    try:
        yield gate
    finally:
        await gate.stop()


async def qemu_io(uri: str, *commands: str, **options: Any) -> str:
    arguments = [word for command in commands for word in ("-c", command)]
    return await run("qemu-io", "-f", "raw", *arguments, uri, **options)


async def client(gate: Gate, image: str, strict: bool = True) -> Any:
    """A libnbd handle; its blocking calls belong into :func:`asyncio.to_thread`."""
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    if not strict:
        handle.set_strict_mode(0)
    await asyncio.to_thread(handle.connect_uri, gate.uri(image))
    return handle


def call(function: Callable[..., Any], *arguments: Any) -> asyncio.Task[Any]:
    """Start a libnbd call that blocks until the gate answers."""
    return asyncio.create_task(asyncio.to_thread(function, *arguments))


async def one(gate: Gate) -> HeldIO:
    """The request that is about to be held."""
    assert await gate.until(lambda: bool(gate.held), LIMIT)
    return gate.held[-1]


async def errno_of(task: Awaitable[Any]) -> int:
    with pytest.raises(nbd.Error) as caught:
        await asyncio.wait_for(task, LIMIT)
    return int(caught.value.errnum)


# Stores


SIZE = 4 * BLOCK + 700
RANGES = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "zero", "fill", "trim", "save", "restore"]), RANGES),
    max_size=12,
)


@pytest.mark.parametrize("kind", ["memory", "file"])
@settings(max_examples=60)
@given(steps=STEPS)
def test_store_is_an_array_of_bytes(
    tmp_path_factory: pytest.TempPathFactory, kind: str, steps: list[tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "image"
    store = MemoryStore(SIZE) if kind == "memory" else FileStore(path, SIZE)
    model = bytearray(SIZE)
    saved = bytes(model)
    store.restore(saved)
    for number, (step, (start, end)) in enumerate(steps, 1):
        length = end - start
        if step == "write":
            model[start:end] = bytes([number]) * length
            store.write(start, bytes(model[start:end]))
        elif step == "save":
            saved = store.snapshot()
        elif step == "restore":
            store.restore(saved)
            model[:] = saved
        else:
            model[start:end] = bytes(length)
            store.trim(start, length) if step == "trim" else store.zero(
                start, length, hole=step == "zero"
            )
            assert step != "fill" or not length or not store.has_hole(start, length)
        assert store.snapshot() == model
        at = 0
        for extent in store.extents(0, SIZE):
            assert extent.state in (0, 2, 3)
            assert not extent.state or not any(model[at : at + extent.length])
            at += extent.length
        assert at == SIZE
    store.restore(saved)
    store.restore(saved)
    assert store.snapshot() == saved
    store.close()


def test_restoring_again_puts_back_only_what_was_touched() -> None:
    store = MemoryStore(random.Random(1).randbytes(1 * MB))
    golden = store.snapshot()
    store.restore(golden)
    put: list[int] = []
    original = store.put_bytes

    def spy(at: int, data: bytes | memoryview) -> None:
        put.append(at)
        original(at, data)

    store.put_bytes = spy  # type: ignore[assignment,method-assign]
    store.write(5 * BLOCK + 1, b"x")
    store.zero(9 * BLOCK, BLOCK)
    put.clear()
    store.restore(golden)
    assert sorted(put) == [5 * BLOCK, 9 * BLOCK] and store.snapshot() == golden
    assert store.extents(0, 1 * MB) == [(1 * MB, 0)]
    store.restore(bytes(1 * MB))
    assert store.extents(0, 1 * MB) == [(1 * MB, 3)]


def test_file_store_knows_the_holes_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.seek(1 * MB)
        file.write(b"data" * 1024)
        file.truncate(3 * MB)
    store = FileStore(path)
    assert [extent.state for extent in store.extents(0, store.size)] == [3, 0, 3]
    store.write(0, b"here")
    store.flush()
    assert path.read_bytes() == store.snapshot()
    store.close()


def test_a_zero_that_fails_half_way_is_taken_back_by_the_next_restore() -> None:
    class Full(MemoryStore):
        full = False

        def put_bytes(self, offset: int, data: bytes | memoryview) -> None:
            if self.full and offset:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().put_bytes(offset, data)

    base = random.Random(1).randbytes(3 * MB)
    store = Full(base)
    store.restore(base)
    store.full = True
    with pytest.raises(OSError, match="No space left"):
        store.zero(0, 3 * MB)
    store.full = False
    assert store.snapshot() != base
    store.restore(base)
    assert store.snapshot() == base


def test_store_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        MemoryStore(0)
    with pytest.raises(HostError):
        FileStore(tmp_path / "absent")
    store = MemoryStore(512)
    for wrong in (
        lambda: store.read(1, 512),
        lambda: store.write(-1, b""),
        lambda: store.restore(b"short"),
        lambda: store.zero(513, 0),
    ):
        with pytest.raises(InputError):
            wrong()


# Real clients, gate open


async def test_nbdinfo(tmp_path: Path) -> None:
    disk = MemoryStore(3 * MB)
    disk.write(1 * MB, b"x" * BLOCK)
    disk.zero(2 * MB, BLOCK, hole=False)
    async with gated(tmp_path, disk=disk, small=MemoryStore(513)) as gate:
        document = json.loads(await run("nbdinfo", "--json", gate.uri("disk")))["exports"][0]
        assert document["export-size"] == 3 * MB
        assert document["contexts"] == ["base:allocation"]
        assert (document["block_size_minimum"], document["block_size_maximum"]) == (1, 32 * MB)
        flags = ["flush", "fua", "trim", "zero", "df", "fast_zero", "multi_conn"]
        assert all(document[f"can_{flag}"] for flag in flags) and not document["is_read_only"]
        listed = json.loads(await run("nbdinfo", "--json", "--list", gate.uri("disk")))
        assert [e["export-name"] for e in listed["exports"]] == ["disk", "small"]
        extents = json.loads(await run("nbdinfo", "--json", "--map", gate.uri("disk")))
        assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
            (0, 1 * MB, 3),
            (1 * MB, BLOCK, 0),
            (1 * MB + BLOCK, 1 * MB - BLOCK, 3),
            (2 * MB, BLOCK, 2),
            (2 * MB + BLOCK, 1 * MB - BLOCK, 3),
        ]
        await run("nbdinfo", gate.uri("disk").replace("disk", "other"), fails=True)


def sparse_image(size: int) -> bytes:
    chance = random.Random(size)
    image = bytearray(size)
    for _ in range(40):
        at, length = chance.randrange(size), chance.randrange(1, 70000)
        image[at : at + length] = chance.randbytes(min(length, size - at))
    return bytes(image)


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_nbdcopy_both_ways(tmp_path: Path, kind: str) -> None:
    image = sparse_image(6 * MB)
    (tmp_path / "in").write_bytes(image)
    store = MemoryStore(6 * MB) if kind == "memory" else FileStore(tmp_path / "f", 6 * MB)
    async with gated(tmp_path, disk=store) as gate:
        several = ("--threads=4", "--connections=4")
        await run("nbdcopy", *several, tmp_path / "in", gate.uri("disk"))
        assert gate.snapshot("disk") == image
        await run("nbdcopy", *several, gate.uri("disk"), tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == image
        assert len({event.connection for event in gate.trace}) == 8


@pytest.mark.usefixtures("qemu_on_path")
async def test_qemu_img(tmp_path: Path) -> None:
    image = sparse_image(3 * MB)
    (tmp_path / "in").write_bytes(image)
    async with gated(tmp_path, q=MemoryStore(5 * MB), r=MemoryStore(3 * MB)) as gate:
        q, r = gate.uri("q"), gate.uri("r")
        await run("qemu-img", "create", "-f", "qcow2", q, "3M")
        await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", tmp_path / "in", q)
        await run("qemu-img", "check", "-f", "qcow2", q)
        await run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", tmp_path / "in", q)
        await run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", q, r)
        assert gate.snapshot("r") == image
        (tmp_path / "copy").write_bytes(gate.snapshot("q"))
        await run("qemu-img", "compare", tmp_path / "in", tmp_path / "copy")
        gate.store("r").write(12345, b"?")
        await run("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "in", r, fails=True)


@pytest.mark.usefixtures("qemu_on_path")
async def test_qemu_io(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(1 * MB)) as gate:
        await qemu_io(
            gate.uri("disk"),
            "write -P 1 0 256k",
            "write -f -P 2 3 5",
            "write -z 64k 64k",
            "write -z -u 128k 5000",
            "discard 192k 64k",
            "flush",
            "read -P 2 3 5",
            "read -P 1 8 65528",
            "read -P 0 64k 70536",
            "read -P 0 192k 64k",
        )
        store = gate.store("disk")
        assert store.extents(64 * KB, 64 * KB) == [(64 * KB, 2)]  # -z: stay allocated
        assert store.extents(128 * KB, 4 * KB) == [(4 * KB, 3)]  # -u: may be a hole
        counts = gate.counts("disk")
        assert [
            counts[op] for op in (NbdCommand.WRITE, NbdCommand.WRITE_ZEROES, NbdCommand.TRIM)
        ] == [2, 2, 1]
        places = [(e.offset, e.length) for e in gate.trace if e.op is NbdCommand.WRITE]
        assert places == [(0, 256 * KB), (3, 5)]  # as sent: not rounded to any block
        wrong = await qemu_io(gate.uri("disk"), "read -P 9 0 512", fails=True)
        assert "Pattern verification failed" in wrong


async def test_a_read_of_nothing_in_a_hole_is_answered(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(2 * BLOCK)) as gate:
        handle = await client(gate, "disk", strict=False)
        async with asyncio.timeout(20):
            assert await call(handle.pread, 0, 100) == b""
        await call(handle.shutdown)


async def test_libnbd_on_several_connections(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(1 * MB)) as gate:
        first, second = await client(gate, "disk"), await client(gate, "disk")
        assert first.can_multi_conn() and len(gate.connections("disk")) == 2
        await call(first.pwrite, b"abc" * 1000, 70000, nbd.CMD_FLAG_FUA)
        assert await call(second.pread, 3000, 70000) == bytearray(b"abc" * 1000)
        chunks: list[tuple[int, int, int]] = []
        await call(
            second.pread_structured,
            200000,
            1000,
            lambda data, at, status, error: chunks.append((at, len(data), status)),
        )
        hole, data = nbd.READ_HOLE, nbd.READ_DATA
        # 17 blocks before the first written one, which ends in block 17
        assert chunks == [
            (1000, 17 * BLOCK - 1000, hole),
            (17 * BLOCK, BLOCK, data),
            (18 * BLOCK, 201000 - 18 * BLOCK, hole),
        ]
        chunks.clear()
        await call(
            second.pread_structured,
            5000,
            68000,
            lambda data, at, status, error: chunks.append((at, len(data), status)),
            nbd.CMD_FLAG_DF,
        )
        assert chunks == [(68000, 5000, data)]
        extents: list[int] = []
        await call(
            first.block_status,
            1 * MB,
            0,
            lambda c, o, e, err: extents.extend(e),
            nbd.CMD_FLAG_REQ_ONE,
        )
        assert extents == [17 * BLOCK, 3]
        await call(first.shutdown)
        assert await gate.until(lambda: len(gate.connections("disk")) == 1, LIMIT)
        assert await call(second.pread, 3, 70000) == b"abc"


async def test_unsound_requests_get_the_errors_of_the_protocol(tmp_path: Path) -> None:
    gate = Gate()
    gate.add("disk", MemoryStore(64 * MB))
    gate.add("fixed", MemoryStore(1 * MB), read_only=True)
    gate.add(
        "plain",
        FileStore(tmp_path / "f", 1 * MB),
        without=[NbdCommand.TRIM, NbdCommand.BLOCK_STATUS],
    )
    await gate.start(tmp_path / "s")
    disk = await client(gate, "disk", strict=False)
    fixed = await client(gate, "fixed", strict=False)
    plain = await client(gate, "plain", strict=False)
    end = 64 * MB
    assert await errno_of(call(disk.pread, 512, end - 511)) == errno.EINVAL
    assert await errno_of(call(disk.pwrite, bytes(512), end - 511)) == errno.ENOSPC
    assert await errno_of(call(disk.zero, 512, end)) == errno.ENOSPC
    assert await errno_of(call(disk.trim, 512, end)) == errno.EINVAL
    assert await errno_of(call(disk.pread, 33 * MB, 0)) == errno.EINVAL
    assert await errno_of(call(disk.pwrite, bytes(33 * MB), 0)) == errno.EINVAL
    assert await errno_of(call(disk.cache, 512, 0)) == errno.EINVAL  # not offered
    assert await errno_of(call(disk.pread, 512, 0, 1 << 1)) == errno.EINVAL  # NO_HOLE
    for write in (fixed.pwrite, fixed.zero, fixed.trim):
        data = bytes(512) if write == fixed.pwrite else 512
        assert await errno_of(call(write, data, 0)) == errno.EPERM
    assert fixed.is_read_only() and not plain.can_trim() and not plain.can_fast_zero()
    assert not plain.can_meta_context("base:allocation")
    assert await errno_of(call(plain.trim, 512, 0)) == errno.EINVAL
    await call(plain.zero, 512, 0)
    for handle in (disk, fixed, plain):  # none was disconnected
        assert await call(handle.pread, 512, 0) == bytes(512)
    await gate.stop()


class Failing(MemoryStore):
    """Counts flushes; writes meet a full disk."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1

    def put_bytes(self, offset: int, data: bytes | memoryview) -> None:
        if self.flushes > 2:
            raise OSError(errno.ENOSPC, "full")
        super().put_bytes(offset, data)


async def test_flushes_and_errors_of_the_store(tmp_path: Path) -> None:
    store = Failing(64 * KB)
    async with gated(tmp_path, disk=store) as gate:
        handle = await client(gate, "disk")
        for flags, flushes in ((0, 0), (nbd.CMD_FLAG_FUA, 1)):
            await call(handle.pwrite, b"x", 0, flags)
            assert store.flushes == flushes
        await call(handle.flush)
        await call(handle.flush)
        assert store.flushes == 3
        assert await errno_of(call(handle.pwrite, b"y", 0)) == errno.ENOSPC
        assert await call(handle.pread, 1, 0) == b"x"


class Raw:
    """A client without manners: speaks bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.transport: Any = writer.transport

    @classmethod
    async def connect(cls, gate: Gate, image: str | None = None) -> Raw:
        """Connect; to ``image`` with simple replies if given, else up to the greeting."""
        path = str(gate.blockdev(gate.names()[0])["server"]["path"])  # type: ignore[index]
        raw = cls(*await asyncio.open_unix_connection(path))
        await raw.reader.readexactly(18)
        if image is not None:
            name = image.encode()
            option = b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name
            raw.writer.write(struct.pack(">I", 3) + option)
            await raw.reader.readexactly(10)
        return raw

    def send(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        head = struct.pack(">IHHQQI", 0x25609513, 0, kind, offset, offset, length)
        self.writer.write(head + data)

    async def reply(self, length: int = 0) -> tuple[int, int]:
        """The error and the cookie of a simple reply."""
        data = await asyncio.wait_for(self.reader.readexactly(16 + length), LIMIT)
        magic, error, cookie = struct.unpack_from(">IIQ", data)
        assert magic == 0x67446698
        return error, cookie

    async def ended(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), LIMIT) == b""
        except ConnectionResetError:
            return True


async def test_rude_clients_harm_no_other(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(4 * MB)) as gate:
        good = await client(gate, "disk")
        for noise in (b"GET / HTTP/1.0\r\n\r\n" * 9, struct.pack(">I", 3) + bytes(16)):
            raw = await Raw.connect(gate)
            raw.writer.write(noise)
            assert await raw.ended()
        raw = await Raw.connect(gate, "disk")
        raw.send(99, 0, 0)  # unknown command
        raw.send(3, 7, 0)  # a flush has no offset
        assert await raw.reply() == (22, 0) and await raw.reply() == (22, 7)
        raw.writer.write(b"garbage" * 10)
        assert await raw.ended()
        silent = await Raw.connect(gate, "disk")
        silent.writer.write(b"\x25\x60")
        silent.writer.close()
        assert await call(good.pread, 512, 0) == bytes(512)


async def test_replies_that_are_not_read_do_not_pile_up(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(4 * MB)) as gate:
        raw = await Raw.connect(gate, "disk")
        raw.transport.pause_reading()
        for _ in range(100):
            raw.send(0, 0, 4 * MB)
        await asyncio.sleep(0.1)
        assert gate.counts("disk")[NbdCommand.READ] < 5
        raw.transport.resume_reading()
        for _ in range(100):
            await raw.reply(4 * MB)
        assert gate.counts("disk")[NbdCommand.READ] == 100


async def test_a_negotiation_without_end_is_not_listened_to(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(512)) as gate:
        raw = await Raw.connect(gate)
        raw.transport.pause_reading()
        raw.writer.write(struct.pack(">I", 3))
        raw.writer.write((b"IHAVEOPT" + struct.pack(">II", 3, 0)) * 300_000)
        (connection,) = gate._connections.values()
        await until(lambda: connection.transport.get_write_buffer_size() > 0)
        await asyncio.sleep(0.5)
        assert 0 < connection.transport.get_write_buffer_size() < 2 * MB
        raw.transport.abort()
        await client(gate, "disk")


async def test_held_requests_of_one_client_are_limited(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(4 * MB)) as gate:
        gate.hold()
        raw = await Raw.connect(gate, "disk")
        for number in range(40):
            raw.send(1, number, 3 * MB, bytes([number]) * (3 * MB))
        assert await gate.until(lambda: len(gate.held) > 20, LIMIT)
        await asyncio.sleep(0.1)
        assert len(gate.held) < 30
        for number in range(40):
            io = await one(gate)
            gate.release(gate.held[0])
            assert io.length == 3 * MB
            assert await raw.reply() == (0, number)


# The hand on requests


@asynccontextmanager
async def held_write(tmp_path: Path) -> AsyncIterator[tuple[Gate, Any, asyncio.Task[Any], HeldIO]]:
    """A gate that holds all, with one write of 512 bytes of 2 where the image has 1."""
    async with gated(tmp_path, disk=MemoryStore(b"\1" * 64 * KB)) as gate:
        gate.hold()
        handle = await client(gate, "disk")
        task = call(handle.pwrite, b"\2" * 512, 1024, nbd.CMD_FLAG_FUA)
        yield gate, handle, task, await one(gate)


def disk(gate: Gate) -> bytes:
    return gate.snapshot("disk")[1024:1536]


OLD, NEW = b"\1" * 512, b"\2" * 512


async def test_release(tmp_path: Path) -> None:
    async with held_write(tmp_path) as (gate, _, task, io):
        assert (io.image, io.op, io.offset, io.length) == ("disk", NbdCommand.WRITE, 1024, 512)
        assert (io.data, io.fua, io.no_hole) == (NEW, True, False)
        assert io.connection in gate.connections("disk")
        assert str(io) == f"#{io.seq} disk write 1024+512"
        await asyncio.sleep(0.05)
        assert not task.done() and disk(gate) == OLD
        gate.release(io)
        assert disk(gate) == NEW and gate.held == []
        await asyncio.wait_for(task, LIMIT)
        with pytest.raises(MachineError, match="not held"):
            gate.release(io)
        story = [(event.kind, event.io) for event in gate.trace]
        assert story == [
            (EventKind.CONNECT, 0),
            (EventKind.ARRIVE, io.seq),
            (EventKind.RELEASE, io.seq),
        ]
        clock = [event.seq for event in gate.trace]
        assert clock == sorted(set(clock)) and clock[-1] == gate.clock


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        *((code, code) for code in (errno.EIO, errno.ENOSPC, errno.EPERM, errno.EINVAL)),
        *((errno.ESHUTDOWN, errno.ESHUTDOWN), (errno.EROFS, errno.EPERM)),
        (errno.ENOENT, errno.EINVAL),
    ],
)
async def test_fail(tmp_path: Path, sent: int, seen: int) -> None:
    async with held_write(tmp_path) as (gate, _, task, io):
        with pytest.raises(InputError):
            gate.fail(io, 0)
        gate.fail(io, sent)
        assert await errno_of(task) == seen and disk(gate) == OLD
        assert gate.trace[-1].kind is EventKind.FAIL and gate.trace[-1].errno == sent


async def test_effect_and_reply_apart(tmp_path: Path) -> None:
    async with held_write(tmp_path) as (gate, handle, task, io):
        with pytest.raises(InputError, match="apply it before"):
            gate.reply(io)
        gate.apply(io)
        gate.apply(io)
        assert disk(gate) == NEW and gate.held == [io]
        await asyncio.sleep(0.05)
        assert not task.done()
        gate.reply(io)
        await asyncio.wait_for(task, LIMIT)
        task = call(handle.pwrite, OLD, 1024)
        io = await one(gate)
        gate.apply(io)
        gate.fail(io, errno.EIO)  # the error of a write that did happen
        assert await errno_of(task) == errno.EIO and disk(gate) == OLD


async def test_a_reply_in_two_parts(tmp_path: Path) -> None:
    """Nothing comes between them, and only the rest can follow the first."""
    async with gated(tmp_path, disk=MemoryStore(b"\5" * (64 * KB))) as gate:
        gate.hold(lambda io: io.op is NbdCommand.READ)
        raw = await Raw.connect(gate, "disk")
        raw.send(0, 8, 8)
        io = await one(gate)
        with pytest.raises(InputError, match="apply it before"):
            gate.begin_reply(io, 20)
        gate.apply(io)
        gate.begin_reply(io, 20)
        wrong_ways: tuple[Callable[[], object], ...] = (
            lambda: gate.begin_reply(io, 1),
            lambda: gate.fail(io, 5),
            lambda: misbehaving_gate.corrupt(gate, io, bytes(8)),
            lambda: misbehaving_gate.reply_twice(gate, io),
            lambda: misbehaving_gate.lose_reply(gate, io),
        )
        for wrong in wrong_ways:
            with pytest.raises(InputError, match="reply"):
                wrong()
        raw.send(0, 16, 8)
        raw.send(1, 3, 1, b"\6")  # passes
        assert await gate.until(lambda: gate.counts("disk")[NbdCommand.WRITE] == 1, LIMIT)
        other = gate.held[-1]
        gate.apply(other)
        with pytest.raises(InputError, match="in the middle of a reply"):
            gate.begin_reply(other, 1)
        gate.release(other)
        first = await asyncio.wait_for(raw.reader.readexactly(20), LIMIT)
        assert struct.unpack_from(">IIQ", first) == (0x67446698, 0, 8)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(raw.reader.read(1), 0.1)
        gate.reply(io)
        rest = await asyncio.wait_for(raw.reader.readexactly(4), LIMIT)
        assert first[16:] + rest == b"\5" * 8
        assert await raw.reply() == (0, 3)
        assert await raw.reply(8) == (0, 16)


async def test_a_read_sees_what_is_there_when_it_is_released(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(64 * KB)) as gate:
        gate.hold()
        handle = await client(gate, "disk")
        early = call(handle.pread, 4, 0)
        gate.apply(await one(gate))
        late = call((await client(gate, "disk")).pread, 4, 0)
        assert await gate.until(lambda: len(gate.held) == 2, LIMIT)
        gate.store("disk").write(0, b"more")
        gate.release_all()
        assert await asyncio.wait_for(early, LIMIT) == bytes(4)
        assert await asyncio.wait_for(late, LIMIT) == b"more"


async def test_drop_and_corrupt(tmp_path: Path) -> None:
    async with held_write(tmp_path) as (gate, handle, task, io):
        with pytest.raises(InputError):
            misbehaving_gate.corrupt(gate, io, b"too short")
        misbehaving_gate.drop(gate, io)
        await asyncio.wait_for(task, LIMIT)
        assert disk(gate) == OLD
        task = call(handle.pwrite, NEW, 1024)
        misbehaving_gate.corrupt(gate, await one(gate), b"\3" * 512)
        await asyncio.wait_for(task, LIMIT)
        assert disk(gate) == b"\3" * 512
        task = call(handle.pread, 512, 1024)
        io = await one(gate)
        with pytest.raises(InputError):
            misbehaving_gate.drop(gate, io)
        misbehaving_gate.corrupt(gate, io, b"\4" * 512)
        assert await asyncio.wait_for(task, LIMIT) == b"\4" * 512


async def test_a_second_reply_is_noticed_by_a_real_client(tmp_path: Path) -> None:
    async with held_write(tmp_path) as (gate, handle, task, io):
        misbehaving_gate.reply_twice(gate, io)
        await asyncio.wait_for(task, LIMIT)
        gate.open()
        with pytest.raises(nbd.Error):
            await call(handle.pread, 512, 0)


async def test_cut_loses_what_was_not_applied(tmp_path: Path) -> None:
    async with held_write(tmp_path) as (gate, _, task, io):
        gate.cut(io)
        assert gate.held == [] and gate.connections("disk") == []
        with pytest.raises(nbd.Error):
            await asyncio.wait_for(task, LIMIT)
        assert disk(gate) == OLD
        assert [e.kind for e in gate.trace[-2:]] == [EventKind.LOST, EventKind.DISCONNECT]
        for gone in (gate.cut, gate.release):
            with pytest.raises(MachineError):
                gone(io)
        task = call((await client(gate, "disk")).pwrite, NEW, 1024)
        gate.apply(await one(gate))
        gate.cut("disk")
        with pytest.raises(nbd.Error):
            await asyncio.wait_for(task, LIMIT)
        assert disk(gate) == NEW


async def test_refuse(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(512), other=MemoryStore(512)) as gate:
        gate.refuse("disk")
        with pytest.raises(nbd.Error):
            await client(gate, "disk")
        await client(gate, "other")
        gate.refuse("disk", False)
        await client(gate, "disk")


async def test_remove(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(512), other=MemoryStore(512)) as gate:
        there = await client(gate, "disk")
        other = await client(gate, "other")
        uri = gate.uri("disk")
        gate.remove("disk")
        with pytest.raises(nbd.Error):
            await call(there.pread, 512, 0)
        with pytest.raises(nbd.Error):
            await call(nbd.NBD().connect_uri, uri)
        with pytest.raises(InputError, match="no image 'disk'"):
            gate.remove("disk")
        gate.add("disk", MemoryStore(1024))
        assert await call((await client(gate, "disk")).get_size) == 1024
        assert await call(other.pread, 512, 0) == bytes(512)


@pytest.mark.usefixtures("qemu_on_path")
async def test_qemu_sends_a_cut_write_again(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(64 * KB)) as gate:
        gate.hold(lambda io: io.op is NbdCommand.WRITE)
        options = (
            f"driver=nbd,server.type=unix,server.path={tmp_path / 's'},export=disk,"
            "reconnect-delay=10"
        )
        qemu = asyncio.create_task(run("qemu-io", "--image-opts", options, "-c", "write -P 5 0 4k"))
        first = await one(gate)
        gate.cut(first)
        again = await one(gate)
        assert again.data == first.data and again.connection > first.connection
        gate.release(again)
        assert "wrote 4096/4096" in await qemu
        assert gate.snapshot("disk")[:4096] == b"\5" * 4096


async def test_leaving_with_requests_held(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(64 * KB)) as gate:
        gate.hold()
        polite = await Raw.connect(gate, "disk")
        polite.send(1, 5, 1, b"x")
        polite.send(2, 0, 0)  # DISC: outstanding requests are answered first
        gate.release(await one(gate))
        assert await polite.reply() == (0, 5) and await polite.ended()
        rude = await Raw.connect(gate, "disk")
        rude.send(1, 6, 1, b"y")
        await one(gate)
        rude.transport.abort()
        assert await gate.until(lambda: not gate.held, LIMIT)
        assert gate.snapshot("disk")[5:7] == b"x\0"
        assert EventKind.LOST in [event.kind for event in gate.trace]


async def test_policy_and_waiting(tmp_path: Path) -> None:
    async with gated(tmp_path, a=MemoryStore(512), b=MemoryStore(512)) as gate:
        handles = {name: await client(gate, name) for name in "ab"}

        async def waits(image: str, op: str = "pread") -> bool:
            since = gate.clock
            arguments = (b"x", 0) if op == "pwrite" else (1, 0)
            task = call(getattr(handles[image], op), *arguments)
            assert await gate.until(lambda: gate.clock > since, LIMIT)
            held = bool(gate.held)
            gate.release_all()
            await asyncio.wait_for(task, LIMIT)
            return held

        assert not await waits("a")
        gate.hold("a")
        assert await waits("a") and not await waits("b")
        gate.hold("b", lambda io: io.op is NbdCommand.WRITE)
        assert await waits("b") and await waits("a", "pwrite") and not await waits("a")
        gate.open()
        assert not await waits("b")
        now = gate.clock
        assert not await gate.until(lambda: gate.clock > now, 0.05)
        assert await gate.until(lambda: gate.clock > 0, 0.0)
        assert gate.counts("a")[NbdCommand.READ] == 3 and gate.counts("a")[NbdCommand.WRITE] == 1
        gate.trace.clear()
        gate.tracing = False
        assert not await waits("a") and gate.trace == []


async def test_arrival_order_and_chosen_release_order(tmp_path: Path) -> None:
    async with gated(tmp_path, disk=MemoryStore(64 * KB)) as gate:
        gate.hold()
        raw = await Raw.connect(gate, "disk")
        for number in range(1, 6):
            raw.send(1, number, 8, bytes([number]) * 8)  # each overlaps the next
        assert await gate.until(lambda: len(gate.held) == 5, LIMIT)
        assert [io.offset for io in gate.held] == [1, 2, 3, 4, 5]
        for io in reversed(gate.held):
            gate.release(io)
        assert [await raw.reply() for _ in range(5)] == [(0, n) for n in (5, 4, 3, 2, 1)]
        assert gate.snapshot("disk")[:13] == b"\0" + b"\1" * 8 + b"\2\3\4\5"


async def test_wrong_use(tmp_path: Path) -> None:
    gate = Gate()
    gate.add("disk", MemoryStore(512))
    for wrong in (
        lambda: gate.add("disk", MemoryStore(512)),
        lambda: gate.uri("disk"),
        lambda: gate.hold("other"),
        lambda: gate.snapshot("other"),
        lambda: gate.cut("other"),
    ):
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(HostError):
        await gate.start(tmp_path / ("x" * 200))
    with pytest.raises(HostError):
        await gate.start(tmp_path / "absent" / "s")
    await gate.start(tmp_path / "s")
    await gate.stop()
    assert not (tmp_path / "s").exists()
