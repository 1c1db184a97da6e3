"""The oracles that QEMU gives no occasion to: what they look at is falsified, and they say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness.history import RunningOperation
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.replay import Replay, replay_schedule
from qmpshim.conformance.explore.scenarios import BASE, C, RealScenario
from qmpshim.conformance.explore.search import minimize
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Settings
from qmpshim.conformance.workload import pattern
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.answers import OK, Answer
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, operation
from qmpshim.model.units import SECTOR
from vmtests.support.failing import (
    causes,
    explored,
    found,
    meta_write,
    one,
    seeing,
    spoilt,
    verdicts,
)


@pytest.mark.kills("liveness")
@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("WC", "checkpoint"),
        ("WQ", "status"),
        ("WX", "unexport"),
        ("backup-WS", "stop"),
        ("WR", "guest_read"),
        ("WH", "primary_flush"),
    ],
)
def test_an_operation_that_never_ends_hangs(
    pool: QemuPool, name: str, do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer does not come, though nothing is held up any more."""
    answer = real_ops.answer

    def deaf(
        machine: GatedMachine, op: Operation, running: RunningOperation
    ) -> tuple[Answer, tuple[int, ...] | None] | None:
        return None if op.name == do else answer(machine, op, running)

    monkeypatch.setattr(real_ops, "answer", deaf)
    wrong = found(pool, name, faithfully, most=1)
    pool.discard()
    assert wrong == {Verdict.HANG: {f"{do} hangs"}}


@pytest.mark.kills("linearizability")
@pytest.mark.parametrize("name", ["RH", "GH"])
def test_a_cluster_that_was_not_written_is_not_allocated(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old data once more, a layer higher: all that is read is as it was."""
    begin = real_ops.begin

    def write_too(machine: GatedMachine, op: Operation, number: int) -> RunningOperation:
        if op.name == "primary_flush":
            old = bytes(pattern.data_of(BASE, C, C))
            machine.clients["guest"].send(Nbd.WRITE, C * SECTOR, 0, old)
        return begin(machine, op, number)

    monkeypatch.setattr(real_ops, "begin", write_too)
    wrong = found(pool, name, faithfully)
    pool.discard()
    assert wrong == {Verdict.ALLOCATION: {"active cluster data instead of unallocated"}}
    monkeypatch.undo()
    assert found(pool, name, faithfully) == {}


@pytest.mark.kills("linearizability")
def test_answers_that_do_not_fit_together_are_found_out(pool: QemuPool) -> None:
    """Of two stops that wait for a write either may be the first, but not both."""
    both = seeing(lambda seen: replace(seen, answers=(seen.answers[0], OK, OK)))
    scenario = RealScenario("WSS", (*one("W").ops, operation("stop"), operation("stop")))
    assert not explored(pool, scenario).found
    wrong = explored(pool, scenario, both).found
    assert (Verdict.PROTOCOL, Cause(CauseKind.ANSWERS_FIT_NO_ORDER)) in wrong, wrong


def test_a_finding_that_shows_itself_now_and_then_is_not_confirmed(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two times of three, whatever the setup is made to be."""
    tries = 0

    def now_and_then(finding: Finding, build: Build, **named: Any) -> Replay:
        nonlocal tries
        tries += 1
        again = replay_schedule(finding, build, **named)
        return again if tries % 3 else replace(again, violation=None)

    def explored_once() -> tuple[list[Finding], list[Finding]]:
        report = explore_real(qemu_build, [one("PC")], settings=Settings(minimise=False))
        return report.findings, report.unconfirmed

    sure, unsure = explored_once()
    assert sure and not unsure
    monkeypatch.setattr(minimize, "replay_schedule", now_and_then)
    still, now_unsure = explored_once()
    assert not still
    assert [(f.cause, f.replays) for f in now_unsure] == [(f.cause, (2, 3)) for f in sure]


@pytest.mark.parametrize("where", ["read", "view"])
def test_new_data_is_never_seen_whatever_failed(pool: QemuPool, where: str) -> None:
    """Also where a failed write of tables excuses the rest."""
    scenario = one("WR")
    new = scenario.number(0)

    def leaking(seen: Outcome) -> Outcome:
        if where == "read" and seen.data[1]:
            read = (new,) * C + seen.data[1][C:]  # where the write that failed was, too
            return replace(seen, data=(seen.data[0], read))
        return replace(seen, view=(new, *seen.view[1:])) if where == "view" and seen.view else seen

    fails = meta_write(pool, scenario)
    subject = {"read": "guest_read", "view": "view"}[where]
    cause = Cause(CauseKind.NEW_DATA_AFTER_ERROR, subject)
    assert str(cause) not in causes(explored(pool, scenario, fails=fails, all_io=True))
    wrong = explored(pool, scenario, seeing(leaking), fails, all_io=True)
    assert (Verdict.ISOLATION, cause) in wrong.found, wrong.found


def test_beside_what_a_reader_gives_up_the_copies_are_checked(pool: QemuPool) -> None:
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("there is no snapshot-access")
    ops = operation("primary_write", 0, C), operation("guest_discard", C, C)
    scenario = RealScenario("T", ops, form="fleecing")
    assert not explored(pool, scenario).found
    given_up = explored(pool, scenario, spoilt("hidden", C + 5))
    assert not given_up.found
    assert explored(pool, scenario, spoilt("hidden", 5)).found


@pytest.mark.parametrize("given_up", ["bitmap", "discard"])
def test_what_a_snapshot_does_not_have_cannot_be_read(pool: QemuPool, given_up: str) -> None:
    """Neither what the filter's bitmap does not name, nor what the reader has discarded."""
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("there is no snapshot-access")
    scenario = RealScenario("U", (operation("primary_write", 0, C),), form="fleecing")
    if given_up == "bitmap":
        scenario = replace(scenario, options=(("filter", "bitmap.written", ()),))
    else:
        scenario = replace(scenario, ops=(*scenario.ops, operation("guest_discard", C, C)))
    assert not explored(pool, scenario).found
    generous = seeing(lambda seen: replace(seen, view=(BASE,) * scenario.size))  # and is right
    assert causes(explored(pool, scenario, generous)) == {"the view can be read"}


@pytest.mark.parametrize("do", ["guest_read", "guest_block_status"])
def test_zeroes_that_are_none_are_lost_writes_whatever_reports_them(
    pool: QemuPool, do: str
) -> None:
    """What is written up of reads of a snapshot (7.2) covers its block status, too."""
    scenario = RealScenario("Z", (operation(do, 0, C),), form="backup")
    assert not explored(pool, scenario).found
    zeroed = explored(pool, scenario, seeing(lambda seen: replace(seen, data=((0,) * C,))))
    assert verdicts(zeroed) == {Verdict.LOST_WRITE}
    assert causes(zeroed) == {f"{do}: zeroes instead of the old data"}
