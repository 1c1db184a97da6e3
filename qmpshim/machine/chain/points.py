"""Disks with dirty bitmaps and backup jobs on a real QEMU, opened from a topology.

    base0 <--backing-- disk0 <-- export disk0        target0 (a new image for each job)
    base1 <--backing-- disk1 <-- export disk1        target1

A job's target has the backing chain that docs/interop/bitmaps.rst gives it: the backups before it
for an increment, the disk's base for ``sync=top``, the disk itself for ``sync=none``.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qemu.qmp import EventListener

from qmpshim.errors import CommandFailed, InputError
from qmpshim.machine.chain.build import opening
from qmpshim.machine.chain.images import create_qcow2
from qmpshim.machine.chain.parts import Export, ImageSpec, Node
from qmpshim.machine.chain.record import (
    CommandSent,
    Connected,
    ExportGone,
    FileClosed,
    NewImage,
    NodeClosed,
    RecordedStep,
    without_directory,
)
from qmpshim.machine.host.files import BytesLike
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.nbd.client import NbdClient, dirty_bitmap
from qmpshim.machine.nbd.uri import nbd_uri
from qmpshim.model.units import SECTOR

_EVENTS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR", "JOB_STATUS_CHANGE")
_GLANCE = 0.002  # seconds
_LARGEST = 1 << 40
#: Bytes: QEMU looks at each MiB that a full backup may copy.
MOST_COPIED = 1 << 30
_UNMAP = {"discard": "unmap"}


def least_cluster(size: int) -> int:
    """Bytes of the smallest cluster of such disks: the tables of a large one have to fit."""
    return 512 if size <= MOST_COPIED else 16 << 10


@dataclass(frozen=True, slots=True)
class PointsSpec:
    """Disks, all of one size.

    :ivar size: bytes, a multiple of 512, 1 TiB at most
    :ivar cluster: bytes of a qcow2 cluster
    :ivar disks: how many
    """

    size: int = 4 << 20
    cluster: int = 64 << 10
    disks: int = 2

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % SECTOR:
            raise InputError(f"size {self.size} is no positive multiple of 512 bytes")
        if self.size > _LARGEST:
            raise InputError(
                f"size {self.size} is too large: disks with bitmaps and jobs have 1T at most"
            )
        if self.cluster not in [512 << n for n in range(13)]:
            raise InputError(f"cluster size {self.cluster} is no power of two from 512 to 2M")
        if self.cluster < (least := least_cluster(self.size)):
            raise InputError(f"size {self.size} wants clusters of {least} bytes or more")


def base_name(disk: int) -> str:
    """The name of a disk's base: a node, and its image, which is raw."""
    return f"base{disk}"


def is_base(image: str) -> bool:
    """Whether an image is the base of a disk."""
    return image.startswith("base")


def parts_of(disk: int) -> tuple[Node | Export, ...]:
    """The nodes and the export of one disk."""
    base, name = base_name(disk), f"disk{disk}"
    return (
        Node(base, "raw", {"read-only": True}, ImageSpec()),
        Node(name, "qcow2", {**_UNMAP, "backing": base}, ImageSpec(overlay=True)),
        Export(name, name, True),
    )


@dataclass(frozen=True, slots=True)
class JobEvent:
    """What an event reports of a job.

    :ivar status: ``pending``, ``waiting``, ...; of its end ``completed``,
        ``failed`` or ``cancelled``; of an error ``error``
    :ivar action: what the job did at an error: ``stop``, ``ignore``, ``report``
    """

    job: str
    status: str
    action: str = ""


class PointsChain:
    """The disks on one QEMU after another, and a client at each.

    :param qemu: a started QEMU
    :param directory: where images and sockets go
    :param qemu_img: how to run ``qemu-img``
    :param bases: of each disk's base what is not zero: (offset, bytes)
    :ivar commands: the names of those that this QEMU has
    :ivar steps: what was done so far, but for queries
    """

    def __init__(
        self,
        qemu: Qemu,
        spec: PointsSpec,
        directory: Path,
        qemu_img: Sequence[str],
        bases: Sequence[Iterable[tuple[int, BytesLike]]],
    ) -> None:
        self.qemu = qemu
        self.spec = spec
        self.directory = directory
        self._qemu_img = list(qemu_img)
        self.clients: list[NbdClient] = []
        self.commands: set[str] = set()
        self.steps: list[RecordedStep] = []
        self.socket = directory / "nbd.sock"
        self._events = EventListener(names=_EVENTS)
        self._template = directory / "empty.qcow2"
        for disk, data in enumerate(bases):
            with self.image(base_name(disk)).open("wb") as file:
                file.truncate(spec.size)
                for offset, piece in data:
                    file.seek(offset)
                    file.write(piece)

    def image(self, node: str) -> Path:
        """The file behind a node."""
        return self.directory / f"{node}.{'raw' if is_base(node) else 'qcow2'}"

    def create(self) -> None:
        """Make the disks' images, empty ones.

        :raises HostError: they cannot be made
        """
        create_qcow2(self._qemu_img, self._template, self.spec.size, self.spec.cluster)
        for disk in range(self.spec.disks):
            self.new_image(f"disk{disk}")

    async def open(self) -> None:
        """Open the images on this QEMU, and connect to the exports."""
        self._events = EventListener(names=_EVENTS)
        self.qemu.client.register_listener(self._events)
        self.commands = {one["name"] for one in await self.qemu.execute("query-commands")}
        self.socket.unlink(missing_ok=True)
        await self.qemu.start_nbd_server(self.socket)
        for disk in range(self.spec.disks):
            for part in parts_of(disk):
                command = opening(part, lambda node: self._storage(node.name))
                await self._needed(command.name, command.arguments)
            self.clients.append(self._connected(f"disk{disk}"))

    def _storage(self, node: str) -> dict[str, Any]:
        # no-flush: the host is not going to crash, so waiting for its disk proves nothing.
        return {
            "driver": "file",
            "filename": str(self.image(node)),
            "cache": {"no-flush": True},
        }

    async def _needed(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._record(name, arguments, True)
        await self.qemu.execute(name, arguments)

    def _record(self, name: str, arguments: Mapping[str, Any], needed: bool = False) -> None:
        found = without_directory(dict(arguments), self.directory)
        self.steps.append(CommandSent(name, found, needed))

    def _connected(self, export: str) -> NbdClient:
        self.steps.append(Connected(export))
        return self.connect(export)

    def connect(self, export: str) -> NbdClient:
        """A client at an export; the caller closes it."""
        uri = nbd_uri(export, self.socket)
        return NbdClient(uri, self.qemu.limit, True, self.qemu.is_silent)

    def disconnect(self) -> None:
        """Close the clients."""
        for client in self.clients:
            client.close()
        self.clients.clear()

    # -- targets -----------------------------------------------------------------------------

    def new_image(self, name: str, backing: Sequence[str] = ()) -> None:
        """An empty image of the disks' size.

        :param backing: the images below it, from the top: its header names the first
        :raises HostError: it cannot be made
        """
        below_it = self.image(backing[0]).name if backing else ""
        self.steps.append(NewImage(self.image(name).name, below_it))
        if not backing:
            shutil.copyfile(self._template, self.image(name))
            return
        below = str(self.image(backing[0])).replace(",", ",,")
        kind = "raw" if is_base(backing[0]) else "qcow2"
        create_qcow2(
            self._qemu_img,
            self.image(name),
            self.spec.size,
            self.spec.cluster,
            (("backing_file", below), ("backing_fmt", kind)),
        )

    async def open_target(
        self,
        disk: int,
        image: str,
        backing: Sequence[str] | str,
        fault: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a job's target as node ``targetN``; parameters as of :meth:`target_options`."""
        options = self.target_options(image, backing, fault)
        await self._needed("blockdev-add", {**options, "node-name": f"target{disk}"})

    def target_options(
        self,
        image: str,
        backing: Sequence[str] | str,
        fault: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The options of a job's target.

        :param backing: the images below it, from the top; or the name of the node below it
        :param fault: a rule of blkdebug's ``inject-error``, for writes
        """
        below = backing if isinstance(backing, str) else self._nested(backing)
        qcow2 = {
            "driver": "qcow2",
            **_UNMAP,
            "file": self._storage(image),
            "backing": below,
        }
        if fault is None:
            return qcow2
        rules = [{**fault, "event": "none", "iotype": io} for io in ("write", "write-zeroes")]
        return {"driver": "blkdebug", "image": qcow2, "inject-error": rules, **_UNMAP}

    def _nested(self, images: Sequence[str]) -> dict[str, Any] | None:
        if not images:
            return None
        file = {**self._storage(images[0]), "read-only": True}
        if is_base(images[0]):
            return {"driver": "raw", "read-only": True, "file": file}
        below = self._nested(images[1:])
        return {"driver": "qcow2", "read-only": True, "file": file, "backing": below}

    async def close_target(self, disk: int) -> None:
        """Close ``targetN``, so that all of it is in its file.

        The event of a job's end may come before the job lets go of it (5.2: ``block_job_free``).

        :raises CommandFailed: it stays in use
        """
        deadline = time.monotonic() + self.qemu.limit
        while True:
            try:
                await self.qemu.execute("blockdev-del", {"node-name": f"target{disk}"})
            except CommandFailed:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_GLANCE)
            else:
                self.steps.append(NodeClosed(f"target{disk}"))
                return

    async def until_closed(self, image: str) -> None:
        """Wait until no node has an image open: a job that has ended closes what it has opened."""
        path = str(self.image(image))

        async def closed() -> bool:
            nodes = await self.qemu.execute("query-named-block-nodes", {"flat": True})
            return all(node["file"] != path for node in nodes)

        await self.qemu.until(closed, f"{image} stays open")
        self.steps.append(FileClosed(self.image(image).name))

    # -- commands ----------------------------------------------------------------------------

    async def transaction(self, actions: Sequence[Mapping[str, Any]], grouped: bool) -> None:
        """Carry out actions in one ``transaction``.

        :raises CommandFailed: QEMU refuses
        """
        arguments: dict[str, Any] = {"actions": list(actions)}
        if grouped:
            arguments["properties"] = {"completion-mode": "grouped"}
        self._record("transaction", arguments)
        await self.qemu.execute("transaction", arguments)

    async def command(self, name: str, arguments: Mapping[str, Any]) -> None:
        """One command.

        :raises CommandFailed: QEMU refuses
        """
        self._record(name, arguments)
        await self.qemu.execute(name, arguments)

    async def job_events(self, answered: bool = False) -> list[JobEvent]:
        """What happened to jobs since the last call.

        :param answered: up to the last answer to a command; else up to now, by a round trip
        """
        if not answered:
            await self.qemu.execute("query-jobs")
        found = []
        while not self._events.empty():
            event = await self._events.get()
            data = cast("dict[str, Any]", event["data"])
            match event["event"]:
                case "BLOCK_JOB_COMPLETED":
                    status = "failed" if "error" in data else "completed"
                case "BLOCK_JOB_CANCELLED":
                    status = "cancelled"
                case "BLOCK_JOB_ERROR":
                    status = "error"
                case _:
                    status = data["status"]
            job = str(data.get("device", data.get("id")))
            found.append(JobEvent(job, status, data.get("action", "")))
        return found

    async def bitmaps(self) -> list[list[dict[str, Any]]]:
        """The bitmaps of each disk as ``query-named-block-nodes`` lists them."""
        nodes = await self.qemu.execute("query-named-block-nodes", {"flat": True})
        found = {node["node-name"]: node.get("dirty-bitmaps", []) for node in nodes}
        return [found[f"disk{disk}"] for disk in range(self.spec.disks)]

    def data_extents(self, export: str) -> list[tuple[int, int]]:
        """(offset, length) in bytes of what block status does not call zeroes, of an export."""
        client = NbdClient(
            nbd_uri(export, self.socket), self.qemu.limit, is_silent=self.qemu.is_silent
        )
        with closing(client):
            return client.data_extents()

    async def export(self, name: str, node: str, writable: bool, bitmaps: Sequence[str]) -> None:
        """Make an export.

        :raises CommandFailed: QEMU refuses
        """
        export = Export(name, node, writable)
        arguments = opening(export, lambda one: self._storage(one.name)).arguments
        extra = {"bitmaps": list(bitmaps)} if bitmaps else {}
        await self._needed("block-export-add", {**arguments, **extra})
        self.steps.append(Connected(name))

    async def unexport(self, name: str) -> None:
        """Remove an export, and wait until it is gone."""

        async def gone() -> bool:
            return all(e["id"] != name for e in await self.qemu.execute("query-block-exports"))

        await self._needed("block-export-del", {"id": name, "mode": "hard"})
        await self.qemu.until(gone, f"export {name} did not go away")
        self.steps.append(ExportGone(name))

    def read_bitmaps(self, export: str, names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """The dirty extents of an export's bitmaps: (offset, length) in bytes."""
        contexts = [dirty_bitmap(name) for name in names]
        uri, limit = nbd_uri(export, self.socket), self.qemu.limit
        client = NbdClient(uri, limit, is_silent=self.qemu.is_silent, contexts=contexts)
        with closing(client):
            return {name: client.dirty_extents(name) for name in names}

    def read(self, export: str, length: int, offset: int) -> bytes:
        """Read from an export."""
        ((_, found),) = self.read_ahead(export, [(offset, length)])
        return bytes(found)

    def read_ahead(
        self, export: str, ranges: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, memoryview]]:
        """As :meth:`NbdClient.read_ahead`: a disk by its client, another export by a new one."""
        if export.startswith("disk"):
            yield from self.clients[int(export.removeprefix("disk"))].read_ahead(ranges)
            return
        with closing(self.connect(export)) as client:
            yield from client.read_ahead(ranges)
