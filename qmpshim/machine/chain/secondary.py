"""The secondary's chain of disks on a real QEMU, built and commanded through QMP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.errors import CommandFailed, DriverMissing, InputError, OptionMissing
from qmpshim.machine.builds.qapi import Schema
from qmpshim.machine.chain.build import closing as closing_of
from qmpshim.machine.chain.build import opening, removals
from qmpshim.machine.chain.chains import TOPOLOGIES, chain_name, topology_of
from qmpshim.machine.chain.images import FileImages, Images
from qmpshim.machine.chain.parts import Export, Node, Part, QemuDevice
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.replication import failed_over, has_replication, replication_error
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.chain.variants import Options, prefixed
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.nbd.client import BlockClient, NbdClient
from qmpshim.machine.nbd.uri import nbd_uri
from qmpshim.model.units import SECTOR

_ENTRY = 8  # bytes of an L1 or L2 entry
_DISCARD = 20e-6  # seconds for one cluster; 2 to 3 us were measured on a busy machine


#: The names of the chains with exports for a primary and a guest that work once they are open: not
#: `pull`, of which an operation of `explore` starts the job.
CHAINS = tuple(
    name
    for name, topology in TOPOLOGIES.items()
    if {"primary", "guest"} <= {export.name for export in topology.exports}
    and not topology.begins_late
)


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """Which chain, and how large.

    :ivar workflow: the name of its topology
    :ivar size: virtual size in bytes, a multiple of 512
    :ivar cluster: cluster size of the qcow2 images in bytes
    :ivar secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :ivar options: more options of its nodes
    :raises InputError: there is no such chain
    """

    workflow: str
    size: int = 64 << 20
    cluster: int = 64 << 10
    secondary: str = "raw"
    options: Options = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "workflow", chain_name(self.workflow))
            exports = self.topology.exports
        except (ValueError, KeyError) as error:
            raise InputError(str(error)) from error
        if not any(export.name == "primary" for export in exports):
            raise InputError(f"the chain {self.workflow!r} has no primary's export")
        if self.size <= 0 or self.size % SECTOR:
            raise InputError(
                f"size {self.size} is no positive multiple of 512 bytes; "
                f"the nearest is {max(1, round(self.size / SECTOR)) * SECTOR}"
            )
        if self.cluster not in [512 << n for n in range(13)]:
            raise InputError(f"cluster size {self.cluster} is no power of two from 512 to 2M")
        if self.secondary not in ("raw", "qcow2"):
            raise InputError(f"secondary format {self.secondary!r} is neither raw nor qcow2")

    @property
    def topology(self) -> Topology:
        """What the chain is made of."""
        return topology_of(self.workflow, self.secondary, self.options)

    @property
    def emptying(self) -> float:
        """Seconds that a checkpoint may take beyond the limit of any command.

        Both overlays are emptied: at once if the L1 table and three clusters more have room in one
        refcount block, else cluster by cluster, used or not (qcow2_make_empty() in block/qcow2.c).
        With clusters of 512 bytes that is so from half a GiB on, of 1 KiB from 8 GiB.
        """
        l1_entries = -(-self.size // (self.cluster * self.cluster // _ENTRY))
        l1_clusters = -(-l1_entries * _ENTRY // self.cluster)
        refcounts = self.cluster // 2  # of 16 bits, in a block
        if "checkpoint" not in self.topology.operations or 3 + l1_clusters <= refcounts:
            return 0.0
        return 2 * (self.size // self.cluster) * _DISCARD


class SecondaryChain:
    """A chain with a secondary disk on *qemu*, and a client at each of its exports.

    Its parts are those of its topology, with the prefix before their names; ``primary`` and
    ``guest`` are the exports with a client.

    :param qemu: a started QEMU
    :param directory: where the images and the NBD socket go
    :param qemu_img: how to run ``qemu-img``
    :param images: where the images are, if not in files there
    """

    def __init__(
        self,
        qemu: Qemu,
        spec: ChainSpec,
        directory: Path,
        qemu_img: Sequence[str] = ("qemu-img",),
        images: Images | None = None,
    ) -> None:
        self.qemu = qemu
        self.spec = spec
        self.directory = directory
        self.files = FileImages(directory, qemu_img, spec.size, spec.cluster)
        self.images: Images = images or self.files
        self.prefix = ""  # of the names of nodes, exports and jobs: several chains on one QEMU
        self.socket = directory / "nbd.sock"
        self.primary: NbdClient
        self.guest: BlockClient
        self._fresh = self._running = False  # replication: never started; started and not ended
        self._orphaned = False  # failed over: the guest's disk is the secondary disk

    @property
    def topology(self) -> Topology:
        """The parts as they are called on this QEMU."""
        return prefixed(self.spec.topology, self.prefix)

    def image(self, node: str) -> Path:
        """The file behind *node*."""
        return self.files.path(self.spec.topology.node(node))

    def named(self, name: str) -> str:
        """What a node, export or job of this chain is called on its QEMU."""
        return self.prefix + name

    @property
    def overlays(self) -> tuple[str, ...]:
        """The nodes above the secondary disk, lowest first."""
        return self.spec.topology.overlays

    # -- opening and taking apart --------------------------------------------------------------

    async def build(self) -> None:
        """Create the images and open everything; nothing is started yet.

        :raises DriverMissing: this QEMU has no replication driver
        :raises OptionMissing: it lacks another one, or an option
        :raises HostError: an image cannot be created
        """
        try:
            await self._build()
        except CommandFailed as error:
            schema = Schema(await self.qemu.execute("query-qmp-schema"))
            commands = (opening(part, self.images.storage) for part in self.topology.parts)
            found = (schema.missing(one.name, one.arguments) for one in commands)
            if missing := next(filter(None, found), ""):
                raise OptionMissing(f"this QEMU has no {missing}") from error
            raise

    async def _build(self) -> None:
        topology = self.topology
        if topology.replication_mode is not None and not await has_replication(self.qemu.execute):
            raise DriverMissing(
                f"{self.qemu.argv[0]} has no replication driver (xen-set-replication is "
                "missing): build QEMU with --enable-replication, or use --workflow backup"
            )
        if not self.socket.exists():  # made by another chain on this QEMU
            await self.qemu.start_nbd_server(self.socket)
        again = topology.renewed
        await self.open_parts(part for part in topology.parts if part not in again)
        await self.build_overlays()

    async def rebuild(self) -> None:
        """Take the overlays away, and all above them, and put fresh ones there, nothing running."""
        again = self.topology.renewed
        await self.close_parts(again)
        for part in again:
            for node in part.within if isinstance(part, Node) else ():
                if node.overlay:
                    self.images.remove(node)
        await self.build_overlays()

    async def build_overlays(self) -> None:
        """Put fresh overlays there, and all above them."""
        self._fresh, self._running = True, False
        self._orphaned = False
        await self.open_parts(self.topology.renewed)

    async def open_parts(self, parts: Iterable[Part]) -> None:
        """Make images, nodes, exports with their clients, and devices, in this order."""
        for part in parts:
            match part:
                case Node():
                    for node in part.within:
                        if node.image is not None or node.log:
                            self.images.create(node)
                    await self._send(opening(part, self.images.storage))
                case Export():
                    await self._export(part)
                    own = part.name.removeprefix(self.prefix)
                    setattr(self, own, self.connect(own))
                case QemuDevice():
                    await self._plug(part)

    async def close_parts(self, parts: Iterable[Part]) -> None:
        """Take these parts away, users first; their images stay."""
        users, commands = removals(parts)
        for user in users:
            match user:
                case Export():
                    getattr(self, user.name.removeprefix(self.prefix)).close()
                    await self._unexport(user)
                case QemuDevice():
                    await self._unplug(user)
        for command in commands:
            await self._send(command)

    async def _send(self, command: QmpCommand) -> Any:
        return await self.qemu.execute(command.name, command.arguments)

    async def _export(self, export: Export) -> None:
        await self._send(opening(export, self.images.storage))

    async def _unexport(self, export: Export) -> None:
        async def gone() -> bool:
            exports = await self.qemu.execute("query-block-exports")
            return all(one["id"] != export.name for one in exports)

        await self._send(closing_of(export))
        await self.qemu.until(gone, f"export {export.name} did not go away")

    async def _plug(self, device: QemuDevice) -> None:
        await self._send(opening(device, self.images.storage))

    async def _unplug(self, device: QemuDevice) -> None:
        await self._send(closing_of(device))

    def uri(self, export: str) -> str:
        """The NBD URI of an export."""
        return nbd_uri(self.named(export), self.socket)

    def connect(self, export: str) -> NbdClient:
        """A client of one end of the chain, without block status: see :class:`NbdClient`."""
        return NbdClient(self.uri(export), self.qemu.limit, True, self.qemu.is_silent)

    def inspect(self, export: str) -> NbdClient:
        """Another connection to an export, with block status; the caller closes it."""
        return NbdClient(self.uri(export), self.qemu.limit, is_silent=self.qemu.is_silent)

    # -- the commands of the chain ------------------------------------------------------------

    async def start(self) -> None:
        """Start the backup job, or replication."""
        topology = self.topology
        assert topology.begins is not None, "this chain runs as soon as it is open"
        await self._send(topology.begins)
        if topology.replication_mode is not None:
            self._running, self._fresh = self._fresh, False  # once ended, a start is ignored

    async def checkpoint(self) -> None:
        """Take a checkpoint, as the contract wants it: the VM stopped, I/O settled."""
        await self.qemu.execute("stop")
        try:
            await self._send(self.topology.commands["checkpoint"])
        except CommandFailed:
            await self._resume()
            raise
        await self._resume()

    async def stop(self) -> None:
        """Stop the backup job, or replication without failover."""
        topology = self.topology
        if topology.job is not None:
            await self._send(topology.commands["stop"])
            await self._until_job_is_gone(topology.job)
            return
        await self.qemu.execute("stop")
        try:
            await self._send(topology.commands["stop"])
        finally:
            self._running = False
            await self._resume()

    async def _resume(self) -> None:
        """Let the VM run again after a command that wants it stopped."""
        await self.qemu.execute("cont")

    async def _until_job_is_gone(self, name: str) -> None:
        async def gone() -> bool:
            jobs = await self.qemu.execute("query-block-jobs")
            return all(job["device"] != name for job in jobs)

        await self.qemu.until(gone, "the backup job did not end")

    async def failover(self) -> None:
        """Fail over, and wait until the active disk is committed into the secondary disk."""
        begins, self._running = self._running, False
        await self._send(self.topology.commands["failover"])
        if begins:
            await self.until_failed_over()

    async def until_failed_over(self) -> None:
        """Wait until the active disk is committed into the secondary disk."""
        top, secondary = self.named("top"), self.named("secondary")

        async def done() -> bool:
            return await failed_over(self.qemu.execute, top, secondary)

        await self.qemu.until(done, "failover did not finish")
        self._orphaned = True

    async def status(self) -> str | None:
        """The text of replication's error, or ``None`` when it reports none."""
        return await replication_error(self.qemu.execute)

    async def settle(self) -> None:
        """Let all I/O end and write qcow2 tables to the files, so that they can be read."""
        if not self.qemu.has_machine:  # nothing to stop, and no qemu-io in its monitor
            for node in self.spec.topology.images:
                async with self._read_only(node) as client:
                    client.flush()
            return
        await self.qemu.execute("stop")
        # Not every QEMU's stop flushes what only the monitor owns
        # (known/directed/stop-leaves-nodes-unflushed.json).
        for node in self.overlays if self._orphaned else self.spec.topology.targets:
            await self.qemu.execute(
                "human-monitor-command",
                {"command-line": f"qemu-io {self.named(node)} flush"},
            )
        await self._resume()

    @asynccontextmanager
    async def read_hidden(self) -> AsyncIterator[NbdClient]:
        """A read-only export of the hidden disk, while the context lasts."""
        async with self._read_only("hidden") as client:
            yield client

    @asynccontextmanager
    async def _read_only(self, node: str) -> AsyncIterator[NbdClient]:
        export = Export(self.named(node), self.named(node), False)
        await self._export(export)
        with closing(self.inspect(node)) as client:
            yield client
        await self._unexport(export)

    def close(self) -> None:
        """Disconnect the NBD clients; QEMU itself belongs to the caller."""
        for name in ("primary", "guest"):
            client = getattr(self, name, None)
            if client is not None:
                client.close()
