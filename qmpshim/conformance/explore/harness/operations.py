"""How an operation of a scenario is begun on a real QEMU, and how it was answered."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any

from qmpshim.conformance.explore.harness.history import RunningOperation
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, IOFailed, MachineHung
from qmpshim.machine.chain.build import opening
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import Export, on_disk
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.nbd.protocol.structured_replies import STATE_ZERO
from qmpshim.machine.nbd.protocol.transmission import CMD_FAST_ZERO, CMD_FUA, CMD_NO_HOLE
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.machine.nbd.status_client import StatusAnswer
from qmpshim.model.answers import DISCONNECTED, NO_JOB, OK, Answer, ReportedError, io_error
from qmpshim.model.check.observables import MARKED, NOT_ZEROES, UNMARKED
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import SECTOR

_NBD = {
    Verb.READ: Nbd.READ,
    Verb.WRITE: Nbd.WRITE,
    Verb.WRITE_FUA: Nbd.WRITE,
    Verb.ZERO: Nbd.WRITE_ZEROES,
    Verb.ZERO_NO_HOLE: Nbd.WRITE_ZEROES,
    Verb.ZERO_FAST: Nbd.WRITE_ZEROES,
    Verb.DISCARD: Nbd.TRIM,
    Verb.FLUSH: Nbd.FLUSH,
    Verb.BLOCK_STATUS: Nbd.BLOCK_STATUS,
    Verb.DIRTY_BITMAP: Nbd.BLOCK_STATUS,
}
_FLAGS = {
    Verb.WRITE_FUA: CMD_FUA,
    Verb.ZERO_NO_HOLE: CMD_NO_HOLE,
    Verb.ZERO_FAST: CMD_FAST_ZERO,
}
_EXTENT = Struct(">II")
_DIRTY = 1  # the state of what a dirty bitmap names
_SETUP = 10.0  # seconds for an operation of the setup


def begin(machine: GatedMachine, op: Operation, number: int) -> RunningOperation:
    """Send an operation to QEMU; *number* is under which it writes."""
    if op.is_command:
        return RunningOperation("qmp", machine.qmp.send(*command(machine, op.verb)))
    if op.disconnects:
        machine.clients[_export(machine, op)].close()
        return RunningOperation("vanish", 0)
    data = bytes(pattern.data_of(number, op.start, op.count)) if op.writes else b""
    place = _first(machine, op), op.count * SECTOR
    if offers_late(machine.topology, op):
        offer = opening(_offering(machine, op), lambda node: {})
        return RunningOperation("export", machine.qmp.send(offer.name, offer.arguments))
    if op.queries_status:
        return RunningOperation("status", _query(machine, op))
    name = _export(machine, op)
    key = machine.clients[name].send(_NBD[op.verb], *place, data, _FLAGS.get(op.verb, 0))
    return RunningOperation(name, key)


def _disk(machine: GatedMachine, op: Operation) -> int:
    """On which disk an operation is: the sectors of a second one come after those of the first."""
    apart = machine.shape.apart
    return op.start * SECTOR // apart if apart else 0


def _first(machine: GatedMachine, op: Operation) -> int:
    """The first byte of an operation on its disk."""
    return op.start * SECTOR - _disk(machine, op) * machine.shape.apart


def _export(machine: GatedMachine, op: Operation) -> str:
    """The export to which an operation goes."""
    return on_disk(op.side, _disk(machine, op))


def offers_late(topology: Topology, op: Operation) -> bool:
    """Whether an operation makes the export that offers the bitmap which it reads."""
    return op.verb is Verb.DIRTY_BITMAP and topology.begins_late


def _offering(machine: GatedMachine, op: Operation) -> Export:
    return machine.topology.offering[_disk(machine, op)]


def status_export(machine: GatedMachine, op: Operation) -> str:
    """The export whose block status an operation queries."""
    reads_bitmap = op.verb is Verb.DIRTY_BITMAP
    return _offering(machine, op).name if reads_bitmap else _export(machine, op)


def _query(machine: GatedMachine, op: Operation) -> int:
    """Send the query of an operation."""
    client = machine.status_client(status_export(machine, op))
    return client.send(_NBD[op.verb], _first(machine, op), op.count * SECTOR)


def command(machine: GatedMachine, verb: Verb) -> tuple[str, Mapping[str, Any]]:
    """The QMP command that does *verb* on this chain, with its arguments."""
    found = machine.topology.commands[verb]
    return found.name, found.arguments


def answer(
    machine: GatedMachine, op: Operation, running: RunningOperation
) -> tuple[Answer, tuple[int, ...] | None] | None:
    """How an operation ended, and whose the data is that it read; ``None``: it has not ended.

    One that has an export to make first sends its query when that is there.
    """
    if running.kind == "export":
        if running.key not in machine.qmp.answers:
            return None
        try:
            machine.qmp.take(op.name, running.key)
        except CommandFailed as error:
            return ReportedError(error.desc), None
        machine.connect_status(status_export(machine, op))
        running.kind, running.key = "status", _query(machine, op)
        return None
    if running.kind == "qmp":
        if running.key not in machine.qmp.answers:
            return None
        try:
            value = machine.qmp.take(op.name, running.key)
        except CommandFailed as error:  # some name a node by its place in the workspace
            return ReportedError(error.desc.replace(str(machine.workspace.path), ".")), None
        if op.queries and isinstance(value, dict) and value.get("error"):
            return ReportedError(str(value.get("desc", "error"))), None
        if op.queries and isinstance(value, list):
            return (OK if any(job.get("device") == "backup" for job in value) else NO_JOB), None
        return OK, None
    if running.kind == "vanish":
        return OK, None
    status = running.kind == "status"
    export = status_export(machine, op) if status else running.kind
    client = machine.status_client(export) if status else machine.clients[export]
    found = client.answers.pop(running.key, None)
    if found is None:
        return (DISCONNECTED, None) if client.lost else None
    if found.errno:
        return io_error(found.errno), None
    if isinstance(found, StatusAnswer):
        if op.verb is Verb.DIRTY_BITMAP:
            (extents,) = found.marked.values()
            return OK, tuple(_named(extents, op.count))
        return OK, tuple(_reported(found.data, op.count))
    return OK, tuple(owners(found.data, op.start)) if op.reads else None


def _reported(extents: bytes, count: int) -> list[int]:
    """What a block status reports of *count* sectors; it may be about fewer."""
    known: list[int] = []
    for length, flags in _EXTENT.iter_unpack(extents):
        known += [0 if flags & STATE_ZERO else NOT_ZEROES] * (length // SECTOR)
    return [*known[:count], *[NOT_ZEROES] * (count - len(known))]


def _named(extents: bytes, count: int) -> list[int]:
    """Which of *count* sectors a dirty bitmap names; those of which nothing is reported it does
    not.
    """
    named: list[int] = []
    for length, state in _EXTENT.iter_unpack(extents):
        named += [MARKED if state & _DIRTY else UNMARKED] * (length // SECTOR)
    return [*named[:count], *[UNMARKED] * (count - len(named))]


def do_alone(machine: GatedMachine, op: Operation, number: int) -> None:
    """Do an operation of the setup, from beginning to end.

    :raises CommandFailed, IOFailed: it fails
    :raises MachineHung: it is not answered
    """
    running = begin(machine, op, number)
    if running.kind == "qmp":
        machine.qmp.wait(op.name, running.key)
        machine.qmp.take(op.name, running.key)
        return
    client = machine.clients[running.kind]
    if not machine.event_loop.until(lambda: running.key in client.answers, _SETUP):
        raise MachineHung(f"{op} of the setup was not answered")
    found = client.answers.pop(running.key)
    if found.errno:
        raise IOFailed(f"{op} of the setup", found.errno)
