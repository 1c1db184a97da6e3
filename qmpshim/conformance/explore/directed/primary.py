"""Directed cases about the primary's replication filter: when it forwards, and what it reports."""

from __future__ import annotations

from errno import EIO

from qmpshim.conformance.explore.directed.tools import (
    START,
    Broken,
    answered,
    begun,
    fails,
    held,
    status,
    written,
)
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_COUNT = 8  # sectors of a write


def forwards_while_running(machine: GatedMachine) -> None:
    """Guest writes are forwarded from start to stop, and done on the primary's disk always. The
    filter is started once, on its own side.
    """
    if status(machine) is None:
        text = "replication was not started, and its status has no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "status before the start")
    commands = machine.topology.commands
    fails(machine, "xen-set-replication", START)
    fails(machine, "xen-set-replication", dict(commands["stop"].arguments))
    _written(machine, 2, forwarded=1)
    machine.start()
    fails(machine, "xen-set-replication", dict(commands["start"].arguments))
    _written(machine, 3, forwarded=3)
    machine.do("checkpoint")
    _no_error(machine, "after a checkpoint")
    _written(machine, 4, forwarded=4)
    machine.do("stop")
    _no_error(machine, "after stop")
    _written(machine, 5, forwarded=4)


def stays_stopped(machine: GatedMachine) -> None:
    """A filter that was stopped stays so, whatever command follows: stop, checkpoint, failover do
    nothing (``replication_stop``, block/replication.c).
    """
    machine.start()
    _written(machine, 4, forwarded=4)
    for command in ("stop", "stop", "checkpoint", "failover"):
        machine.do(command)
        _no_error(machine, f"after {command}")
        _written(machine, 5, forwarded=4)


def forwards_zeroes(machine: GatedMachine) -> None:
    """Zeroes of the guest are zeroes on both disks. Failover ends forwarding as stop does."""
    machine.start()
    answer = machine.clients["guest"].call(Nbd.WRITE_ZEROES, 0, _COUNT * SECTOR)
    if answer.errno or any(_there(machine, "primary") + _there(machine, "secondary")):
        text = f"zeroes of the guest (errno {answer.errno}) are not on both disks"
        raise Broken(Verdict.LOST_WRITE, text, "forwarded zeroes")
    machine.do("failover")
    machine.clients["guest"].call(Nbd.WRITE, 0, 0, bytes(pattern.data_of(2, 0, _COUNT)))
    if any(_there(machine, "secondary")):
        text = "a guest write after failover is forwarded"
        raise Broken(Verdict.CONTENT, text, "forwarded after failover")


def forward_fails(machine: GatedMachine) -> None:
    """Forwarding fails (2. of the seven failures): the guest's write is done, and the status has
    the error until replication stops, whatever is forwarded after it.
    """
    machine.start()
    cookie = begun(
        *(machine, "guest", _COUNT), lambda io: io.image == "secondary" and io.op is Nbd.WRITE
    )
    (forwarded,) = held(machine, "a guest write", 1)
    machine.gate.open()
    machine.gate.fail(forwarded, EIO)
    if errno := answered(machine, "guest", cookie, "a guest write that could not be forwarded"):
        text = f"a guest write that could not be forwarded fails with errno {errno}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "failed forwarding fails the guest's write")
    _has_error(machine, "after a write that could not be forwarded")
    _written(machine, 3, forwarded=3)
    machine.do("checkpoint")
    _has_error(machine, "after a checkpoint that follows it")
    machine.do("stop")
    _no_error(machine, "after stop, which forgets it")


def filter_is_not_read(machine: GatedMachine) -> None:
    """The filter is there to forward writes: a read of it fails before, while and after it runs."""
    name = {"id": "forward", "name": "forward", "node-name": "forward"}
    machine.call("block-export-add", {"type": "nbd", **name})
    machine.connect("forward")
    for command, when in ((None, "before the start"), ("start", "running"), ("stop", "stopped")):
        if command is not None:
            machine.do(command)
        errno = machine.clients["forward"].call(Nbd.READ, 0, SECTOR).errno
        if errno != EIO:
            text = f"a read of the primary's replication filter answers with errno {errno}, not EIO"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"filter read, {when}")


def _there(machine: GatedMachine, image: str) -> bytes:
    return bytes(machine.gate.store(image).read(0, _COUNT * SECTOR))


def _written(machine: GatedMachine, number: int, forwarded: int) -> None:
    """The guest writes; the secondary disk then has the data of operation *forwarded*."""
    written(machine, "guest", number, 0, _COUNT)
    if _there(machine, "primary") != bytes(pattern.data_of(number, 0, _COUNT)):
        text = "a guest write was answered, and is not on the primary's disk"
        raise Broken(Verdict.LOST_WRITE, text, "guest write on the primary's disk")
    if _there(machine, "secondary") != bytes(pattern.data_of(forwarded, 0, _COUNT)):
        text = "the secondary disk has not what was forwarded while replication ran, and only that"
        raise Broken(Verdict.CONTENT, text, f"forwarded write {forwarded} of {number}")


def _no_error(machine: GatedMachine, when: str) -> None:
    if error := status(machine):
        text = f"{when} the status has an error, though all disks are well: {error}"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"status {when}")


def _has_error(machine: GatedMachine, when: str) -> None:
    if status(machine) is None:
        text = f"{when} the status has no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"no error in the status {when}")
