"""What a finding looks like to somebody who has no qmpshim: the sign its reproducer looks for.

A sign is a dictionary with a ``kind``, which the templates know (``templates/end.py.in``):

* ``corruption``, ``corruption now``, ``unreadable``, ``probe``: what there is to see is said by
  the word;
* ``crash``: QEMU ends in one of the ``phases`` (of the setup, the steps, the end), when so many
  ``steps`` of the script's were taken, ``how`` it did (a signal or an exit status), and what it
  said fits the regular expression ``cause``;
* ``hang``: one of the operations ``unanswered`` is not answered, or QEMU hangs in the end;
* ``setup``: an operation of the setup fails with this ``text``;
* ``answers``: these operations answer so, and those that are ``unread`` return nothing of that
  operation's; ``status``: so does replication's status in the end;
* ``requests``: these requests are made, which must not be yet;
* ``new data``: the guest reads what one of these operations wrote;
* ``orders``: what was seen fits none of the ends that the model gives for each order;
* ``unknown``: somebody has to look.
"""

from __future__ import annotations

import re
from typing import Any

from qmpshim.conformance.explore.checkers.crash_points import FRESH_QEMU
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.checkers.sequential import Outcome
from qmpshim.conformance.explore.harness.choices import failures
from qmpshim.conformance.explore.harness.trace import What
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import cut_off
from qmpshim.conformance.known.folder import known_findings
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import CauseKind, Phase
from qmpshim.model.check.verdict import Verdict

Sign = dict[str, Any]
_UNKNOWN: Sign = {"kind": "unknown"}
_NOWADAYS = (10, 0, 0)  # the version of a finding that does not say
_HOW = re.compile(r"QEMU (was killed by \w+|exited with status \d+)")
_MISLEADING = "I/O error occurred"  # what the status says during every failover
_PATHS = r" json:\{.*\}"  # a node's description, with temporary paths


def symptom_of(finding: Finding) -> Sign:
    """What the reproducer of a finding looks for."""
    cause = finding.cause
    if cause.kind.after_crash and finding.verdict in (Verdict.CRASH, Verdict.HANG):
        return _UNKNOWN
    if finding.verdict is Verdict.CRASH:
        return _crash(finding)
    if cause.phase is Phase.SETUP:
        return {"kind": "setup", "text": cause.detail}
    if finding.verdict is Verdict.HANG:
        return {"kind": "hang", "unanswered": _unanswered(finding)}
    if cause.kind.of_probe:
        return {"kind": "probe"}
    match cause.kind:
        case CauseKind.BROKEN_BY_CRASH:
            return _UNKNOWN if cause.detail == FRESH_QEMU else {"kind": "corruption now"}
        case CauseKind.CORRUPTION:
            return {"kind": "corruption"}
        case CauseKind.VIEW_UNREADABLE:
            return {"kind": "unreadable"}
        case CauseKind.NEW_BEFORE_OLD:
            return _requests(finding)
        case CauseKind.NEW_DATA_AFTER_ERROR:
            return {"kind": "new data", "owners": _primaries(finding)}
        case CauseKind.NOT_IN_STATUS:
            return {"kind": "status", "status": None}
        case CauseKind.FINAL_STATUS:
            return {"kind": "status", "status": None if cause.detail == "None" else cause.detail}
        case (
            CauseKind.WRONG_ANSWER
            | CauseKind.MISLEADING_STATUS
            | CauseKind.ERROR_MASKED
            | CauseKind.ERROR_MASKED_BY_BOTH
            | CauseKind.ERROR_MASKED_OLD_DATA
        ):
            return _answers(finding)
        case (
            CauseKind.WRONG_DATA
            | CauseKind.DATA_FITS_NO_ORDER
            | CauseKind.ANSWERS_FIT_NO_ORDER
            | CauseKind.DISKS_DIFFER
        ):
            return _orders(finding)
    return _UNKNOWN


def _crash(finding: Finding) -> Sign:
    """How QEMU ends, where, and with which words; a write-up says how else builds put them."""
    cause = finding.cause
    ways = [
        pattern.detail.pattern
        for one in known_findings()
        if one.covers(finding, _version(finding))
        for pattern in one.causes
        if pattern.matches(cause)
    ]
    phases = ["setup"] if cause.phase is Phase.SETUP else ["steps", "end"]
    if cause.phase is Phase.EXECUTION and _unanswered(finding):
        phases = ["steps"]
    how = _HOW.search(finding.text)
    return {
        "kind": "crash",
        "phases": phases,
        "steps": len(finding.schedule),
        "how": how[1] if how else None,
        "cause": "|".join(ways) or re.escape(cause.detail),
    }


def _unanswered(finding: Finding) -> list[int]:
    """The operations that were started and not answered."""
    over = {event.op for event in finding.events if event.what is What.ENDS}
    return [
        event.op
        for event in finding.events
        if event.what is What.START and event.op is not None and event.op not in over
    ]


def _version(finding: Finding) -> tuple[int, ...]:
    return tuple(finding.build.get("version", ())) or _NOWADAYS


def arrivals(finding: Finding) -> list[list[tuple[str, int, int]]]:
    """What was asked for before the first step and after each: name, number of the name, operation.

    The number counts all requests of that name, whosever: a reproducer does not know whose one is.
    """
    found: list[list[tuple[str, int, int]]] = [[]]
    count: dict[str, int] = {}
    for event in finding.events:
        if event.what.is_step:
            found.append([])
        elif event.what is What.ARRIVES and event.op is not None:
            number = count[event.name] = count.get(event.name, -1) + 1
            found[-1].append((event.name, number, event.op))
    return found


def _requests(finding: Finding) -> Sign:
    last = [[name, number] for name, number, _ in arrivals(finding)[-1]]
    return {"kind": "requests", "requests": last} if last else _UNKNOWN


def _primaries(finding: Finding) -> list[int]:
    scenario = finding.scenario
    return [scenario.number(i) for i, op in enumerate(scenario.ops) if op.do == "primary_write"]


def _answers(finding: Finding) -> Sign:
    cause = finding.cause
    do = "status" if cause.kind is CauseKind.MISLEADING_STATUS else cause.subject
    answers = {
        event.op: event.text
        for event in finding.events
        if event.what is What.ENDS and event.op is not None
    }
    plain = {i: re.sub(_PATHS, "", text) for i, text in answers.items()}
    same = {i: text for i, text in plain.items() if finding.scenario.ops[i].do == do}
    # Of several operations of this kind those that answered so.
    answer = _MISLEADING if cause.kind is CauseKind.MISLEADING_STATUS else cause.detail
    wrong = {i: text for i, text in same.items() if text == answer}
    if not same:
        return _UNKNOWN
    sign: Sign = {"kind": "answers", "answers": wrong or same}
    if cause.kind is CauseKind.ERROR_MASKED_OLD_DATA:
        ops, write = finding.scenario.ops, next(iter(same))
        own = finding.scenario.number(write) if do == "guest_write" else 0
        reads = [i for i, op in enumerate(ops) if op.do == "guest_read"]
        sign["unread"] = dict.fromkeys(reads, own)
    return sign


def _orders(finding: Finding) -> Sign:
    """All ends that the model allows, by order and cell by cell (see :mod:`.judge`)."""
    if failures(finding.schedule):
        return _UNKNOWN
    judge = LinearizabilityChecker(finding.scenario, behaviour_of(_version(finding)))
    orders: list[dict[str, Any]] = []
    for order, end in judge.straight.items():
        told = _end(finding, end, judge.cells)
        if told is None:
            return _UNKNOWN
        told = {"order": [step for step in order if step >= 0], **told}
        if told not in orders:
            orders.append(told)
    return {"kind": "orders", "cells": [list(cell) for cell in judge.cells], "orders": orders}


def _end(finding: Finding, end: Outcome, cells: list[tuple[int, int]]) -> dict[str, Any] | None:
    """One end: the answers, and by what is read the owner in each cell; ``None``: not so simple."""
    whole: dict[str, Any] = {
        name: getattr(end, name) for name in ("primary", "secondary", "hidden", "active", "view")
    }
    for index, data in enumerate(end.data):
        if data is not None:
            op, size = finding.scenario.ops[index], finding.scenario.size
            after = (None,) * (size - op.start - op.count)
            whole[f"read {index}"] = ((None,) * op.start) + data + after
    # Who is cut off does not learn how it went.
    cut = cut_off(finding.scenario.ops)
    maybe = [["gone"] if op.do in cut else [] for op in finding.scenario.ops]
    answers = [[text, *gone] for text, gone in zip(end.answers, maybe, strict=True)]
    told: dict[str, Any] = {"answers": answers}
    for name, sectors in whole.items():
        if sectors is None:
            continue
        pieces = [set(sectors[low:high]) for low, high in cells]
        if any(len(piece) != 1 for piece in pieces):
            return None
        told[name] = [piece.pop() for piece in pieces]
    return told
