"""Which use of QEMU each chain stands for."""

from __future__ import annotations

from qmpshim.conformance.known.meaning import Use
from qmpshim.conformance.pointintime.workload import PointsWorkflow

#: By the name of the topology. A write-up or scenario of a chain concerns these uses.
USES: dict[str, tuple[Use, ...]] = {
    "replication": (Use.COLO_SECONDARY,),
    "primary": (Use.COLO_PRIMARY,),
    "backup": (Use.SYNC_NONE_BACKUP,),
    "fleecing": (Use.FLEECING,),
    "push": (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
}


def uses_of(chain: str) -> tuple[Use, ...]:
    """The uses that a chain of :data:`~qmpshim.machine.chain.topology.TOPOLOGIES` stands for."""
    return USES[chain]


_OF_POINTS: dict[PointsWorkflow, tuple[Use, ...]] = {
    PointsWorkflow.PUSH: (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
    PointsWorkflow.BITMAPS: (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    PointsWorkflow.PULL: (Use.FLEECING, Use.NBD_EXPORT),
}


def uses_of_points(workflow: PointsWorkflow) -> tuple[Use, ...]:
    """The uses that a workload of several disks stands for."""
    return _OF_POINTS[workflow]
