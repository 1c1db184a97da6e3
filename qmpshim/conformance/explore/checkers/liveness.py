"""Liveness: every operation ends, and so does every job and export that was ended.

What was cancelled or removed goes when nothing is in flight any more: it is waited for.
"""

from __future__ import annotations

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.linearizability import RealViolation
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb

_REMOVAL = 5.0  # seconds for an export or a job to go
_COMMIT = 10.0  # seconds for the commit that failover leaves running


def operations_end(end: End) -> RealViolation | None:
    """Whether each operation has ended, since nothing is held."""
    for index in sorted(end.history.started - end.history.over):
        op = end.scenario.ops[index]
        text = f"{op} does not end although nothing is held"
        return RealViolation(Verdict.HANG, text, index, cause=Cause(CauseKind.HANGS, op.name))
    return None


def rest_is_there(end: End) -> RealViolation | None:
    """Whether the job and the exports are there that must be, and no others."""
    machine, scenario, history = end.machine, end.scenario, end.history
    if history.gone():
        return None
    done = {op.verb for op in scenario.setup}
    done |= {
        op.verb for op, answer in zip(scenario.ops, history.answers, strict=True) if answer == OK
    }
    if Verb.UNEXPORT in done and not machine.event_loop.until(
        lambda: "primary" not in _names(machine, "query-block-exports", "id"), _REMOVAL
    ):
        return _remains("the primary's export", "removed")
    job = scenario.topology.job
    if job is None:
        return None
    if Verb.STOP not in done:
        if job in _names(machine, "query-block-jobs", "device"):
            return None
        text = "the backup job is gone, though nobody ended it"
        return RealViolation(Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.JOB_GONE))
    if machine.event_loop.until(
        lambda: job not in _names(machine, "query-block-jobs", "device"), _REMOVAL
    ):
        return None
    return _remains("the backup job", "cancelled")


def backup_job_ends(end: End) -> RealViolation | None:
    """Whether a backup job that was started ends."""
    machine = end.machine
    if not end.scenario.backs_up or machine.event_loop.until(
        lambda: not _names(machine, "query-block-jobs", "device"), _REMOVAL
    ):
        return None
    text = "the backup job does not end although nothing is held"
    return RealViolation(Verdict.HANG, text, cause=Cause(CauseKind.HANGS, "backup job"))


def _names(machine: GatedMachine, query: str, key: str) -> set[str]:
    machine.settle()
    return {str(one.get(key)) for one in machine.call(query)}


def _remains(what: str, how: str) -> RealViolation:
    text = f"{what} was {how}, and does not go although nothing is held"
    return RealViolation(Verdict.HANG, text, cause=Cause(CauseKind.STAYS, what))


def commit_ends(end: End) -> RealViolation | None:
    """Whether the commit that failover leaves running ends."""
    machine = end.machine
    if not end.scenario.commits or machine.event_loop.until(lambda: _committed(machine), _COMMIT):
        return None
    text = "failover's commit does not end"
    return RealViolation(Verdict.HANG, text, cause=Cause(CauseKind.COMMIT_HANGS))


def _committed(machine: GatedMachine) -> bool:
    machine.settle()
    status = machine.call("query-xen-replication-status")
    graph = machine.call("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    jobs = [n for n in graph["nodes"] if n["type"] == "block-job"]
    under = {names[edge["child"]] for edge in graph["edges"] if names[edge["parent"]] == "top"}
    # Done: the filter is on the secondary disk alone. Failed: the status has an error, no job runs.
    return under == {"secondary"} or (bool(status["error"]) and not jobs)
