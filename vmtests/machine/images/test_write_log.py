"""The write log's reader against logs that real QEMUs wrote, and against damaged ones."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.images.write_log import Flag, LogEntry, LogError, WriteLog
from qmpshim.machine.nbd.client import NbdClient

SIZE = 1 << 20

Use = Callable[[NbdClient, Path], None]


def on_a_log(build: Build, workspace: Workspace, use: Use, **options: Any) -> bytes:
    """Run *use* on an export whose writes are logged; gives the log at the end."""
    directory = workspace.subdirectory("log")
    for name in ("disk", "log"):
        (directory / name).touch()
    (directory / "disk").write_bytes(bytes(SIZE))
    log = directory / "log"

    async def run() -> None:
        qemu = Qemu(build.command(), directory, env=build.env)
        await qemu.start()
        try:
            file = {"driver": "file", "discard": "unmap"}
            await qemu.execute(
                "blockdev-add",
                {
                    "driver": "blklogwrites",
                    "node-name": "logged",
                    "discard": "unmap",
                    "file": {**file, "filename": str(directory / "disk")},
                    "log": {**file, "filename": str(log)},
                    **options,
                },
            )
            path = str(directory / "nbd")
            await qemu.execute(
                "nbd-server-start", {"addr": {"type": "unix", "data": {"path": path}}}
            )
            export = {"type": "nbd", "id": "e", "name": "e", "node-name": "logged"}
            await qemu.execute("block-export-add", {**export, "writable": True})
            with closing(NbdClient(f"nbd+unix:///e?socket={path}")) as client:
                use(client, log)
        finally:
            await qemu.close()

    asyncio.run(run())
    return log.read_bytes()


def fields(entry: LogEntry) -> tuple[int, int, Flag]:
    return entry.offset, entry.length, entry.flags


@pytest.mark.parametrize("sector", [512, 4096])
def test_every_kind_of_request(each_build: Build, workspace: Workspace, sector: int) -> None:
    data = random.Random(1).randbytes(3 * sector)

    def use(client: NbdClient, log: Path) -> None:
        client.wait(client.submit_write(data, 2 * sector))
        client.wait(client.submit_zero(4 * sector, 8 * sector))
        client.wait(client.submit_discard(65536, 131072))
        client.wait(client.submit_write(data[:sector], 0))
        # No flush so far: there is no super block, and yet all can be read.
        early = WriteLog(log.read_bytes(), sector)
        assert early.counted == 0
        assert len(list(early.entries(live=True))) == 4
        client.wait(client.submit_flush())
        client.wait(client.submit_write(data, 9 * sector))

    bytes_ = on_a_log(each_build, workspace, use, **{"log-sector-size": sector})
    log = WriteLog(bytes_)
    assert log.sector_size == sector
    # At its end, and in its NBD server when a client hangs up, QEMU may flush once more.
    entries = [entry for entry in log.entries() if not entry.flags & Flag.FLUSH]
    assert [fields(entry) for entry in entries] == [
        (2 * sector, 3 * sector, Flag(0)),
        (8 * sector, 4 * sector, Flag(0)),
        (131072, 65536, Flag.DISCARD),
        (0, sector, Flag(0)),
        (9 * sector, 3 * sector, Flag(0)),
    ]
    contents = [bytes(entry.data) for entry in entries]
    assert contents == [data, bytes(4 * sector), b"", data[:sector], data]
    assert [entry.is_write for entry in entries] == [True, True, False, True, True]
    kinds = [entry.flags for entry in log.entries()]
    assert kinds.index(Flag.FLUSH) == 4
    assert [entry.index for entry in log.entries()] == list(range(log.counted))


def test_the_log_makes_the_disk_again(each_build: Build, workspace: Workspace) -> None:
    """Many requests in flight at once: applied in the log's order they give the disk's bytes."""
    chance = random.Random(2)
    disk = bytearray(SIZE)
    zeroes = read_version(each_build)[0] >= (7, 2, 9)  # before, they spoil the log: see the reader

    def use(client: NbdClient, log: Path) -> None:
        places = [place * 8192 for place in range(SIZE // 8192)]  # apart: their order is open
        for _ in range(20):
            chance.shuffle(places)
            cookies = []
            for place in places[:16]:
                at, count = place + 512 * chance.randrange(8), 512 * chance.randrange(1, 9)
                if zeroes and chance.random() < 0.3:
                    disk[at : at + count] = bytes(count)
                    cookies.append(client.submit_zero(count, at))
                else:
                    data = chance.randbytes(count)
                    disk[at : at + count] = data
                    cookies.append(client.submit_write(data, at))
            for cookie in cookies:
                client.wait(cookie)

    log = WriteLog(on_a_log(each_build, workspace, use, **{"log-super-update-interval": 7}))
    again = bytearray(SIZE)
    writes = [entry for entry in log.entries(live=True) if entry.is_write]
    for entry in writes:
        again[entry.offset : entry.offset + entry.length] = entry.data
    assert len(writes) == 320
    assert again == disk


def test_following_a_log_that_grows(qemu_build: Build, workspace: Workspace) -> None:
    seen: list[tuple[int, int, Flag]] = []

    def use(client: NbdClient, log: Path) -> None:
        last: LogEntry | None = None
        for number in range(5):
            client.wait(client.submit_write(bytes([number]) * 512, number * 512))
            new = list(WriteLog(log.read_bytes()).entries(last, live=True))
            seen.extend(map(fields, new))
            last = new[-1]

    on_a_log(qemu_build, workspace, use)
    assert seen == [(number * 512, 512, Flag(0)) for number in range(5)]


def made(*entries: bytes, promised: int | None = None) -> bytes:
    """A log of these entries, each padded to whole sectors."""
    count = len(entries) if promised is None else promised
    sectors = [struct.pack("<QQQI", 0x6A736677736872, 1, count, 512), *entries]
    return b"".join(piece + bytes(-len(piece) % 512) for piece in sectors)


def entry(sector: int, sectors: int, flags: int = 0, data: bytes = b"", mark: int = 0) -> bytes:
    return struct.pack("<QQQQ", sector, sectors, flags, mark) + (
        data if flags & 8 else bytes(480) + data
    )


def test_a_torn_tail_ends_a_live_log_only() -> None:
    whole = made(entry(0, 1, data=b"a" * 512), entry(5, 2, data=b"b" * 1024))
    assert [e.sector for e in WriteLog(whole).entries()] == [0, 5]
    for cut in range(512 * 3, len(whole)):
        torn = WriteLog(whole[:cut])
        assert [e.sector for e in torn.entries(live=True)] == [0]
        with pytest.raises(LogError, match="ends in entry 1 of 2"):
            list(torn.entries())


def test_a_hole_is_the_end_of_a_live_log() -> None:
    """QEMU gave the place to a request that is still on its way; a later one is there."""
    first, late = entry(0, 1, data=b"a" * 512), entry(9, 1, data=b"c" * 512)
    log = WriteLog(made(first, bytes(1024), late, promised=1))
    assert [e.sector for e in log.entries(live=True)] == [0]
    assert [e.sector for e in log.entries()] == [0]


def test_marks_and_fua() -> None:
    """What QEMU never writes, and Linux does."""
    log = WriteLog(made(entry(0, 0, 8, b"fsck", 4), entry(3, 1, 2, b"d" * 512)))
    mark, write = log.entries()
    assert (mark.flags, bytes(mark.data), mark.is_write) == (Flag.MARK, b"fsck", False)
    assert (write.flags, write.sector, write.is_write) == (Flag.FUA, 3, True)


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        (b"\1" * 512, "do not begin with the super block"),
        (struct.pack("<QQQI", 0x6A736677736872, 2, 0, 512), "do not begin"),
        (struct.pack("<QQQI", 0x6A736677736872, 1, 0, 500), "sectors of 500 bytes"),
        (struct.pack("<Q", 0x6A736677736872), "ends in its super block"),
    ],
)
def test_what_is_no_log(log: bytes, complaint: str) -> None:
    with pytest.raises(LogError, match=complaint):
        WriteLog(log)


def test_an_entry_that_cannot_be() -> None:
    with pytest.raises(LogError, match="flags 0x30"):
        list(WriteLog(made(entry(0, 1, 48))).entries(live=True))
    with pytest.raises(LogError, match="mark of 500 bytes"):
        list(WriteLog(made(entry(0, 0, 8, b"", 500))).entries(live=True))


def test_nothing_was_logged_yet() -> None:
    assert not list(WriteLog(b"").entries(live=True))
    assert not list(WriteLog(bytes(512)).entries())
