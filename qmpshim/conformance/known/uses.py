"""Which use of QEMU each word, chain, workload and pair stands for."""

from __future__ import annotations

from qmpshim.conformance.known.meaning import Use
from qmpshim.conformance.pointintime.workload import PointsWorkflow

#: A pair with COLO, or without.
USES_OF_PAIR = (Use.COLO_PRIMARY, Use.COLO_SECONDARY)

#: Both sides of COLO, as a word on the command line.
COLO = "colo"
#: The words that :func:`uses_named` takes.
USE_NAMES = (COLO, *(use.value for use in Use))


def uses_named(word: str) -> tuple[Use, ...]:
    """The uses that a word means: one by its value, or both sides of COLO.

    :raises ValueError: it means none
    """
    return USES_OF_PAIR if word == COLO else (Use(word),)


#: By the name of the topology. A write-up or scenario of a chain concerns these uses.
USES: dict[str, tuple[Use, ...]] = {
    "replication": (Use.COLO_SECONDARY,),
    "primary": (Use.COLO_PRIMARY,),
    "backup": (Use.SYNC_NONE_BACKUP,),
    "fleecing": (Use.FLEECING,),
    "pull": (Use.SYNC_NONE_BACKUP,),
    "votes": (Use.QUORUM,),
    "push": (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
}


def uses_of(chain: str) -> tuple[Use, ...]:
    """The uses that a chain of :data:`~qmpshim.machine.chain.chains.TOPOLOGIES` stands for."""
    return USES[chain]


_OF_POINTS: dict[PointsWorkflow, tuple[Use, ...]] = {
    PointsWorkflow.PUSH: (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
    PointsWorkflow.BITMAPS: (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    PointsWorkflow.PULL: (Use.FLEECING, Use.NBD_EXPORT),
}


def uses_of_points(workflow: PointsWorkflow) -> tuple[Use, ...]:
    """The uses that a workload of several disks stands for."""
    return _OF_POINTS[workflow]
