"""The directed cases about the primary's replication filter see what they look at."""

from __future__ import annotations

from collections.abc import Mapping
from errno import EIO
from typing import Any

from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, sees
from vmtests.support.mutants.clients import client_with
from vmtests.support.mutants.disks import nothing_held, succeeding
from vmtests.support.mutants.qmp import answering, asking, started

ERROR_CONTRACT = Verdict.ERROR_CONTRACT
_STATUS = "query-xen-replication-status"


def forgotten(image: str) -> Mutant:
    """What is written to an image is answered, and forgotten."""

    def mutant(machine: GatedMachine) -> None:
        store = machine.stores[image]
        store.write = lambda *what: None  # type: ignore[method-assign]
        store.zero = lambda *what, **how: None  # type: ignore[method-assign]

    return mutant


def not_stopped(machine: GatedMachine) -> None:
    """Replication that runs is not stopped, neither by failover."""
    call, runs = machine.call, False

    def other(name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        nonlocal runs
        stops = (arguments or {}).get("enable") is False
        if stops and runs:
            return {}
        value = call(name, arguments)
        runs = runs or (arguments or {}).get("enable") is True
        return value

    machine.call = other  # type: ignore[method-assign, assignment]


def failing_both(machine: GatedMachine) -> None:
    """The guest's write fails with what is forwarded of it."""
    fail, client = machine.gate.fail, machine.clients["guest"]

    def other(io: HeldIO, errno: int) -> None:
        fail(io, errno)
        machine.settle()
        client.answers.update(dict.fromkeys(client.answers, NbdAnswer(errno)))

    machine.gate.fail = other  # type: ignore[method-assign]


def with_error(status: dict[str, Any]) -> dict[str, Any]:
    """The status has an error."""
    return {"error": True, "desc": "I/O error occurred"}


def without_error(status: dict[str, Any]) -> dict[str, Any]:
    """The status has no error."""
    return {"error": False}


test_a_case_sees = sees(
    ("primary-forwards", started, ERROR_CONTRACT, "status before the start"),
    ("primary-forwards", asking("xen-set-replication"), ERROR_CONTRACT,
     "xen-set-replication fails silently"),
    ("primary-forwards", answering(_STATUS, with_error), ERROR_CONTRACT,
     "status after a checkpoint"),
    ("primary-forwards", forgotten("primary"), Verdict.LOST_WRITE,
     "guest write on the primary's disk"),
    ("primary-forwards", forgotten("secondary"), Verdict.CONTENT, "forwarded write 3 of 3"),
    ("primary-forwards", not_stopped, Verdict.CONTENT, "forwarded write 4 of 5"),
    ("primary-stays-stopped", not_stopped, Verdict.CONTENT, "forwarded write 4 of 5"),
    ("primary-stays-stopped", answering(_STATUS, with_error), ERROR_CONTRACT,
     "status after stop"),
    *(("primary-forwards-zeroes", forgotten(image), Verdict.LOST_WRITE, "forwarded zeroes")
      for image in ("primary", "secondary")),
    ("primary-forwards-zeroes", not_stopped, Verdict.CONTENT, "forwarded after failover"),
    ("primary-forward-fails", nothing_held, Verdict.ORDER, "a guest write: other I/O"),
    ("primary-forward-fails", failing_both, ERROR_CONTRACT,
     "failed forwarding fails the guest's write"),
    ("primary-forward-fails", succeeding, ERROR_CONTRACT,
     "no error in the status after a write"),
    ("primary-forward-fails", answering(_STATUS, without_error), ERROR_CONTRACT,
     "no error in the status after a write"),
    ("primary-forward-fails", answering(_STATUS, with_error), ERROR_CONTRACT,
     "status after stop"),
    ("primary-filter-is-not-read", client_with("forward", Nbd.READ, NbdAnswer(0, bytes(512))),
     ERROR_CONTRACT, "filter read, before the start"),
    ("primary-filter-is-not-read", client_with("forward", Nbd.READ, NbdAnswer(EIO + 1)),
     ERROR_CONTRACT, "filter read, before the start"),
)  # fmt: skip
