"""One side of a COLO pair: a QEMU, its disks, its events and what its guest says."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener

from qmpshim.errors import BuildError, CommandFailed, HostError, MachineHung
from qmpshim.machine.builds.build import Build, Version, read_version
from qmpshim.machine.host.process import Qemu


@dataclass(frozen=True, slots=True)
class PairEvent:
    """A QMP event: which side said it, and when (``time.monotonic()``)."""

    side: str
    name: str
    data: dict[str, Any] = field(hash=False)
    at: float = 0.0


class ColoNode:
    """One QEMU of the pair.

    :param name: ``primary`` or ``secondary``, with a number where there were others before
    :param directory: its own; it exists
    :param machine: QEMU's ``-machine``
    :param limit: seconds any command may take
    """

    def __init__(
        self, name: str, build: Build, directory: Path, machine: str, limit: float
    ) -> None:
        self.name = name
        self.build = build
        self.directory = directory
        self.limit = limit
        self.version: Version = read_version(build)[0]
        self.events: list[PairEvent] = []
        self.qemu = Qemu(build.command(), directory, (), machine, build.env, limit)
        self.given_up = False
        self._listening: asyncio.Task[None] | None = None

    @property
    def disk(self) -> Path:
        """The file of its disk (the primary disk, or the secondary disk)."""
        return self.directory / "disk.raw"

    @property
    def hidden(self) -> Path:
        """The file of the hidden disk."""
        return self.directory / "hidden.qcow2"

    @property
    def active(self) -> Path:
        """The file of the active disk."""
        return self.directory / "active.qcow2"

    @property
    def console(self) -> Path:
        """The file with what the guest said."""
        return self.directory / "console"

    @property
    def log(self) -> Path:
        """The file in which its guest's writes are recorded, where they are."""
        return self.directory / "writes.log"

    def said(self, since: int = 0) -> bytes:
        """What the guest said from byte *since* on."""
        try:
            with self.console.open("rb") as file:
                file.seek(since)
                return file.read()
        except OSError:
            return b""

    def spoken(self) -> int:
        """How many bytes the guest said so far."""
        try:
            return self.console.stat().st_size
        except OSError:
            return 0

    def create(self, image: Path, size: int, cluster: int) -> None:
        """Create an empty qcow2 image.

        :param size: bytes that its guest sees
        :param cluster: bytes
        :raises HostError: it cannot be created
        """
        done = subprocess.run(
            [
                *(*self.build.tool("qemu-img"), "create", "-q", "-f", "qcow2"),
                *("-o", f"cluster_size={cluster}", str(image), str(size)),
            ],
            capture_output=True,
            text=True,
            env=self.build.environment(),
            timeout=60,
        )
        if done.returncode:
            raise HostError(done.stderr.strip() or "qemu-img create failed")

    async def start(self, words: Sequence[str]) -> None:
        """Start QEMU.

        :param words: its options
        :raises BuildError: it does not start, or has no replication driver
        """
        self.qemu.argv += words
        await self.qemu.start()
        listener = EventListener()
        self.qemu.client.register_listener(listener)
        self._listening = asyncio.ensure_future(self._listen(listener))
        commands = await self.qemu.execute("query-commands")
        if not any(command["name"] == "xen-set-replication" for command in commands):
            raise BuildError(
                f"{self.build.name} has no replication driver (xen-set-replication is missing)"
            )

    async def _listen(self, listener: EventListener) -> None:
        while True:
            event = await listener.get()
            data = event.get("data")
            said = data if isinstance(data, dict) else {}
            self.events.append(PairEvent(self.name, str(event["event"]), said, time.monotonic()))

    def heard(self, name: str, since: int = 0) -> list[PairEvent]:
        """The events of one name, from the *since*-th event on."""
        return [event for event in self.events[since:] if event.name == name]

    async def start_server(self, path: Path) -> None:
        """Start its NBD server."""
        await self.qemu.execute(
            "nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}}
        )

    async def export(self, name: str, node: str) -> None:
        """Export a node over NBD, writable."""
        await self.qemu.execute(
            "block-export-add",
            {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": True},
        )

    def kill(self) -> None:
        """SIGKILL it, on purpose."""
        self.given_up = True
        self.qemu.kill()

    async def status(self) -> str:
        """QEMU's run state."""
        return str((await self.qemu.execute("query-status"))["status"])

    async def replication_error(self) -> str | None:
        """What ``query-xen-replication-status`` reports, None for no error."""
        status = await self.qemu.execute("query-xen-replication-status")
        return str(status.get("desc", "")) if status["error"] else None

    async def human(self, line: str) -> None:
        """Run a command of the human monitor.

        :raises CommandFailed: it printed something
        """
        said = str(await self.qemu.execute("human-monitor-command", {"command-line": line}))
        if said.strip():
            raise CommandFailed(line.split()[0], "GenericError", said.strip())

    async def committed(self) -> bool:
        """Whether the filter sits on the secondary disk (``replication_done`` has run)."""
        graph = await self.qemu.execute("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        below = {
            (names[edge["parent"]], edge["name"]): names[edge["child"]] for edge in graph["edges"]
        }
        done = ("filter", "hidden disk") not in below
        return below.get(("filter", "file")) == "secondary" and done

    async def hears(self, name: str, since: int, what: str) -> None:
        """Wait for an event after the *since*-th.

        :raises MachineHung: it did not come within the limit
        """

        async def heard() -> bool:
            return bool(self.heard(name, since))

        await self.until(heard, f"{what} ({name})")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until ``condition()`` holds.

        :param what: what is waited for, for the error
        :raises MachineHung: it did not hold within the limit
        """
        deadline = time.monotonic() + self.limit
        while not await condition():
            if time.monotonic() > deadline:
                raise MachineHung(f"{self.name}: {what} did not end in {self.limit:g} s")
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End QEMU."""
        if self._listening is not None:
            self._listening.cancel()
        await self.qemu.close()
