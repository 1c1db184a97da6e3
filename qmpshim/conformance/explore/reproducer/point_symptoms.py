"""Symptoms of what depends on a point in time: what a job does and leaves, snapshots, bitmaps.

What is predicted is for one way that an execution may take (:func:`way_of`): another one has other
points in time. The kinds are described in :mod:`.symptoms`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from qmpshim.conformance.compare.model_chain import frozen_at_start
from qmpshim.conformance.explore.checkers.bitmaps import beside_transaction
from qmpshim.conformance.explore.checkers.point_in_time import (
    Failures,
    Named,
    may_end_job,
    possible,
)
from qmpshim.conformance.explore.checkers.pulled_bitmaps import Marks, touched
from qmpshim.conformance.explore.checkers.pulled_point import Point, possible_points
from qmpshim.conformance.explore.harness.choices import Cut, failures
from qmpshim.conformance.explore.harness.events import Ended, JobPaused, Note, Started
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.model.answers import OK, UNANSWERED, Answer, answer_to_json
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.operations import Verb, does
from qmpshim.model.pointintime.jobs import Ending
from qmpshim.model.pointintime.masks import cover, runs
from qmpshim.model.pointintime.push import FIRST, GRANULARITY, NEW
from qmpshim.model.units import runs_of

Symptom: TypeAlias = dict[str, Any]
UNKNOWN: Symptom = {"kind": "unknown"}
OF_BITMAPS = (CauseKind.BITMAP_MISSES, CauseKind.BITMAP_EXCEEDS, CauseKind.BITMAP_STATE)


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


def ending_symptom(finding: Finding) -> Symptom:
    """How a job ended."""
    return {"kind": "ending", "ending": finding.cause.detail, **way_of(finding)}


def job_symptom(finding: Finding, kind: str, subject: str) -> Symptom:
    """What a job is, or does at an error, other than predicted.

    :param subject: what the cause's subject is called there
    """
    cause = finding.cause
    return {
        "kind": kind,
        subject: cause.subject,
        "predicted": [*cause.predicted],
        **way_of(finding),
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


def way_of(finding: Finding) -> Symptom:
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


def target_symptom(finding: Finding) -> Symptom:
    """How a job may have ended, and what its target may hold, by the changes before T0."""
    answers, precedence = _ended(finding)
    points = possible(
        finding.scenario,
        behaviour_of(finding.version),
        tuple(answers),
        tuple(precedence),
        None,
        _failures(finding),
    )
    jobs = [one for one in points if one.t0]
    if not jobs:
        return UNKNOWN
    endings = set().union(*(one.endings for one in jobs))
    return {
        "kind": "target",
        **way_of(finding),
        "endings": sorted(ending.name.lower() for ending in endings if ending is not None),
        "points": [
            [[*edges, sorted(owners, key=str)] for *edges, owners in runs_of(one.allowed)]
            for one in jobs
        ],
    }


def begins_in(finding: Finding) -> int | None:
    """The operation that has started a pull; None: none has, or the topology did."""
    if not finding.scenario.topology.begins_late:
        return None
    answers, _ = _ended(finding)
    starts = (n for n, op in enumerate(finding.scenario.ops) if op.verb is Verb.START)
    return next((n for n in starts if answers[n] == OK), None)


def snapshot_symptom(finding: Finding) -> Symptom:
    """What is read of a snapshot once the pull has been started, by the changes before T0."""
    start = begins_in(finding)
    if start is None:
        return UNKNOWN
    return {
        "kind": "snapshot",
        "reads": _reads(finding, start),
        "points": [_owners(point) for point in _points(finding)],
        **way_of(finding),
    }


def _reads(finding: Finding, start: int) -> list[int]:
    """The operations that read the snapshot once the pull had started."""
    _, precedence = _ended(finding)
    return [
        n
        for n, op in enumerate(finding.scenario.ops)
        if op.is_guest and op.verb is Verb.READ and start in precedence[n]
    ]


def _points(finding: Finding) -> tuple[Point, ...]:
    """The points in time at which a pull may have been started."""
    answers, precedence = _ended(finding)
    return possible_points(
        finding.scenario,
        behaviour_of(finding.version),
        tuple(answers),
        tuple(precedence),
        bool(failures(finding.schedule)),
    )


def _owners(point: Point) -> list[list[Any]]:
    """Whose the disk may be at a point in time, by runs of sectors: first, end, owners."""
    return [[*edges, sorted(owners)] for *edges, owners in runs_of(map(frozenset, point.owners))]


def bitmaps_symptom(finding: Finding) -> Symptom:
    """The bitmaps as they must be in the end."""
    scenario = finding.scenario
    if scenario.topology.frozen is None:
        return _bitmaps_of_jobs(finding)
    if not scenario.topology.begins_late:
        return _pulled_bitmaps(scenario)
    start = begins_in(finding)
    return UNKNOWN if start is None else _bitmaps_of_late_pull(finding, start)


def _bitmaps_of_late_pull(finding: Finding, start: int) -> Symptom:
    """What each may name, by the changes before T0."""
    scenario = finding.scenario
    answers, precedence = _ended(finding)
    read = any(
        op.verb is Verb.DIRTY_BITMAP and answer == OK
        for op, answer in zip(scenario.ops, answers, strict=True)
    )
    marks = Marks(scenario, answers, precedence, start)
    gone = {step.io.image for step in failures(finding.schedule) if step.fault == Cut.FOR_GOOD}
    lost = "secondary" in gone and scenario.secondary != "raw"  # not all is in the disk's file
    points = []
    for point in _points(finding):
        named = marks.named(point)
        first, may_be_first, since, may_be_since, either = (
            _granules(cover(sectors, GRANULARITY, scenario.size))
            for sectors in (
                named.first,
                named.may_be_first,
                named.since,
                named.may_be_since,
                named.either,
            )
        )
        frozen = {"recording": False, "busy": read, "must": first, "may": may_be_first}
        active = {"recording": True, "busy": False, "must": since, "may": may_be_since}
        points.append(
            {
                "ending": None,
                "target": [],
                "owners": _owners(point),
                "bitmaps": {FIRST: frozen, NEW: active},
                "either": either,
            }
        )
    return {
        "kind": "bitmaps",
        "lost": lost,
        "reads": None if does(scenario.ops, Verb.STOP) else _reads(finding, start),
        "granule": GRANULARITY,
        "unit": scenario.granule,
        "points": points,
        **way_of(finding),
    }


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
            behaviour_of(finding.version),
            tuple(answers),
            tuple(precedence),
            ending,
            _failures(finding),
        ):
            target = [[*edges, sorted(owners, key=str)] for *edges, owners in runs_of(one.allowed)]
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
        **way_of(finding),
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
