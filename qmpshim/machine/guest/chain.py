"""The secondary's chain with a real guest on top: QEMU 2.8's picture with nothing left out.

The guest's disk is plugged in once the chain is built, so that one saved guest serves every kind of
chain. A controller that takes no new disks (IDE) has its disk from the start, on a node that is
turned from nothing to the chain and back by ``blockdev-reopen``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qmpshim.errors import BuildError, CommandFailed
from qmpshim.machine.chain.block_graph import BlockGraph
from qmpshim.machine.chain.build import opening
from qmpshim.machine.chain.parts import ImageSpec, Node, Part, QemuDevice
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.chain.variants import prefixed, with_options, with_parts
from qmpshim.machine.guest.guest import Guest
from qmpshim.machine.host.process import wait_until

Device = Literal["virtio-blk", "virtio-scsi", "ide"]
Cache = Literal["writeback", "none", "writethrough", "directsync", "unsafe"]
PLUG_LIMIT = 60.0  # seconds until the guest has seen that a disk came or went
_PAUSE = 0.02  # seconds between two questions
_NOTHING = "nothing"  # the node that an IDE disk is on while there is no chain


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the guest's disk and the files of the chain are attached.

    :ivar device: the guest's controller
    :ivar iothread: the disk is served by a thread of its own
    :ivar cache: as QEMU's ``-drive cache=``; with ``unsafe`` no flush reaches the host
    :ivar aio: how the files are read and written: ``threads``, ``native``, ``io_uring``
    :ivar log: a ``blklogwrites`` node records what the guest writes
    """

    device: Device = "virtio-blk"
    iothread: bool = False
    cache: Cache = "unsafe"
    aio: str = "threads"
    log: bool = False

    @property
    def direct(self) -> bool:
        """The files are opened with O_DIRECT."""
        return self.cache in ("none", "directsync")

    @property
    def write_cache(self) -> str:
        """The guest's disk has a cache to flush; if not, each write is flushed by QEMU."""
        return "off" if self.cache in ("writethrough", "directsync") else "on"

    def arguments(self, size: int) -> tuple[str, ...]:
        """QEMU's arguments for a disk that cannot be plugged in later."""
        if self.device != "ide":
            return ()
        return (
            *("-blockdev", f"null-co,node-name={_NOTHING},size={size},read-zeroes=on"),
            *("-blockdev", f"raw,node-name=ide,file={_NOTHING}"),
            *("-device", f"ide-hd,drive=ide,share-rw=on,write-cache={self.write_cache}"),
        )

    def attached_to(self, topology: Topology) -> Topology:
        """A chain with the guest's disk on top of the node that the guest's export has.

        Others write to that node, too: the exports that the cross-check reads through.
        """
        node = topology.export("guest").node
        root = "top"  # of the graph above the filter, which replication_start() looks for
        parts: list[Part] = []
        if self.log:
            parts.append(Node("log", "blklogwrites", {"file": node}, log=True))
            node = root = "log"
        if self.device == "ide":
            parts.append(Node("ide", "raw", {"file": node}, placeholder=_NOTHING))
            root = "ide"
        else:
            parts += self._devices(node)
        if topology.replication_mode is not None:
            topology = with_options(topology, {"top": {"top-id": root}})
        return with_parts(topology, *parts)

    def _devices(self, node: str) -> list[Part]:
        """What is plugged in for a disk on a node."""
        disk = {"drive": node, "share-rw": True, "write-cache": self.write_cache}
        thread = {"iothread": "io"} if self.iothread else {}
        made: list[Part] = [QemuDevice("io", "iothread", is_object=True)] if self.iothread else []
        if self.device == "virtio-scsi":
            made.append(QemuDevice("scsi", "virtio-scsi-pci", thread))
            return [*made, QemuDevice("disk", "scsi-hd", {**disk, "bus": "scsi.0"})]
        return [*made, QemuDevice("disk", "virtio-blk-pci", {**disk, **thread})]


class GuestChain(SecondaryChain):
    """A chain whose top is the disk of *guest*, at :attr:`disk` there.

    :param guest: started, at its prompt
    :param beside: the chain of another disk of this guest

    :ivar held: the VM stays stopped after commands that want it stopped
    """

    def __init__(
        self,
        guest: Guest,
        spec: ChainSpec,
        directory: Path,
        qemu_img: Sequence[str] = ("qemu-img",),
        attachment: Attachment | None = None,
        beside: GuestChain | None = None,
    ) -> None:
        super().__init__(guest.qemu, spec, directory, qemu_img)
        if beside is not None:
            self.prefix, self.socket = f"{beside.prefix}next-", beside.socket
        self.machine = guest
        self.attachment = attachment or Attachment()
        self.disk = "/dev/sda" if self.attachment.device == "ide" else ""
        self.held = False
        self._users = 0  # of the disk's node, without the guest's device

        cache = {"direct": self.attachment.direct, "no-flush": self.attachment.cache == "unsafe"}
        self.files.options = {"cache": cache, "aio": self.attachment.aio}

    @property
    def topology(self) -> Topology:
        return prefixed(self.attachment.attached_to(self.spec.topology), self.prefix)

    async def build(self) -> None:
        try:
            await super().build()
        except CommandFailed as error:
            name = self.machine.build.name
            if (error.command, error.error_class) == ("blockdev-reopen", "CommandNotFound"):
                raise BuildError(
                    f"{name} has no blockdev-reopen (6.1), which an IDE disk needs"
                ) from error
            if error.command in ("object-add", "device_add"):
                raise BuildError(f"{name} cannot attach the guest's disk: {error}") from error
            raise

    async def _resume(self) -> None:
        if not self.held:
            await super()._resume()

    async def hold(self) -> None:
        """Stop the VM until :meth:`release`; all its I/O has ended then."""
        self.held = True
        await self.qemu.execute("stop")

    async def release(self) -> None:
        """The VM runs again."""
        self.held = False
        await self._resume()

    @property
    def write_log(self) -> Path:
        """The file that ``blklogwrites`` writes to."""
        return self.files.path(self.topology.node(self.named("log")))

    # -- plugging ------------------------------------------------------------------------------

    async def _plug(self, device: QemuDevice) -> None:
        if device.is_object or "drive" not in device.options:
            await super()._plug(device)
            return
        self._users = await self._users_of(device.options["drive"])
        self.disk = await self._plugged(device)

    async def _plugged(self, device: QemuDevice) -> str:
        """Plug a disk in; what the guest calls it."""
        before = self._disks()
        await super()._plug(device)

        async def came() -> bool:
            return bool(self._disks() - before)

        await wait_until(came, "the guest saw no new disk", PLUG_LIMIT, _PAUSE)
        return f"/dev/{(self._disks() - before).pop()}"

    async def add_source(self, size: int) -> tuple[str, Path]:
        """Give the guest a disk of its own, whose writes are logged: a primary's, for one.

        :param size: bytes
        :returns: what the guest calls it, and its log
        """
        image = Node("source-disk", "raw", image=ImageSpec())
        source = Node("source", "blklogwrites", {"file": image}, log=True)
        files = replace(self.files, size=size)
        for node in source.within:
            files.create(node)
        await self._send(opening(source, files.storage))
        disk = QemuDevice("source-device", "virtio-blk-pci", {"drive": source.name})
        return await self._plugged(disk), files.path(source)

    async def _unplug(self, device: QemuDevice) -> None:
        await super()._unplug(device)
        name, node = self.disk.removeprefix("/dev/"), device.options["drive"]

        async def gone() -> bool:
            return name not in self._disks() and await self._users_of(node) <= self._users

        await wait_until(gone, "the guest did not let its disk go", PLUG_LIMIT, _PAUSE)

    async def _users_of(self, node: str) -> int:
        """How many others in the block graph use *node*; a device does a little after it went."""
        graph = BlockGraph(await self.qemu.execute("x-debug-query-block-graph"))
        vertex = graph.node(node)
        return len(graph.above(vertex)) if vertex is not None else 0

    def _disks(self) -> set[str]:
        # The shell's own pattern: ``ls`` fails for a disk that goes between its name and its state.
        return set(self.machine.run("(cd /sys/block && echo *)").output.split())
