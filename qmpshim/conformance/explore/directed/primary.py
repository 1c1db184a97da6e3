"""Directed cases about the primary's replication filter: when it forwards, and what it reports."""

from __future__ import annotations

from errno import EIO

from qmpshim.conformance.explore.directed.machine import START, Broken, CaseMachine, content, io_of
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_COUNT = 8  # sectors of a write


def forwards_while_running(machine: CaseMachine) -> None:
    """Guest writes are forwarded from start to stop, and done on the primary's disk always. The
    filter is started once, on its own side.
    """
    if machine.status() is None:
        text = "replication was not started, and its status has no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "status before the start")
    commands = machine.topology.commands
    machine.fails("xen-set-replication", START)
    machine.fails("xen-set-replication", dict(commands["stop"].arguments))
    _written(machine, 2, forwarded=1)
    machine.start()
    machine.fails("xen-set-replication", dict(commands["start"].arguments))
    _written(machine, 3, forwarded=3)
    machine.do("checkpoint")
    _no_error(machine, "after a checkpoint")
    _written(machine, 4, forwarded=4)
    machine.do("stop")
    _no_error(machine, "after stop")
    _written(machine, 5, forwarded=4)


def stays_stopped(machine: CaseMachine) -> None:
    """A filter that was stopped stays so, whatever command follows: stop, checkpoint, failover do
    nothing (``replication_stop``, block/replication.c).
    """
    machine.start()
    _written(machine, 4, forwarded=4)
    for command in ("stop", "stop", "checkpoint", "failover"):
        machine.do(command)
        _no_error(machine, f"after {command}")
        _written(machine, 5, forwarded=4)


def forwards_zeroes(machine: CaseMachine) -> None:
    """Zeroes of the guest are zeroes on both disks. Failover ends forwarding as stop does."""
    machine.start()
    answer = machine.io("guest", Nbd.WRITE_ZEROES, 0, _COUNT)
    if answer.errno or any(_there(machine, "primary") + _there(machine, "secondary")):
        text = f"zeroes of the guest (errno {answer.errno}) are not on both disks"
        raise Broken(Verdict.LOST_WRITE, text, "forwarded zeroes")
    machine.do("failover")
    machine.io("guest", Nbd.WRITE, 0, _COUNT)
    if any(_there(machine, "secondary")):
        text = "a guest write after failover is forwarded"
        raise Broken(Verdict.CONTENT, text, "forwarded after failover")


def forward_fails(machine: CaseMachine) -> None:
    """Forwarding fails (2. of the seven failures): the guest's write is done, and the status has
    the error until replication stops, whatever is forwarded after it.
    """
    machine.start()
    cookie = machine.begun("guest", io_of("secondary", Nbd.WRITE), Nbd.WRITE, 0, _COUNT)
    (forwarded,) = machine.caught("a guest write", 1)
    machine.gate.fail(forwarded, EIO)
    machine.succeeds("guest", cookie, "failed forwarding fails the guest's write")
    _has_error(machine, "after a write that could not be forwarded")
    _written(machine, 3, forwarded=3)
    machine.do("checkpoint")
    _has_error(machine, "after a checkpoint that follows it")
    machine.do("stop")
    _no_error(machine, "after stop, which forgets it")


def filter_is_not_read(machine: CaseMachine) -> None:
    """The filter is there to forward writes: a read of it fails before, while and after it runs."""
    machine.add_export("forward")
    machine.connect("forward")
    for command, when in ((None, "before the start"), ("start", "running"), ("stop", "stopped")):
        if command is not None:
            machine.do(command)
        errno = machine.io("forward", Nbd.READ, 0, 1).errno
        if errno != EIO:
            text = f"a read of the primary's replication filter answers with errno {errno}, not EIO"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"filter read, {when}")


def _there(machine: CaseMachine, image: str) -> bytes:
    return bytes(machine.gate.store(image).read(0, _COUNT * SECTOR))


def _written(machine: CaseMachine, number: int, forwarded: int) -> None:
    """The guest writes; the secondary disk then has the data of operation *forwarded*."""
    machine.written("guest", number, 0, _COUNT)
    if _there(machine, "primary") != content(number, 0, _COUNT):
        text = "a guest write was answered, and is not on the primary's disk"
        raise Broken(Verdict.LOST_WRITE, text, "guest write on the primary's disk")
    if _there(machine, "secondary") != content(forwarded, 0, _COUNT):
        text = "the secondary disk has not what was forwarded while replication ran, and only that"
        raise Broken(Verdict.CONTENT, text, f"forwarded write {forwarded} of {number}")


def _no_error(machine: CaseMachine, when: str) -> None:
    if error := machine.status():
        text = f"{when} the status has an error, though all disks are well: {error}"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"status {when}")


def _has_error(machine: CaseMachine, when: str) -> None:
    if machine.status() is None:
        text = f"{when} the status has no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"no error in the status {when}")
