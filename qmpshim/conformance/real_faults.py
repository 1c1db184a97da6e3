"""What may come of an execution in which an I/O failed: less than without, but not anything.

Which operation meets the error is QEMU's affair: a copy is shared by the writes that wait for it.
But whatever fails, a reader never sees what the primary wrote since the checkpoint, what was
answered with success is there, and the operation whose very own data did not arrive is told so.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.conformance.real_io import Named, tags
from qmpshim.conformance.real_judge import RealViolation, Seen
from qmpshim.conformance.real_scenarios import CHANGES, RealScenario, words
from qmpshim.machine.gated_chain import Form
from qmpshim.model.scenario import Op
from qmpshim.model.verdict import Verdict


def judge_faulty(
    scenario: RealScenario, seen: Seen, failed: Sequence[Named]
) -> RealViolation | None:
    """What is wrong with the end of an execution in which the I/Os *failed* failed."""
    if any(op.do in ("checkpoint", "failover", "stop", "start") for op in scenario.ops):
        return None
    return (
        _silence(scenario, seen, failed) or _isolation(scenario, seen) or _presence(scenario, seen)
    )


def _silence(scenario: RealScenario, seen: Seen, failed: Sequence[Named]) -> RealViolation | None:
    """The operation whose own data was refused must not say success."""
    numbers = {scenario.number(index): index for index in range(len(scenario.ops))}
    for named in failed:
        for _, number, _ in tags(named.io.data):
            index = numbers.get(number)
            if index is not None and seen.answers[index] == "ok":
                op = scenario.ops[index]
                return RealViolation(
                    Verdict.ERROR_CONTRACT,
                    f"{words(op)} says success, though its data was refused by the "
                    f"{named.io.image} disk",
                    index,
                    cause=f"{op.do} says success after a refused {named.io.image} write",
                )
    return None


def _isolation(scenario: RealScenario, seen: Seen) -> RealViolation | None:
    """No reader above the hidden disk sees what the primary wrote."""
    primaries = {
        scenario.number(index) for index, op in enumerate(scenario.ops) if op.do == "primary_write"
    }
    for index, data in enumerate(seen.data):
        if data and scenario.ops[index].do == "guest_read" and primaries & set(data):
            return RealViolation(
                Verdict.ISOLATION,
                f"{words(scenario.ops[index])} returns new data after an I/O error",
                index,
                cause="guest_read: new data after an I/O error",
            )
    if seen.view and primaries & set(seen.view):
        return RealViolation(
            Verdict.ISOLATION,
            "the guest's view shows new data after an I/O error",
            cause="view: new data after an I/O error",
        )
    return None


def _presence(scenario: RealScenario, seen: Seen) -> RealViolation | None:
    """A write that was answered with success, and that nobody else could overwrite, is there."""
    for index, op in enumerate(scenario.ops):
        if op.do not in ("primary_write", "guest_write") or seen.answers[index] != "ok":
            continue
        primary = op.do == "primary_write"
        found = seen.secondary if primary else seen.view
        if found is None or (not primary and scenario.form is not Form.REPLICATION):
            continue
        number = scenario.number(index)
        for sector in range(op.start, op.start + op.count):
            if found[sector] != number and not _overwritten(scenario, index, sector):
                where = "secondary disk" if primary else "guest's view"
                return RealViolation(
                    Verdict.LOST_WRITE,
                    f"{words(op)} says success, and the {where} does not have it in sector "
                    f"{sector}",
                    index,
                    sector // scenario.cluster,
                    f"{op.do} lost after an I/O error",
                )
    return None


def _overwritten(scenario: RealScenario, index: int, sector: int) -> bool:
    """Whether another operation of the same side may have changed a sector."""
    side = scenario.ops[index].do.split("_")[0]

    def touches(op: Op) -> bool:
        return (
            op.do in CHANGES and op.do.startswith(side) and op.start <= sector < op.start + op.count
        )

    return any(touches(op) for other, op in enumerate(scenario.ops) if other != index)
