"""Which use of QEMU each word, chain, directed case, workload and pair stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpshim.conformance.known.meaning import Use
from qmpshim.conformance.pointintime.workload import PointsWorkflow

if TYPE_CHECKING:  # all directed cases come with it
    from qmpshim.conformance.explore.directed.cases import Directed

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


_BACKUP = (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP)
_EXPORT = (Use.NBD_EXPORT, Use.FLEECING)

#: Directed cases that are about something else than the chain on which they are run.
CASES: dict[str, tuple[Use, ...]] = {
    "job-progress": _BACKUP,
    "start-refused": (Use.COLO_SECONDARY,),
    "backup-refused": _BACKUP,
    "backup-source-error": _BACKUP,
    "backup-of-bitmap": (*_BACKUP, Use.BITMAPS),
    "backup-between-files": _BACKUP,
    "backup-of-overlay": _BACKUP,
    "backup-in-small-transfers": _BACKUP,
    "backup-keeps-failed-copies": _BACKUP,
    "copy-fills-clusters": _BACKUP,
    "ejected-target": _BACKUP,
    "throttled-job-obeys": _BACKUP,
    "large-requests": (Use.NBD_EXPORT, Use.BITMAPS),
    "large-requests-are-copied": (Use.FLEECING,),
    "ejected-beside-requests": (Use.NBD_EXPORT,),
    "ejected-beside-copy": (Use.FLEECING,),
    "ejected-by-copy": (Use.FLEECING,),
    "cancel-beside-lost-target": _BACKUP,
    "backup-of-snapshot": (*_BACKUP, Use.FLEECING),
    "bitmap-grows": (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    "bitmap-names-edges": (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    "bitmap-granularity": (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    "refused-enable-stops-bitmap": (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    "bitmap-is-stored": (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    "iothread-client-leaves": _EXPORT,
    "fua-is-durable": _EXPORT,
    "flush-is-durable": _EXPORT,
    "flush-waits-for-flush": _EXPORT,
    "quorum-refused": (Use.QUORUM, Use.COLO_PRIMARY),
    "quorum-fails": (Use.QUORUM, Use.COLO_PRIMARY),
    "quorum-flush-fails": (Use.QUORUM, Use.COLO_PRIMARY),
    "quorum-permissions": (Use.QUORUM, Use.COLO_PRIMARY),
    "quorum-votes": (Use.QUORUM,),
    "quorum-votes-fail": (Use.QUORUM,),
    "quorum-reads-next": (Use.QUORUM, Use.COLO_PRIMARY),
    "quorum-rewrites": (Use.QUORUM,),
    "quorum-rewrite-fails": (Use.QUORUM,),
    "quorum-rewrites-for-reader": (Use.QUORUM,),
    "quorum-rewrite-beside-write": (Use.QUORUM,),
    "quorum-reads-beside-writes": (Use.QUORUM,),
    "quorum-changes-children": (Use.QUORUM,),
    "quorum-child-leaves": (Use.QUORUM,),
    "quorum-zeroes": (Use.QUORUM,),
    "quorum-compares": (Use.QUORUM,),
    "parts-of-blocks": _EXPORT,
    "parts-of-blocks-read-fails": (Use.NBD_EXPORT,),
    "parts-of-blocks-write-fails": (Use.NBD_EXPORT,),
    "discard-in-part": _EXPORT,
    "blkdebug-small-discard": (Use.NBD_EXPORT,),
}


def uses_of_case(case: Directed) -> tuple[Use, ...]:
    """The uses that a directed case stands for."""
    return CASES.get(case.name, USES[case.form])


_OF_POINTS: dict[PointsWorkflow, tuple[Use, ...]] = {
    PointsWorkflow.PUSH: (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
    PointsWorkflow.BITMAPS: (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    PointsWorkflow.PULL: (Use.FLEECING, Use.NBD_EXPORT),
}


def uses_of_points(workflow: PointsWorkflow) -> tuple[Use, ...]:
    """The uses that a workload of several disks stands for."""
    return _OF_POINTS[workflow]
