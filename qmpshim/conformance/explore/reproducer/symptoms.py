"""What a finding looks like without qmpshim: the symptom its reproducer looks for.

A symptom is a dictionary with a ``kind``, which the templates know (``templates/end.py.in``):

* ``corruption``, ``corruption now``, ``unreadable``, ``probe``: the word is all there is to know;
* ``crash``: QEMU ends in one of the ``phases`` (of the setup, the steps, the end), when so many
  ``steps`` were taken, with which ``status`` (negative: by that signal), and what it wrote last
  fits the regular expression ``cause``;
* ``overrun``: a reply of QEMU's NBD server goes on after the chunk that ends it;
* ``hang``: one of the operations ``unanswered`` is not answered, or QEMU hangs in the end;
* ``setup``: this ``operation`` of the setup has this ``answer``;
* ``answers``: these operations answer so, and those that are ``unread`` return nothing of that
  operation's; ``status``: so does replication's status in the end;
* ``job state``: where the operations ended with these ``answers``, as below, ``what`` QEMU reports
  of the job is none of what is ``predicted``;
* ``job action``: where they did, the job does at an error of the ``disk`` none of what is
  ``predicted``: ``ignore``, ``stop``, ``report``;
* ``requests``: these requests are made, which must not be yet;
* ``new data``: the guest reads what one of these operations wrote;
* ``held``: ``where`` (a disk, the ``view`` in the end, what an operation read) there is from sector
  ``start`` on none of what is ``allowed``, where the operations ended as below;
* ``allocation``: a ``cluster`` of an ``image`` is of none of the kinds ``allowed``, where they did;
* ``orders``: what was seen fits none of the ends that the model gives for each order;
* ``target``: a backup job has ended in one of the ``endings``, and its target is the disk at none
  of these ``points`` in time: runs of sectors, with the owners that each may have once a job has
  completed, None where it has nothing. They are those of the ``answers`` (a command is ``ok`` or
  ``refused``) of operations that began when those ``before`` had ended, of those named in
  ``paused`` while an error had paused the job;
* ``snapshot``: what was read in the end, and by the operations ``reads``, is the disk at none of
  the ``points``, as above;
* ``bitmaps``: the secondary disk's dirty bitmaps are at none of the ``points`` as they must be, of
  those where the job has the ``ending`` (None: no job has ended) and ``target`` that were seen, as
  above. There are other ``bitmaps``, or one names a ``granule`` (of so many sectors) that it may
  not, or not each that it ``must`` (None: where the disk has changed; with ``uncopied``: and where
  the target has nothing in a copy of ``unit`` sectors), or none names one of those of ``either``,
  or one has others, does not record, or is not in use, as it should. With ``owners`` what was read
  is the disk at this point, as in ``snapshot``, and the bitmap that records names where the disk is
  another now (not if that is ``lost``);
* ``ending``: where the operations ended with these ``answers``, as above, the backup job has ended
  in this way;
* ``unknown``: somebody has to look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qmpshim.conformance.compare.evidence import Allocated, Held
from qmpshim.conformance.explore.checkers.crash_points import FRESH_QEMU
from qmpshim.conformance.explore.checkers.linearizability import (
    NODE_DESCRIPTION,
    LinearizabilityChecker,
)
from qmpshim.conformance.explore.checkers.orders import operations_in
from qmpshim.conformance.explore.harness.choices import failures
from qmpshim.conformance.explore.harness.events import Arrived, Ended, Started
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.reproducer.point_symptoms import (
    OF_BITMAPS,
    UNKNOWN,
    Symptom,
    begins_in,
    bitmaps_symptom,
    ending_symptom,
    job_symptom,
    snapshot_symptom,
    target_symptom,
    way_of,
)
from qmpshim.model.answers import ANY_ERROR, REPLICATION_ERROR, admitted, answer_to_json
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import NO_ERROR, CauseKind, Phase
from qmpshim.model.check.observables import Aspect, Observable, Observations
from qmpshim.model.check.verdict import Verdict


def symptom_of(finding: Finding, crash_words: Sequence[str] = ()) -> Symptom:
    """What the reproducer of a finding looks for.

    :param crash_words: regular expressions for the last words of a QEMU that crashes, one for each
        way that builds have of it; empty: as in the finding
    """
    cause = finding.cause
    if cause.kind.after_crash and finding.verdict in (Verdict.CRASH, Verdict.HANG):
        return UNKNOWN
    if finding.verdict is Verdict.CRASH:
        return _crash(finding, crash_words)
    if cause.kind is CauseKind.SETUP_FAILS:
        return {"kind": "setup", "operation": cause.subject, "answer": cause.detail}
    if cause.phase is Phase.SETUP:
        return UNKNOWN
    if finding.verdict is Verdict.HANG:
        return {"kind": "hang", "unanswered": _unanswered(finding)}
    if cause.kind.of_probe:
        return {"kind": "probe"}
    match cause.kind:
        case CauseKind.BROKEN_BY_CRASH:
            return UNKNOWN if cause.detail == FRESH_QEMU else {"kind": "corruption now"}
        case CauseKind.CORRUPTION:
            return {"kind": "corruption"}
        case CauseKind.REPLY_OVERRUN:
            return {"kind": "overrun"}
        case CauseKind.VIEW_UNREADABLE:
            return {"kind": "unreadable"}
        case CauseKind.NEW_BEFORE_OLD:
            return _requests(finding)
        case CauseKind.NEW_DATA_AFTER_ERROR:
            return {"kind": "new data", "owners": _primaries(finding)}
        case CauseKind.NOT_IN_STATUS:
            return {"kind": "status", "status": None}
        case CauseKind.FINAL_STATUS:
            return {"kind": "status", "status": None if cause.detail == NO_ERROR else cause.detail}
        case (
            CauseKind.WRONG_ANSWER
            | CauseKind.MISLEADING_STATUS
            | CauseKind.ERROR_MASKED
            | CauseKind.ERROR_MASKED_BY_BOTH
            | CauseKind.ERROR_MASKED_OLD_DATA
        ):
            return _answers(finding)
        case CauseKind.JOB_ENDS:
            return ending_symptom(finding)
        case CauseKind.JOB_STATE:
            return job_symptom(finding, "job state", "what")
        case CauseKind.JOB_ACTION:
            return job_symptom(finding, "job action", "disk")
        case kind if kind in OF_BITMAPS:
            return bitmaps_symptom(finding)
        case CauseKind.NO_POINT_IN_TIME | CauseKind.WRONG_DATA if cause.subject == "target":
            return target_symptom(finding)
        case CauseKind.NO_POINT_IN_TIME:
            return snapshot_symptom(finding)
        case CauseKind.WRONG_DATA if cause.subject == "view" and begins_in(finding) is not None:
            return snapshot_symptom(finding)
        case (
            CauseKind.WRONG_DATA
            | CauseKind.DATA_FITS_NO_ORDER
            | CauseKind.ANSWERS_FIT_NO_ORDER
            | CauseKind.DISKS_DIFFER
            | CauseKind.VOTERS_DIFFER
        ):
            found = _orders(finding)
            return _seen_as_data(finding) if found is UNKNOWN else found
        case CauseKind.ALLOCATION:
            return _seen_as_data(finding)
    return UNKNOWN


def _seen_as_data(finding: Finding) -> Symptom:
    """What the finding itself has of what was seen."""
    match finding.evidence:
        case Held(where, start, allowed):
            name = where if isinstance(where, str) else f"read {where}"
            found: Symptom = {"kind": "held", "where": name, "start": start, "allowed": allowed}
        case Allocated(image, cluster, kinds):
            found = {"kind": "allocation", "image": image, "cluster": cluster, "allowed": kinds}
        case _:
            return UNKNOWN
    return {**found, **way_of(finding)}


def _crash(finding: Finding, words: Sequence[str]) -> Symptom:
    """How QEMU ends, where, and with which words."""
    cause = finding.cause
    phases = ["setup"] if cause.phase is Phase.SETUP else ["steps", "end"]
    if cause.phase is Phase.EXECUTION and _unanswered(finding):
        phases = ["steps"]
    return {
        "kind": "crash",
        "phases": phases,
        "steps": len(finding.schedule),
        "status": None if finding.ending is None else finding.ending.status,
        "cause": "|".join(words) or re.escape(cause.detail),
    }


def _unanswered(finding: Finding) -> list[int]:
    """The operations that were started and not answered."""
    over = {event.op for event in finding.events if isinstance(event, Ended)}
    return [
        event.op for event in finding.events if isinstance(event, Started) and event.op not in over
    ]


def arrivals(finding: Finding) -> list[list[tuple[str, int, int]]]:
    """The requests that came before the first step and after each.

    Of each its name, its number and its operation.

    The number counts all requests of that name: a reproducer does not know of which operation.
    """
    found: list[list[tuple[str, int, int]]] = [[]]
    count: dict[str, int] = {}
    for event in finding.events:
        if event.what.is_step:
            found.append([])
        elif isinstance(event, Arrived):
            name = event.io.name
            number = count[name] = count.get(name, -1) + 1
            found[-1].append((name, number, event.op))
    return found


def _requests(finding: Finding) -> Symptom:
    last = [[name, number] for name, number, _ in arrivals(finding)[-1]]
    return {"kind": "requests", "requests": last} if last else UNKNOWN


def _primaries(finding: Finding) -> list[int]:
    scenario = finding.scenario
    return [scenario.number(i) for i, op in enumerate(scenario.ops) if op.is_primary and op.writes]


def _answers(finding: Finding) -> Symptom:
    cause = finding.cause
    do = "status" if cause.kind is CauseKind.MISLEADING_STATUS else cause.subject
    answers = {
        event.op: answer_to_json(event.answer)
        for event in finding.events
        if isinstance(event, Ended)
    }
    plain = {i: re.sub(NODE_DESCRIPTION, "", text) for i, text in answers.items()}
    same = {i: text for i, text in plain.items() if finding.scenario.ops[i].name == do}
    # Of several operations of this kind those that answered so.
    answer = REPLICATION_ERROR if cause.kind is CauseKind.MISLEADING_STATUS else cause.detail
    wrong = {i: text for i, text in same.items() if text == answer}
    if not same:
        return UNKNOWN
    symptom: Symptom = {"kind": "answers", "answers": wrong or same}
    if cause.kind is CauseKind.ERROR_MASKED_OLD_DATA:
        ops, write = finding.scenario.ops, next(iter(same))
        own = finding.scenario.number(write) if ops[write].writes else 0
        reads = [i for i, op in enumerate(ops) if op.is_guest and op.reads]
        symptom["unread"] = dict.fromkeys(reads, own)
    return symptom


def _orders(finding: Finding) -> Symptom:
    """The observables that the model predicts, by order, as data."""
    if failures(finding.schedule):
        return UNKNOWN
    checker = LinearizabilityChecker(finding.scenario, behaviour_of(finding.version))
    orders: list[dict[str, Any]] = []
    for order, end in checker.outcomes.items():
        predicted = _predicted(checker.predictions(end), len(checker.cells))
        if predicted is None:
            return UNKNOWN
        predicted = {"order": operations_in(order), **predicted}
        if predicted not in orders:
            orders.append(predicted)
    return {"kind": "orders", "cells": [list(cell) for cell in checker.cells], "orders": orders}


def _predicted(predictions: Observations, cells: int) -> dict[str, Any] | None:
    """The answers that are as predicted, and by read and by disk the owner in each cell.

    :returns: ``None`` where a cell has more than one owner, or too many answers are as predicted
    """
    answers: list[list[str]] = []
    owners: dict[str, list[int | None]] = {}
    for one, value in predictions.items():
        match one:
            case Observable(Aspect.ANSWER):
                if value == ANY_ERROR:
                    return None
                answers.append([answer_to_json(answer) for answer in admitted(value)])
            case Observable(Aspect.DATA | Aspect.DISK, of, cell):
                if len(set(value)) != 1:
                    return None
                name = f"read {of}" if one.aspect is Aspect.DATA else str(of)
                owners.setdefault(name, [None] * cells)[cell] = value[0]
    return {"answers": answers, **owners}
