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
* ``orders``: what was seen fits none of the ends that the model gives for each order;
* ``target``: a backup job has ended in one of the ``endings``, and its target is the disk at none
  of these ``points`` in time: runs of sectors, with the owners that each may have once a job has
  completed, None where it has nothing. They are those of the ``answers`` (a command is ``ok`` or
  ``refused``) of operations that began when those ``before`` had ended, of those named in
  ``paused`` while an error had paused the job;
* ``bitmaps``: the secondary disk's dirty bitmaps are at none of the ``points`` as they must be, of
  those where the job has the ``ending`` (None: no job has ended) and ``target`` that were seen, as
  above. There are other ``bitmaps``, or one names a ``granule`` (of so many sectors) that it may
  not, or not each that it ``must`` (None: where the disk has changed; with ``uncopied``: and where
  the target has nothing in a copy of ``unit`` sectors), or does not record, or is not in use, as it
  should;
* ``ending``: where the operations ended with these ``answers``, as above, the backup job has ended
  in this way;
* ``unknown``: somebody has to look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from qmpshim.conformance.compare.model_chain import frozen_at_start
from qmpshim.conformance.explore.checkers.bitmaps import beside_transaction
from qmpshim.conformance.explore.checkers.crash_points import FRESH_QEMU
from qmpshim.conformance.explore.checkers.linearizability import (
    NODE_DESCRIPTION,
    LinearizabilityChecker,
)
from qmpshim.conformance.explore.checkers.orders import operations_in
from qmpshim.conformance.explore.checkers.point_in_time import (
    Failures,
    Named,
    may_end_job,
    possible,
)
from qmpshim.conformance.explore.checkers.pulled_bitmaps import touched
from qmpshim.conformance.explore.harness.choices import Cut, failures
from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Ended,
    JobPaused,
    Note,
    Started,
)
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.known.folder import known_findings
from qmpshim.model.answers import (
    ANY_ERROR,
    OK,
    REPLICATION_ERROR,
    UNANSWERED,
    Answer,
    admitted,
    answer_to_json,
)
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import NO_ERROR, CauseKind, Phase
from qmpshim.model.check.observables import Aspect, Observable, Observations
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.jobs import Ending
from qmpshim.model.pointintime.masks import cover, runs
from qmpshim.model.pointintime.push import FIRST, GRANULARITY, NEW

Symptom: TypeAlias = dict[str, Any]
_UNKNOWN: Symptom = {"kind": "unknown"}
OF_BITMAPS = (CauseKind.BITMAP_MISSES, CauseKind.BITMAP_EXCEEDS, CauseKind.BITMAP_STATE)
_NOWADAYS = (10, 0, 0)  # the version of a finding without one


def symptom_of(finding: Finding) -> Symptom:
    """What the reproducer of a finding looks for."""
    cause = finding.cause
    if cause.kind.after_crash and finding.verdict in (Verdict.CRASH, Verdict.HANG):
        return _UNKNOWN
    if finding.verdict is Verdict.CRASH:
        return _crash(finding)
    if cause.kind is CauseKind.SETUP_FAILS:
        return {"kind": "setup", "operation": cause.subject, "answer": cause.detail}
    if cause.phase is Phase.SETUP:
        return _UNKNOWN
    if finding.verdict is Verdict.HANG:
        return {"kind": "hang", "unanswered": _unanswered(finding)}
    if cause.kind.of_probe:
        return {"kind": "probe"}
    match cause.kind:
        case CauseKind.BROKEN_BY_CRASH:
            return _UNKNOWN if cause.detail == FRESH_QEMU else {"kind": "corruption now"}
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
            return _ending(finding)
        case CauseKind.JOB_STATE:
            return _of_job(finding, "job state", "what")
        case CauseKind.JOB_ACTION:
            return _of_job(finding, "job action", "disk")
        case kind if kind in OF_BITMAPS:
            return _bitmaps(finding)
        case CauseKind.NO_POINT_IN_TIME:
            return _target(finding)
        case CauseKind.WRONG_DATA if cause.subject == "target":
            return _target(finding)
        case (
            CauseKind.WRONG_DATA
            | CauseKind.DATA_FITS_NO_ORDER
            | CauseKind.ANSWERS_FIT_NO_ORDER
            | CauseKind.DISKS_DIFFER
        ):
            return _orders(finding)
    return _UNKNOWN


def _crash(finding: Finding) -> Symptom:
    """How QEMU ends, where, and with which words; a write-up has the words of other builds."""
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
    return {
        "kind": "crash",
        "phases": phases,
        "steps": len(finding.schedule),
        "status": None if finding.ending is None else finding.ending.status,
        "cause": "|".join(ways) or re.escape(cause.detail),
    }


def _unanswered(finding: Finding) -> list[int]:
    """The operations that were started and not answered."""
    over = {event.op for event in finding.events if isinstance(event, Ended)}
    return [
        event.op for event in finding.events if isinstance(event, Started) and event.op not in over
    ]


def _version(finding: Finding) -> tuple[int, ...]:
    return tuple(finding.build.get("version", ())) or _NOWADAYS


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
    return {"kind": "requests", "requests": last} if last else _UNKNOWN


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
        return _UNKNOWN
    symptom: Symptom = {"kind": "answers", "answers": wrong or same}
    if cause.kind is CauseKind.ERROR_MASKED_OLD_DATA:
        ops, write = finding.scenario.ops, next(iter(same))
        own = finding.scenario.number(write) if ops[write].writes else 0
        reads = [i for i, op in enumerate(ops) if op.is_guest and op.reads]
        symptom["unread"] = dict.fromkeys(reads, own)
    return symptom


def _ended(finding: Finding) -> tuple[list[Answer], list[frozenset[int]]]:
    """By operation its answer, and those that come before it."""
    answers: list[Answer] = [UNANSWERED] * len(finding.scenario.ops)
    precedence = [frozenset[int]()] * len(answers)
    over: set[int] = set()
    started: set[int] = set()
    for event in finding.events:
        match event:
            case Started(op):
                precedence[op] = finding.scenario.preceding(op, over, started)
                started.add(op)
            case Ended(op, answer):
                answers[op] = answer
                over.add(op)
    return answers, precedence


def _ending(finding: Finding) -> Symptom:
    """How a job ended."""
    return {"kind": "ending", "ending": finding.cause.detail, **_way(finding)}


def _of_job(finding: Finding, kind: str, subject: str) -> Symptom:
    cause = finding.cause
    return {
        "kind": kind,
        subject: cause.subject,
        "predicted": [*cause.predicted],
        **_way(finding),
    }


def _failures(finding: Finding) -> Failures:
    """What failed, as far as it matters to what is possible; what paused the job among it."""
    fails = failures(finding.schedule)
    paused = _paused(finding)
    gone = any(step.fault == Cut.FOR_GOOD for step in fails)
    return Failures(
        bool(fails),
        may_end_job(finding.scenario, fails),
        frozenset(op for op in paused if op is not None),
        gone and None in paused,
    )


def _paused(finding: Finding) -> list[int | None]:
    """The operations that started while an error had paused the job; None: it was so in the end."""
    after = [*finding.events[1:], Note("")]
    pairs = zip(finding.events, after, strict=True)
    return [
        following.op if isinstance(following, Started) else None
        for event, following in pairs
        if isinstance(event, JobPaused)
    ]


def _way(finding: Finding) -> Symptom:
    """The answers, what came before what, and where an error had paused the job."""
    answers, precedence = _ended(finding)
    way: Symptom = {
        "answers": [
            "refused" if op.is_command and answer != OK else answer_to_json(answer)
            for op, answer in zip(finding.scenario.ops, answers, strict=True)
        ],
        "before": [sorted(over) for over in precedence],
    }
    if finding.scenario.stops:
        way["paused"] = [op for op in _paused(finding) if op is not None]
    return way


def _target(finding: Finding) -> Symptom:
    """How a job may have ended, and what its target may hold, by the changes before T0."""
    answers, precedence = _ended(finding)
    points = possible(
        finding.scenario,
        behaviour_of(_version(finding)),
        tuple(answers),
        tuple(precedence),
        None,
        _failures(finding),
    )
    jobs = [one for one in points if one.t0]
    if not jobs:
        return _UNKNOWN
    endings = set().union(*(one.endings for one in jobs))
    return {
        "kind": "target",
        **_way(finding),
        "endings": sorted(ending.name.lower() for ending in endings if ending is not None),
        "points": [
            [[*edges, sorted(owners, key=str)] for owners, edges in _runs(one.allowed)]
            for one in jobs
        ],
    }


def _bitmaps(finding: Finding) -> Symptom:
    """The bitmaps as they must be in the end."""
    if finding.scenario.topology.frozen:
        return _pulled_bitmaps(finding.scenario)
    return _bitmaps_of_jobs(finding)


def _pulled_bitmaps(scenario: RealScenario) -> Symptom:
    named = _granules(frozen_at_start(scenario.topology, scenario.size))
    since = _granules(cover(touched(scenario), GRANULARITY, scenario.size))
    frozen = {"recording": False, "busy": True, "must": named, "may": named}
    active = {"recording": True, "busy": False, "must": None, "may": since}
    point: dict[str, Any] = {"ending": None, "target": [], "bitmaps": {FIRST: frozen, NEW: active}}
    return {"kind": "bitmaps", "granule": GRANULARITY, "unit": scenario.granule, "points": [point]}


def _bitmaps_of_jobs(finding: Finding) -> Symptom:
    """By how the job ended and what was changed before T0, what each bitmap may name."""
    scenario = finding.scenario
    answers, precedence = _ended(finding)
    beside = beside_transaction(scenario, precedence)
    points: list[dict[str, Any]] = []
    for ending in (None, *Ending):
        for one in possible(
            scenario,
            behaviour_of(_version(finding)),
            tuple(answers),
            tuple(precedence),
            ending,
            _failures(finding),
        ):
            target = [[*edges, sorted(owners, key=str)] for owners, edges in _runs(one.allowed)]
            for bitmaps in one.bitmaps:
                named = {
                    name: _named(want, beside if name == NEW else 0, scenario.size)
                    for name, want in bitmaps.items()
                }
                how = None if ending is None else ending.name.lower()
                point = {"ending": how, "target": target if one.t0 else [], "bitmaps": named}
                if point not in points:
                    points.append(point)
    return {
        "kind": "bitmaps",
        "granule": GRANULARITY,
        "unit": scenario.granule,
        "points": points,
        **_way(finding),
    }


def _named(want: Named, beside: int, size: int) -> dict[str, Any]:
    uncopied = cover(want.uncopied, GRANULARITY, size)
    return {
        "recording": want.recording,
        "busy": False,
        "must": _granules(cover(want.must, GRANULARITY, size)),
        "may": _granules(cover(want.may | beside | want.must | uncopied, GRANULARITY, size)),
        "uncopied": [list(run) for run in runs(want.uncopied)],
    }


def _granules(sectors: int) -> list[int]:
    """The granules of a set of sectors that consists of whole ones."""
    found = (range(start, start + count, GRANULARITY) for start, count in runs(sectors))
    return [start // GRANULARITY for some in found for start in some]


def _runs(values: Sequence[frozenset[int | None]]) -> list[tuple[frozenset[int | None], list[int]]]:
    """The values that are the same one after another, with first place and end."""
    found: list[tuple[frozenset[int | None], list[int]]] = []
    for place, value in enumerate(values):
        if found and found[-1][0] == value:
            found[-1][1][1] = place + 1
        else:
            found.append((value, [place, place + 1]))
    return found


def _orders(finding: Finding) -> Symptom:
    """The observables that the model predicts, by order, as data."""
    if failures(finding.schedule):
        return _UNKNOWN
    checker = LinearizabilityChecker(finding.scenario, behaviour_of(_version(finding)))
    orders: list[dict[str, Any]] = []
    for order, end in checker.outcomes.items():
        predicted = _predicted(checker.predictions(end), len(checker.cells))
        if predicted is None:
            return _UNKNOWN
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
