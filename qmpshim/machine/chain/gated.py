"""A real QEMU whose disks are all on the gate, with the whole chain open and at rest.

The synchronous sister of :class:`~qmpshim.machine.chain.secondary.SecondaryChain`: the same nodes
and exports (``secondary``, ``hidden``, ``active``, ``top``; ``primary``, ``guest``), but each image
is an NBD export of ours, and every call returns only when QEMU is still. Offsets are bytes.

The primary's chain is here, too: ``primary``, its own disk, and ``secondary``, which stands for the
NBD export of the other side, below ``forward`` and ``top``; ``guest`` is its one export.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qmpshim.errors import (
    BuildError,
    CommandFailed,
    HostError,
    MachineDied,
    MachineError,
    MachineHung,
    NotStarted,
    OptionMissing,
)
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.qapi import Schema
from qmpshim.machine.chain.build import closing, marking, opening, removals
from qmpshim.machine.chain.chains import PRIMARY_IMAGES
from qmpshim.machine.chain.images import blank_image
from qmpshim.machine.chain.quiescence import Quiescence, resting
from qmpshim.machine.chain.topology import DirtyBitmap, Export, Node, QmpCommand, Topology
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.host.process import bare, exit_reason, how_ended, launch
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.gate.gate import Gate, HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol import NbdCommand
from qmpshim.machine.nbd.status_client import StatusClient
from qmpshim.machine.qmp.nonblocking import NonBlockingNbd, NonBlockingQmp

_LIMIT = 20.0  # seconds for what waits for nothing outside QEMU
_ASLEEP = 10.0  # seconds for which QEMU may have slept already when it is looked at


@dataclass(frozen=True, slots=True)
class Shape:
    """What to open, with virtual ``size`` and qcow2 ``cluster`` in bytes.

    :ivar reconnect: seconds that QEMU waits for a broken connection to come back
    :ivar holes: the secondary disk reports where it has holes (NBD's block status)
    """

    topology: Topology
    size: int
    cluster: int
    reconnect: int = 0
    holes: bool = True


class GatedMachine:
    """One QEMU process, the gate behind it and the clients before it.

    :param build: which QEMU
    :param shape: the chain to build
    :param deadline: of all that is waited for, by time.monotonic()
    :raises BuildError: this QEMU cannot build it
    :raises OutOfBudget: the deadline is over, here and wherever something is waited for
    """

    def __init__(self, build: Build, shape: Shape, deadline: float | None = None) -> None:
        self.build = build
        self.shape = shape
        self.event_loop = ManualEventLoop()
        self.event_loop.deadline = deadline
        self.workspace = Workspace("gate-")
        self.gate = Gate(tracing=True)
        self.stores: dict[str, MemoryStore] = {}
        self.topology = shape.topology
        self.images = self.topology.images
        self.clients: dict[str, NonBlockingNbd] = {}
        self._status: dict[str, StatusClient] = {}  # by export
        self.commands: list[dict[str, Any]] = []  # what was sent to set the chain up
        self.process: subprocess.Popen[bytes] | None = None
        self._closed = False
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # -- setting up --------------------------------------------------------------------------------

    def _open(self) -> None:
        for name in self.images:
            raw = name not in self.overlays
            store = MemoryStore(self.shape.size if raw else self.blank(name))
            self.stores[name] = store
            silent = name in PRIMARY_IMAGES and not self.shape.holes
            self.gate.add(name, store, without={NbdCommand.BLOCK_STATUS} if silent else ())
        self.gate.serve(self.event_loop, self.workspace.path / "gate")
        self._spawn()
        self.call("qmp_capabilities")
        if self.build.is_daemon:
            self.qmp.commands = {one["name"] for one in self.call("query-commands")}
        if self.topology.backs_up and self._lacks(self.topology.commands.values()):
            raise OptionMissing(f"{self.build.name} has not all options of these backup jobs")
        path = {"path": str(self.workspace.path / "nbd")}
        self.call("nbd-server-start", {"addr": {"type": "unix", "data": path}})
        try:
            self.build_chain()
        except CommandFailed as error:
            kind = OptionMissing if self._lacks(self._opening()) else BuildError
            raise kind(f"{self.build.name} cannot build the chain: {error}") from error

    def _lacks(self, commands: Iterable[QmpCommand]) -> bool:
        """Whether this QEMU's schema has not all that is in these commands."""
        return any(self.schema.lacking(one.name, one.arguments) for one in commands)

    @functools.cached_property
    def schema(self) -> Schema:
        """What this QEMU reports about its own commands; queried once, with nothing held."""
        return Schema(self.call("query-qmp-schema"))

    def cluster(self, node: str) -> int:
        """Bytes of a cluster of an image."""
        return self.topology.image(node).cluster or self.shape.cluster

    def blank(self, node: str) -> bytes:
        """The bytes of an image that is empty."""
        shape = self.shape
        return blank_image(self.build, self.topology.node(node), shape.size, shape.cluster)

    def _spawn(self) -> None:
        machine = self.build.no_machine
        argv = bare(self.build.command(), machine)
        try:
            self.process, ours = launch(
                argv, machine, self.workspace.path, self.build.environment()
            )
        except OSError as error:
            raise HostError(f"cannot run {argv[0]}: {error.strerror}") from error
        self.qmp = NonBlockingQmp(self.event_loop, ours)
        if not self.event_loop.until(
            lambda: self.qmp.greeting is not None or self.qmp.over, _LIMIT
        ):
            raise NotStarted(f"{self.build.name} did not greet in {_LIMIT:g} s")
        if self.qmp.wrong is not None:
            raise NotStarted(f"{self.build.name} does not speak QMP: {self.qmp.wrong}")
        if self.qmp.greeting is None:
            reason = exit_reason(self.stderr())
            raise NotStarted(f"{self.build.name} ended at once" + (f": {reason}" if reason else ""))
        self.quiescence = Quiescence(self.process.pid)
        self.event_loop.stalled = self.stalled

    @property
    def overlays(self) -> tuple[str, ...]:
        """Which of the images are qcow2 and can break: the secondary disk too, if it is one."""
        return self.topology.qcow2

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version, from its greeting."""
        assert self.qmp.greeting is not None
        numbers = self.qmp.greeting["QMP"]["version"]["qemu"]
        return numbers["major"], numbers["minor"], numbers["micro"]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def call(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command with nothing held (see :meth:`NonBlockingQmp.call`)."""
        return self.qmp.call(command, arguments, _LIMIT)

    def build_chain(self) -> None:
        """Open the images as they are now, and connect.

        :raises CommandFailed: QEMU cannot
        """
        batch = list(self._opening())
        self.commands = [
            {"execute": command.name, "arguments": command.arguments} for command in batch
        ]
        self.batch(batch)
        for export in self.topology.exports:
            self.connect(export.name)

    def _opening(self) -> Iterator[QmpCommand]:
        """The commands that open the images and export them."""
        for part in self.topology.parts:
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

    def send(self, command: QmpCommand) -> Any:
        """Run a command with nothing held (see :meth:`NonBlockingQmp.call`)."""
        return self.call(command.name, command.arguments)

    def start(self) -> None:
        """Start what copies, once the chain is open.

        :raises OptionMissing: this QEMU has no such option
        :raises CommandFailed: QEMU refuses
        """
        begins = self.topology.begins
        if begins is None:
            return
        try:
            self.send(begins)
        except CommandFailed as error:
            if self._lacks([begins]):
                text = f"{self.build.name} cannot build the chain: {error}"
                raise OptionMissing(text) from error
            raise

    def connect(self, name: str) -> None:
        """Connect to the export *name*, in place of the client that was.

        :raises MachineDied: QEMU does not let us
        """
        if name in self.clients:
            self.clients[name].close()
        self.clients[name] = NonBlockingNbd(self.event_loop, self.workspace.path / "nbd", name)

    def learn_block_status(self) -> None:
        """Have QEMU remember that all of the secondary disk is data.

        Since 6.2 a protocol node keeps the last range that was reported as data, and requests no
        more than is in it. So what was done before decides in how many parts a range is copied.

        :raises MachineError: QEMU does not answer
        """
        if "primary" not in self._status or self._status["primary"].lost:
            self.connect_status("primary")
        self._status["primary"].query(self.shape.size)

    def connect_status(self, name: str) -> None:
        """Connect to the export *name* for its block status, beside the client that there is.

        :raises MachineDied: QEMU does not let us
        """
        if name in self._status:
            self._status[name].close()
        self._status[name] = StatusClient(self.event_loop, self.workspace.path / "nbd", name)

    def status_client(self, name: str) -> StatusClient:
        """The connection that :meth:`connect_status` made."""
        return self._status[name]

    def batch(self, commands: list[QmpCommand]) -> list[Any]:
        """Send several commands at once and wait for all answers.

        :raises CommandFailed: one failed; the later ones were tried nevertheless
        """
        numbers = [(one.name, self.qmp.send(one.name, one.arguments)) for one in commands]
        for command, number in numbers:
            self.qmp.wait(command, number, _LIMIT)
        return [self.qmp.take(command, number) for command, number in numbers]

    def tear_down(self) -> None:
        """Take the chain apart again, leaving QEMU with its NBD server.

        Nothing may be running: no job, no replication, nothing held.

        :raises MachineError: QEMU does not let go
        """
        for client in self.clients.values():
            client.close()
        self.clients.clear()
        for status in self._status.values():
            status.close()
        self._status.clear()
        exports, commands = removals(self.topology.parts)
        for export in exports:
            with contextlib.suppress(CommandFailed):  # it was removed by an operation
                self.send(closing(export))
        self._until_gone([export.name for export in exports])
        self.batch(commands)

    def _until_gone(self, exports: Collection[str]) -> None:
        """Wait until none of these exports is there."""
        deadline = time.monotonic() + _LIMIT
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

    # -- quiescence ------------------------------------------------------------------------------

    def settle(self, limit: float = _LIMIT) -> None:
        """Return when QEMU is still (see :mod:`qmpshim.machine.chain.quiescence`).

        :raises MachineDied: it ended
        :raises MachineHung: it is busy all the time
        :raises ProtocolBroken: what its monitor sends is not QMP
        """
        poll, asleep, stopped = (
            self.event_loop.poll,
            self.quiescence.asleep,
            self.quiescence.stopped,
        )
        if not self.quiescence.known:
            return self._settle_by_queries(limit)
        deadline = 0.0
        while True:
            # What has come already is handled first: a look at the threads costs ten times as much.
            while poll(0.0):
                pass
            calm = asleep()
            if poll(0.0):
                continue
            if self.qmp.over:
                raise self.monitor_error()
            if calm:
                return
            # Let QEMU have the processor; what it sends wakes us.
            poll(0.0002)
            now = time.monotonic()
            if not deadline:
                deadline = now + limit
            elif stopped():
                raise MachineHung("QEMU was stopped by a signal")
            elif now > deadline:
                raise MachineHung(f"QEMU is busy for {limit:g} s with nothing to do")

    def stalled(self, seconds: float, beside: Collection[HeldIO] = ()) -> bool:
        """Whether nothing comes from QEMU within so many *seconds* by itself.

        It is asleep, none of its requests is unanswered, and no timer of it fires before; or it
        was stopped.

        :param beside: requests that may be held nevertheless: whether anything comes without them
        """
        quiescence = self.quiescence
        if self._holds_more_than(beside):
            return False
        if quiescence.stopped():
            return True
        asleep = not quiescence.known or quiescence.asleep()
        if not asleep or self.event_loop.poll(0.0) or self._holds_more_than(beside):
            return False
        timer = quiescence.timer() if quiescence.known else resting(self.pid)
        if not quiescence.known and self.event_loop.poll(0.0):
            return False
        return timer > seconds + _ASLEEP

    def _holds_more_than(self, some: Collection[HeldIO]) -> bool:
        return any(io not in some for io in self.gate.held)

    def _settle_by_queries(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        quiet = 0
        while quiet < 2:
            before = self._signs()
            number = self.qmp.send("query-name")
            until = time.monotonic() + 0.1  # a blocked monitor does not answer: the settle time
            while number not in self.qmp.answers and time.monotonic() < until:
                self.event_loop.poll(0.02)
                if self.qmp.over:
                    raise self.monitor_error()
            self.qmp.answers.pop(number, None)
            quiet = quiet + 1 if self._signs() == before else 0
            if time.monotonic() > deadline:
                raise MachineHung(f"QEMU is busy for {limit:g} s with nothing to do")

    def _signs(self) -> tuple[int, ...]:
        """What changes when QEMU does something that we can see."""
        clients = (len(client.answers) for client in self.clients.values())
        return self.gate.clock, len(self.qmp.events), *clients

    # -- how it ends -------------------------------------------------------------------------------

    def stderr(self) -> str:
        """What QEMU wrote to stderr so far."""
        try:
            return (self.workspace.path / "stderr").read_text(errors="replace")
        except OSError:
            return ""

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process is not None and self.process.poll() is None

    def monitor_error(self) -> MachineError:
        """The error to raise when QEMU's monitor is over: it sent no QMP, or ended."""
        return self.qmp.wrong or self.exit_error()

    def exit_error(self) -> MachineDied:
        """The error to raise when QEMU has ended; its text has the failed assertion, if any."""
        assert self.process is not None
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            return MachineDied("QEMU closed its monitor but still runs")
        how = how_ended(code)
        reason = exit_reason(self.stderr())
        return MachineDied(f"QEMU {how}" + (f": {reason}" if reason else ""), how, reason)

    def root_error(self, error: MachineError) -> MachineError:
        """What *error* comes from: a broken connection may be the first sign of QEMU's exit."""
        if self.alive() and not isinstance(error, MachineDied):
            return error
        exited = self.exit_error()
        if self.alive() and not self.qmp.lost:
            return MachineError(str(error))
        return exited

    def quit(self) -> None:
        """Let QEMU end in its own way, which is a test of it, too.

        :raises MachineDied: it crashed at the end
        :raises MachineHung: it did not end
        """
        assert self.process is not None
        for client in (*self.clients.values(), *self._status.values()):
            client.close()
        self.qmp.send("quit")
        deadline = time.monotonic() + _LIMIT
        while self.process.poll() is None:
            self.event_loop.poll(0.01)
            if time.monotonic() > deadline:
                raise MachineHung("QEMU does not quit")
        if self.process.returncode:
            raise self.exit_error()

    def close(self) -> None:
        """End everything, at once."""
        if self._closed:
            return
        self._closed = True
        self.event_loop.deadline = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for client in (*self.clients.values(), *self._status.values()):
            client.close()
        if hasattr(self, "qmp"):
            self.qmp.close()
        if hasattr(self, "quiescence"):
            self.quiescence.close()
        self.gate.close()
        for store in self.stores.values():
            store.close()
        self.event_loop.close()
        self.workspace.close()
