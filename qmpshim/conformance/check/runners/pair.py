"""Cases of kind ``pair``: a plan for two QEMUs; what was found of it, for a report."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, ShownBy, Status
from qmpshim.conformance.known.accelerator import best_accel
from qmpshim.conformance.known.folder import known_pairs
from qmpshim.conformance.pair.plan import PairOutcome, PairPlan
from qmpshim.conformance.pair.run_plan import run_plan, summary
from qmpshim.machine.builds.build import Build


def pair(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """A plan's fields.

    ``accel`` may be ``auto``: see :func:`best_accel`.

    :raises BuildError: this build cannot take part in a pair
    """
    began = time.monotonic()
    arguments = dict(case.arguments)
    if arguments.get("accel", "auto") == "auto":
        arguments["accel"] = best_accel((build, build), arguments.get("guest", "boot"))
    plan = PairPlan.from_json(arguments)
    outcome, bundle = asyncio.run(run_plan(plan, (build, build), directory, known=known_pairs()))
    findings = case_findings(outcome, bundle, directory)
    new = [finding for finding in findings if not finding.known]
    return CaseOutcome(
        Status.DIVERGED if new else Status.OK,
        summary(outcome),
        findings,
        {
            "checkpoints": outcome.checkpoints,
            "writes": outcome.writes,
            "bytes compared": outcome.compared,
            **outcome.figures,
        },
        time.monotonic() - began,
    )


def case_findings(
    outcome: PairOutcome, bundle: Path | None, directory: Path
) -> tuple[CaseFinding, ...]:
    """What was found, for a report.

    :param bundle: where the evidence is, in *directory*
    """
    return tuple(
        CaseFinding(
            finding.verdict,
            str(finding.cause),
            f"{finding.divergence.where}: {finding.divergence.observed}",
            finding.divergence.predicted,
            finding.divergence.observed,
            finding.contract,
            finding.known,
            trace=tuple(outcome.steps),
            bundle=str(bundle.relative_to(directory)) if bundle else "",
            replay=ShownBy.BUNDLE,
            details={"autopsy": list(finding.post_mortem)},
            uses=finding.uses,
        )
        for finding in outcome.findings
    )
