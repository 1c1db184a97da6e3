"""Liveness: the commit that a failover leaves running has to end; a job is as it was controlled."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore import scenario_sets, scenarios
from qmpshim.conformance.explore.checkers import liveness
from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness.history import RunningOperation
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import JOB_CONTROLS, Operation, Verb, operation
from vmtests.support import misbehaving_gate
from vmtests.support.failing import explored


@pytest.mark.kills("liveness")
def test_a_commit_that_gets_no_answer_is_missed(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write to the secondary disk is done, and that is never reported."""
    monkeypatch.setattr(liveness, "COMMIT_LIMIT", 1.0)
    unanswered: list[NamedIo] = []

    def release(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "secondary" and named.verb == "write":
            misbehaving_gate.lose_reply(machine.gate, named.io)
            unanswered.append(named)
            return
        machine.gate.release(named.io)

    (scenario,) = scenario_sets.named("OQ")
    system = RealSystem(pool, scenario, release=release)
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    pool.discard()
    assert unanswered
    assert set(system.found) == {(Verdict.HANG, Cause(CauseKind.COMMIT_HANGS))}


#: What QEMU reports of a job that a control did not change: what of it, the value, the right one.
_UNCHANGED = {
    Verb.JOB_PAUSE: ("paused", "False", ("True",)),
    Verb.JOB_RESUME: ("paused", "True", ("False",)),
    Verb.JOB_SPEED: ("speed", "0", ("1",)),
}


@pytest.mark.kills("liveness")
@pytest.mark.parametrize("control", JOB_CONTROLS)
def test_a_control_that_does_nothing_is_missed(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch, control: Verb
) -> None:
    """It is answered with success, and the job is as it was."""
    setup = (operation("job_pause"),) if control is Verb.JOB_RESUME else ()
    ops = operation("primary_write", 0, scenarios.C), operation(control)
    scenario = scenarios.RealScenario("J", ops, setup, form="backup")
    assert not explored(pool, scenario).found
    begin = real_ops.begin

    def instead(machine: GatedMachine, op: Operation, number: int) -> RunningOperation:
        if op.verb is control:
            return RunningOperation("qmp", machine.qmp.send("query-name"))
        return begin(machine, op, number)

    monkeypatch.setattr(real_ops, "begin", instead)
    cause = Cause(CauseKind.JOB_STATE, *_UNCHANGED[control])
    assert explored(pool, scenario).found.keys() == {(Verdict.ERROR_CONTRACT, cause)}
