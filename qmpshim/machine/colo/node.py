"""One side of a COLO pair: a QEMU, its disks, its events and its guest's output."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener

from qmpshim.errors import BuildError, CommandFailed
from qmpshim.machine.builds.build import Build, Version, read_version
from qmpshim.machine.chain.build import drive, opening
from qmpshim.machine.chain.images import FileImages
from qmpshim.machine.chain.parts import Export, Node
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.replication import has_replication, replication_error
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.host.process import Qemu, wait_until


@dataclass(frozen=True, slots=True)
class PairEvent:
    """A QMP event."""

    name: str
    data: dict[str, Any] = field(hash=False)


class ColoNode:
    """One QEMU of the pair.

    :param name: ``primary`` or ``secondary``, with a number where there were others before
    :param topology: its chain
    :param images: the files of that, in a directory of its own, which exists
    :param machine: QEMU's ``-machine``
    :param limit: seconds any command may take
    """

    def __init__(
        self,
        name: str,
        build: Build,
        topology: Topology,
        images: FileImages,
        machine: str,
        limit: float,
    ) -> None:
        self.name = name
        self.build = build
        self.topology = topology
        self.images = images
        self.directory = directory = images.directory
        self.limit = limit
        self.version: Version = read_version(build)[0]
        self.events: list[PairEvent] = []
        self.qemu = Qemu(build.emulator_command(), directory, (), machine, build.env, limit)
        self.given_up = False
        self._listening: asyncio.Task[None] | None = None

    def image(self, node: str) -> Path:
        """The file of a node's image, or of its log."""
        return self.images.path(self.topology.node(node))

    @property
    def disk(self) -> Path:
        """The file of its disk (the primary disk, or the secondary disk)."""
        return self.image(self.topology.images[0])

    @property
    def console(self) -> Path:
        """The file with the guest's output."""
        return self.directory / "console"

    def output(self, since: int = 0) -> bytes:
        """The guest's output from byte *since* on."""
        try:
            with self.console.open("rb") as file:
                file.seek(since)
                return file.read()
        except OSError:
            return b""

    def output_size(self) -> int:
        """How many bytes the guest has output so far."""
        try:
            return self.console.stat().st_size
        except OSError:
            return 0

    async def start(self, words: Sequence[str], address: Path) -> None:
        """Make the images, start QEMU with the chain open, and make its exports.

        :param words: more options of QEMU's
        :param address: the socket of its NBD server
        :raises BuildError: it does not start, or has no replication driver
        :raises HostError: an image cannot be made
        """
        for node in self.topology.nodes:
            if node.image is not None or node.log:
                self.images.create(node)
        for part in self.topology.parts:
            if isinstance(part, Node):
                self.qemu.argv += ["-drive", drive(part, self.images.storage)]
        self.qemu.argv += words
        await self.qemu.start()
        listener = EventListener()
        self.qemu.client.register_listener(listener)
        self._listening = asyncio.ensure_future(self._listen(listener))
        if not await has_replication(self.qemu.execute):
            raise BuildError(
                f"{self.build.name} has no replication driver (xen-set-replication is missing)"
            )
        if self.topology.exports:
            await self.serve(address, self.topology.exports)

    async def serve(self, address: Path, exports: Iterable[Export]) -> None:
        """Start its NBD server on a socket, and make exports."""
        await self.qemu.start_nbd_server(address)
        for export in exports:
            await self.send(opening(export, self.images.storage))

    async def send(self, command: QmpCommand) -> Any:
        """Run a command.

        :raises CommandFailed: QEMU refuses
        """
        return await self.qemu.execute(command.name, command.arguments)

    async def _listen(self, listener: EventListener) -> None:
        while True:
            event = await listener.get()
            data = event.get("data")
            members = data if isinstance(data, dict) else {}
            self.events.append(PairEvent(str(event["event"]), members))

    def events_of(self, name: str, since: int = 0) -> list[PairEvent]:
        """The events of one name, from the *since*-th event on."""
        return [event for event in self.events[since:] if event.name == name]

    def kill(self) -> None:
        """SIGKILL it, on purpose."""
        self.given_up = True
        self.qemu.kill()

    async def status(self) -> str:
        """QEMU's run state."""
        return str((await self.qemu.execute("query-status"))["status"])

    async def replication_error(self) -> str | None:
        """The text that ``query-xen-replication-status`` reports; None for no error."""
        return await replication_error(self.qemu.execute)

    async def human(self, line: str) -> None:
        """Run a command of the human monitor.

        :raises CommandFailed: it printed something
        """
        output = str(await self.qemu.execute("human-monitor-command", {"command-line": line}))
        if output.strip():
            raise CommandFailed(line.split()[0], "", output.strip())

    async def until_event(self, name: str, since: int, what: str) -> None:
        """Wait for an event after the *since*-th.

        :raises MachineHung: it did not come within the limit
        """

        async def came() -> bool:
            return bool(self.events_of(name, since))

        await self.until(came, f"{what} ({name})")

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until ``condition()`` holds.

        :param what: what is waited for, for the error
        :raises MachineHung: it did not hold within the limit
        """
        await wait_until(condition, f"{self.name}: {what} did not end", self.limit)

    async def close(self) -> None:
        """End QEMU."""
        if self._listening is not None:
            self._listening.cancel()
        await self.qemu.close()
