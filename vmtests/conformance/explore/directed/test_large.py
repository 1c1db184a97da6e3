"""The directed cases about large requests see what they look at."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO

from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, sees
from vmtests.support.mutants.clients import DONE, client_doing, client_with
from vmtests.support.mutants.qmp import asking

FAILED = NbdAnswer(EIO, b"")
Call = Callable[..., NbdAnswer]


def zeroing(export: str, place: Callable[[int, int], tuple[int, int]]) -> Mutant:
    """Zeroes of an export are somewhere else."""

    def instead(call: Call, offset: int, length: int, *more: bytes) -> NbdAnswer:
        return call(Nbd.WRITE_ZEROES, *place(offset, length), *more)

    return client_doing(export, Nbd.WRITE_ZEROES, instead)


test_a_case_sees = sees(
    ("large-requests", zeroing("raw", lambda start, count: (0, start + count)),
     Verdict.CONTENT, "a large request, seen at raw"),
    ("large-requests", zeroing("qcow2", lambda start, count: (start, count + 512)),
     Verdict.CONTENT, "a large request, seen at qcow2"),
    ("large-requests", zeroing("raw", lambda start, count: (start, count - 512)),
     Verdict.CONTENT, "a large request, seen at raw"),
    ("large-requests", zeroing("qcow2", lambda start, count: (start, 1 << 31)),
     Verdict.CONTENT, "a large request, seen at qcow2"),
    ("large-requests", asking("block-dirty-bitmap-add", disabled=True), Verdict.PROTOCOL,
     "a bitmap after a write_zeroes"),
    ("large-requests", client_with("raw", Nbd.TRIM, DONE), Verdict.PROTOCOL,
     "a bitmap after a trim"),
    ("large-requests", client_with("raw", Nbd.WRITE_ZEROES, FAILED), Verdict.ERROR_CONTRACT,
     "a large write_zeroes fails"),
    ("large-requests", client_with("raw", Nbd.WRITE, FAILED), Verdict.ERROR_CONTRACT,
     "a write to a large disk fails"),
    ("large-requests-are-copied", client_with("write_zeroes-filter", Nbd.WRITE_ZEROES, DONE),
     Verdict.CONTENT, "a large request, seen at write_zeroes-filter"),
    ("large-requests-are-copied", client_with("snapshot", Nbd.READ, NbdAnswer(0, bytes(512))),
     Verdict.CONTENT, "a large request, seen at snapshot"),
)  # fmt: skip
