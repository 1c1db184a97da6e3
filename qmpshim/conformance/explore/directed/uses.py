"""The uses of QEMU that directed cases stand for, where these are not those of their chain."""

from __future__ import annotations

from qmpshim.conformance.uses import Use

_BACKUP = (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP)
_EXPORT = (Use.NBD_EXPORT, Use.FLEECING)

#: By name; of the others they are those of their chain.
USES_OF_CASES: dict[str, tuple[Use, ...]] = {
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
