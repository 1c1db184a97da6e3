"""Runs a plan, names what is known, bundles what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from qmpshim.conformance.pair import bundle as pair_bundle
from qmpshim.conformance.pair.blocks import BlockRun
from qmpshim.conformance.pair.colo import ColoRun
from qmpshim.conformance.pair.plan import PairFinding, PairOutcome, PairPlan
from qmpshim.conformance.pair.run import PairRun, Progress
from qmpshim.errors import HostError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.host.workspace import Workspace

Version = tuple[int, ...]


class ExplainsPair(Protocol):
    """A write-up of what pairs show; they are in :mod:`qmpshim.conformance.known`."""

    @property
    def id(self) -> str:
        """What a finding's ``known`` is when it is this."""

    def covers(
        self, finding: PairFinding, plan: PairPlan, versions: tuple[Version, Version]
    ) -> bool:
        """Whether *finding* is this one, on a primary and a secondary of these *versions*."""


async def run_plan(
    plan: PairPlan,
    builds: tuple[Build, Build],
    bundles: Path,
    *,
    known: Sequence[ExplainsPair] = (),
    progress: Progress | None = None,
    keep: Path | None = None,
    make: Callable[..., Pair] = Pair,
    interrupted: Callable[[PairOutcome, Path | None], None] = lambda outcome, bundle: None,
) -> tuple[PairOutcome, Path | None]:
    """Run *plan* and bundle what it found.

    :param builds: of the primary and of the secondary
    :param bundles: directory for the bundle
    :param known: findings that are written up
    :param keep: where the logs and disks of a run go that found nothing
    :param interrupted: at a cancellation, which is passed on, called with what there is by then
    :returns: the outcome, and where the bundle is, if one could be written
    :raises BuildError: a build cannot take part in a pair
    """
    with Workspace("qmps-") as workspace:
        kind: type[PairRun] = ColoRun if plan.colo else BlockRun
        run = kind(plan, builds, workspace.subdirectory("pair"), progress, make)
        try:
            await run.run()
        except asyncio.CancelledError:
            interrupted(run.outcome, _keep(run, builds, bundles, known, keep))
            raise
        return run.outcome, _keep(run, builds, bundles, known, keep)


def _keep(
    run: PairRun,
    builds: tuple[Build, Build],
    bundles: Path,
    known: Sequence[ExplainsPair],
    keep: Path | None,
) -> Path | None:
    """Name what is known, and bundle what was found; where the bundle is."""
    plan, outcome = run.plan, run.outcome
    # Of the sides as they were when it was found: a secondary may have taken over before.
    if outcome.findings:
        versions = (run.pair.primary.version, run.pair.secondary.version)
        outcome.findings[:] = [
            replace(
                finding,
                known=next((k.id for k in known if k.covers(finding, plan, versions)), ""),
            )
            for finding in outcome.findings
        ]
    for member in run.pair.everybody:
        pair_bundle.note_command(member.directory, member.qemu.argv)
    if outcome.findings:
        name = "colo" if plan.colo else "blocks"
        verdict = outcome.findings[0].verdict
        try:
            return pair_bundle.save(
                bundles / f"pair-{name}-{verdict}",
                outcome,
                builds,
                run.directory,
                bytes(run.model.disk),
            )
        except HostError as error:  # what was found is not lost with it
            outcome.unsaved = str(error)
    elif keep is not None:
        pair_bundle.keep(keep / ("colo" if plan.colo else "blocks"), run.directory)
    return None


def summary(outcome: PairOutcome) -> str:
    """One line on what was done."""
    plan = outcome.plan
    how = f"COLO ({plan.guest} guest, {plan.accel})"
    how = how if plan.guest != "none" else "COLO without a guest"
    how = how if plan.colo else "block replication"
    end = "" if plan.failover == "none" else f", failover ({plan.failover})"
    return (
        f"{how}: {outcome.checkpoints} of {plan.wanted} checkpoints, {outcome.writes} writes, "
        f"{outcome.compared >> 20} MiB compared in {outcome.checks} checks{end}"
    )
