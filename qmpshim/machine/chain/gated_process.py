"""A real QEMU whose storage is on the gate, held still: the process, its monitor, its clients.

Every call returns when it is answered, and :meth:`GatedProcess.settle` when nothing in QEMU moves
any more: what it does next is then the caller's to decide, by the gate and the clients.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Collection, Mapping
from typing import Any

from qmpshim.errors import (
    Exit,
    HostError,
    MachineDied,
    MachineError,
    MachineHung,
    NotStarted,
    os_errors,
)
from qmpshim.machine.builds.build import Build
from qmpshim.machine.builds.qapi import Schema
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.quiescence import Quiescence, resting
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.host.process import bare, died, exit_reason, launch, stderr_of
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.nonblocking import NonBlockingNbd
from qmpshim.machine.nbd.status_client import StatusClient
from qmpshim.machine.qmp.nonblocking import NonBlockingQmp
from qmpshim.model.chain.behaviour import Features, features_of

_SCHEMAS: dict[tuple[Build, str], Schema] = {}  # by build and greeting
_ASLEEP = 10.0  # seconds for which QEMU may have slept already when it is looked at


class GatedProcess:
    """One QEMU process, the gate behind it and the clients before it.

    :param build: which QEMU
    :param deadline: of all that is waited for, by time.monotonic()
    :ivar clients: what is connected to an export, by its name
    :ivar limit: seconds for what waits for nothing outside QEMU
    """

    limit = 20.0

    def __init__(self, build: Build, deadline: float | None = None) -> None:
        self.build = build
        self.event_loop = ManualEventLoop()
        self.event_loop.deadline = deadline
        self.workspace = Workspace("gate-")
        self.gate = Gate(tracing=True)
        self.clients: dict[str, NonBlockingNbd] = {}
        self.status_clients: dict[str, StatusClient] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def spawn(self) -> None:
        """Start QEMU and open its monitor.

        :raises NotStarted: it does not greet
        """
        machine = self.build.no_machine
        argv = bare(self.build.command(), machine)
        with os_errors(HostError, f"cannot run {argv[0]}"):
            self.process, ours = launch(
                argv, machine, self.workspace.path, self.build.environment()
            )
        self.qmp = NonBlockingQmp(self.event_loop, ours)
        if not self.event_loop.until(
            lambda: self.qmp.greeting is not None or self.qmp.over, self.limit
        ):
            raise NotStarted(f"{self.build.name} did not greet in {self.limit:g} s")
        if self.qmp.wrong is not None:
            raise NotStarted(f"{self.build.name} does not speak QMP: {self.qmp.wrong}")
        if self.qmp.greeting is None:
            reason = exit_reason(self.stderr())
            raise NotStarted(f"{self.build.name} ended at once" + (f": {reason}" if reason else ""))
        self.quiescence = Quiescence(self.process.pid)
        self.event_loop.stalled = self.stalled
        self.call("qmp_capabilities")
        if self.build.is_daemon:
            self.qmp.commands = {one["name"] for one in self.call("query-commands")}

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version, from its greeting."""
        assert self.qmp.greeting is not None
        numbers = self.qmp.greeting["QMP"]["version"]["qemu"]
        return numbers["major"], numbers["minor"], numbers["micro"]

    @property
    def features(self) -> Features:
        """What it has and does, by its version."""
        return features_of(self.version)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def call(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command with nothing held (see :meth:`NonBlockingQmp.call`)."""
        return self.qmp.call(command, arguments, self.limit)

    @property
    def schema(self) -> Schema:
        """What this QEMU reports about its own commands.

        Queried once, with nothing held; not again by another process of a build whose greeting is
        the same: it takes a tenth of a scenario's time.
        """
        which = self.build, json.dumps(self.qmp.greeting)
        if which not in _SCHEMAS:
            _SCHEMAS[which] = Schema(self.call("query-qmp-schema"))
        return _SCHEMAS[which]

    def send(self, command: QmpCommand) -> Any:
        """Run a command with nothing held (see :meth:`NonBlockingQmp.call`)."""
        return self.call(command.name, command.arguments)

    def batch(self, commands: list[QmpCommand]) -> list[Any]:
        """Send several commands at once and wait for all answers.

        :raises CommandFailed: one failed; the later ones were tried nevertheless
        """
        numbers = [(one.name, self.qmp.send(one.name, one.arguments)) for one in commands]
        for command, number in numbers:
            self.qmp.wait(command, number, self.limit)
        return [self.qmp.take(command, number) for command, number in numbers]

    # -- quiescence ------------------------------------------------------------------------------

    def settle(self) -> None:
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
            return self._settle_by_queries()
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
                deadline = now + self.limit
            elif stopped():
                raise MachineHung("QEMU was stopped by a signal")
            elif now > deadline:
                raise MachineHung(f"QEMU is busy for {self.limit:g} s with nothing to do")

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

    def _settle_by_queries(self) -> None:
        deadline = time.monotonic() + self.limit
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
                raise MachineHung(f"QEMU is busy for {self.limit:g} s with nothing to do")

    def _signs(self) -> tuple[int, ...]:
        """What changes when QEMU does something that we can see."""
        clients = (len(client.answers) for client in self.clients.values())
        return self.gate.clock, len(self.qmp.events), *clients

    # -- how it ends -------------------------------------------------------------------------------

    def stderr(self) -> str:
        """What QEMU wrote to stderr so far."""
        return stderr_of(self.workspace.path)

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
        return died(Exit(code), self.stderr())

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
        for client in (*self.clients.values(), *self.status_clients.values()):
            client.close()
        self.qmp.send("quit")
        deadline = time.monotonic() + self.limit
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
        for client in (*self.clients.values(), *self.status_clients.values()):
            client.close()
        if hasattr(self, "qmp"):
            self.qmp.close()
        if hasattr(self, "quiescence"):
            self.quiescence.close()
        self.gate.close()
        self.event_loop.close()
        self.workspace.close()
