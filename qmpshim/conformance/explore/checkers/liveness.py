"""Liveness: operations end, so do jobs and exports that were ended; others are as controlled.

What was cancelled or removed goes when nothing is in flight any more: it is waited for.
"""

from __future__ import annotations

from collections import Counter

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import JOB_CONTROLS, Verb

REMOVAL_LIMIT = 5.0  # seconds for an export or a job to go
COMMIT_LIMIT = 10.0  # seconds for the commit that failover leaves running


def operations_end(end: End) -> RealViolation | None:
    """Whether each operation has ended, since nothing is held."""
    for index in sorted(end.history.started - end.history.over):
        op = end.scenario.ops[index]
        text = f"{op} does not end although nothing is held"
        return RealViolation(Verdict.HANG, text, index, cause=Cause(CauseKind.HANGS, op.name))
    return None


def rest_is_there(end: End) -> RealViolation | None:
    """Whether the job and the exports are there that must be, and no others."""
    machine, scenario = end.machine, end.scenario
    done = _done(end)
    if Verb.UNEXPORT in done and not machine.event_loop.until(
        lambda: "primary" not in _names(machine, "query-block-exports", "id"), REMOVAL_LIMIT
    ):
        return _remains("the primary's export", "removed")
    jobs = set(scenario.topology.jobs)
    if not jobs:
        return None
    if scenario.topology.begins_late and Verb.START not in done:
        return None
    if Verb.STOP not in done:
        if jobs <= _names(machine, "query-block-jobs", "device"):
            return None
        text = "the backup job is gone, though nobody ended it"
        return RealViolation(Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.JOB_GONE))
    if machine.event_loop.until(
        lambda: jobs.isdisjoint(_names(machine, "query-block-jobs", "device")), REMOVAL_LIMIT
    ):
        return None
    return _remains("the backup job", "cancelled")


def job_is_as_controlled(end: End) -> RealViolation | None:
    """Whether a job is paused, and as slow, as the commands that succeeded set it."""
    name, done = end.scenario.topology.job, _done(end)
    if name is None or end.history.gone() or not done.keys() & set(JOB_CONTROLS):
        return None
    jobs = {one["device"]: one for one in end.machine.call("query-block-jobs")}
    if name not in jobs:
        return None  # whether it is there is decided by rest_is_there()
    paused = done[Verb.JOB_PAUSE] > done[Verb.JOB_RESUME]  # neither succeeds twice in a row
    speed = end.scenario.topology.commands[Verb.JOB_SPEED].arguments["speed"]
    predicted = {"paused": paused, "speed": speed if done[Verb.JOB_SPEED] else 0}
    for what, want in predicted.items():
        if (found := jobs[name][what]) != want:
            text = f"the backup job has {what} {found}, predicted {want}"
            cause = Cause(CauseKind.JOB_STATE, what, str(found), (str(want),))
            return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
    return None


def _done(end: End) -> Counter[Verb]:
    """How often each kind of operation was done, in the setup or with success."""
    answers = zip(end.scenario.ops, end.history.answers, strict=True)
    ops = [*end.scenario.setup, *(op for op, answer in answers if answer == OK)]
    return Counter(op.verb for op in ops)


def backup_job_ends(end: End) -> RealViolation | None:
    """Whether a backup job that was started ends."""
    machine = end.machine
    if not end.scenario.backs_up or machine.event_loop.until(
        lambda: not _names(machine, "query-block-jobs", "device"), REMOVAL_LIMIT
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
    if not end.scenario.commits or machine.event_loop.until(
        lambda: _committed(machine), COMMIT_LIMIT
    ):
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
