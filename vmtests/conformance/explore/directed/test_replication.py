"""The directed cases about replication see what they look at."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import sees
from vmtests.support.mutants.clients import client_with
from vmtests.support.mutants.disks import spoilt_store, succeeding
from vmtests.support.mutants.qmp import answering, asking, started, still_exported

ERROR_CONTRACT = Verdict.ERROR_CONTRACT


def without_error(status: dict[str, Any]) -> dict[str, Any]:
    """Replication reports no error."""
    return {**status, "error": False}


def without_rest(machine: GatedMachine) -> None:
    """Of a write that begins in one cluster and ends in the next the second part is not done."""
    client = machine.clients["guest"]
    call = client.call

    def part(
        op: Nbd, offset: int = 0, length: int = 0, data: bytes = b"", limit: float = 10.0
    ) -> NbdAnswer:
        return call(op, offset, length, data[: CLUSTER - offset % CLUSTER], limit)

    client.call = part  # type: ignore[method-assign]


test_a_case_sees = sees(
    ("start-without-backend", still_exported, ERROR_CONTRACT,
     "xen-set-replication fails silently"),
    ("io-before-start", started, ERROR_CONTRACT, "guest write before the start"),
    ("io-before-start", asking("xen-set-replication"), ERROR_CONTRACT, "guest read fails"),
    ("io-before-start", spoilt_store("secondary", 0), Verdict.CONTENT, "guest data of before"),
    ("start-read-only", spoilt_store("secondary", 0), Verdict.ISOLATION,
     "hidden disk read-only at the start"),
    ("checkpoint-of-ejected-disk", succeeding, ERROR_CONTRACT,
     "make_empty's failure is silent"),
    ("checkpoint-of-ejected-disk", asking("xen-colo-do-checkpoint"), ERROR_CONTRACT,
     "xen-colo-do-checkpoint fails silently"),
    ("checkpoint-of-ejected-active", succeeding, ERROR_CONTRACT,
     "make_empty's failure is silent"),
    ("checkpoint-of-ejected-active", asking("xen-colo-do-checkpoint"), ERROR_CONTRACT,
     "xen-colo-do-checkpoint fails silently"),
    ("checkpoint-to-the-end", asking("xen-colo-do-checkpoint"), Verdict.ISOLATION,
     "the end of a disk after a checkpoint"),
    ("failover-fails", answering("query-xen-replication-status", without_error), ERROR_CONTRACT,
     "failed failover is not in the status"),
    ("failover-fails", client_with("guest", Nbd.WRITE_ZEROES, NbdAnswer(0, b"")),
     Verdict.LOST_WRITE, "guest zeroes after failed failover are lost"),
    ("failover-fails", without_rest, Verdict.LOST_WRITE,
     "guest write after failed failover is lost"),
    ("replication-refused", asking("blockdev-add"), ERROR_CONTRACT,
     "blockdev-add fails silently"),
    ("replication-refused", answering("query-block", lambda drives: [{"device": "bad"}]),
     Verdict.PROTOCOL, "a drive with a replication filter and no mode"),
    ("start-refused", asking("xen-set-replication"), ERROR_CONTRACT,
     "xen-set-replication fails silently"),
)  # fmt: skip
