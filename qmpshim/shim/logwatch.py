"""Nodes whose writes QEMU logs for the shim: so it sees I/O that goes past its endpoints.

A ``blklogwrites`` node is put above the node in question; what is attached to it (exports, devices)
is seen. Above a replication filter it has to be the filter's ``top-id``.

The log cannot say three things: whether a request failed; whether zeroes were written as data or as
zeroes; and in which order requests to different nodes came.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qmpshim.conformance.workload import Kind
from qmpshim.errors import CommandFailed, HostError, MachineError
from qmpshim.machine.blklog import BlkLog, Entry, Flag
from qmpshim.machine.process import Qemu
from qmpshim.machine.secondary import SECTOR, ChainSpec, SecondaryChain
from qmpshim.shim.endpoints import OWN_NODE
from qmpshim.shim.server import Shim
from qmpshim.shim.session import Command
from qmpshim.shim.upstream import Reply

LOG_NODE = f"{OWN_NODE}log-"
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
        self._last: Entry | None = None

    def new(self) -> Iterator[tuple[Kind, int, int, bytes]]:
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
        for entry in BlkLog(log, SECTOR).entries(self._last, live=True):
            # Only the place is remembered: its data would keep the whole map.
            self._last = Entry(
                entry.index, entry.sector, 0, entry.flags, memoryview(b""), SECTOR, entry.end
            )
            if entry.flags & Flag.DISCARD:
                yield Kind.DISCARD, entry.offset, entry.length, b""
            elif entry.is_write:
                data = bytes(entry.data)
                kind = Kind.WRITE if any(data) else Kind.ZERO
                yield kind, entry.offset, entry.length, data if any(data) else b""


class LogWatch:
    """Puts the logs into the graph.

    :param directory: private; the logs go there
    :ivar logs: by the name of the node that was put above
    """

    def __init__(self, shim: Shim, directory: Path) -> None:
        self.logs: dict[str, NodeLog] = {}
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

    def watch_exports(self) -> None:
        """From now on put each writable export on a log, whatever node its maker names."""
        self._shim.intercepts["block-export-add"] = self._export
        self._shim.intercepts["nbd-server-add"] = self._export

    async def _export(self, command: Command) -> Reply | None:
        arguments: dict[str, Any] = dict(command.arguments or {})
        member = "device" if command.name == "nbd-server-add" else "node-name"
        if arguments.get("writable") is True and isinstance(node := arguments.get(member), str):
            with contextlib.suppress(CommandFailed):  # then QEMU says what is wrong with it
                arguments[member] = await self.insert(node)
        return await self._shim.ask(Command(command.name, arguments, command.id, command.oob))

    async def close(self) -> None:
        """Take out what nobody uses any more."""
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
        logs: LogWatch,
        qemu: Qemu,
        spec: ChainSpec,
        directory: Path,
        qemu_img: Sequence[str] = ("qemu-img",),
    ) -> None:
        super().__init__(qemu, spec, directory, qemu_img)
        self._logs = logs

    @property
    def top_id(self) -> str:
        return self._logs.name("top")

    async def _export(self, name: str, node: str, writable: bool) -> None:
        await super()._export(name, await self._logs.insert(node) if writable else node, writable)
