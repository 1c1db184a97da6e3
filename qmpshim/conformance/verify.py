"""`qmpshim verify`: a seeded workload on a real chain, shrunk and bundled when it diverges."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance import bundle
from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.session import Result, Rig, Setup, run_case
from qmpshim.conformance.shrink import shrink
from qmpshim.conformance.workload import Operation, Workload, all_kinds
from qmpshim.machine.builds import Build, read_version
from qmpshim.machine.files import copy_tree
from qmpshim.machine.process import COMMAND_LIMIT
from qmpshim.machine.secondary import ChainSpec
from qmpshim.machine.workspace import Workspace
from qmpshim.model.behaviour import behaviour_of
from qmpshim.model.chain import Workflow

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
SHRINK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the verification of one workflow ended.

    :ivar bundle: where the replay bundle is, if there is one
    :ivar operations: of the shrunk case
    """

    setup: Setup
    seed: int
    result: Result
    version: str
    bundle: Path | None = None
    operations: tuple[Operation, ...] = ()

    @property
    def never(self) -> list[str]:
        """Kinds of operation that the chain can do and that did not occur, ``side kind``."""
        kinds = {f"{side} {kind}" for side, kind in all_kinds(self.setup.spec.workflow)}
        return sorted(kinds - self.result.operations.keys())

    def to_json(self) -> dict[str, Any]:
        """The summary as data."""
        spec, result = self.setup.spec, self.result
        found = result.divergence
        return {
            "workflow": spec.workflow.value,
            "build": self.version,
            "command": list(self.setup.command),
            "size": spec.size,
            "cluster": spec.cluster,
            "secondary": spec.secondary,
            "seed": self.seed,
            "operations": dict(sorted(result.operations.items())),
            "never": self.never,
            "checks": result.checks,
            "clusters_compared": result.clusters,
            "seconds": round(result.seconds, 3),
            "known": {known.value: count for known, count in sorted(result.known.items())},
            "divergence": found.to_json() if found else None,
            "minimal": [str(operation) for operation in self.operations],
            "bundle": str(self.bundle) if self.bundle else None,
        }


def setup_for(
    build: Build,
    spec: ChainSpec,
    machine: str = "none",
    strict: bool = False,
    limit: float = COMMAND_LIMIT,
) -> Setup:
    """How to run *spec* on *build*.

    :param strict: predict no known defect, so that they are reported as divergences
    """
    version, _ = read_version(build)
    qemu_img = build.tool("qemu-img")
    if build.env:
        qemu_img = ["env", *(f"{name}={value}" for name, value in build.env.items()), *qemu_img]
    return Setup(
        spec,
        tuple(build.command()),
        dict(build.env),
        tuple(qemu_img),
        machine,
        behaviour_of(version, strict),
        limit,
    )


async def verify(
    setup: Setup,
    version: str,
    count: int,
    seed: int,
    workspace: Workspace,
    bundles: Path,
    progress: Progress,
    keep: Path | None = None,
    shrinking: float = SHRINK_SECONDS,
) -> Outcome:
    """Run *count* operations of workload *seed*; shrink and bundle the first divergence.

    :param version: the build's version in words, for the report
    :param bundles: directory for bundles
    :param progress: is told what is going on, now and then
    :param keep: copy images and logs there when all went as predicted
    :param shrinking: seconds that making a case small may take
    """
    operations = list(Workload(setup.spec, seed).take(count))
    workflow = setup.spec.workflow

    def tell(result: Result, doing: str) -> None:
        rate = result.done / result.seconds if result.seconds else 0
        progress(f"{workflow}: {result.done}/{count} operations, {rate:,.0f}/s, {doing}")

    def at_end(rig: Rig | None, result: Result) -> None:
        if keep is not None and rig is not None and result.divergence is None:
            copy_tree(rig.directory, keep / workflow.value, "*.sock", "*.copy")

    result = await run_case(setup, operations, workspace.subdirectory(workflow.value), tell, at_end)
    if result.divergence is None:
        return Outcome(setup, seed, result, version)
    progress(f"{workflow}: {result.divergence.verdict} found; looking for a minimal case")
    minimal, saved = await minimise(
        setup,
        version,
        operations,
        result.divergence,
        seed,
        workspace,
        bundles,
        progress,
        shrinking,
    )
    result.divergence = minimal[1]
    return Outcome(setup, seed, result, version, saved, tuple(minimal[0]))


async def minimise(
    setup: Setup,
    version: str,
    operations: Sequence[Operation],
    divergence: Divergence,
    seed: int,
    workspace: Workspace,
    bundles: Path,
    progress: Progress,
    seconds: float = SHRINK_SECONDS,
) -> tuple[tuple[list[Operation], Divergence], Path]:
    """Shrink a diverging case and save its bundle.

    :returns: the minimal operations with their divergence, and where the bundle is
    """
    # A hang must not cost the full limit at each try.
    quick = replace(setup, limit=min(setup.limit, 5.0))

    async def reproduce(candidate: Sequence[Operation]) -> Divergence | None:
        directory = workspace.subdirectory("shrink")
        try:
            return (await run_case(quick, candidate, directory)).divergence
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def tell(runs: int, left: int) -> None:
        progress(f"{setup.spec.workflow}: shrinking, {left} operations left after {runs} runs")

    minimal, found = await shrink(operations, divergence, reproduce, seconds, tell)
    target = bundles / f"{setup.spec.workflow}-{found.verdict}-seed{seed}"
    build = {"version": version, "command": list(setup.command), "machine": setup.machine}

    def save(rig: Rig | None, result: Result) -> None:
        nonlocal target
        case = bundle.Case(
            setup.spec,
            setup.behaviour,
            tuple(minimal),
            result.divergence or found,
            seed,
            build,
        )
        target = bundle.save(target, case, rig, setup)

    await run_case(quick, minimal, workspace.subdirectory("bundle"), at_end=save)
    return (minimal, found), target


async def replay(
    case: bundle.Case, setup: Setup, workspace: Workspace, progress: Progress
) -> Result:
    """Run a bundle's operations again, on whatever build *setup* names."""

    def tell(result: Result, doing: str) -> None:
        progress(f"replay: {result.done}/{len(case.operations)} operations, {doing}")

    return await run_case(
        replace(setup, behaviour=case.behaviour),
        case.operations,
        workspace.subdirectory("replay"),
        tell,
    )


def split(count: int, workflows: Sequence[Workflow]) -> dict[Workflow, int]:
    """Share *count* operations out among the workflows."""
    share, rest = divmod(count, len(workflows))
    return {workflow: share + (index < rest) for index, workflow in enumerate(workflows)}
