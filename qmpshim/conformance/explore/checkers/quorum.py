"""Quorum: failures 1 and 2 of docs/block-replication.txt: an error of the primary disk is reported.

With ``vote-threshold=1`` a quorum reports success as soon as one child does, and the replication
filter of a primary always does (``replication_return_value`` of block/replication.c): so the one
error the guest needs to know of is outvoted by a write that is of no use to it. The sequential
model can do as QEMU does there (``KnownDefect.QUORUM_MASKS_PRIMARY`` of the behaviour), and what
that alone explains is reported by this module; what it does not explain is another finding.

What remains is QEMU's event ``QUORUM_REPORT_BAD``, which names the child that failed. It is limited
to one a second and child by QEMU's monitor, so a process shows each kind once, and a fresh one
always does. Where disks vote a failure of one is no error at all, and that event is all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.choices import CUTS, IoId
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK, IoError, Prediction
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb

Failed = Sequence[tuple[NamedIo, InjectedFault]]

_MASKED = {Verb.WRITE: "write", Verb.ZERO: "write", Verb.FLUSH: "flush"}  # of the guest
#: What an event calls a request of a child.
_OF_CHILD = {"read": "read", "write": "write", "zero": "write", "flush": "flush"}
EVENT_LIMIT = 5.0  # seconds until an event must be there: QEMU keeps it back for one at most
NOT_IN_STATUS = Cause(CauseKind.NOT_IN_STATUS, "2", "forwarding a write failed")


def masked(
    scenario: RealScenario, seen: Outcome, precedence: Sequence[frozenset[int]], failed: Failed
) -> RealViolation | None:
    """What is wrong where an operation reports success though the primary disk refused its I/O."""
    index = next(iter(_in_silence(scenario, seen.answers, failed)), None)
    if index is None:
        return None
    op = scenario.ops[index]
    what = f"{op} says success, though the primary disk refused it"
    cause = Cause(CauseKind.ERROR_MASKED, op.name, f"primary {_MASKED[op.verb]}")
    if any(fault.image == "secondary" and named.op == index for named, fault in failed):
        what += ", and the secondary disk, too"
        cause = replace(cause, kind=CauseKind.ERROR_MASKED_BY_BOTH)
        return RealViolation(Verdict.LOST_WRITE, what, index, cause=cause)
    reader = _not_read_back(scenario, seen, precedence, index)
    if reader is not None:
        what += f", and {scenario.ops[reader]} after it does not return its data"
        cause = replace(cause, kind=CauseKind.ERROR_MASKED_OLD_DATA)
        return RealViolation(Verdict.LOST_WRITE, what, index, cause=cause)
    return RealViolation(Verdict.ERROR_CONTRACT, what, index, cause=cause)


def _in_silence(
    scenario: RealScenario, answers: Sequence[Prediction], failed: Failed
) -> Iterable[int]:
    """Operations that report success though the primary disk refused their I/O.

    When the disk is gone for good, these are all that had not ended before.
    """
    for named, fault in failed:
        if fault.image != "primary":
            continue
        met = [named.op]
        if fault.gone:
            met += [n for n in range(len(answers)) if n not in fault.over and n != named.op]
        for index in met:
            if scenario.ops[index].verb in _MASKED and answers[index] == OK:
                yield index


def _not_read_back(
    scenario: RealScenario, seen: Outcome, precedence: Sequence[frozenset[int]], write: int
) -> int | None:
    """A read that began after the write had ended, and has none of its data where it reads it."""
    op = scenario.ops[write]
    own = scenario.number(write) if op.writes else 0
    for index, data in enumerate(seen.data):
        reader = scenario.ops[index]
        low, high = (
            max(op.start, reader.start),
            min(op.start + op.count, reader.start + reader.count),
        )
        if data is None or write not in precedence[index] or low >= high:
            continue
        if own not in data[low - reader.start : high - reader.start]:
            return index
    return None


def late_for(scenario: RealScenario, faults: Sequence[InjectedFault]) -> bool:
    """Whether a write that was being forwarded fails when replication was stopped already.

    Then it is undefined whether the status reports it: stop does not wait for what is in flight.
    """
    ends = {n for n, op in enumerate(scenario.ops) if op.verb in (Verb.STOP, Verb.FAILOVER)}
    return any(fault.image == "secondary" and ends - fault.unstarted for fault in faults)


def both_refused(names: Iterable[IoId], errnos: Sequence[int]) -> list[dict[IoId, int]]:
    """Each guest write refused by both disks: one failure alone cannot show what comes of that."""
    errno = next((errno for errno in errnos if errno not in CUTS), None)
    there = set(names)
    plans = []
    for name in sorted(there):
        twin = name._replace(image="secondary", verb="write")
        own = name.image == "primary" and name.verb in ("write", "zero")
        if own and twin in there and errno is not None:
            plans.append({name: errno, twin: errno})
    return plans


def error_is_reported(end: End) -> RealViolation | None:
    """Whether a failed I/O of the primary disk was reported, by an error or an event.

    Of the kinds that this QEMU has sent an event about before it may have sent another one already
    within the second, and send none now.
    """
    machine, scenario, now = end.machine, end.scenario, end.history
    if not scenario.on_primary:
        return None
    silent = list(_in_silence(scenario, now.answers, now.failed))
    # An event that QEMU keeps back gives way to a later one of the same disk.
    others = len(set(silent)) > 1 or any(isinstance(answer, IoError) for answer in now.answers)
    for index in silent:
        op = scenario.ops[index]
        kind = _MASKED[op.verb]
        where = None if kind == "flush" else (op.start, op.count)
        reported = partial(_reported, machine, None if others else kind, None if others else where)
        if kind in end.reported_errors or machine.event_loop.until(reported, EVENT_LIMIT):
            end.reported_errors.add(kind)
            continue
        text = f"{op} says success though the primary disk refused it, and no event says so"
        cause = Cause(CauseKind.NO_QUORUM_EVENT, op.name)
        return RealViolation(Verdict.ERROR_CONTRACT, text, index, cause=cause)
    return None


def bad_disk_is_named(end: End) -> RealViolation | None:
    """Whether an event named each disk that failed a request which succeeded by votes.

    What is read of the disk later may have it named once more, and only the last event of a disk
    is sent: so beside reads any event of that disk will do.
    """
    scenario, failed = end.scenario, end.history.failed
    if not scenario.topology.voters:
        return None
    any_event = len(failed) > 1 or end.history.gone() or any(op.reads for op in scenario.ops)
    for named, _ in failed:
        if isinstance(end.history.answers[named.op], IoError):
            continue  # that is no less a report, if not of the disk
        op, disk, kind = scenario.ops[named.op], named.io.image, _OF_CHILD[named.verb]
        where = None if kind == "flush" else (op.start, op.count)
        if any_event:
            reported = partial(_reported, end.machine, None, None, disk, with_error=False)
        else:
            reported = partial(_reported, end.machine, kind, where, disk)
        key = f"{disk} {kind}"
        if key in end.reported_errors or end.machine.event_loop.until(reported, EVENT_LIMIT):
            end.reported_errors.add(key)
            continue
        text = f"the {disk} disk fails a {named.verb} of {op}, and no event names it"
        cause = Cause(CauseKind.NO_QUORUM_EVENT, op.name)
        return RealViolation(Verdict.ERROR_CONTRACT, text, named.op, cause=cause)
    return None


def _reported(
    machine: GatedMachine,
    kind: str | None,
    where: tuple[int, int] | None,
    disk: str = "primary",
    with_error: bool = True,
) -> bool:
    """Whether there is an event for a disk, of this kind and place (``None``: of any)."""
    for event in machine.qmp.events:
        data = event.get("data", {})
        if (
            event["event"] == "QUORUM_REPORT_BAD"
            and data.get("node-name") == disk
            and ("error" in data or not with_error)
            and kind in (None, data.get("type"))
            and where in (None, (data.get("sector-num"), data.get("sectors-count")))
        ):
            return True
    return False
