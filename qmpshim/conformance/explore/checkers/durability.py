"""Durability: a failover whose commit was not flushed is not over, or its status reports an error.

What a client's flush promises is in :mod:`.online`; after a loss of power, in :mod:`.power_loss`.
"""

from __future__ import annotations

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.online import left_unflushed
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb


def unflushed(machine: GatedMachine, scenario: RealScenario, now: History) -> bool:
    """Whether what a failover's commit wrote has not been flushed so far."""
    failovers = {index for index, op in enumerate(scenario.ops) if op.verb is Verb.FAILOVER}
    return scenario.commits and left_unflushed(machine, now, "secondary", failovers)


def commit_is_flushed(end: End) -> RealViolation | None:
    """Whether what a failover's commit wrote was flushed, unless the status reports an error."""
    assert end.outcome is not None
    if not end.unflushed or end.outcome.status is not None:
        return None
    scenario = end.scenario
    index = next(i for i, op in enumerate(scenario.ops) if op.verb is Verb.FAILOVER)
    text = "failover is done, and what its commit wrote to the secondary disk was never flushed"
    return RealViolation(Verdict.LOST_WRITE, text, index, cause=Cause(CauseKind.COMMIT_NOT_FLUSHED))
