"""A real QEMU whose disks are all on the gate, with the whole chain open and at rest.

The synchronous sister of :class:`~qmpshim.machine.chain.secondary.SecondaryChain`: the same nodes
and exports (``secondary``, ``hidden``, ``active``, ``top``; ``primary``, ``guest``), but each image
is an NBD export of ours, and every call returns only when QEMU is still. Offsets are bytes.

The primary's chain is here, too: ``primary``, its own disk, and ``secondary``, which stands for the
NBD export of the other side, below ``forward`` and ``top``; ``guest`` is its one export.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qmpshim.errors import BuildError, CommandFailed, MachineHung, OptionMissing
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.build import closing, marking, opening, removals
from qmpshim.machine.chain.chains import DISKS
from qmpshim.machine.chain.gated_process import GatedProcess
from qmpshim.machine.chain.images import blank_image
from qmpshim.machine.chain.parts import DirtyBitmap, Export, Node, first_of, on_disk
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.nonblocking import NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.machine.nbd.status_client import StatusClient


@dataclass(frozen=True, slots=True)
class Shape:
    """What to open, with virtual ``size`` of each disk and qcow2 ``cluster`` in bytes.

    :ivar reconnect: seconds that QEMU waits for a broken connection to come back
    :ivar holes: the secondary disk reports where it has holes (NBD's block status)
    :ivar apart: bytes from the beginning of a disk to that of the next one, where their positions
        are counted on; 0: there is one disk
    """

    topology: Topology
    size: int
    cluster: int
    reconnect: int = 0
    holes: bool = True
    apart: int = 0


class GatedMachine(GatedProcess):
    """A QEMU with a chain whose images are on the gate.

    :param build: which QEMU
    :param shape: the chain to build
    :param deadline: of all that is waited for, by time.monotonic()
    :raises BuildError: this QEMU cannot build it
    :raises OutOfBudget: the deadline is over, here and wherever something is waited for
    """

    def __init__(self, build: Build, shape: Shape, deadline: float | None = None) -> None:
        super().__init__(build, deadline)
        self.shape = shape
        self.stores: dict[str, MemoryStore] = {}
        try:
            self._export_images()
            self.gate.serve(self.event_loop, self.workspace.path / "gate")
            self.spawn()
            path = {"path": str(self.workspace.path / "nbd")}
            self.call("nbd-server-start", {"addr": {"type": "unix", "data": path}})
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def topology(self) -> Topology:
        """The chain."""
        return self.shape.topology

    @property
    def images(self) -> tuple[str, ...]:
        """The images on the gate."""
        return self.topology.images

    # -- setting up --------------------------------------------------------------------------------

    def reshape(self, shape: Shape) -> None:
        """Open another chain, over images of its own, in the place of one that was taken apart.

        What raises an error leaves a part of it.

        :raises BuildError: this QEMU cannot build it
        :raises MachineError: QEMU misbehaves
        """
        for name, store in self.stores.items():
            self.gate.remove(name)
            store.close()
        self.stores.clear()
        self.shape = shape
        self._export_images()
        self._open()

    def _export_images(self) -> None:
        for name in self.images:
            raw = name not in self.qcow2_images
            store = MemoryStore(self.shape.size if raw else self.blank(name))
            self.stores[name] = store
            silent = first_of(name) in DISKS and not self.shape.holes
            self.gate.add(name, store, without={NbdCommand.BLOCK_STATUS} if silent else ())

    def _open(self) -> None:
        later = self.topology.backs_up or self.topology.begins_late
        if later and (missing := self._missing(self.topology.commands.values())):
            raise OptionMissing(f"this QEMU has no {missing}")
        try:
            self.build_chain()
        except CommandFailed as error:
            if missing := self._missing(self._opening()):
                raise OptionMissing(f"this QEMU has no {missing}") from error
            raise BuildError(f"{self.build.name} cannot build the chain: {error}") from error

    def _missing(self, commands: Iterable[QmpCommand]) -> str:
        """What this QEMU's schema has not of these commands, in words; ``""``: it has all."""
        found = (self.schema.missing(one.name, one.arguments) for one in commands)
        return next(filter(None, found), "")

    def blank(self, node: str) -> bytes:
        """The bytes of an image that is empty."""
        shape = self.shape
        return blank_image(self.build, self.topology.node(node), shape.size, shape.cluster)

    @property
    def qcow2_images(self) -> tuple[str, ...]:
        """Which of the images are qcow2 and can break: the secondary disk too, if it is one."""
        return self.topology.qcow2

    def build_chain(self) -> None:
        """Open the images as they are now, and connect.

        :raises CommandFailed: QEMU cannot
        """
        self.batch(list(self._opening()))
        for part in self.topology.first:
            if isinstance(part, Export):
                self.connect(part.name)

    def _opening(self) -> Iterator[QmpCommand]:
        """The commands that open the images and export them, before anything begins."""
        for part in self.topology.first:
            yield opening(part, self._storage)
            if isinstance(part, DirtyBitmap):
                yield from marking(part, self.shape.size)

    def _storage(self, node: Node) -> dict[str, Any]:
        """Where QEMU finds an image's bytes."""
        waits = {"reconnect-delay": self.shape.reconnect} if self.shape.reconnect else {}
        return {**self.gate.blockdev(node.name), **waits}

    def do(self, operation: str) -> Any:
        """Run the command that does an operation of this chain, with nothing held.

        :raises CommandFailed: QEMU refuses
        """
        return self.send(self.topology.commands[operation])

    def start(self) -> None:
        """Start what copies, once the chain is open, and make the exports that come after it.

        :raises OptionMissing: this QEMU has no such option
        :raises CommandFailed: QEMU refuses
        """
        if self.topology.begins is None:
            return
        late = [opening(export, self._storage) for export in self.topology.offering]
        begins = [self.topology.begins, *late]
        try:
            for command in begins:
                self.send(command)
        except CommandFailed as error:
            if missing := self._missing(begins):
                raise OptionMissing(f"this QEMU has no {missing}") from error
            raise
        for export in self.topology.offering:
            self.connect(export.name)

    def connect(self, name: str) -> None:
        """Connect to the export *name*, in place of the client that was.

        :raises MachineDied: QEMU does not let us
        """
        if name in self.clients:
            self.clients[name].close()
        self.clients[name] = NonBlockingNbd(self.event_loop, self.workspace.path / "nbd", name)

    def learn_block_status(self) -> None:
        """Have QEMU remember that all of each secondary disk is data.

        Since 6.2 a protocol node keeps the last range that was reported as data, and requests no
        more than is in it. So what was done before decides in how many parts a range is copied.

        :raises MachineError: QEMU does not answer
        """
        for disk in range(self.topology.disks):
            name = on_disk("primary", disk)
            if name not in self.status_clients or self.status_clients[name].lost:
                self.connect_status(name)
            self.status_clients[name].query(self.shape.size)

    def connect_status(self, name: str) -> None:
        """Connect to the export *name* for its block status, beside the client that there is.

        :raises MachineDied: QEMU does not let us
        """
        if name in self.status_clients:
            self.status_clients[name].close()
        self.status_clients[name] = StatusClient(
            self.event_loop,
            self.workspace.path / "nbd",
            name,
            bitmaps=self.topology.export(name).bitmaps,
        )

    def status_client(self, name: str) -> StatusClient:
        """The connection that :meth:`connect_status` made."""
        return self.status_clients[name]

    def tear_down(self) -> None:
        """Take the chain apart again, leaving QEMU with its NBD server.

        Nothing may be running: no job, no replication, nothing held.

        :raises MachineError: QEMU does not let go
        """
        for client in self.clients.values():
            client.close()
        self.clients.clear()
        for status in self.status_clients.values():
            status.close()
        self.status_clients.clear()
        exports, commands = removals(self.topology.parts)
        for export in exports:
            with contextlib.suppress(CommandFailed):  # it was removed by an operation
                self.send(closing(export))
        self._until_gone([export.name for export in exports])
        self.batch(commands)

    def _until_gone(self, exports: Collection[str]) -> None:
        """Wait until none of these exports is there."""
        deadline = time.monotonic() + self.limit
        while any(one["id"] in exports for one in self.call("query-block-exports")):
            if time.monotonic() > deadline:
                raise MachineHung("an export did not go away")

    def flush(self, node: str) -> None:
        """Flush a node: what QEMU knows of its image is in the image then. Nothing may be held.

        The monitor of the storage daemon cannot do it, so there an export of its own does.

        :raises MachineError: QEMU cannot
        """
        if not self.build.is_daemon:
            self.call("human-monitor-command", {"command-line": f"qemu-io {node} flush"})
            return
        export = Export("flushing", node, False)
        self.send(opening(export, self._storage))
        with contextlib.closing(
            NonBlockingNbd(self.event_loop, self.workspace.path / "nbd", export.name)
        ) as client:
            client.call(NbdCommand.FLUSH)
        self.send(closing(export))
        self._until_gone([export.name])

    def close(self) -> None:
        """End everything, at once."""
        super().close()
        for store in self.stores.values():
            store.close()
