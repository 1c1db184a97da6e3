"""The directed cases about ``cbw-timeout`` see what they look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore.directed.cases import run_directed
from qmpshim.conformance.explore.directed.machine import CLUSTER, CaseMachine
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import CASES, expect_finding, sees
from vmtests.support.mutants.clients import client_with, copied_first, second_readable
from vmtests.support.mutants.disks import COPIED_WRONG, never_copied, seen_as

ERROR_CONTRACT = Verdict.ERROR_CONTRACT
ZEROES = NbdAnswer(0, bytes(CLUSTER))


@pytest.mark.parametrize(
    ("name", "option", "value", "cause"),
    [
        ("timeout-is-long", "cbw-timeout", 3, "cbw-timeout is shorter"),
        ("timeout-breaks-write", "on-cbw-error", "break-snapshot", "a timeout is ignored"),
        ("timeout-breaks-snapshot", "on-cbw-error", "break-guest-write", "a timeout breaks the"),
    ],
)
def test_a_timeout_that_does_something_else(
    name: str, option: str, value: Any, cause: str, qemu_build: Build
) -> None:
    options = (*CASES[name].options, ("filter", option, value))
    expect_finding(name, lambda machine: None, ERROR_CONTRACT, cause, qemu_build, options=options)


def test_where_no_timer_is_seen_nothing_is_tested(qemu_build: Build) -> None:
    case = CASES["timeout-is-long"]

    def run(machine: CaseMachine) -> None:
        machine.quiescence.known = False
        case.run(machine)

    with pytest.raises(BuildError):
        run_directed(replace(case, run=run), qemu_build)


test_a_case_sees = sees(
    ("timeout-breaks-snapshot", second_readable, Verdict.ISOLATION,
     "a broken snapshot can be read"),
    ("timeout-breaks-snapshot", copied_first, ERROR_CONTRACT, "a broken snapshot is copied"),
    ("timeout-breaks-snapshot", client_with("primary", Nbd.READ, ZEROES), Verdict.LOST_WRITE,
     "a write is lost after a timeout"),
    ("timeout-breaks-snapshot", COPIED_WRONG, Verdict.CONTENT, "a copy after a timeout"),
    ("timeout-breaks-write", never_copied, Verdict.HANG, "timeout-breaks-write"),
    ("timeout-breaks-write", seen_as("secondary", lambda image: bytes(len(image))),
     Verdict.CONTENT, "a failed write is done"),
    ("timeout-breaks-write", client_with("guest", Nbd.READ, ZEROES), Verdict.ISOLATION,
     "a snapshot after a timeout"),
)  # fmt: skip
