"""Probe: one more write everywhere shows whether the chain works on and its bitmap is right."""

from __future__ import annotations

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.final_state import read_view
from qmpshim.conformance.explore.harness.events import Note
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.io_naming import GARBAGE
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import on_disk
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.answers import OK
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb, does

PROBE = 4000  # the operation whose data the probe writes


def chain_works_on(end: End) -> RealViolation | None:
    """Whether one more primary write everywhere leaves what the guest's end sees.

    It does not where the bitmap forgot or invented a copy, or replication does not run any more.
    """
    machine, scenario, now, seen = end.machine, end.scenario, end.history, end.outcome
    assert seen is not None
    if now.gone():
        return None
    done = (*scenario.setup, *scenario.ops)
    over = does(done, Verb.FAILOVER, Verb.STOP, Verb.UNEXPORT) or any(
        op.is_guest and op.verb is Verb.DISCARD for op in done
    )
    if over or seen.view is None:
        return None
    if scenario.has("quorum"):
        return _both_written(machine, scenario, now)
    size = scenario.size
    now.events.append(Note("afterwards: primary write of everything"))
    for disk in range(scenario.disks):
        data = bytes(pattern.data_of(PROBE, disk * scenario.apart, scenario.disk_size))
        answer = machine.clients[on_disk("primary", disk)].call(Nbd.WRITE, 0, 0, data)
        if answer.errno:
            text = f"a primary write afterwards fails with errno {answer.errno}"
            return RealViolation(
                Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.PROBE_FAILS, "primary write")
            )
    view = read_view(machine, scenario)
    if view is None:
        text = "a read afterwards fails"
        return RealViolation(
            Verdict.ERROR_CONTRACT, text, cause=Cause(CauseKind.PROBE_FAILS, "read")
        )
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


def _whose(owner: int | None) -> str:
    if owner is None:
        return "an error"
    if owner == GARBAGE:
        return "garbage"
    return "the new data" if owner == PROBE else pattern.describe_owner(owner)
