"""Cases of operations one after another, on whatever disks: run again."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.conformance.pointintime.verify import points_setup, replay_points
from qmpshim.conformance.workload.result import WorkloadResult
from qmpshim.conformance.workload.verification import Progress
from qmpshim.conformance.workload.verify import replay, setup_for
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.machine.host.workspace import Workspace

AnyCase = ChainCase | PointsCase
_REPLAYS: dict[type[AnyCase], tuple[Any, Any]] = {
    ChainCase: (setup_for, replay),
    PointsCase: (points_setup, replay_points),
}


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
    setup_of, run = _REPLAYS[type(case)]
    with Workspace() as workspace:
        setup = setup_of(build, case.spec, machine, limit=limit)
        result: WorkloadResult[Any] = await run(case, setup, workspace, progress)
        return result
