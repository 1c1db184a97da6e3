"""Liveness: the commit that a failover leaves running has to end."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.checkers import liveness
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget


def test_a_commit_that_gets_no_answer_is_missed(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write to the secondary disk is done, and that is never reported."""
    monkeypatch.setattr(liveness, "_COMMIT", 1.0)
    unanswered: list[NamedIo] = []

    def release(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "secondary" and named.verb == "write":
            machine.gate.lose_reply(named.io)
            unanswered.append(named)
            return
        machine.gate.release(named.io)

    (scenario,) = scenarios.named("OQ")
    system = RealSystem(pool, scenario, release=release)
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    pool.discard()
    assert unanswered
    assert set(system.found) == {(Verdict.HANG, Cause(CauseKind.COMMIT_HANGS))}
