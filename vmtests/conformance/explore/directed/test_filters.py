"""The directed cases about a filter and the snapshot above it see what they look at."""

from __future__ import annotations

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.machine.qmp.nonblocking import NbdAnswer
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Sabotage, expect_finding
from vmtests.support.sabotage import (
    HALF,
    NEW_DATA,
    REFUSED,
    answered_early,
    client_with,
    kept,
    not_flushed,
    nothing_held,
    on_failure,
    spoilt_store,
    succeeding,
    without_flags,
)

ERROR_CONTRACT = Verdict.ERROR_CONTRACT


@pytest.mark.parametrize(
    ("name", "sabotage", "verdict", "cause"),
    [
        ("filter-passes-on", spoilt_store("secondary", 3 * HALF), Verdict.CONTENT,
         "data of a filter, seen through it"),
        ("filter-passes-on", not_flushed, Verdict.LOST_WRITE, "a flush through a filter"),
        ("filter-passes-on", client_with("guest", Nbd.READ, NbdAnswer(0, bytes(HALF))),
         Verdict.ISOLATION, "the snapshot after changes through a filter"),
        ("filter-passes-on", client_with("primary", Nbd.TRIM, NbdAnswer(5, b"")), ERROR_CONTRACT,
         "I/O through a filter fails"),
        ("filter-reports", succeeding, ERROR_CONTRACT, "primary write hides an error"),
        ("filter-reports", on_failure, Verdict.ORDER, "a change without its copy"),
        ("filter-reports", nothing_held, Verdict.ORDER, "a write of the primary: other I/O"),
        ("filter-keeps-holes", without_flags("primary"), Verdict.ALLOCATION,
         "zeroes below a filter"),
        ("snapshot-read-freezes", nothing_held, Verdict.ORDER, "a read of the snapshot: other"),
        ("snapshot-read-freezes", answered_early, Verdict.ORDER,
         "a write overtakes a snapshot's read"),
        ("snapshot-read-freezes", NEW_DATA, Verdict.ISOLATION, "a snapshot's read beside a write"),
        ("snapshot-read-freezes", REFUSED, ERROR_CONTRACT, "guest fails beside the other"),
        ("snapshot-discard-stays", kept, Verdict.ISOLATION,
         "a discarded part of a snapshot can be read"),
        ("snapshot-discard-stays", spoilt_store("secondary", 0), Verdict.ISOLATION,
         "the rest of a discarded snapshot"),
    ],
)  # fmt: skip
def test_a_case_sees(
    name: str, sabotage: Sabotage, verdict: Verdict, cause: str, qemu_build: Build
) -> None:
    expect_finding(name, sabotage, verdict, cause, qemu_build)
