"""What the values of the scenario space's dimensions stand for: operations, places, options.

Places are in granules (:mod:`.grammar`). The first value of a dimension is its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.variants import (
    CHAIN,
    FROZEN,
    GROUPED,
    IMAGE_CLUSTER,
    INDIVIDUAL,
    JOB,
    TWO_DISKS,
    WRITTEN,
)
from qmpshim.model import operations
from qmpshim.model.units import SECTOR

NONE = "none"
COMMANDS = ("checkpoint", "failover", "stop", "start", "unexport", "status", "job_pause",
             "job_resume", "job_speed")  # fmt: skip
BACKUP_JOBS = tuple(verb.value for verb in operations.BACKUPS)
BITMAP_COMMANDS = tuple(verb.value for verb in operations.BITMAPS)
UNPLACED = frozenset((NONE, *COMMANDS, "job_cancel", *BACKUP_JOBS, *BITMAP_COMMANDS, "guest_flush",
                       "primary_flush", "primary_vanish", "guest_vanish"))  # fmt: skip
FORMS = ("replication", "backup", "fleecing", "primary", "push", "pull", "votes")

#: What each form can do.
OPERATIONS: Mapping[str, frozenset[str]] = {form: TOPOLOGIES[form].operations for form in FORMS}

#: Sectors of a cluster, by value of the dimension.
CLUSTERS: Mapping[str, int] = {"64k": 128, "4k": 8, "512": 1, "256k": 512}

#: A third operation: its name, and after which one it comes, the first or the second; None: beside
#: both. The second one has to start the job that it is about.
THIRD: Mapping[str, tuple[str, int | None]] = {
    NONE: ("", None),
    "then_guest_read": ("guest_read", 0),
    "then_primary_write": ("primary_write", 0),
    "then_guest_write": ("guest_write", 0),
    "with_primary_write": ("primary_write", None),
    "with_guest_read": ("guest_read", None),
    "with_checkpoint": ("checkpoint", None),
    "with_failover": ("failover", None),
    "with_stop": ("stop", None),
    "with_backup_full": ("backup_full", None),
    "with_backup_incremental": ("backup_incremental", None),
    "with_backup_always": ("backup_always", None),
    "with_bitmap_clear": ("bitmap_clear", None),
    "with_dirty_bitmap": ("guest_dirty_bitmap", None),
    "then_job_resume": ("job_resume", 1),
    "then_job_cancel": ("job_cancel", 1),
    "with_start": ("start", None),
    "start_then_guest_read": ("guest_read", 1),
    "start_then_dirty_bitmap": ("guest_dirty_bitmap", 1),
    "start_then_primary_write": ("primary_write", 1),
    "start_then_stop": ("stop", 1),
}
#: Boundaries of the ranges of the first and the second operation, in steps of the placement.
RELATIONS: Mapping[str, tuple[int, int, int, int]] = {
    "equals": (1, 3, 1, 3),
    "before": (0, 1, 2, 3),
    "meets": (0, 1, 1, 3),
    "overlaps": (0, 2, 1, 3),
    "starts": (1, 2, 1, 3),
    "during": (1, 2, 0, 3),
    "finishes": (2, 3, 1, 3),
}

#: What was done before, by value and form; places are in granules, then in sectors beyond.
HISTORY: Mapping[str, tuple[tuple[str, int, int, int], ...]] = {
    NONE: (),
    "copied": (("primary_write", 1, 0, 1),),
    "copied-part": (("primary_write", 1, 40, 0),),
    "active": (("guest_write", 1, 16, 0),),
    "both": (("primary_write", 1, 40, 0), ("guest_write", 1, 16, 0)),
    "zeroed": (("primary_zero", 0, 0, 2),),
    "zero-copied": (
        ("primary_zero", 0, 0, 2),
        ("checkpoint", 0, 0, 0),
        ("primary_write", 0, 0, 1),
    ),
    "discarded": (("primary_discard", 0, 0, 2),),
    "given-up": (("guest_discard", 1, 0, 1),),
    "checkpointed": (
        ("primary_write", 0, 0, 2),
        ("guest_write", 1, 16, 0),
        ("checkpoint", 0, 0, 0),
    ),
    "paused": (("job_pause", 0, 0, 0),),
    "dirty": (("primary_write", 0, 40, 0), ("primary_write", 2, 40, 0)),
    "not-recorded": (("primary_write", 0, 40, 0), ("bitmap_disable", 0, 0, 0)),
    "two-bitmaps": (("primary_write", 0, 40, 0), ("bitmap_add", 0, 0, 0)),
}


class Size(Enum):
    """A value of an option that depends on the point, in bytes."""

    GRANULE = auto()  # what is copied at once


_ONE_GRANULE = (JOB, "x-perf.max-chunk", Size.GRANULE)


def _at_errors(action: str) -> tuple[tuple[str, str, Any], ...]:
    """What a job does at errors of either disk."""
    return tuple((JOB, f"on-{disk}-error", action) for disk in ("source", "target"))


#: More options of nodes, by value of the dimension and form.
OPTIONS: Mapping[str, Mapping[str, tuple[tuple[str, str, Any], ...]]] = {
    NONE: dict.fromkeys(OPERATIONS, ()),
    "filter-unmap": {
        "replication": (("top", "discard", "unmap"),),
        "fleecing": (("filter", "discard", "unmap"),),
        "primary": (("forward", "discard", "unmap"),),
    },
    "secondary-keeps": dict.fromkeys(OPERATIONS, (("secondary", "discard", "ignore"),)),
    "hidden-keeps": dict.fromkeys(
        ("replication", "backup", "fleecing", "pull"), (("hidden", "discard", "ignore"),)
    ),
    "detect-zeroes": dict.fromkeys(
        ("replication", "backup", "fleecing", "push", "pull"),
        (("hidden", "detect-zeroes", "unmap"),),
    ),
    "break-snapshot": {"fleecing": (("filter", "on-cbw-error", "break-snapshot"),)},
    "detect-zeroes-below": dict.fromkeys(
        ("replication", "backup", "fleecing", "primary", "pull", "votes"),
        (("secondary", "detect-zeroes", "unmap"),),
    ),
    "small-copies": {"push": (_ONE_GRANULE, (JOB, "x-perf.use-copy-range", True))},
    "two-workers": {"push": (_ONE_GRANULE, (JOB, "x-perf.max-workers", 2))},
    "retries": {"push": _at_errors("ignore")},
    "one-worker": {"push": (_ONE_GRANULE, (JOB, "x-perf.max-workers", 1))},
    "pauses": {"push": _at_errors("stop")},
    "pauses-when-full": {"push": _at_errors("enospc")},
}

LARGE = 256  # sectors: more than 64 KiB, and a reply that fits in a socket
_LARGE_CLUSTER = ("hidden", IMAGE_CLUSTER, LARGE * SECTOR)
_ALONE = ("hidden", "backing", None)
_BACKED = ("hidden", "backing", "before")
_MIN_CLUSTER = (JOB, "x-perf.min-cluster-size", LARGE * SECTOR)

#: What backup copies to, by value of the dimension and form: more options.
TARGETS: Mapping[str, Mapping[str, tuple[tuple[str, str, Any], ...]]] = {
    "same": dict.fromkeys(OPERATIONS, ()),
    "large": dict.fromkeys(
        ("replication", "backup", "fleecing", "push", "pull"), (_LARGE_CLUSTER,)
    ),
    "alone": {"fleecing": (_ALONE,)},
    "large-alone": {"fleecing": (_LARGE_CLUSTER, _ALONE)},
    "min-cluster": {
        "backup": (_MIN_CLUSTER,),
        "push": (_MIN_CLUSTER,),
        "pull": (_MIN_CLUSTER,),
        "fleecing": (("filter", "min-cluster-size", LARGE * SECTOR),),
    },
    "backed": {"push": (_BACKED,)},
    "large-backed": {"push": (_LARGE_CLUSTER, _BACKED)},
}

#: Which images have subclusters, by value of the dimension.
SUBCLUSTERS: Mapping[str, tuple[str, ...]] = {
    NONE: (),
    "overlays": ("hidden", "active"),
    "all": ("hidden", "active", "secondary"),
}

#: What a bitmap of the disk names when the snapshot begins, by value of the dimension; places as in
#: the history. Copy-before-write goes by it; beside a backup job it is frozen, and the snapshot's
#: export offers it.
BITMAPS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    NONE: (),
    "empty": (),
    "middle": ((1, 40, 1),),
    "ends": ((0, 16, 0), (3, 0, 0)),
}

#: By form, of which node or export such a bitmap is an option.
BITMAP_OF: Mapping[str, tuple[str, str]] = {
    "fleecing": ("filter", WRITTEN),
    "backup": ("guest", FROZEN),
}

#: How many disks one transaction begins with, by value of the dimension.
DISKS: Mapping[str, tuple[tuple[str, str, Any], ...]] = {
    "one": (),
    "two": ((CHAIN, TWO_DISKS, INDIVIDUAL),),
    "two-grouped": ((CHAIN, TWO_DISKS, GROUPED),),
}


def copies_more(target: str) -> bool:
    """Whether a copy is larger with such a target."""
    return target not in ("same", "alone", "backed")


def node_options(form: str) -> Mapping[str, tuple[tuple[str, str, Any], ...]]:
    """The options that the nodes of a form may be opened with, by value of the dimension."""
    return {value: forms[form] for value, forms in OPTIONS.items() if form in forms}
