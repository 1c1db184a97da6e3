"""`qmpshim check`'s cases of kind ``points``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, ShownBy, Status
from qmpshim.conformance.known.uses import uses_of_points
from qmpshim.conformance.pointintime.verify import SIZE, PointsSubject, points_setup
from qmpshim.conformance.pointintime.workload import PointsWorkflow, PointsWorkload
from qmpshim.conformance.workload.verification import VerifyOutcome, verify
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.points import PointsSpec
from qmpshim.machine.host.workspace import Workspace

_DEFAULTS: dict[str, Any] = {
    "workflow": "push",
    "operations": 2000,
    "seed": 1,
    "size": SIZE,
    "cluster": 64 << 10,
    "shrink": 30,
}


def run(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``workflow`` (``push``, ``bitmaps``, ``pull``), ``operations``, ``seed``, ``size`` and
    ``cluster`` (bytes), ``shrink`` (seconds for making a case small)."""
    values = {**_DEFAULTS, **case.arguments}
    for name, value in values.items():
        if name not in _DEFAULTS or type(value) is not type(_DEFAULTS[name]):
            raise InputError(f"{case.name}: {case.kind} takes no {name} of {value!r}")
    try:
        workflow = PointsWorkflow(values["workflow"])
    except ValueError as error:
        raise InputError(f"{case.name}: {error}") from error
    spec = PointsSpec(values["size"], values["cluster"])
    seed = values["seed"]
    with Workspace() as workspace:
        outcome = asyncio.run(
            verify(
                PointsSubject(workflow, points_setup(build, spec)),
                list(PointsWorkload(workflow, spec, seed).take(values["operations"])),
                read_version(build)[1],
                seed,
                workspace,
                directory,
                lambda text: None,
                shrinking=float(values["shrink"]),
            )
        )
    result = outcome.result
    return CaseOutcome(
        Status.DIVERGED if result.divergence else Status.OK,
        f"{result.done} operations, {result.checks} cross-checks, {result.clusters} clusters",
        tuple(_divergence(outcome, workflow)),
        {
            "operations": result.done,
            "cross-checks": result.checks,
            "clusters": result.clusters,
            "run seconds": round(result.seconds, 3),
        },
    )


def _divergence(
    outcome: VerifyOutcome[Any, Any, Any], workflow: PointsWorkflow
) -> list[CaseFinding]:
    found = outcome.result.divergence
    if found is None:
        return []
    return [
        CaseFinding(
            found.verdict,
            found.where,
            f"{found.where}: predicted {found.predicted}; observed {found.observed}",
            found.predicted,
            found.observed,
            trace=tuple(str(operation) for operation in outcome.operations),
            bundle=outcome.bundle.name if outcome.bundle else "",
            replay=ShownBy.BUNDLE,
            uses=uses_of_points(workflow),
        )
    ]
