"""`qmpshim verify --workflow push`, ``bitmaps`` or ``pull``: run, minimize, keep a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.pointintime.bundle import PointsCase, save
from qmpshim.conformance.pointintime.operations import PointOperation
from qmpshim.conformance.pointintime.session import (
    PointsResult,
    PointsRun,
    PointsSetup,
    run_points,
)
from qmpshim.conformance.pointintime.workload import PointsWorkflow, PointsWorkload
from qmpshim.conformance.workload.shrink import shrink
from qmpshim.errors import HostError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.points import PointsSpec
from qmpshim.machine.host.files import copy_tree
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.machine.host.programs import need_program
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.pointintime.points import PointDefect
from qmpshim.model.units import SECTOR

Progress = Callable[[str], None]
#: Bytes of each disk: small, and cut short within a cluster and a granule.
SIZE = (4 << 20) + 3 * SECTOR
_IMPATIENT = 5.0  # seconds that a command may take while a case is made small


@dataclass(frozen=True, slots=True)
class PointsOutcome:
    """How the verification of one workflow ended.

    :ivar version: the build's; :ivar bundle: where the replay bundle is, if there is one
    :ivar operations: of the minimal case
    :ivar unsaved: why there is no bundle of a divergence, or ``""``
    """

    workflow: PointsWorkflow
    setup: PointsSetup
    seed: int
    result: PointsResult
    version: str
    bundle: Path | None = None
    operations: tuple[PointOperation, ...] = ()
    unsaved: str = ""

    def to_json(self) -> dict[str, Any]:
        """The summary as data; the members are those of other workflows, and more."""
        spec, result = self.setup.spec, self.result
        found = result.divergence
        return {
            "workflow": self.workflow.value,
            "build": self.version,
            "command": list(self.setup.command),
            "size_bytes": spec.size,
            "cluster_bytes": spec.cluster,
            "size": spec.size,
            "cluster": spec.cluster,
            "secondary": "qcow2",
            "disks": spec.disks,
            "seed": self.seed,
            "operations": dict(sorted(result.operations.items())),
            "never": [],
            "checks": result.checks,
            "targets": dict(sorted(result.targets.items())),
            "clusters_compared": result.clusters,
            "seconds": round(result.seconds, 3),
            "known": {known.value: count for known, count in sorted(result.known.items())},
            "divergence": found.to_json() if found else None,
            "minimal": [str(operation) for operation in self.operations],
            "minimal_operations": [_operation(operation) for operation in self.operations],
            "bundle": str(self.bundle) if self.bundle else None,
            "interrupted": False,
        }


def _operation(operation: PointOperation) -> dict[str, Any]:
    """An operation in a document: positions in bytes, where bundles have sectors."""
    return {
        "number": operation.number,
        "side": f"disk{operation.disk}",
        "do": operation.name,
        "offset_bytes": operation.start * SECTOR,
        "length_bytes": operation.count * SECTOR,
    }


def points_setup(
    build: Build,
    spec: PointsSpec,
    machine: str = "none",
    strict: bool = False,
    limit: float = COMMAND_LIMIT,
) -> PointsSetup:
    """How to run *spec* on *build*.

    :param strict: leave out nothing that meets a known defect
    """
    version, _ = read_version(build)
    qemu_img = build.tool("qemu-img")
    if build.env:
        variables = (f"{name}={value}" for name, value in build.env.items())
        qemu_img = [need_program("env", "coreutils"), *variables, *qemu_img]
    other = PointDefect.ALWAYS_MARKS if version < (6, 1) else PointDefect.ALWAYS_LOSES
    known = frozenset() if strict else frozenset(PointDefect) - {other}
    return PointsSetup(
        spec,
        tuple(build.command()),
        dict(build.env),
        tuple(qemu_img),
        machine,
        limit,
        known=known,
        manual=version >= (6, 1),
    )


async def verify_points(
    workflow: PointsWorkflow,
    setup: PointsSetup,
    version: str,
    count: int,
    seed: int,
    workspace: Workspace,
    bundles: Path,
    progress: Progress,
    keep: Path | None = None,
    shrinking: float = 20.0,
    diverged: Callable[[Divergence], None] = lambda divergence: None,
) -> PointsOutcome:
    """Run *count* operations of workload *seed*; minimize and keep the first divergence.

    :param bundles: directory for bundles
    :param keep: copy images and logs there when all went as predicted
    :param shrinking: seconds that minimizing may take
    :param diverged: called with a divergence at once, before it is minimized
    """
    operations = list(PointsWorkload(workflow, setup.spec, seed).take(count))

    def report(result: PointsResult, doing: str) -> None:
        rate = result.done / result.seconds if result.seconds else 0
        progress(f"{workflow}: {result.done}/{count} operations, {rate:,.0f}/s, {doing}")

    def at_end(run: PointsRun, result: PointsResult) -> None:
        if keep is not None and result.divergence is None:
            copy_tree(run.directory, keep / workflow.value, "*.sock", "*.copy")

    directory = workspace.subdirectory(workflow.value)
    result = await run_points(setup, operations, directory, report, at_end)
    first = result.divergence
    if first is None:
        return PointsOutcome(workflow, setup, seed, result, version)
    diverged(first)
    quick = replace(setup, limit=min(setup.limit, _IMPATIENT))

    async def reproduce(candidate: Sequence[PointOperation]) -> Divergence | None:
        place = workspace.subdirectory("shrink")
        try:
            return (await run_points(quick, candidate, place)).divergence
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def smaller(left: Sequence[PointOperation], _found: Divergence, runs: int) -> None:
        progress(f"{workflow}: minimizing, {len(left)} operations left after {runs} runs")

    minimal, found = await shrink(operations, first, reproduce, shrinking, smaller)
    result.divergence = found
    build = {"version": version, "command": list(setup.command), "machine": setup.machine}
    saved: list[Path] = []
    unsaved: list[str] = []

    def keep_bundle(run: PointsRun, again: PointsResult) -> None:
        case = PointsCase(
            workflow,
            setup.spec,
            setup.known,
            tuple(minimal),
            again.divergence or found,
            seed,
            build,
        )
        try:
            saved.append(save(bundles / f"{workflow}-{found.verdict}-seed{seed}", case, run))
        except HostError as error:  # what was found is not lost with it
            unsaved.append(str(error))

    await run_points(quick, minimal, workspace.subdirectory("bundle"), at_end=keep_bundle)
    return PointsOutcome(
        workflow,
        setup,
        seed,
        result,
        version,
        saved[0] if saved else None,
        tuple(minimal),
        unsaved[0] if unsaved else "",
    )


async def replay_points(
    case: PointsCase, setup: PointsSetup, workspace: Workspace, progress: Progress
) -> PointsResult:
    """Run a bundle's operations again, on whatever build *setup* names."""

    def report(result: PointsResult, doing: str) -> None:
        progress(f"replay: {result.done}/{len(case.operations)} operations, {doing}")

    setup = replace(setup, spec=case.spec, known=case.known)
    return await run_points(setup, case.operations, workspace.subdirectory("replay"), report)
