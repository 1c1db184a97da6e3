"""The secondary's chain of disks on a real QEMU, built and commanded through QMP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from errno import EFBIG, EINVAL, ENOSPC
from pathlib import Path
from typing import Any

from qmpshim.errors import CommandFailed, DriverMissing, HostError, InputError, MachineHung
from qmpshim.machine.chain.build import export_removal, opening, removals
from qmpshim.machine.chain.topology import (
    TOPOLOGIES,
    Export,
    Node,
    Options,
    QmpCommand,
    Topology,
    chain_name,
    topology_of,
)
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.nbd.client import BlockClient, NbdClient
from qmpshim.machine.nbd.uri import nbd_uri
from qmpshim.model.units import SECTOR

_ENTRY = 8  # bytes of an L1 or L2 entry
_DISCARD = 20e-6  # seconds for one cluster; 2 to 3 us were measured on a busy machine


#: The names of the chains that have a secondary disk, with an export of it for a primary.
CHAINS = tuple(
    name
    for name, topology in TOPOLOGIES.items()
    if any(export.name == "primary" for export in topology.exports)
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

    Its nodes and exports are those of its topology (:data:`TOPOLOGIES`), with the prefix before
    their names; ``primary`` and ``guest`` are the exports with a client.

    :param qemu: a started QEMU
    :param directory: where the images and the NBD socket go
    :param qemu_img: how to run ``qemu-img``
    """

    def __init__(
        self,
        qemu: Qemu,
        spec: ChainSpec,
        directory: Path,
        qemu_img: Sequence[str] = ("qemu-img",),
    ) -> None:
        self.qemu = qemu
        self.spec = spec
        self.directory = directory
        self._qemu_img = list(qemu_img)
        self.prefix = ""  # of the names of nodes, exports and jobs: several chains on one QEMU
        self.socket = directory / "nbd.sock"
        self.primary: NbdClient
        self.guest: BlockClient
        self._fresh = self._running = False  # replication: never started; started and not ended
        self._orphaned = False  # failed over: the guest's disk is the secondary disk

    def image(self, node: str) -> Path:
        """The file behind *node*."""
        suffix = "raw" if node == "secondary" and self.spec.secondary == "raw" else "qcow2"
        return self.directory / f"{node}.{suffix}"

    def named(self, name: str) -> str:
        """What a node, export or job of this chain is called on its QEMU."""
        return self.prefix + name

    @property
    def overlays(self) -> tuple[str, ...]:
        """The nodes above the secondary disk, lowest first."""
        return self.spec.topology.overlays

    @property
    def top_id(self) -> str:
        """The root of the graph above the filter, which replication_start() looks for."""
        return "top"

    async def build(self) -> None:
        """Create the images and open everything; nothing is started yet.

        :raises DriverMissing: this QEMU has no replication driver
        :raises HostError: an image cannot be created
        """
        if self.spec.topology.replication_mode is not None:
            commands = await self.qemu.execute("query-commands")
            if not any(c["name"] == "xen-set-replication" for c in commands):
                raise DriverMissing(
                    f"{self.qemu.argv[0]} has no replication driver (xen-set-replication is "
                    "missing): build QEMU with --enable-replication, or use --workflow backup"
                )
        if not self.socket.exists():  # made by another chain on this QEMU
            await self.qemu.execute(
                "nbd-server-start",
                {"addr": {"type": "unix", "data": {"path": str(self.socket)}}},
            )
        topology = self.topology
        again = topology.renewed
        await self._open(part for part in topology.parts if part not in again)
        await self._build_overlays()

    async def _build_overlays(self) -> None:
        """Open the overlays, fresh ones, and all above them."""
        self._fresh, self._running = True, False
        self._orphaned = False
        await self._open(self.topology.renewed)

    @property
    def topology(self) -> Topology:
        """The nodes and exports as they are called on this QEMU."""
        topology = self.spec.topology.prefixed(self.prefix)
        if topology.replication_mode is None:
            return topology
        return topology.with_options({self.named("top"): {"top-id": self.named(self.top_id)}})

    def _own(self, name: str) -> str:
        """The reverse of :meth:`named`."""
        return name.removeprefix(self.prefix)

    async def _open(self, parts: Iterable[Node | Export]) -> None:
        for part in parts:
            own = self._own(part.name)
            if isinstance(part, Export):
                await self._export(own, self._own(part.node), part.writable)
                setattr(self, own, self._connect(own))
                continue
            if part.image is not None:
                if own == "secondary":
                    self._create_secondary()
                else:
                    self._create(own)
            await self._send(opening(part, self._storage_of))

    async def _send(self, command: QmpCommand) -> Any:
        return await self.qemu.execute(command.name, command.arguments)

    def _create_raw(self, path: Path) -> None:
        try:
            with path.open("xb") as file:
                file.truncate(self.spec.size)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno not in (EFBIG, EINVAL):
                if error.errno == ENOSPC:  # who called it knows what to say about a full disk
                    raise
                raise HostError(f"{path}: {error.strerror}") from error
            raise HostError(
                f"no file of {self.spec.size} bytes can be made in {path.parent}: "
                "choose a smaller --size, or set TMPDIR to another file system"
            ) from error

    def _create_secondary(self) -> None:
        if self.spec.secondary == "raw":
            self._create_raw(self.image("secondary"))
        else:
            self._create("secondary")

    def _create(self, node: str) -> None:
        """Make an empty qcow2 image."""
        image = self.spec.topology.image(node)
        options = (("cluster_size", image.cluster or self.spec.cluster), *image.create)
        command = [
            *(*self._qemu_img, "create", "-q", "-f", "qcow2"),
            *("-o", ",".join(f"{name}={value}" for name, value in options)),
            *(str(self.image(node)), str(self.spec.size)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError as error:
            raise HostError(f"{command[0]} is missing: apt-get install qemu-utils") from error
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{' '.join(command)} did not end in 60 s") from error
        if done.returncode:
            full = "; free some space, or set TMPDIR to another disk"
            raise HostError(
                (done.stderr.strip() or f"{command[0]} create failed")
                + (full if os.strerror(ENOSPC) in done.stderr else "")
            )

    def _storage_of(self, name: str) -> dict[str, Any]:
        return self._storage(self._own(name))

    def _storage(self, node: str) -> dict[str, Any]:
        """Where QEMU finds the image's bytes."""
        # no-flush: the host is not going to crash, so waiting for its disk proves nothing.
        return {
            "driver": "file",
            "filename": str(self.image(node)),
            "cache": {"no-flush": True},
        }

    async def _export(self, name: str, node: str, writable: bool) -> None:
        export = Export(self.named(name), self.named(node), writable)
        await self._send(opening(export, self._storage_of))

    def uri(self, export: str) -> str:
        """The NBD URI of an export."""
        return nbd_uri(self.named(export), self.socket)

    def _connect(self, export: str) -> NbdClient:
        return NbdClient(self.uri(export), self.qemu.limit, True, self.qemu.is_silent)

    def inspect(self, export: str) -> NbdClient:
        """Another connection to an export, with block status; the caller closes it."""
        return NbdClient(self.uri(export), self.qemu.limit, is_silent=self.qemu.is_silent)

    async def _unexport(self, name: str) -> None:
        name = self.named(name)
        await self._send(export_removal(name))
        deadline = time.monotonic() + self.qemu.limit
        while any(e["id"] == name for e in await self.qemu.execute("query-block-exports")):
            if time.monotonic() > deadline:
                raise MachineHung(f"export {name} did not go away in {self.qemu.limit:g} s")
            await asyncio.sleep(0.002)

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
            await self.qemu.execute("xen-colo-do-checkpoint")
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
            await self._set_replication_off(failover=False)
        finally:
            self._running = False
            await self._resume()

    async def _resume(self) -> None:
        """Let the VM run again after a command that wants it stopped."""
        await self.qemu.execute("cont")

    async def _until_job_is_gone(self, name: str) -> None:
        deadline = time.monotonic() + self.qemu.limit
        while any(job["device"] == name for job in await self.qemu.execute("query-block-jobs")):
            if time.monotonic() > deadline:
                raise MachineHung(f"the backup job did not end in {self.qemu.limit:g} s")
            await asyncio.sleep(0.002)

    async def failover(self) -> None:
        """Fail over, and wait until the active disk is committed into the secondary disk."""
        begins, self._running = self._running, False
        await self._set_replication_off(failover=True)
        if begins:
            await self.until_failed_over()

    async def until_failed_over(self) -> None:
        """Wait until the active disk is committed into the secondary disk."""
        deadline = time.monotonic() + self.qemu.limit
        while not await self._failed_over():
            if time.monotonic() > deadline:
                raise MachineHung(f"failover did not finish in {self.qemu.limit:g} s")
            await asyncio.sleep(0.002)
        self._orphaned = True

    async def _set_replication_off(self, failover: bool) -> None:
        await self.qemu.execute(
            "xen-set-replication", {"enable": False, "primary": False, "failover": failover}
        )

    async def _failed_over(self) -> bool:
        """Whether the filter sits on the secondary disk (replication_done has run)."""
        graph = await self.qemu.execute("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        below = {
            (names[edge["parent"]], edge["name"]): names[edge["child"]] for edge in graph["edges"]
        }
        top, secondary = self.named("top"), self.named("secondary")
        return below.get((top, "file")) == secondary and (top, "hidden disk") not in below

    async def status(self) -> str | None:
        """The text of replication's error, or ``None`` when it reports none."""
        status = await self.qemu.execute("query-xen-replication-status")
        return status.get("desc", "") if status["error"] else None

    async def settle(self) -> None:
        """Let all I/O end and write qcow2 tables to the files, so that they can be read."""
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
        await self._export("hidden", "hidden", writable=False)
        with closing(self.inspect("hidden")) as client:
            yield client
        await self._unexport("hidden")

    async def rebuild(self) -> None:
        """Take the overlays away, and all above them, and put fresh ones there, nothing running."""
        exports, closing = removals(self.topology.renewed)
        for name in map(self._own, exports):
            getattr(self, name).close()
            await self._unexport(name)
        for command in closing:
            await self._send(command)
        for node in self.overlays:
            self.image(node).unlink()
        await self._build_overlays()

    def close(self) -> None:
        """Disconnect the NBD clients; QEMU itself belongs to whoever started it."""
        for name in ("primary", "guest"):
            client = getattr(self, name, None)
            if client is not None:
                client.close()
