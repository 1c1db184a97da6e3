"""Failure reports: where docs/block-replication.txt has a failed I/O reported, and what it hides.

The document names seven failures and where each is reported: the backup failing (3) and the
secondary disk failing (4) to the FT/HA manager, which has nothing but the status to look at; the
active disk failing (5) to the client. On the primary an error of its own disk (1) is reported to
the client; see :mod:`.quorum`. Whatever failed, no reader of the snapshot sees new data.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.conformance.explore.checkers.failed_end import CHANGES_CHAIN, FailedEnd
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.io_naming import NamedIo, tags
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario, cut_off
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.answers import DISCONNECTED, OK, IoError, answer_to_json, io_error
from qmpshim.model.check.cause import Cause, CauseKind, Relation
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb, does


def hidden_refusal(
    scenario: RealScenario, seen: Outcome, failed: Sequence[tuple[NamedIo, InjectedFault]]
) -> RealViolation | None:
    """An operation that reports success although its own data was refused."""
    numbers = {scenario.number(i): i for i in range(len(scenario.ops))}
    for named, fault in failed:
        if named.io.image == "secondary" and scenario.on_primary:
            continue  # that is not reported to the guest: case 2
        for _, number, _ in tags(named.io.data):
            index = numbers.get(number)
            if index is None or index in fault.over or index != named.op:
                continue  # another's affair: a commit's, which writes what was answered before
            if seen.answers[index] == OK:
                op = scenario.ops[index]
                return RealViolation(
                    Verdict.ERROR_CONTRACT,
                    f"{op} says success, though its data was refused by the {named.io.image} disk",
                    index,
                    cause=Cause(CauseKind.ERROR_MASKED, op.name, f"{named.io.image} write"),
                )
    return None


def another_error(end: FailedEnd, op: int) -> RealViolation | None:
    """An I/O that is answered with another error than there was, its client being connected."""
    what, answer = end.scenario.ops[op], end.seen.answers[op]
    if what.is_command or answer in {io_error(fault.errno) for fault in end.faults}:
        return None
    if answer == DISCONNECTED and what.side in cut_off(end.scenario.ops):
        return None
    fault = end.fault_context(Relation.AFTER)
    text = f"{what} answers {str(answer)!r}, {fault}"
    cause = Cause(CauseKind.WRONG_ANSWER, what.name, answer_to_json(answer), fault=fault)
    return RealViolation(Verdict.ERROR_CONTRACT, text, op, cause=cause)


def not_in_status(end: FailedEnd) -> RealViolation | None:
    """A failure 3 or 4 that is not reported to the FT/HA manager: by the status alone."""
    scenario, seen = end.scenario, end.seen
    if scenario.topology.replication_mode != "secondary" or seen.status is not None:
        return None
    if does(scenario.ops, *CHANGES_CHAIN):
        return None
    refused = any(
        op.is_primary and isinstance(seen.answers[index], IoError)
        for index, op in enumerate(scenario.ops)
    )
    for fault in end.faults:
        case = None
        if fault.image == "hidden" and (refused or fault.verb in ("write", "zero")):
            case = "3", "backup failed"
        elif fault.image == "secondary":
            case = "4", "I/O error on the secondary disk"
        if case is not None:
            return RealViolation(
                Verdict.ERROR_CONTRACT,
                f"case {'. '.join(case)}: query-xen-replication-status reports no error",
                cause=Cause(CauseKind.NOT_IN_STATUS, *case),
            )
    return None


def new_data_read(scenario: RealScenario, seen: Outcome) -> RealViolation | None:
    """A reader above the hidden disk that sees what the primary wrote."""
    if does(scenario.ops, *CHANGES_CHAIN):
        return None
    primaries = {
        scenario.number(index) if op.writes else 0
        for index, op in enumerate(scenario.ops)
        if op.is_primary and op.changes
    }
    if any(op.is_guest and op.verb is Verb.DISCARD for op in scenario.ops) or any(
        op.zeroes for op in scenario.setup
    ):
        primaries.discard(0)  # there are zeroes that are no news
    for index, data in enumerate(seen.data):
        if data and scenario.ops[index].is_guest and primaries & set(data):
            text = f"{scenario.ops[index]} returns new data after an I/O error"
            cause = Cause(CauseKind.NEW_DATA_AFTER_ERROR, scenario.ops[index].name)
            return RealViolation(Verdict.ISOLATION, text, index, cause=cause)
    if seen.view and primaries & set(seen.view):
        text = "the guest's view shows new data after an I/O error"
        cause = Cause(CauseKind.NEW_DATA_AFTER_ERROR, "view")
        return RealViolation(Verdict.ISOLATION, text, cause=cause)
    return None
