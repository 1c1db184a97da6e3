"""Nodes whose writes QEMU logs for the shim: so it sees I/O that bypasses its endpoints.

A ``blklogwrites`` node is put above the node in question; what is attached to it (exports, devices)
is seen. Above a replication filter it has to be the filter's ``top-id``.

The log does not show three things: whether a request failed; whether zeroes were written as data or
as zeroes; and in which order requests to different nodes came.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.errors import CommandFailed, HostError, MachineError
from qmpshim.machine.chain.block_graph import LOG_NODE, OWN_NODE
from qmpshim.machine.chain.parts import Export
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.chain.variants import with_options
from qmpshim.machine.host.process import Qemu
from qmpshim.machine.images.write_log import Flag, LogEntry, WriteLog
from qmpshim.model.operations import Verb
from qmpshim.model.units import SECTOR
from qmpshim.shim.endpoint.server import Shim
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply

#: By command, the member that names the node to which something is attached.
ATTACHING_COMMANDS = {
    "block-export-add": "node-name",
    "nbd-server-add": "device",
    "device_add": "drive",
}
_NODE_NAME = re.compile(r"[a-zA-Z][\w.-]{0,30}", re.ASCII)


class NodeLog:
    """The log of one node.

    :ivar node: what is watched
    :ivar name: the node above it, to which writers are to be attached
    """

    def __init__(self, node: str, name: str, path: Path) -> None:
        self.node = node
        self.name = name
        self.path = path
        self._last: LogEntry | None = None

    def new(self) -> Iterator[tuple[Verb, int, int, bytes]]:
        """What was written since: kind, offset and length in bytes, data of a write.

        :raises LogError: QEMU wrote something else there
        :raises HostError: the log cannot be read
        """
        try:
            size = self.path.stat().st_size
            if not size:
                return
            with self.path.open("rb") as file:
                log = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise HostError(f"cannot read the write log {self.path}: {error}") from error
        for entry in WriteLog(log, SECTOR).entries(self._last, live=True):
            # Only the place is remembered: its data would keep the whole map.
            self._last = LogEntry(
                entry.index, entry.sector, 0, entry.flags, memoryview(b""), SECTOR, entry.end
            )
            if entry.flags & Flag.DISCARD:
                yield Verb.DISCARD, entry.offset, entry.length, b""
            elif entry.is_write:
                data = bytes(entry.data)
                kind = Verb.WRITE if any(data) else Verb.ZERO
                yield kind, entry.offset, entry.length, data if any(data) else b""


class WriteLogs:
    """Puts the logs into the graph.

    :param directory: private; the logs go there
    :ivar logs: by the name of the node that was put above
    """

    def __init__(self, shim: Shim, directory: Path) -> None:
        self.logs: dict[str, NodeLog] = {}
        self._watching = False
        self._devices: dict[str, str] = {}  # the node each was attached to, by its path
        self._shim = shim
        self._directory = directory

    def name(self, node: str) -> str:
        """What the node above *node* will be called."""
        name = LOG_NODE + node
        return name if _NODE_NAME.fullmatch(name) else f"{LOG_NODE}{len(self.logs)}"

    async def insert(self, node: str) -> str:
        """Watch *node*; gives the name of the node above it.

        :raises CommandFailed: QEMU cannot
        """
        for log in self.logs.values():
            if node in (log.node, log.name):
                return log.name
        number = len(self.logs)
        log = NodeLog(node, self.name(node), self._directory / f"log-{number}")
        log.path.touch(0o600)
        await self._shim.execute(
            "blockdev-add",
            {
                "driver": "blklogwrites",
                "node-name": log.name,
                "file": node,
                "log": {"driver": "file", "filename": str(log.path), "cache": {"no-flush": True}},
                "log-sector-size": SECTOR,
                "discard": "unmap",
            },
        )
        self.logs[log.name] = log
        await self._keep(node, number)
        return log.name

    async def _keep(self, node: str, number: int) -> None:
        """Export the node itself, too: replication wants a disk with a backend of its own."""
        name = f"{OWN_NODE}keep-{number}"
        with contextlib.suppress(CommandFailed):  # no NBD server yet: then it had none before
            await self._shim.execute(
                "block-export-add", {"type": "nbd", "id": name, "name": name, "node-name": node}
            )

    def watch_writers(self) -> None:
        """From now on put each writable export, and each device, on a log.

        A command that makes something means the node it names; a device that is there already is
        put on a log by :meth:`insert_above_devices`.
        """
        self._watching = True
        for name in ATTACHING_COMMANDS:
            self._shim.intercepts.setdefault(name, self.pass_on)

    async def pass_on(self, command: Command) -> Reply | None:
        """Pass on a client's command; what it attaches to a node, it attaches to a log above."""
        arguments: dict[str, Any] = dict(command.arguments or {})
        member = ATTACHING_COMMANDS.get(command.name)
        node = arguments.get(member) if member else None
        writes = command.name == "device_add" or arguments.get("writable") is True
        if self._watching and member and writes and isinstance(node, str):
            with contextlib.suppress(CommandFailed):  # then QEMU's reply gives the error
                arguments[member] = await self.insert(node)
                other = Command(command.name, arguments, command.id, command.oob)
                reply = await self._shim.forward(other)
                if reply is None or not reply.failed:
                    return reply
        return await self._shim.forward(command)

    async def insert_above_devices(self, node: str) -> None:
        """Put the devices that are attached to *node* itself on a log, where that can be done.

        QEMU changes what a device is attached to since 6.2 (its property ``drive``).

        :raises MachineError: QEMU cannot be queried
        """
        if not self._watching or node.startswith(LOG_NODE):
            return
        for block in await self._shim.execute("query-block"):
            inserted = block.get("inserted", {})
            if inserted.get("node-name") != node or inserted.get("ro") or not block.get("qdev"):
                continue
            path = str(block["qdev"])
            path = path if path.startswith("/") else f"/machine/peripheral/{path}"
            with contextlib.suppress(CommandFailed):  # then it stays unobserved
                await self._attach(path, await self.insert(node))
                self._devices[path] = node

    async def _attach(self, device: str, node: str) -> None:
        arguments = {"path": device, "property": "drive", "value": node}
        await self._shim.execute("qom-set", arguments, limit=5.0)

    async def close(self) -> None:
        """Remove the nodes that are no longer used."""
        for device, node in self._devices.items():
            with contextlib.suppress(MachineError):
                await self._attach(device, node)
        for number, name in enumerate(self.logs):
            with contextlib.suppress(MachineError):
                keep = {"id": f"{OWN_NODE}keep-{number}", "mode": "hard"}
                await self._shim.execute("block-export-del", keep, limit=1.0)
            with contextlib.suppress(MachineError):
                await self._shim.execute("blockdev-del", {"node-name": name}, limit=1.0)
        self.logs.clear()


class LoggedSecondary(SecondaryChain):
    """A chain whose writable exports are on logs."""

    def __init__(
        self,
        logs: WriteLogs,
        qemu: Qemu,
        spec: ChainSpec,
        directory: Path,
        qemu_img: Sequence[str] = ("qemu-img",),
    ) -> None:
        super().__init__(qemu, spec, directory, qemu_img)
        self._logs = logs

    @property
    def topology(self) -> Topology:
        topology = super().topology
        if topology.replication_mode is None:
            return topology
        return with_options(topology, {"top": {"top-id": self._logs.name("top")}})

    async def _export(self, export: Export) -> None:
        node = await self._logs.insert(export.node) if export.writable else export.node
        await super()._export(replace(export, node=node))
