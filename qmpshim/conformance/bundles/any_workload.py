"""Bundles of operations one after another, on whatever disks: read, and run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles import bundle as chain_bundle
from qmpshim.conformance.bundles.bundle import WorkloadCase
from qmpshim.conformance.pointintime import bundle as points_bundle
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.conformance.pointintime.verify import points_setup, replay_points
from qmpshim.conformance.workload.result import WorkloadResult
from qmpshim.conformance.workload.verification import Progress
from qmpshim.conformance.workload.verify import replay, setup_for
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.machine.host.workspace import Workspace

AnyCase = WorkloadCase | PointsCase


def load_case(path: Path) -> AnyCase:
    """Read the bundle, or the write-up, of a chain or of disks with bitmaps.

    :raises InputError: it is neither, or damaged
    """
    return points_bundle.load(path) if points_bundle.is_points(path) else chain_bundle.load(path)


async def replay_case(
    case: AnyCase,
    build: Build,
    progress: Progress = lambda text: None,
    machine: str = "none",
    limit: float = COMMAND_LIMIT,
) -> WorkloadResult[Any]:
    """Run the operations of a case on *build*, on disks of its own.

    :param machine: QEMU's ``-machine``
    :param limit: seconds that a command may take
    :raises BuildError: the build cannot do it
    """
    with Workspace() as workspace:
        if isinstance(case, PointsCase):
            disks = points_setup(build, case.spec, machine, limit=limit)
            return await replay_points(case, disks, workspace, progress)
        setup = setup_for(build, case.spec, machine, limit=limit)
        return await replay(case, setup, workspace, progress)
