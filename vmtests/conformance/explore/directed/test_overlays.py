"""The directed cases about an overlay's clusters see what they look at."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER, SIZE
from qmpshim.machine.nbd.nonblocking import NbdAnswer, NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR
from vmtests.support.directed import sees
from vmtests.support.mutants.clients import DONE, client_with, on_connect
from vmtests.support.mutants.disks import REFUSED, nothing_held, succeeding


def _apart(client: NonBlockingNbd) -> None:
    """What is not written to the beginning is written a cluster further on."""
    send = client.send

    def further(op: Nbd, offset: int = 0, *more: Any) -> int:
        return send(op, offset + CLUSTER if offset else 0, *more)

    client.send = further  # type: ignore[method-assign, assignment]


test_a_case_sees = sees(
    ("writes-of-one-cluster", nothing_held, Verdict.ORDER, "a write to a new cluster: other I/O"),
    ("writes-of-one-cluster", on_connect("image", _apart), Verdict.ALLOCATION,
     "a cluster for two writes"),
    ("writes-of-one-cluster", REFUSED, Verdict.ERROR_CONTRACT,
     "a write to a new cluster fails beside another one"),
    ("writes-of-one-cluster", client_with("image", Nbd.READ, NbdAnswer(0, bytes(8 * SECTOR))),
     Verdict.CONTENT, "a new cluster of two writes"),
    ("write-over-subclusters", client_with("image", Nbd.READ, NbdAnswer(0, bytes(SIZE))),
     Verdict.CONTENT, "subclusters beside a write over two clusters"),
    ("discard-of-all", client_with("image", Nbd.TRIM, NbdAnswer(5, b"")), Verdict.ERROR_CONTRACT,
     "a discard of two clusters fails"),
    ("discard-of-all", client_with("image", Nbd.TRIM, DONE), Verdict.ALLOCATION,
     "a discard frees two clusters"),
    ("discard-of-all", client_with("image", Nbd.READ, NbdAnswer(0, b"x" * SIZE)), Verdict.CONTENT,
     "what was discarded reads as zeroes"),
    ("allocation-fails", succeeding, Verdict.ERROR_CONTRACT, "a write that cannot allocate"),
    ("allocation-fails", client_with("image0", Nbd.READ, NbdAnswer(0, bytes(SIZE))),
     Verdict.CONTENT, "data after an allocation that failed"),
)  # fmt: skip
