"""An assessment in the JSON document of its command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.assess.assess import Assessment
from qmpshim.conformance.assess.judgement import Judgement, Reason


def assessment_object(one: Assessment, again: Mapping[Reason, str]) -> dict[str, Any]:
    """An assessment of a build.

    :param again: the command that shows each reason
    """
    return {
        "build": one.build.name,
        "seconds": round(one.seconds, 3),
        "interrupted": one.interrupted,
        "uses": [_use(judgement, again) for judgement in one.judgements],
        "trials": [
            {"finding": trial.entry.name, "seen": trial.seen.value, "why": trial.why}
            for trial in one.trials
        ],
    }


def _use(one: Judgement, again: Mapping[Reason, str]) -> dict[str, Any]:
    explored = one.explored
    return {
        "use": one.use.value,
        "answer": one.answer.value,
        "reasons": [_reason(reason, again) for reason in one.reasons],
        "remarks": [_reason(reason, again) for reason in one.remarks],
        "doubts": list(one.doubts),
        "untried": [entry.name for entry in one.untried],
        "tried": {
            "findings": one.findings_tried,
            "scenarios": explored.scenarios,
            "scenarios_reached": explored.reached,
            "scenarios_exhausted": explored.exhausted,
            "schedules": explored.schedules,
            "operations": sum(run.operations for run in one.workloads),
            "directed_cases": explored.cases,
            "directed_cases_run": explored.cases_run,
        },
    }


def _reason(one: Reason, again: Mapping[Reason, str]) -> dict[str, Any]:
    return {
        "severity": one.severity.value,
        "finding": one.entry.name if one.entry else None,
        "text": one.text,
        "promised": one.promised,
        "when": one.when,
        "then": one.then,
        "avoid": one.avoid,
        "fixed": one.fixed,
        "again": again.get(one, ""),
    }
