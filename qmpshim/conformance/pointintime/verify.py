"""`qmpshim verify --workflow push`, ``bitmaps`` or ``pull``: disks with bitmaps and backup jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.pointintime.bundle import PointsCase, save
from qmpshim.conformance.pointintime.operations import PointOperation
from qmpshim.conformance.pointintime.session import PointsRun, run_points
from qmpshim.conformance.pointintime.sides import PointsResult, PointsSetup
from qmpshim.conformance.pointintime.workload import PointsWorkflow, all_kinds
from qmpshim.conformance.workload.setup import run_by
from qmpshim.conformance.workload.verification import (
    IMPATIENT,
    Progress,
    Subject,
    replay_operations,
)
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.points import PointsSpec
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import features_of
from qmpshim.model.pointintime.points import point_defects
from qmpshim.model.units import SECTOR

#: Bytes of each disk: small, and cut short within a cluster and a granule.
SIZE = (4 << 20) + 3 * SECTOR


@dataclass(frozen=True, slots=True)
class PointsSubject(Subject[PointOperation, PointsResult, PointsRun]):
    """Disks with dirty bitmaps, and the jobs and snapshots of one workflow."""

    kind: PointsWorkflow
    setup: PointsSetup

    @property
    def workflow(self) -> str:
        return self.kind.value

    def nothing(self) -> PointsResult:
        return PointsResult()

    async def run(
        self,
        operations: Sequence[PointOperation],
        directory: Path,
        progress: Callable[[PointsResult, str], None] | None = None,
        at_end: Callable[[PointsRun | None, PointsResult], None] | None = None,
    ) -> PointsResult:
        return await run_points(self.setup, operations, directory, progress, at_end)

    def impatient(self, whole: PointsResult) -> PointsSubject:
        limit = min(self.setup.limit, IMPATIENT)
        return PointsSubject(self.kind, replace(self.setup, limit=limit))

    def save(
        self,
        target: Path,
        operations: tuple[PointOperation, ...],
        divergence: Divergence,
        seed: int,
        version: str,
        run: PointsRun | None,
    ) -> Path:
        setup = self.setup
        build = setup.to_json(version)
        case = PointsCase(self.kind, setup.spec, setup.known, operations, divergence, seed, build)
        return save(target, case, run)

    def never(self, result: PointsResult) -> list[str]:
        return sorted(all_kinds(self.kind) - result.operations.keys())

    def members(self, result: PointsResult) -> dict[str, Any]:
        spec = self.setup.spec
        return {
            "command": list(self.setup.command),
            "size_bytes": spec.size,
            "cluster_bytes": spec.cluster,
            "size": spec.size,
            "cluster": spec.cluster,
            "secondary": "qcow2",
            "disks": spec.disks,
            "targets": dict(sorted(result.targets.items())),
        }

    def side_and_verb(self, operation: PointOperation) -> tuple[str, str]:
        return f"disk{operation.disk}", operation.name


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
    features = features_of(version)
    return PointsSetup(
        spec,
        known=frozenset() if strict else point_defects(version),
        manual=features.concluded_job_frees_target,
        perf=features.x_perf,
        granules=features.min_cluster_size,
        **run_by(build, machine, limit),
    )


async def replay_points(
    case: PointsCase, setup: PointsSetup, workspace: Workspace, progress: Progress
) -> PointsResult:
    """Run a bundle's operations again, on whatever build *setup* names."""
    setup = replace(setup, spec=case.spec, known=case.known)
    return await replay_operations(
        PointsSubject(case.workflow, setup), case.operations, workspace, progress
    )
