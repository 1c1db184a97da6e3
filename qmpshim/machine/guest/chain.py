"""The secondary's chain with a real guest on top: the seed's picture with nothing left out.

The guest's disk is plugged in once the chain is built, so that one saved guest serves every kind of
chain. A controller that takes no new disks (IDE) has its disk from the start, on a node that is
turned from nothing to the chain and back by ``blockdev-reopen``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qmpshim.errors import BuildError, CommandFailed, MachineHung
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.guest.guest import Guest

Device = Literal["virtio-blk", "virtio-scsi", "ide"]
Cache = Literal["writeback", "none", "writethrough", "directsync", "unsafe"]
PLUG_LIMIT = 60.0  # seconds until the guest has seen that a disk came or went


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
            *("-blockdev", f"null-co,node-name=nothing,size={size},read-zeroes=on"),
            *("-blockdev", "raw,node-name=ide,file=nothing"),
            *("-device", f"ide-hd,drive=ide,share-rw=on,write-cache={self.write_cache}"),
        )


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
        self.disk = ""
        self.held = False
        self._users = 0  # of the disk's node, without the guest's device

    async def build(self) -> None:
        await super().build()
        try:
            await self._plug()
        except CommandFailed as error:
            raise BuildError(
                f"{self.machine.build.name} cannot attach the guest's disk: {error}"
            ) from error

    async def rebuild(self) -> None:
        await self._unplug()
        await super().rebuild()
        await self._plug()

    def _storage(self, node: str) -> dict[str, Any]:
        attachment = self.attachment
        cache = {"direct": attachment.direct, "no-flush": attachment.cache == "unsafe"}
        return super()._storage(node) | {"cache": cache, "aio": attachment.aio}

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
        return self.directory / "guest.log"

    @property
    def top_id(self) -> str:
        if self.attachment.device == "ide":
            return "ide"
        return "log" if self.attachment.log else "top"

    @property
    def _top(self) -> str:
        return self.spec.topology.export("guest").node

    # -- plugging ------------------------------------------------------------------------------

    async def _plug(self) -> None:
        attachment, node = self.attachment, self._top
        if attachment.log:
            await self._add_log(self.named(node))
            node = "log"
        node = self.named(node)
        if attachment.device == "ide":
            await self._reopen(node)
            self.disk = "/dev/sda"
            return
        bus: dict[str, Any] = {}
        thread: dict[str, Any] = {}
        if attachment.iothread:
            await self._once("io", "object-add", {"qom-type": "iothread", "id": self.named("io")})
            thread = {"iothread": self.named("io")}
        driver = "virtio-blk-pci"
        if attachment.device == "virtio-scsi":
            scsi = self.named("scsi")
            controller = {"driver": "virtio-scsi-pci", "id": scsi, **thread}
            await self._once("scsi", "device_add", controller)
            driver, bus, thread = "scsi-hd", {"bus": f"{scsi}.0"}, {}
        # Others write to the node, too: the exports that the cross-check reads through.
        name = self.named("disk")
        disk = {
            **{"driver": driver, "id": name, "drive": node, "share-rw": True, **bus, **thread},
            "write-cache": attachment.write_cache,
        }
        self._users = await self._users_of(node)
        self.disk = await self._add_device(disk)

    async def _add_device(self, device: dict[str, Any]) -> str:
        """Plug a disk in; what the guest calls it."""
        before = self._disks()
        await self.qemu.execute("device_add", device)
        deadline = time.monotonic() + PLUG_LIMIT
        while not (come := self._disks() - before):
            if time.monotonic() > deadline:
                raise MachineHung(f"the guest saw no new disk in {PLUG_LIMIT:g} s")
            await asyncio.sleep(0.02)
        return f"/dev/{come.pop()}"

    async def add_source(self, size: int) -> tuple[str, Path]:
        """Give the guest a disk of its own, whose writes are logged: a primary's, for one.

        :param size: bytes
        :returns: what the guest calls it, and its log
        """
        image, log = self.directory / "source.raw", self.directory / "source.log"
        for path, length in ((image, size), (log, 0)):
            with path.open("xb") as made:
                made.truncate(length)
        file = {"driver": "file", "filename": str(image)}
        log_file = {"driver": "file", "filename": str(log)}
        await self.qemu.execute(
            "blockdev-add",
            {"driver": "blklogwrites", "node-name": "source", "file": file, "log": log_file},
        )
        return await self._add_device({"driver": "virtio-blk-pci", "drive": "source"}), log

    async def _unplug(self) -> None:
        if self.attachment.device == "ide":
            await self._reopen("nothing")
        else:
            name = self.disk.removeprefix("/dev/")
            node = self.named("log" if self.attachment.log else self._top)
            await self.qemu.execute("device_del", {"id": self.named("disk")})
            deadline = time.monotonic() + PLUG_LIMIT
            while name in self._disks() or await self._users_of(node) > self._users:
                if time.monotonic() > deadline:
                    raise MachineHung(f"the guest did not let its disk go in {PLUG_LIMIT:g} s")
                await asyncio.sleep(0.02)
        if self.attachment.log:
            await self.qemu.execute("blockdev-del", {"node-name": self.named("log")})

    async def _users_of(self, node: str) -> int:
        """How many others in the block graph use *node*; a device does a little after it went."""
        graph = await self.qemu.execute("x-debug-query-block-graph")
        ids = [entry["id"] for entry in graph["nodes"] if entry["name"] == node]
        return sum(edge["child"] in ids for edge in graph["edges"])

    def _disks(self) -> set[str]:
        return set(self.machine.run("ls /sys/block").output.split())

    async def _has(self, place: str, name: str) -> bool:
        listed = await self.qemu.execute("qom-list", {"path": place})
        return any(entry["name"] == name for entry in listed)

    async def _once(self, name: str, command: str, arguments: dict[str, Any]) -> None:
        place = "/objects" if command == "object-add" else "/machine/peripheral"
        if not await self._has(place, self.named(name)):
            await self.qemu.execute(command, arguments)

    async def _add_log(self, below: str) -> None:
        self.write_log.unlink(missing_ok=True)
        self.write_log.touch()
        log = {"driver": "file", "filename": str(self.write_log)}
        await self.qemu.execute(
            "blockdev-add",
            {
                "driver": "blklogwrites",
                "node-name": self.named("log"),
                "file": below,
                "log": log,
            },
        )

    async def _reopen(self, below: str) -> None:
        try:
            await self.qemu.execute(
                "blockdev-reopen",
                {"options": [{"driver": "raw", "node-name": "ide", "file": below}]},
            )
        except CommandFailed as error:
            if error.error_class == "CommandNotFound":
                name = self.machine.build.name
                raise BuildError(
                    f"{name} has no blockdev-reopen (6.1), which an IDE disk needs"
                ) from error
            raise
