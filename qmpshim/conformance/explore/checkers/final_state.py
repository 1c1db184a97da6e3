"""What can be seen of a real chain at the end of an execution, and whether it lives on."""

from __future__ import annotations

from qmpshim.conformance.explore.checkers.linearizability import RealViolation
from qmpshim.conformance.explore.checkers.online import left_unflushed
from qmpshim.conformance.explore.checkers.sequential import Outcome
from qmpshim.conformance.explore.harness.events import Note
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.io_naming import GARBAGE, owners
from qmpshim.conformance.explore.harness.overlays import OverlayState, read_overlay
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb, does
from qmpshim.model.units import SECTOR

PROBE = 4000  # the operation whose data the aftermath writes
_REMOVAL = 5.0  # seconds for an export or a job to go
_COMMIT = 10.0  # seconds for the commit that failover leaves running


def stuck(scenario: RealScenario, now: History) -> RealViolation | None:
    """Whether an operation has not ended, though nothing is held."""
    for index in sorted(now.started - now.over):
        op = scenario.ops[index]
        text = f"{op} does not end although nothing is held"
        return RealViolation(Verdict.HANG, text, index, cause=Cause(CauseKind.HANGS, op.name))
    return None


def remaining(machine: GatedMachine, scenario: RealScenario, now: History) -> RealViolation | None:
    """Whether the job and the exports are there that must be.

    A job that was cancelled and an export that was removed go when nothing is in flight any more:
    they are waited for.
    """
    done = {op.verb for op in scenario.setup}
    done |= {op.verb for op, told in zip(scenario.ops, now.answers, strict=True) if told == OK}
    if Verb.UNEXPORT in done and not machine.reactor.until(
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
    if machine.reactor.until(
        lambda: job not in _names(machine, "query-block-jobs", "device"), _REMOVAL
    ):
        return None
    return _remains("the backup job", "cancelled")


def _names(machine: GatedMachine, query: str, key: str) -> set[str]:
    machine.settle()
    return {str(one.get(key)) for one in machine.call(query)}


def _remains(what: str, how: str) -> RealViolation:
    text = f"{what} was {how}, and does not go although nothing is held"
    return RealViolation(Verdict.HANG, text, cause=Cause(CauseKind.STAYS, what))


def await_commit(machine: GatedMachine) -> RealViolation | None:
    """Wait for the commit that failover leaves running."""
    if machine.reactor.until(lambda: _committed(machine), _COMMIT):
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
    # Done: the filter is on the secondary disk alone. Failed: the status says so, no job runs.
    return under == {"secondary"} or (bool(status["error"]) and not jobs)


def unflushed(machine: GatedMachine, scenario: RealScenario, now: History) -> bool:
    """Whether what a failover's commit wrote has not been flushed so far."""
    failovers = {index for index, op in enumerate(scenario.ops) if op.verb is Verb.FAILOVER}
    return scenario.commits and left_unflushed(machine, now, "secondary", failovers)


def not_durable(scenario: RealScenario) -> RealViolation:
    """A failover is over only when what its commit wrote is flushed; else it has to say so."""
    index = next(i for i, op in enumerate(scenario.ops) if op.verb is Verb.FAILOVER)
    text = "failover is done, and what its commit wrote to the secondary disk was never flushed"
    return RealViolation(Verdict.LOST_WRITE, text, index, cause=Cause(CauseKind.COMMIT_NOT_FLUSHED))


def look(
    machine: GatedMachine, scenario: RealScenario, now: History
) -> tuple[Outcome, RealViolation | None]:
    """Everything that can be seen at the end, and what is broken in the images themselves."""
    size = scenario.size
    for op in scenario.ops:
        if op.disconnects:  # the export must serve the next client
            machine.connect(op.side)
    view: tuple[int, ...] | None = None
    answer = machine.clients["guest"].call(Nbd.READ, 0, size * SECTOR)
    if not answer.errno:
        view = tuple(owners(answer.data, 0))
    _flush(machine, now)
    status: str | None = None
    if scenario.replicates:
        told = machine.call("query-xen-replication-status")
        status = told.get("desc", "") if told["error"] else None
    return _read(machine, scenario, now, view, status)


def disks(machine: GatedMachine, scenario: RealScenario, now: History) -> Outcome:
    """What is on the disks at this moment, QEMU alive or not; half-written metadata is no news."""
    return _read(machine, scenario, now, None, None)[0]


def _read(
    machine: GatedMachine,
    scenario: RealScenario,
    now: History,
    view: tuple[int, ...] | None,
    status: str | None,
) -> tuple[Outcome, RealViolation | None]:
    size = scenario.size
    secondary, unsound = _secondary(machine, scenario)
    nothing = OverlayState((None,) * size, (0,) * -(-size // scenario.cluster))
    hidden, active = (
        read_overlay(machine, scenario, name) if name in machine.images else nothing
        for name in ("hidden", "active")
    )
    primary = None
    if scenario.has("quorum"):
        primary = tuple(owners(machine.gate.snapshot("primary"), 0))
    seen = Outcome(
        tuple(now.answers),
        tuple(now.data),
        secondary,
        hidden.content,
        active.content,
        view,
        () if scenario.has("quorum") else (hidden.kinds, active.kinds),
        status,
        primary,
    )
    return seen, unsound or hidden.violation or active.violation


def _secondary(
    machine: GatedMachine, scenario: RealScenario
) -> tuple[tuple[int, ...], RealViolation | None]:
    """Whose the sectors of the secondary disk are."""
    if scenario.secondary == "raw":
        return tuple(owners(machine.gate.snapshot("secondary"), 0)), None
    overlay = read_overlay(machine, scenario, "secondary")
    return tuple(owner or 0 for owner in overlay.content), overlay.violation


def _flush(machine: GatedMachine, now: History) -> None:
    """Put qcow2's tables where we can read them; only a flush of the very node does it.

    The filter of replication flushes all its disks. Copy-before-write flushes its source only, and
    QEMU 10.0's ``stop`` does not reach a target that nobody else uses.
    """
    through = machine.topology.replication_mode == "secondary"
    through = through and not machine.clients["guest"].lost
    through = through and not now.faults  # a broken image keeps no other from its flush
    if through and machine.version >= (6, 0):  # before, a filter's flush reached one child only
        machine.clients["guest"].call(Nbd.FLUSH)
        return
    for name in machine.overlays:
        machine.call("human-monitor-command", {"command-line": f"qemu-io {name} flush"})


def aftermath(
    machine: GatedMachine, scenario: RealScenario, now: History, seen: Outcome
) -> RealViolation | None:
    """One more primary write everywhere: what the guest's end sees must not change by it.

    So a bitmap that forgot or invented a copy is found out, and replication proved to live.
    """
    done = (*scenario.setup, *scenario.ops)
    over = does(done, Verb.FAILOVER, Verb.STOP, Verb.UNEXPORT) or any(
        op.is_guest and op.verb is Verb.DISCARD for op in done
    )
    if over or seen.view is None:
        return None
    if scenario.has("quorum"):
        return _both_written(machine, scenario, now)
    size = scenario.size
    answer = machine.clients["primary"].call(
        Nbd.WRITE, 0, 0, bytes(pattern.data_of(PROBE, 0, size))
    )
    now.events.append(Note("afterwards: primary write of everything"))
    if answer.errno:
        text = f"a primary write afterwards fails with errno {answer.errno}"
        return RealViolation(
            Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.PROBE_FAILS, "primary write")
        )
    found = machine.clients["guest"].call(Nbd.READ, 0, size * SECTOR)
    if found.errno:
        text = f"a read afterwards fails with errno {found.errno}"
        return RealViolation(
            Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.PROBE_FAILS, "read")
        )
    view = owners(found.data, 0)
    sector = next((i for i in range(size) if view[i] != seen.view[i]), None)
    if sector is None:
        return None
    failed = any(
        op.verb is Verb.CHECKPOINT and answer != OK
        for op, answer in zip(scenario.ops, now.answers, strict=True)
    )
    return RealViolation(
        Verdict.ISOLATION if view[sector] == PROBE else Verdict.CONTENT,
        f"after one more primary write the guest's view of sector {sector} changes from "
        f"{_whose(seen.view[sector])} to {_whose(view[sector])}",
        cluster=sector // scenario.cluster,
        cause=Cause(
            CauseKind.VIEW_CHANGES_AFTER_FAILED_CHECKPOINT if failed else CauseKind.VIEW_CHANGES
        ),
    )


def _both_written(
    machine: GatedMachine, scenario: RealScenario, now: History
) -> RealViolation | None:
    """One more guest write everywhere: it is on both disks, so replication lives."""
    data = bytes(pattern.data_of(PROBE, 0, scenario.size))
    answer = machine.clients["guest"].call(Nbd.WRITE, 0, 0, data)
    now.events.append(Note("afterwards: guest write of everything"))
    if answer.errno:
        text = f"a guest write afterwards fails with errno {answer.errno}"
        return RealViolation(
            Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.PROBE_FAILS, "guest write")
        )
    for name in machine.images:
        if bytes(machine.gate.snapshot(name)) != data:
            return RealViolation(
                Verdict.LOST_WRITE,
                f"one more guest write is not on the {name} disk, though it says success",
                cause=Cause(CauseKind.PROBE_LOST, name),
            )
    return None


def _whose(owner: int) -> str:
    if owner == GARBAGE:
        return "garbage"
    return "the new data" if owner == PROBE else pattern.describe_owner(owner)
