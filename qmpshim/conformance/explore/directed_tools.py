"""What directed cases are made of: a chain of two clusters, and a way to say what is wrong."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance import pattern
from qmpshim.conformance.explore.judge import RealViolation
from qmpshim.errors import CommandFailed
from qmpshim.machine.gated_chain import GatedMachine
from qmpshim.machine.nbd_proto import Op as Nbd
from qmpshim.model.verdict import Verdict

SIZE, CLUSTER = 256 * 512, 128 * 512
PATIENCE = 1.0  # seconds within which an answered request has to end
START = {"enable": True, "primary": False}
FAILOVER = {"enable": False, "primary": False, "failover": True}


class Broken(Exception):
    """What a case found."""

    def __init__(self, verdict: Verdict, text: str, cause: str) -> None:
        super().__init__(text)
        self.violation = RealViolation(verdict, text, cause=cause)


def fails(machine: GatedMachine, command: str, arguments: dict[str, Any]) -> str:
    """The error that a command must end with."""
    try:
        machine.call(command, arguments)
    except CommandFailed as error:
        return error.desc
    text = f"{command} says success where it cannot have had any"
    raise Broken(Verdict.ERROR_CONTRACT, text, f"{command} fails silently")


def write(machine: GatedMachine, side: str, number: int, start: int, count: int) -> int:
    """Write data of operation *number*; the errno."""
    data = bytes(pattern.data_of(number, start, count))
    return machine.clients[side].call(Nbd.WRITE, start * 512, 0, data).errno


def status(machine: GatedMachine) -> str | None:
    """The error that replication reports."""
    told = machine.call("query-xen-replication-status")
    return str(told.get("desc", "")) if told["error"] else None
