"""A failover's commit that fails, or is not flushed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.checkers import durability, final_state
from qmpshim.conformance.explore.harness.choices import Cut
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from vmtests.support import misbehaving_gate
from vmtests.support.failing import FAILOVER, Swallowing, causes, explored, seeing, verdicts
from vmtests.support.gate import of

C = scenarios.C


@of("secondary", "flush")
def unflushed(machine: GatedMachine, named: NamedIo) -> None:
    """A flush of the secondary disk is answered and not done."""
    misbehaving_gate.drop(machine.gate, named.io)


@of("secondary", "write")
def zeroed(machine: GatedMachine, named: NamedIo) -> None:
    """A write to the secondary disk leaves zeroes."""
    misbehaving_gate.corrupt(machine.gate, named.io, bytes(named.io.length))


def test_a_failed_commit_leaves_old_or_new_and_nothing_else(pool: QemuPool) -> None:
    failing = "secondary write 256+128"
    assert not explored(pool, FAILOVER, fails=failing).found
    wrong = explored(pool, FAILOVER, fails=failing, release=zeroed)
    assert verdicts(wrong) == {Verdict.LOST_WRITE}


@pytest.mark.kills("durability")
def test_a_commit_that_is_never_flushed_is_lost(pool: QemuPool) -> None:
    assert not explored(pool, FAILOVER).found
    assert causes(explored(pool, FAILOVER, release=unflushed)) == {"commit not flushed"}


def test_a_commit_that_fails_is_reported(pool: QemuPool) -> None:
    """In its first write or in the flush behind it.

    Since 10.0 the cancelled job flushes, too: no report if it cannot, and nothing is lost.
    """
    cancelled = 1 if read_version(pool.build)[0] >= (10, 0, 0) else 0
    statuses: set[str | None] = set()
    reporting = seeing(lambda seen: statuses.add(seen.status))
    unreported = seeing(lambda seen: replace(seen, status=None))
    for fails, nth, status in (
        ("secondary write 0+128", 0, "I/O error occurred"),
        ("secondary flush", cancelled, "I/O error occurred"),
        *(("secondary flush", nth, None) for nth in range(cancelled)),
    ):
        statuses.clear()
        reference = explored(pool, FAILOVER, reporting, fails, nth=nth)
        assert not reference.found and not reference.in_part
        assert statuses == {status}
    silent = explored(pool, FAILOVER, unreported, "secondary write 0+128")
    assert verdicts(silent) == {Verdict.ERROR_CONTRACT}


def test_a_disk_that_goes_away_when_all_is_committed_is_reported_or_not(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit has more writes and its own flush behind it when nodes and jobs are closed."""
    commit = replace(FAILOVER, setup=(operation("guest_write", 0, 5 * C),), size=5 * C)
    flushes = [name for name in explored(pool, commit).ios if name.kind == "secondary flush"]
    assert flushes
    left: list[bool] = []

    class Reporting(RealSystem):
        def judge_outcome(self, seen: Outcome) -> RealViolation | None:
            left.append(durability.unflushed(self.machine, self.scenario, self.now))
            return super().judge_outcome(seen)

    def silent(*given: Any) -> tuple[Outcome, RealViolation | None]:
        outcome, broken = looked(*given)
        return replace(outcome, status=None), broken

    looked = final_state.look
    for nth in range(len(flushes)):
        reference = explored(pool, commit, Reporting, "secondary flush", Cut.FOR_GOOD, nth=nth)
        assert not reference.found, reference.found
        if left[-1]:
            with monkeypatch.context() as patched:
                patched.setattr(final_state, "look", silent)
                misbehaving = explored(
                    pool, commit, fails="secondary flush", errno=Cut.FOR_GOOD, nth=nth
                )
            assert causes(misbehaving) == {"commit not flushed"}
    assert set(left) == {False, True}


def test_a_write_whose_flush_fails_may_be_committed(pool: QemuPool) -> None:
    """It is done, and reports that it is not durable; the failover finds it in the active disk."""
    ops = operation("guest_write_fua", 0, 8), operation("failover", after=0)
    scenario = replace(FAILOVER, ops=ops, setup=(operation("guest_write", 0, 8),))
    fails = "active flush"
    assert not explored(pool, scenario, fails=fails).found
    assert verdicts(explored(pool, scenario, Swallowing, fails)) == {Verdict.ERROR_CONTRACT}
    wrong = explored(pool, scenario, fails=fails, release=zeroed)
    assert verdicts(wrong) == {Verdict.LOST_WRITE}
