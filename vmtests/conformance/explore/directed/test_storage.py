"""The directed cases about the storage see what they look at."""

from __future__ import annotations

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.machine.qmp.nonblocking import NbdAnswer
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Sabotage, expect_finding
from vmtests.support.sabotage import (
    asking,
    client_with,
    sound_tables,
    spoilt_store,
)

ERROR_CONTRACT = Verdict.ERROR_CONTRACT


@pytest.mark.parametrize(
    ("name", "sabotage", "verdict", "cause"),
    [
        ("ejected-target", client_with("snapshot", Nbd.READ, NbdAnswer(0, b"")), ERROR_CONTRACT,
         "I/O above an ejected image"),
        ("zeroes-are-detected", asking("blockdev-add", **{"detect-zeroes": "on"}),
         Verdict.ALLOCATION, "detect-zeroes=unmap"),
        ("zeroes-are-detected", client_with("failing", Nbd.FLUSH, NbdAnswer(0, b"")),
         ERROR_CONTRACT, "a flush's error is lost"),
        ("snapshot-of-nothing", client_with("snapshot", Nbd.READ, NbdAnswer(0, b"")),
         ERROR_CONTRACT, "a read of no snapshot"),
        ("snapshot-of-nothing", spoilt_store("secondary", 0), Verdict.LOST_WRITE,
         "a discard of no snapshot"),
        ("ejected-target", sound_tables, ERROR_CONTRACT, "I/O of an ejected image"),
        ("ejected-target", asking("blockdev-backup"), ERROR_CONTRACT,
         "blockdev-backup fails silently"),
    ],
)  # fmt: skip
def test_a_case_sees(
    name: str, sabotage: Sabotage, verdict: Verdict, cause: str, qemu_build: Build
) -> None:
    expect_finding(name, sabotage, verdict, cause, qemu_build)
