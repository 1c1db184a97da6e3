"""How an operation of a scenario is begun on a real QEMU, and how it was answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.explore.checkers.sequential import NO_JOB
from qmpshim.conformance.explore.harness.history import RunningOperation
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.conformance.explore.scenarios import COMMANDS, READS, VANISH, words
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, MachineError, MachineHung
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.protocol import CMD_NO_HOLE
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.model.scenario import Op
from qmpshim.model.units import SECTOR

_NBD = {
    "read": Nbd.READ,
    "write": Nbd.WRITE,
    "zero": Nbd.WRITE_ZEROES,
    "zero_no_hole": Nbd.WRITE_ZEROES,
    "discard": Nbd.TRIM,
    "flush": Nbd.FLUSH,
}
_SETUP = 10.0  # seconds for an operation of the setup


def begin(machine: GatedMachine, op: Op, number: int) -> RunningOperation:
    """Send an operation to QEMU; *number* is under which it writes."""
    if op.do in COMMANDS:
        return RunningOperation("qmp", machine.qmp.send(*command(machine, op.do)))
    side, verb = op.do.split("_", 1)
    if op.do in VANISH:
        machine.clients[side].close()
        return RunningOperation("vanish", 0)
    data = bytes(pattern.data_of(number, op.start, op.count)) if verb == "write" else b""
    flags = CMD_NO_HOLE if verb == "zero_no_hole" else 0
    place = op.start * SECTOR, op.count * SECTOR
    key = machine.clients[side].send(_NBD[verb], *place, data, flags)
    return RunningOperation(side, key)


def command(machine: GatedMachine, do: str) -> tuple[str, Mapping[str, Any]]:
    """The QMP command that does *do* on this chain, with its arguments."""
    found = machine.topology.commands[do]
    return found.name, found.arguments


def answer(
    machine: GatedMachine, op: Op, running: RunningOperation
) -> tuple[str, tuple[int, ...] | None] | None:
    """How an operation ended, and whose the data is that it read; ``None``: it has not ended."""
    if running.kind == "qmp":
        if running.key not in machine.qmp.answers:
            return None
        try:
            value = machine.qmp.take(op.do, running.key)
        except CommandFailed as error:  # some name a node by its place in the workspace
            return error.desc.replace(str(machine.workspace.path), "."), None
        if op.do == "status" and isinstance(value, dict) and value.get("error"):
            return str(value.get("desc", "error")), None
        if op.do == "status" and isinstance(value, list):
            return ("ok" if any(job.get("device") == "backup" for job in value) else NO_JOB), None
        return "ok", None
    if running.kind == "vanish":
        return "ok", None
    client = machine.clients[running.kind]
    found = client.answers.pop(running.key, None)
    if found is None:
        return ("gone", None) if client.lost else None
    if found.errno:
        return f"errno {found.errno}", None
    return "ok", tuple(owners(found.data, op.start)) if op.do in READS else None


def do_alone(machine: GatedMachine, op: Op, number: int) -> None:
    """Do an operation of the setup, from beginning to end.

    :raises MachineError: it fails
    """
    running = begin(machine, op, number)
    if running.kind == "qmp":
        machine.qmp.wait(op.do, running.key)
        machine.qmp.take(op.do, running.key)
        return
    client = machine.clients[running.kind]
    if not machine.reactor.until(lambda: running.key in client.answers, _SETUP):
        raise MachineHung(f"{words(op)} of the setup was not answered")
    found = client.answers.pop(running.key)
    if found.errno:
        raise MachineError(f"{words(op)} of the setup failed with errno {found.errno}")
