"""The real chain, step by step: what each side sees, and what each command does to the images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from qmpshim.errors import BuildError, CommandFailed, HostError, IOFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.host.files import map_file
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.client import BlockClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.disks.image import Alloc

MiB, CLUSTER = 1 << 20, 65536
B, R = Workflow.BACKUP, Workflow.REPLICATION
OLD, NEW, GUEST = (bytes([value]) * CLUSTER for value in (0x11, 0x22, 0x33))


@asynccontextmanager
async def on_a_chain(
    build: Build,
    workspace: Workspace,
    spec: ChainSpec,
    kind: type[SecondaryChain] = SecondaryChain,
) -> AsyncIterator[SecondaryChain]:
    """A chain on a QEMU of its own."""
    directory = workspace.subdirectory("chain")
    qemu = Qemu(build.command(), directory, env=build.env, limit=20.0)
    await qemu.start()
    chain = kind(qemu, spec, directory, build.tool("qemu-img"))
    try:
        await chain.build()
        yield chain
    finally:
        chain.close()
        await qemu.close()


def write(client: BlockClient, data: bytes, cluster: int) -> None:
    client.wait(client.submit_write(data, cluster * CLUSTER))


def read(client: BlockClient, cluster: int) -> bytes:
    buffer = bytearray(CLUSTER)
    client.wait(client.submit_read(buffer, cluster * CLUSTER))
    return bytes(buffer)


async def allocated(chain: SecondaryChain, node: str) -> dict[int, Alloc]:
    await chain.settle()
    return Qcow2Reader.parse(map_file(chain.image(node))).allocation()


@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
async def test_backup_keeps_the_old_contents(
    qemu_build: Build, workspace: Workspace, secondary: str
) -> None:
    async with on_a_chain(qemu_build, workspace, ChainSpec(B, MiB, CLUSTER, secondary)) as chain:
        write(chain.primary, OLD, 3)
        await chain.start()
        write(chain.primary, NEW, 3)
        assert read(chain.primary, 3) == NEW
        assert read(chain.guest, 3) == OLD
        assert await allocated(chain, "hidden") == {3: Alloc.DATA}
        with pytest.raises(CommandFailed, match=r"is busy|already in use"):
            await chain.start()
        await chain.stop()
        write(chain.primary, NEW, 4)
        assert read(chain.guest, 4) == NEW  # nothing is copied any more
        assert read(chain.guest, 3) == OLD
        with pytest.raises(CommandFailed, match="Block job 'backup' not found"):
            await chain.stop()
        await chain.rebuild()
        assert await allocated(chain, "hidden") == {}
        assert read(chain.guest, 3) == NEW


async def test_a_readers_export_is_read_only(qemu_build: Build, workspace: Workspace) -> None:
    async with on_a_chain(qemu_build, workspace, ChainSpec(B, MiB)) as chain:
        with pytest.raises(IOFailed):
            write(chain.guest, NEW, 0)
        async with chain.read_hidden() as client:
            assert read(client, 0) == bytes(CLUSTER)
            with pytest.raises(IOFailed):
                write(client, NEW, 0)
        exports = await chain.qemu.execute("query-block-exports")
        assert {export["id"] for export in exports} == {"primary", "guest"}


@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
async def test_replication_from_start_to_failover(
    qemu_build: Build, workspace: Workspace, secondary: str
) -> None:
    async with on_a_chain(qemu_build, workspace, ChainSpec(R, MiB, CLUSTER, secondary)) as chain:
        assert await chain.status() == "Block replication is not running"
        with pytest.raises(IOFailed):
            read(chain.guest, 0)
        write(chain.primary, OLD, 1)
        await chain.start()
        assert await chain.status() is None
        # Between checkpoints neither side sees the other.
        write(chain.primary, NEW, 1)
        write(chain.guest, GUEST, 2)
        assert (read(chain.primary, 1), read(chain.primary, 2)) == (NEW, bytes(CLUSTER))
        assert (read(chain.guest, 1), read(chain.guest, 2)) == (OLD, GUEST)
        assert await allocated(chain, "hidden") == {1: Alloc.DATA}
        assert await allocated(chain, "active") == {2: Alloc.DATA}
        async with chain.read_hidden() as client:
            assert (read(client, 1), read(client, 2)) == (OLD, bytes(CLUSTER))
        # A checkpoint: the primary's state is the secondary's.
        await chain.checkpoint()
        assert (read(chain.guest, 1), read(chain.guest, 2)) == (NEW, bytes(CLUSTER))
        assert await allocated(chain, "hidden") == await allocated(chain, "active") == {}
        # A failover: what the guest saw becomes the disk.
        write(chain.primary, OLD, 1)
        write(chain.guest, GUEST, 2)
        await chain.failover()
        assert (read(chain.guest, 1), read(chain.guest, 2)) == (NEW, GUEST)
        assert (read(chain.primary, 1), read(chain.primary, 2)) == (NEW, GUEST)
        # From now on a start, a stop, a checkpoint and a failover are ignored, and do not hang.
        await chain.start()
        await chain.failover()
        await chain.checkpoint()
        await chain.stop()
        await chain.rebuild()
        assert await chain.status() == "Block replication is not running"
        await chain.start()
        assert (read(chain.guest, 1), read(chain.guest, 2)) == (NEW, GUEST)


async def test_a_failover_is_waited_for(qemu_build: Build, workspace: Workspace) -> None:
    """The command answers at once; committing 64 MiB takes longer."""
    last = 64 * MiB // CLUSTER - 1
    async with on_a_chain(qemu_build, workspace, ChainSpec(R, 64 * MiB, CLUSTER)) as chain:
        await chain.start()
        for offset in range(0, 64 * MiB, 2 * MiB):
            chain.guest.wait(chain.guest.submit_write(GUEST * (2 * MiB // CLUSTER), offset))
        await chain.failover()
        assert read(chain.primary, last) == GUEST


async def test_a_checkpoint_that_fails_lets_the_machine_run_on(
    qemu_build: Build, workspace: Workspace
) -> None:
    async with on_a_chain(qemu_build, workspace, ChainSpec(R, MiB)) as chain:
        assert (await chain.qemu.execute("query-status"))["running"]
        with pytest.raises(CommandFailed, match="Backup job was cancelled unexpectedly"):
            await chain.checkpoint()
        assert (await chain.qemu.execute("query-status"))["running"]
        with pytest.raises(CommandFailed, match="Block replication is not running"):
            await chain.stop()
        assert (await chain.qemu.execute("query-status"))["running"]


async def test_a_failover_after_a_stop_is_not_waited_for(
    qemu_build: Build, workspace: Workspace
) -> None:
    """It is ignored: the graph will not change."""
    async with on_a_chain(qemu_build, workspace, ChainSpec(R, MiB)) as chain:
        await chain.start()
        try:
            await chain.stop()
        except CommandFailed as error:  # QEMU 5.2 to 10.0 always say so
            assert error.desc == "Backup job was cancelled unexpectedly"
        await chain.start()  # ignored, too
        await asyncio.wait_for(chain.failover(), 10)


async def test_the_shape_is_as_asked_for(qemu_build: Build, workspace: Workspace) -> None:
    spec = ChainSpec(R, 3 * MiB + 512, 4096, "qcow2")
    async with on_a_chain(qemu_build, workspace, spec) as chain:
        assert chain.overlays == ("hidden", "active")
        assert chain.primary.size == spec.size
        with closing(chain.inspect("guest")) as client:
            assert client.size == spec.size
        for node in ("secondary", *chain.overlays):
            image = Qcow2Reader.parse(map_file(chain.image(node)))
            assert (image.virtual_size, image.cluster_size) == (spec.size, 4096)
        with closing(chain.inspect("primary")) as client:
            assert client.data_extents() == []
        nodes = {n["node-name"]: n for n in await chain.qemu.execute("query-named-block-nodes")}
        assert nodes["top"]["drv"] == "replication"
        assert nodes["hidden"]["backing_file_depth"] == 1
        assert nodes["active"]["backing_file_depth"] == 2


async def test_what_cannot_be_built(qemu_build: Build, workspace: Workspace) -> None:
    class Spoilt(SecondaryChain):
        async def build(self) -> None:
            self.image("secondary").touch()
            await super().build()

    class NoTool(SecondaryChain):
        async def build(self) -> None:
            self.files.qemu_img = ["/no/such/qemu-img"]
            await super().build()

    with pytest.raises(HostError, match=r"secondary\.raw: File exists"):
        async with on_a_chain(qemu_build, workspace, ChainSpec(B, MiB), Spoilt):
            pass
    with pytest.raises(HostError, match="/no/such/qemu-img is missing: apt-get install qemu-utils"):
        async with on_a_chain(qemu_build, workspace, ChainSpec(B, MiB), NoTool):
            pass


@pytest.mark.parametrize("size", [1 << 62, 1 << 80])
async def test_a_size_that_no_file_system_takes(
    qemu_build: Build, workspace: Workspace, size: int
) -> None:
    with pytest.raises(HostError, match=f"no file of {size} bytes can be made in .*: choose a"):
        async with on_a_chain(qemu_build, workspace, ChainSpec(B, size)):
            pass


async def test_a_qemu_without_replication_says_so(qemu_build: Build, workspace: Workspace) -> None:
    class Without(SecondaryChain):
        """QEMU's list of commands, as a build without the feature gives it."""

        async def build(self) -> None:
            execute = self.qemu.execute

            async def lacking(command: str, arguments: Any = None) -> Any:
                found = await execute(command, arguments)
                if command == "query-commands":
                    return [c for c in found if not c["name"].startswith("xen-")]
                return found

            self.qemu.execute = lacking  # type: ignore[method-assign]
            await super().build()

    with pytest.raises(BuildError, match=r"has no replication driver .*or use --workflow backup"):
        async with on_a_chain(qemu_build, workspace, ChainSpec(R, MiB), Without):
            pass
