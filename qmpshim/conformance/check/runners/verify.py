"""Cases of kind ``verify`` and ``points``: a workload on a chain, or on disks with bitmaps."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import AnyCase
from qmpshim.conformance.check.case import (
    Case,
    CaseFinding,
    CaseOutcome,
    ShownBy,
    Status,
    details_of,
)
from qmpshim.conformance.check.report.cluster_maps import maps_of_bundle
from qmpshim.conformance.check.report.sequence import steps_of_operations
from qmpshim.conformance.check.runners.arguments import argument, only
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.known.bundle_kinds import load_bundle
from qmpshim.conformance.known.folder import summary
from qmpshim.conformance.pointintime.verify import SIZE, PointsSubject, points_setup
from qmpshim.conformance.pointintime.workload import PointsWorkflow, PointsWorkload
from qmpshim.conformance.workload.verification import Subject
from qmpshim.conformance.workload.verification import verify as run_verify
from qmpshim.conformance.workload.verify import ChainSubject, setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.errors import HostError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.points import PointsSpec
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import KnownDefect
from qmpshim.model.check.verdict import Verdict


def verify(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``workflow``, ``operations``, ``seed``, ``size``, ``cluster`` (bytes), ``secondary``,
    ``shrink`` (seconds for making a case small)."""
    only(case, "workflow", "operations", "seed", "size", "cluster", "secondary", "shrink")
    spec = ChainSpec(
        argument(case, "workflow", "replication"),
        argument(case, "size", 64 << 20),
        argument(case, "cluster", 64 << 10),
        argument(case, "secondary", "raw"),
    )
    count, seed = argument(case, "operations", 2000), argument(case, "seed", 1)
    subject, operations = ChainSubject(setup_for(build, spec)), Workload(spec, seed).take(count)
    return _run(subject, list(operations), build, case, directory, _cause)


def points(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``workflow`` (``push``, ``bitmaps``, ``pull``), ``operations``, ``seed``, ``size`` and
    ``cluster`` (bytes), ``shrink`` (seconds for making a case small)."""
    only(case, "workflow", "operations", "seed", "size", "cluster", "shrink")
    try:
        workflow = PointsWorkflow(argument(case, "workflow", "push"))
    except ValueError as error:
        raise InputError(f"{case.name}: {error}") from error
    spec = PointsSpec(argument(case, "size", SIZE), argument(case, "cluster", 64 << 10))
    count, seed = argument(case, "operations", 2000), argument(case, "seed", 1)
    subject = PointsSubject(workflow, points_setup(build, spec))
    operations = PointsWorkload(workflow, spec, seed).take(count)
    # Baselines have no more of it.
    return _run(subject, list(operations), build, case, directory, lambda found: found.where)


def _run(
    subject: Subject[Any, Any, Any],
    operations: Sequence[Any],
    build: Build,
    case: Case,
    directory: Path,
    cause: Callable[[Divergence], str],
) -> CaseOutcome:
    """Run a workload.

    :param cause: of a finding, by which a baseline knows it again
    :raises HostError: what is found cannot be kept
    """
    with Workspace() as workspace:
        outcome = asyncio.run(
            run_verify(
                subject,
                operations,
                read_version(build)[1],
                argument(case, "seed", 1),
                workspace,
                directory,
                lambda text: None,  # the progress of a single case is not shown
                shrinking=float(argument(case, "shrink", 30)),
            )
        )
    result = outcome.result
    found = [
        _relied_on(known, number)
        for known, number in sorted(result.known.items())
        if isinstance(known, KnownDefect)
    ]
    if result.divergence is not None:
        if outcome.bundle is None:
            raise HostError(f"{outcome.unsaved}; it shows {result.divergence}")
        shown = load_bundle(outcome.bundle)
        assert isinstance(shown, AnyCase) and shown.divergence is not None
        finding = workload_finding(shown, shown.divergence, outcome.bundle)
        found.insert(0, replace(finding, cause=cause(shown.divergence)))
    return CaseOutcome(
        Status.DIVERGED if result.divergence else Status.OK,
        f"{result.done} operations, {result.checks} cross-checks, {result.clusters} clusters",
        tuple(found),
        {
            "operations": result.done,
            "cross-checks": result.checks,
            "clusters": result.clusters,
            "run seconds": round(result.seconds, 3),
        },
    )


#: What a known defect that a prediction rests on shows: verdict, text, predicted by QEMU's
#: documents, observed, and by which operations.
_SHOWN = {
    KnownDefect.STOP_ALWAYS_FAILS: (
        Verdict.ERROR_CONTRACT,
        "stop fails with 'Backup job was cancelled unexpectedly'",
        "no error",
        "Backup job was cancelled unexpectedly",
        ("start", "stop"),
    ),
    KnownDefect.SNAPSHOT_READS_NEW_DATA: (
        Verdict.ISOLATION,
        "a read of the snapshot returns new data",
        "the old data",
        "new data",
        ("primary write", "guest read"),
    ),
}


def _relied_on(known: KnownDefect, number: int) -> CaseFinding:
    verdict, text, predicted, observed, trace = _SHOWN[known]
    return CaseFinding(
        verdict,
        known.value,
        text,
        predicted,
        observed,
        known=known.value,
        count=number,
        trace=trace,
        details={"written": summary(known.value)},
    )


def workload_finding(case: AnyCase, found: Divergence, place: Path) -> CaseFinding:
    """The divergence of a workload, whose bundle is at *place*."""
    return CaseFinding(
        found.verdict,
        _cause(found),
        f"{found.where}: predicted {found.predicted}; observed {found.observed}",
        found.predicted,
        found.observed,
        trace=tuple(str(operation) for operation in case.operations),
        bundle=place.name,
        replay=ShownBy.BUNDLE,
        details=details_of(
            diagram=steps_of_operations(
                case.lanes, case.steps, f"{found.verdict}: {found.observed}"
            ),
            maps=maps_of_bundle(case, place),
            chain=f"{case.disks}, {case.spec.size} bytes, clusters of {case.spec.cluster}",
        ),
        uses=case.uses,
    )


def _cause(found: Divergence) -> str:
    return f"{found.where}: {_stable(found.predicted)} / {_stable(found.observed)}"


def _stable(text: str) -> str:
    """A text without what differs from one workload to the next: numbers, and how many more."""
    text = re.sub(r" \(and \d+ more [^)]*\)|in sectors .*|during \d+: .*?(?=: |$)", "", text)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text).strip()[:120]
