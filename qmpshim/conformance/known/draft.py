"""A draft of a write-up, made from a bundle: all is filled in that follows from what was run.

What somebody has to find out or to put in words is :data:`~.meaning.TO_WRITE`; as long as that is
there, the write-up is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from qmpshim.codec import encode
from qmpshim.conformance.bundles.any_workload import AnyCase
from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.explore.harness.choices import failing_kinds
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.known.matching import check_shown
from qmpshim.conformance.known.meaning import (
    SEVERITY_OF,
    TO_WRITE,
    Meaning,
    Severity,
    Trigger,
    Upstream,
)
from qmpshim.conformance.pair.bundle import PairCase
from qmpshim.conformance.pair.plan import Failover
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.conformance.pointintime.operations import PointKind
from qmpshim.conformance.uses import USES_OF_PAIR, Use
from qmpshim.errors import InputError
from qmpshim.model.check.cause import Cause, CauseKind, Phase
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.jobs import JobSpec

_PROMISE = f"{TO_WRITE}: what QEMU promises instead, one sentence."
#: At least two: what there is to begin with, and what shows it.
_STEPS = (
    f"{TO_WRITE}: what is opened and started, a sentence.",
    f"{TO_WRITE}: what is done then to see it, a sentence each.",
)
#: What does not follow from the verdict alone: what the answer should have been.
_PROMISED = frozenset((Verdict.ERROR_CONTRACT, Verdict.PROTOCOL))
_AFTER_CRASH = frozenset((CauseKind.BROKEN_BY_CRASH, CauseKind.UNUSABLE_AFTER_CRASH))


def of_chain(case: ChainCase) -> dict[str, Any]:
    """Of operations on a chain: by a random workload, or by hand. They let nothing fail.

    :raises InputError, ValueError: they show nothing wrong; so of the other kinds below
    """
    return _of_workload(case, Trigger.LOAD)


def of_points(case: PointsCase) -> dict[str, Any]:
    """Of a random workload on disks with bitmaps and jobs."""
    jobs = (one for each in case.operations for one in each.actions if isinstance(one, JobSpec))
    fails = any(job.fault is not None for job in jobs)
    killed = any(one.kind is PointKind.KILL for one in case.operations)
    return _of_workload(case, _trigger(True, fails, killed))


def _of_workload(case: AnyCase, trigger: Trigger) -> dict[str, Any]:
    found = case.wrong
    check_shown(case, found)
    text = f"{found.where}: predicted {found.predicted}, observed {found.observed}"
    return {
        **_head(text, case.uses, found.verdict, trigger, _seen(case.build)),
        "versions": {},
        "expected": _PROMISE,
        "steps": list(_STEPS),
        "reason": TO_WRITE,
        "source": TO_WRITE,
        "contract": True,  # one operation after another, each in a state that QEMU expects it in
        "case": case.to_json(),
    }


def _trigger(contract: bool, disk: bool, host: bool) -> Trigger:
    """What it takes: misuse, or that a disk or a link fails, or the host."""
    if not contract:
        return Trigger.MISUSE
    if disk and host:
        return Trigger.TWO_FAILURES
    return Trigger.FAILURE if disk or host else Trigger.LOAD


def of_schedule(finding: Finding) -> dict[str, Any]:
    """Of a schedule of `explore`, or of a gated session by hand."""
    if finding.verdict is None:
        raise InputError("this schedule was recorded as one that shows nothing wrong")
    failed, crash = failing_kinds(finding.schedule), finding.cause.kind in _AFTER_CRASH
    trigger = _trigger(finding.contract, bool(failed), crash)
    version = ".".join(map(str, finding.build.get("version", ())))
    seen = (version,) if version else ()
    promised = {"expected": _PROMISE} if finding.verdict in _PROMISED else {}
    return {
        **_head(finding.text, finding.uses, finding.verdict, trigger, seen),
        "causes": [_pattern(finding.cause)],
        "versions": {},
        **promised,
        "reason": TO_WRITE,
        "source": TO_WRITE,
        "contract": finding.contract,
        "case": finding.to_json(),
    }


def of_pair(case: PairCase) -> dict[str, Any]:
    """Of a run of a pair."""
    plan, wanted, content = case.plan, case.wrong, case.content
    trigger = _trigger(wanted.contract, plan.failover is not Failover.NONE, False)
    return {
        **_head(
            str(wanted.cause),
            USES_OF_PAIR,
            wanted.verdict,
            trigger,
            _seen(*content.get("builds", ())),
        ),
        "causes": [_pattern(wanted.cause)],
        "versions": {},
        "side": TO_WRITE,
        "accel": plan.accel,
        "expected": _PROMISE,
        "observed": str(wanted.cause),
        "steps": list(_STEPS),
        "reason": TO_WRITE,
        "source": TO_WRITE,
        "contract": wanted.contract,
        "case": {name: content[name] for name in ("format", "kind", "plan", "findings")},
    }


def _seen(*builds: Mapping[str, Any]) -> tuple[str, ...]:
    """The versions of a bundle's builds, each once; none where it does not have them."""
    versions = (str(build.get("version", "")).partition(" ")[0] for build in builds)
    return tuple(dict.fromkeys(filter(None, versions)))


def _head(
    text: str, uses: tuple[Use, ...], verdict: Verdict, trigger: Trigger, seen: tuple[str, ...]
) -> dict[str, Any]:
    meaning = Meaning(
        uses,
        SEVERITY_OF.get(verdict, Severity.COSMETIC),
        trigger,
        f"{TO_WRITE}: when a user meets it.",
        f"{TO_WRITE}: what happens then.",
        f"{TO_WRITE}: how to avoid it.",
        seen,
        None,
        Upstream.UNKNOWN,
    )
    return {"title": text, "meaning": encode(meaning), "verdicts": [verdict.value]}


def _pattern(cause: Cause) -> dict[str, Any]:
    """What matches this cause and no other."""
    value: dict[str, Any] = {"kind": cause.kind.value, "detail": re.escape(cause.detail)}
    if cause.subject:
        value["subjects"] = [cause.subject]
    if cause.predicted:
        value["predicted"] = list(cause.predicted)
    if cause.phase is not Phase.EXECUTION:
        value["phases"] = [cause.phase.value]
    if (fault := cause.fault) is not None:
        relation = fault.relation.value
        value["faults"] = [{"what": [fault.what], "gone": fault.gone, "relation": relation}]
    return value


def draft_text(made: Mapping[str, Any]) -> str:
    """A draft as a file's content."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
