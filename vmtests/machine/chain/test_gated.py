"""The order check in embryo: a real QEMU's replication chain with all three images on a gate.

Old data must be in the hidden disk before new data reaches the secondary disk. Here each I/O of
one primary write is held and let go by hand, and :func:`complaints` judges the gate's records;
it must also find what the gate spoils on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.nbd.gate.events import Event, EventKind, HeldIO
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from vmtests.support import misbehaving_gate
from vmtests.support.processes import run

nbd = pytest.importorskip("nbd")

SIZE, ROOM = 1 << 20, 3 << 20  # virtual size; what a qcow2 image of it may need on NBD
CLUSTER = 64 << 10
AT = 3 * CLUSTER  # where the primary writes
OLD, NEW = b"\x11" * CLUSTER, b"\x22" * CLUSTER
LIMIT = 60.0  # seconds for what must happen
QUIET = 0.15  # seconds in which what must not happen would have happened


@dataclass
class Chain:
    """A QEMU with the chain open and replication running, everything of it on ``gate``."""

    build: Build
    gate: Gate
    qmp: QMPClient
    directory: Path
    steps: list[HeldIO]  # what was let go, in order

    async def client(self, export: str) -> Any:
        """A client of QEMU: ``primary`` writes the secondary disk, ``guest`` is at the top."""
        handle = nbd.NBD()
        uri = f"nbd+unix:///{export}?socket={self.directory / 'n'}"
        await asyncio.to_thread(handle.connect_uri, uri)
        return handle

    async def finish(self, task: asyncio.Task[Any], keep: HeldIO | None = None) -> Any:
        """Release everything but ``keep`` until the task is done; its result."""
        while not task.done():
            await self.gate.until(lambda: any(io != keep for io in self.gate.held), 0.02)
            for io in self.gate.held:
                if io != keep:
                    self.steps.append(io)
                    self.gate.release(io)
        return await task

    async def let_go(
        self,
        until: Callable[[HeldIO], bool],
        how: Callable[[HeldIO], None] | None = None,
    ) -> HeldIO:
        """Release one request after another until there is one that ``until`` knows; keep that."""
        while True:
            assert await self.gate.until(lambda: bool(self.gate.held), LIMIT)
            (io,) = self.gate.held  # a chain of causes: never two at a time
            if until(io):
                return io
            self.steps.append(io)
            (how or self.gate.release)(io)


@contextlib.asynccontextmanager
async def chain(build: Build, directory: Path, replicate: bool = True) -> AsyncIterator[Chain]:
    gate = Gate()
    gate.add("secondary", MemoryStore(b"\x11" * SIZE))
    gate.add("hidden", MemoryStore(ROOM))
    gate.add("active", MemoryStore(ROOM))
    await gate.start(directory / "s")
    for image in ("hidden", "active"):
        await run(
            *build.tool("qemu-img"), "create", "-q", "-f", "qcow2", gate.uri(image), str(SIZE)
        )

    def on_gate(prefix: str, image: str) -> str:
        socket = f"{prefix}.server.type=unix,{prefix}.server.path={directory / 's'}"
        return f"{prefix}.driver=nbd,{socket},{prefix}.export={image}"

    secondary = f"if=none,id=sec,node-name=secondary,driver=raw,{on_gate('file', 'secondary')}"
    top = (
        "if=none,id=top,node-name=filter,driver=replication,mode=secondary,top-id=top,"
        f"file.driver=qcow2,{on_gate('file.file', 'active')},file.backing.driver=qcow2,"
        f"{on_gate('file.backing.file', 'hidden')},file.backing.backing=sec"
    )
    qmp = QMPClient("chain")
    await qmp.start_server(str(directory / "q"))
    with (directory / "log").open("wb") as log:
        qemu = await asyncio.create_subprocess_exec(
            "timeout",
            "-k1",
            "30",
            *build.command(),
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
            "-qmp",
            f"unix:{directory / 'q'}",
            "-drive",
            secondary,
            "-drive",
            top,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=build.environment(),
        )
    try:
        await asyncio.wait_for(qmp.accept(), LIMIT)
        path = {"type": "unix", "data": {"path": str(directory / "n")}}
        await qmp.execute("nbd-server-start", {"addr": path})
        for node, export in (("secondary", "primary"), ("filter", "guest")):
            arguments = {"type": "nbd", "id": node, "node-name": node, "name": export}
            await qmp.execute("block-export-add", arguments | {"writable": True})
        if replicate:
            await qmp.execute("xen-set-replication", {"enable": True, "primary": False})
        gate.trace.clear()
        gate.hold()
        yield Chain(build, gate, qmp, directory, [])
        gate.open()
        gate.release_all()
        assert await qmp.execute("query-status")  # it lives
        await qmp.execute("quit")
        assert await asyncio.wait_for(qemu.wait(), LIMIT) == 0
    finally:
        if qemu.returncode is None:
            qemu.terminate()  # timeout passes it on
            await qemu.wait()
        with contextlib.suppress(EOFError, OSError):  # QEMU hung up first
            await qmp.disconnect()
        await gate.stop()


def call(function: Callable[..., Any], *arguments: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(asyncio.to_thread(function, *arguments))


def reads_old(io: HeldIO) -> bool:
    return io.image == "secondary" and io.op is NbdCommand.READ


def saves_old(io: HeldIO) -> bool:
    return io.image == "hidden" and io.op is NbdCommand.WRITE and io.data == OLD


def writes_new(io: HeldIO) -> bool:
    return io.image == "secondary" and io.op is NbdCommand.WRITE and io.data == NEW


def complaints(trace: list[Event], steps: list[HeldIO]) -> list[str]:
    """What is wrong with the order of effects of one primary write of ``NEW`` over ``OLD``."""
    effects = {
        event.io: event.seq for event in trace if event.kind in (EventKind.RELEASE, EventKind.APPLY)
    }

    def effect(what: Callable[[HeldIO], bool]) -> int | None:
        return next((effects[io.seq] for io in steps if what(io) and io.seq in effects), None)

    read, saved, written = effect(reads_old), effect(saves_old), effect(writes_new)
    asked = next((io.seq for io in steps if writes_new(io)), None)
    found = []
    if written is None or asked is None:
        found.append("new data never reached the secondary disk")
    if read is None or saved is None:
        found.append("old data never reached the hidden disk")
    elif read > saved:
        found.append("old data was saved before it was read")
    if asked is not None and saved is not None and asked < saved:
        found.append("new data was sent to the secondary disk before the old was saved")
    return found


async def hidden_has_old(chain: Chain) -> None:
    """QEMU's own tools find the old data in the hidden disk as it is at this instant."""
    copy = chain.directory / "hidden.qcow2"
    copy.write_bytes(chain.gate.snapshot("hidden"))
    await run(*chain.build.tool("qemu-img"), "check", "-q", copy)
    read = f"read -P {OLD[0]} {AT} {CLUSTER}"
    assert "verification failed" not in await run(
        *chain.build.tool("qemu-io"), "-r", "-c", read, copy
    )


async def goes_on(gate: Gate) -> bool:
    """Whether anything happens at the gate by itself."""
    now = gate.clock
    return await gate.until(lambda: gate.clock > now, QUIET)


async def test_new_data_waits_for_the_old_step_by_step(tmp_path: Path, qemu_build: Build) -> None:
    async with chain(qemu_build, tmp_path) as c:
        gate = c.gate
        primary, guest = await c.client("primary"), await c.client("guest")
        write = call(primary.pwrite, NEW, AT)

        read = await c.let_go(reads_old)
        assert (read.offset, read.length) == (AT, CLUSTER)
        assert not await goes_on(gate)  # nothing goes on without it
        c.steps.append(read)
        gate.release(read)

        save = await c.let_go(saves_old)
        assert save.seq > read.seq
        assert not await goes_on(gate)
        assert gate.snapshot("secondary")[AT : AT + CLUSTER] == OLD
        c.steps.append(save)
        gate.release(save)

        new = await c.let_go(writes_new)
        assert all(io.image == "hidden" for io in c.steps[c.steps.index(save) :])
        assert gate.snapshot("secondary")[AT : AT + CLUSTER] == OLD and not write.done()
        assert gate.snapshot("hidden")[save.offset :][:CLUSTER] == OLD
        # qcow2 keeps the L2 entry that points there in its cache until a flush.
        await c.finish(call(guest.flush), keep=new)
        if read_version(qemu_build)[0] >= (6, 0, 0):  # before, it reached the active disk only
            await hidden_has_old(c)  # a crash here loses nothing
        c.steps.append(new)
        gate.release(new)

        await c.finish(write)
        assert gate.snapshot("secondary")[AT : AT + CLUSTER] == NEW
        assert complaints(gate.trace, c.steps) == []
        assert await c.finish(call(guest.pread, CLUSTER, AT)) == OLD

        # The second write to the cluster finds the old data saved: no copy any more.
        c.steps.clear()
        write = call(primary.pwrite, OLD, AT)
        await c.finish(write)
        assert {io.image for io in c.steps} == {"secondary"}
        assert not any(reads_old(io) for io in c.steps)


async def test_the_check_finds_a_write_without_copy(tmp_path: Path, qemu_build: Build) -> None:
    async with chain(qemu_build, tmp_path, replicate=False) as c:
        primary = await c.client("primary")
        write = call(primary.pwrite, NEW, AT)
        await c.finish(write)
        assert complaints(c.gate.trace, c.steps) == ["old data never reached the hidden disk"]


@pytest.mark.parametrize("spoil", ["drop", "late"])
async def test_the_check_finds_a_spoilt_copy(tmp_path: Path, spoil: str, qemu_build: Build) -> None:
    """QEMU believes the old data saved: it never is, or only after the new data was written."""
    async with chain(qemu_build, tmp_path) as c:
        primary = await c.client("primary")
        write = call(primary.pwrite, NEW, AT)
        save = await c.let_go(saves_old)
        c.steps.append(save)
        misbehaving_gate.drop(c.gate, save)
        await c.finish(write)
        trace = list(c.gate.trace)
        if spoil == "late":
            seq = c.gate.clock + 1
            place = (save.image, save.op, save.offset, save.length, save.connection)
            trace.append(Event(seq, EventKind.APPLY, save.seq, *place))
        expected = {
            "drop": "old data never reached the hidden disk",
            "late": "new data was sent to the secondary disk before the old was saved",
        }
        assert complaints(trace, c.steps) == [expected[spoil]]
        guest = await c.client("guest")
        assert await c.finish(call(guest.pread, CLUSTER, AT)) != OLD


@pytest.mark.parametrize("victim", [reads_old, saves_old])
async def test_a_copy_that_fails_stops_the_new_data(
    tmp_path: Path, victim: Callable[[HeldIO], bool], qemu_build: Build
) -> None:
    """``on-cbw-error=break-guest-write`` (QEMU 7.2 block/copy-before-write.c) is the default."""
    async with chain(qemu_build, tmp_path) as c:
        primary = await c.client("primary")
        write = call(primary.pwrite, NEW, AT)
        c.gate.fail(await c.let_go(victim), errno.EIO)
        with pytest.raises(nbd.Error) as caught:
            await c.finish(write)
        assert caught.value.errnum == errno.EIO
        assert c.gate.snapshot("secondary")[AT : AT + CLUSTER] == OLD
        assert not any(writes_new(io) for io in c.steps)
