"""The directed cases about a secondary's start and end see what they look at."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, sees
from vmtests.support.mutants.clients import DONE, client_with
from vmtests.support.mutants.disks import nothing_held
from vmtests.support.mutants.qmp import answering, asking

START = "xen-set-replication"


def always(read_only: bool) -> Mutant:
    """Each node is read-only, or none is."""

    def change(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**node, "ro": read_only} for node in nodes]

    return answering("query-named-block-nodes", change)


def zeroes(export: str) -> Mutant:
    """Reads of an export give zeroes."""
    return client_with(export, Nbd.READ, NbdAnswer(0, bytes(CLUSTER)))


test_a_case_sees = sees(
    *(("start-read-only-secondary", always(read_only), Verdict.PROTOCOL,
       "a secondary disk that was read-only") for read_only in (True, False)),
    ("start-named-above", asking("xen-colo-do-checkpoint"), Verdict.CONTENT,
     "what is seen above a filter"),
    ("start-named-above", asking(START), Verdict.ERROR_CONTRACT, "above read fails"),
    ("start-named-elsewhere", asking(START), Verdict.ERROR_CONTRACT,
     f"{START} fails silently"),
    ("start-named-elsewhere", zeroes("top"), Verdict.CONTENT,
     "the view after starts that were refused"),
    ("guest-reads-in-failover", zeroes("guest"), Verdict.CONTENT,
     "the guest's data in a failover"),
    ("guest-reads-in-failover", nothing_held, Verdict.ORDER, "failover: other I/O"),
    ("guest-reads-in-failover", client_with("guest", Nbd.WRITE, DONE), Verdict.CONTENT,
     "the guest's data in a failover"),
    ("start-disks-in-use", asking(START), Verdict.ERROR_CONTRACT, f"{START} fails silently"),
    ("start-disks-in-use", zeroes("guest"), Verdict.CONTENT,
     "the view after starts that were refused"),
    ("start-beside-mirror", asking(START), Verdict.ERROR_CONTRACT, f"{START} fails silently"),
    ("start-beside-mirror", zeroes("guest"), Verdict.CONTENT,
     "the view after starts that were refused"),
    ("close-in-failover", nothing_held, Verdict.ORDER, "failover: other I/O"),
    ("close-in-failover", zeroes("active"), Verdict.CONTENT,
     "the guest's data after its filter was closed"),
)  # fmt: skip
