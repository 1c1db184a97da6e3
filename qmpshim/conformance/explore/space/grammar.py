"""The scenario space: what varies from scenario to scenario, and which combinations make sense.

Operations work on a disk of three to four *granules*. A granule is what one copy consists of: the
largest of 64 KiB, the target's cluster and an option (``block_copy_calculate_cluster_size``,
block/block-copy.c). The ranges of the two placed operations are in one of Allen's relations; the
inverse of a relation is the same with the operations exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from qmpshim.conformance.explore.space.covering import Constraint, Dimension, Space
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.variants import (
    CHAIN,
    FROZEN,
    GROUPED,
    IMAGE_CLUSTER,
    IMAGE_EXTENDED,
    INDIVIDUAL,
    JOB,
    TWO_DISKS,
    WRITTEN,
)
from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.operations import BACKUPS, BITMAPS, Verb
from qmpshim.model.units import SECTOR, outwards

NONE = "none"
_COMMANDS = ("checkpoint", "failover", "stop", "start", "unexport", "status", "job_pause",
             "job_resume", "job_speed")  # fmt: skip
_BACKUPS = tuple(verb.value for verb in BACKUPS)
_BITMAP_COMMANDS = tuple(verb.value for verb in BITMAPS)
_UNPLACED = frozenset((NONE, *_COMMANDS, "job_cancel", *_BACKUPS, *_BITMAP_COMMANDS, "guest_flush",
                       "primary_flush", "primary_vanish", "guest_vanish"))  # fmt: skip
_FORMS = ("replication", "backup", "fleecing", "primary", "push", "pull", "votes")

#: Requests that beside a backup job only the first operation is: two of them are exchanged at will.
_FIRST_OF_PUSH = ("primary_write_fua", "primary_zero", "primary_zero_no_hole")
#: Requests that beside the start of a pull only the first operation is.
_FIRST_OF_PULL = ("primary_write_fua", "primary_zero_no_hole", "primary_zero_fast")
#: Histories that are left to other forms: a bitmap names whole granules, whatever was written.
_NOT_OF_PUSH = ("copied", "copied-part", "discarded")

#: Chains of raw disks alone.
_WITHOUT_QCOW2 = tuple(
    form for form in _FORMS if all(node.driver != "qcow2" for node in TOPOLOGIES[form].nodes)
)

#: What each form can do.
OPERATIONS: Mapping[str, frozenset[str]] = {form: TOPOLOGIES[form].operations for form in _FORMS}

#: Sectors of a cluster, by value of the dimension.
CLUSTERS: Mapping[str, int] = {"64k": 128, "4k": 8, "512": 1, "256k": 512}

#: A third operation: its name, and after which one it comes, the first or the second; None: beside
#: both. The second one has to start the job that it is about.
_THIRD: Mapping[str, tuple[str, int | None]] = {
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
#: What finds nothing to do by itself.
BESIDE_ANOTHER = frozenset(("status", "job_cancel", "job_resume", "primary_vanish", "guest_vanish"))
#: Operations that push has as a third one only, after the second.
_OF_SECOND = frozenset(("job_resume", "job_cancel"))

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
_HISTORY: Mapping[str, tuple[tuple[str, int, int, int], ...]] = {
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
_PART = 8  # sectors of an operation of the history that is smaller than a granule


class _Size(Enum):
    """A value of an option that depends on the point, in bytes."""

    GRANULE = auto()  # what is copied at once


_ONE_GRANULE = (JOB, "x-perf.max-chunk", _Size.GRANULE)


def _at_errors(action: str) -> tuple[tuple[str, str, Any], ...]:
    """What a job does at errors of either disk."""
    return tuple((JOB, f"on-{disk}-error", action) for disk in ("source", "target"))


#: More options of nodes, by value of the dimension and form.
_OPTIONS: Mapping[str, Mapping[str, tuple[tuple[str, str, Any], ...]]] = {
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

_LARGE = 256  # sectors: more than 64 KiB, and a reply that fits in a socket
_LARGE_CLUSTER = ("hidden", IMAGE_CLUSTER, _LARGE * SECTOR)
_ALONE = ("hidden", "backing", None)
_BACKED = ("hidden", "backing", "before")
_MIN_CLUSTER = (JOB, "x-perf.min-cluster-size", _LARGE * SECTOR)

#: What backup copies to, by value of the dimension and form: more options.
_TARGETS: Mapping[str, Mapping[str, tuple[tuple[str, str, Any], ...]]] = {
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
        "fleecing": (("filter", "min-cluster-size", _LARGE * SECTOR),),
    },
    "backed": {"push": (_BACKED,)},
    "large-backed": {"push": (_LARGE_CLUSTER, _BACKED)},
}

#: Which images have subclusters, by value of the dimension.
_SUBCLUSTERS: Mapping[str, tuple[str, ...]] = {
    NONE: (),
    "overlays": ("hidden", "active"),
    "all": ("hidden", "active", "secondary"),
}
_SMALLEST_EXTENDED = 32  # sectors of a cluster: 32 subclusters of 512 bytes

#: What a bitmap of the disk names when the snapshot begins, by value of the dimension; places as in
#: the history. Copy-before-write goes by it; beside a backup job it is frozen, and the snapshot's
#: export offers it.
_BITMAPS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    NONE: (),
    "empty": (),
    "middle": ((1, 40, 1),),
    "ends": ((0, 16, 0), (3, 0, 0)),
}

#: By form, of which node or export such a bitmap is an option.
_BITMAP_OF: Mapping[str, tuple[str, str]] = {
    "fleecing": ("filter", WRITTEN),
    "backup": ("guest", FROZEN),
}

#: How many disks one transaction begins with, by value of the dimension.
_DISKS: Mapping[str, tuple[tuple[str, str, Any], ...]] = {
    "one": (),
    "two": ((CHAIN, TWO_DISKS, INDIVIDUAL),),
    "two-grouped": ((CHAIN, TWO_DISKS, GROUPED),),
}

#: The dimensions that are options of nodes.
_CHAIN_OPTIONS = {"options": _OPTIONS, "target": _TARGETS}

DIMENSIONS = (
    Dimension("form", tuple(OPERATIONS)),
    Dimension(
        "first",
        ("primary_write", "primary_write_fua", "primary_zero", "primary_zero_no_hole",
         "primary_zero_fast", "primary_discard", "guest_read", "guest_write", "guest_write_fua",
         "guest_zero", "guest_discard", NONE),
    ),
    Dimension(
        "second",
        ("guest_read", "guest_block_status", "guest_dirty_bitmap", "primary_write",
         "primary_write_fua", "primary_zero", "primary_zero_no_hole", "primary_zero_fast",
         "primary_discard", "primary_read",
         "guest_write", "guest_write_fua", "guest_zero", "guest_discard", "primary_flush",
         "guest_flush", *_COMMANDS, "primary_vanish", "guest_vanish", *_BACKUPS,
         *_BITMAP_COMMANDS),
    ),
    Dimension("third", tuple(_THIRD)),
    Dimension("relation", tuple(RELATIONS)),
    Dimension("place", ("granules", "ragged", "small", "end")),
    Dimension("disk", ("whole", "half", "odd")),
    Dimension("cluster", tuple(CLUSTERS)),
    Dimension("secondary", ("raw", "qcow2")),
    Dimension("history", tuple(_HISTORY)),
    Dimension("options", tuple(_OPTIONS)),
    Dimension("target", tuple(_TARGETS)),
    Dimension("subclusters", tuple(_SUBCLUSTERS)),
    Dimension("bitmap", tuple(_BITMAPS)),
    Dimension("disks", tuple(_DISKS)),
)  # fmt: skip


def _is_by_itself(second: str, third: str, relation: str) -> bool:
    return (third, relation) == (NONE, "equals") and second not in BESIDE_ANOTHER


def _third_fits(form: str, third: str) -> bool:
    return third == NONE or _THIRD[third][0] in OPERATIONS[form] | _of_pull(form)


def _of_pull(form: str) -> frozenset[str]:
    """What a form can do where a bitmap is frozen when its job begins."""
    return frozenset(("guest_dirty_bitmap",) if form == "backup" else ())


def _bitmap_is_offered(form: str, bitmap: str, second: str, third: str) -> bool:
    """Whether there is a frozen bitmap to be read, where an operation reads one."""
    reads = "guest_dirty_bitmap" in (second, _THIRD[third][0])
    return bitmap != NONE or form == "pull" or not reads


def _second_fits(form: str, second: str) -> bool:
    if form == "push" and (second in _FIRST_OF_PUSH or second in _OF_SECOND):
        return False
    if form == "pull" and (second in _FIRST_OF_PULL or second == "guest_dirty_bitmap"):
        return False
    return second in OPERATIONS[form] | _of_pull(form)


def _backs_up_once(form: str, second: str, third: str) -> bool:
    """Whether a job is started at most once, and one is where it is cancelled or resumed."""
    if form == "pull":
        return _pulls_once(second, third)
    if _THIRD[third][1] == 1 and second not in _BACKUPS:
        return False
    if form != "push":
        return True
    names = (second, _THIRD[third][0])
    if names[1] in _OF_SECOND:
        return True
    jobs = sum(name in _BACKUPS for name in names)
    return jobs == 1 or (
        jobs == 0 and Verb.STOP not in names and any(name in _BITMAP_COMMANDS for name in names)
    )


def _pulls_once(second: str, third: str) -> bool:
    """Whether a pull is started once, and what comes after that comes after the second."""
    name, after = _THIRD[third]
    if after == 1:
        return second == "start"
    names = (second, name)
    return names.count("start") == 1 and not {"guest_dirty_bitmap", "stop"} & {*names}


def _third_fits_disks(third: str, disks: str) -> bool:
    name, _ = _THIRD[third]
    if name == "guest_dirty_bitmap":
        return disks != "two-grouped"
    return name != "stop" or disks != "two"


def _history_fits(form: str, history: str) -> bool:
    names = {name for name, *_ in _HISTORY[history]}
    if (form, history) == ("replication", "given-up"):
        return False
    left_out = () if form == "pull" else _NOT_OF_PUSH if form == "push" else ("dirty",)
    return names <= OPERATIONS[form] and history not in left_out


SPACE = Space(
    DIMENSIONS,
    (
        Constraint(
            ("form", "first"),
            lambda form, first: first in OPERATIONS[form] | {NONE},
            "the chain has no export or command for the first operation",
        ),
        Constraint(
            ("form", "second"),
            _second_fits,
            "the chain has no export or command for the second operation, or it can be another",
        ),
        Constraint(("form", "third"), _third_fits, "the chain cannot do the third operation"),
        Constraint(
            ("form", "second", "third"),
            _backs_up_once,
            "one backup job at most is modelled, something has to be done with a bitmap or job, "
            "and a pull is started once",
        ),
        Constraint(("form", "history"), _history_fits, "the chain cannot have this history"),
        Constraint(
            ("form", "options"),
            lambda form, options: form in _OPTIONS[options],
            "the chain has no such node",
        ),
        Constraint(
            ("form", "target"),
            lambda form, target: form in _TARGETS[target],
            "the chain has no such target, or what is not copied would not be read",
        ),
        Constraint(
            ("form", "bitmap"),
            lambda form, bitmap: bitmap == NONE or form in _BITMAP_OF,
            "the chain has neither a filter that goes by a bitmap nor a job that begins it",
        ),
        Constraint(
            ("form", "bitmap", "second", "third"),
            _bitmap_is_offered,
            "no bitmap is offered that could be read",
        ),
        Constraint(
            ("form", "disks"),
            lambda form, disks: disks == "one" or form == "pull",
            "no transaction begins on two disks",
        ),
        Constraint(
            ("third", "disks"),
            _third_fits_disks,
            "no bitmap is frozen where jobs are grouped, and a job that is cancelled alone is not "
            "modelled",
        ),
        Constraint(
            ("cluster", "target"),
            lambda cluster, target: CLUSTERS[cluster] < _LARGE or not _copies_more(target),
            "the target's clusters would not be larger",
        ),
        Constraint(
            ("form", "subclusters"),
            lambda form, subclusters: subclusters == NONE or form not in _WITHOUT_QCOW2,
            "the chain has no qcow2 image",
        ),
        Constraint(
            ("cluster", "subclusters"),
            lambda cluster, subclusters: (
                subclusters == NONE or CLUSTERS[cluster] >= _SMALLEST_EXTENDED
            ),
            "a subcluster has 512 bytes at least",
        ),
        Constraint(
            ("secondary", "subclusters"),
            lambda secondary, subclusters: subclusters != "all" or secondary == "qcow2",
            "the secondary disk is no qcow2 image",
        ),
        Constraint(
            ("form", "secondary"),
            lambda form, secondary: secondary in TOPOLOGIES[form].formats,
            "the chain has raw disks only",
        ),
        *(
            Constraint(
                (place, "secondary"),
                lambda op, secondary: op != "primary_zero_fast" or secondary == "raw",
                "of a part of a cluster qcow2 makes no zeroes that are fast",
            )
            for place in ("first", "second")
        ),
        Constraint(
            ("form", "cluster"),
            lambda form, cluster: form not in _WITHOUT_QCOW2 or cluster == "64k",
            "the chain has no qcow2 image",
        ),
        Constraint(
            ("first", "second", "third", "relation"),
            lambda first, *others: first != NONE or _is_by_itself(*others),
            "an operation by itself has something to do and no other operation beside it",
        ),
        Constraint(
            ("second", "relation"),
            lambda second, relation: second not in _UNPLACED or relation == "equals",
            "the second operation has no range",
        ),
    ),
)


def _copies_more(target: str) -> bool:
    """Whether a copy is larger with such a target."""
    return target not in ("same", "alone", "backed")


def granule(point: Mapping[str, str]) -> int:
    """Sectors of a granule."""
    least = _LARGE if _copies_more(point["target"]) else 0
    return backup_calculate_cluster_size(CLUSTERS[point["cluster"]], least)


def size(point: Mapping[str, str]) -> int:
    """Sectors of a disk."""
    unit = granule(point)
    return {"whole": 4 * unit, "half": 3 * unit + unit // 2, "odd": 3 * unit + 1}[point["disk"]]


def _boundaries(point: Mapping[str, str]) -> list[int]:
    """The four sectors between which operations can be placed."""
    unit, end = granule(point), size(point)
    place = point["place"]
    if place == "end":
        return [end - 3 * unit, end - 2 * unit, end - unit, end]
    step = unit // 16 if place == "small" else unit
    offset = {"granules": 0, "ragged": unit // 3, "small": unit // 8 + 1}[place]
    return [min(offset + n * step, end) for n in range(4)]


def _history(point: Mapping[str, str]) -> list[dict[str, Any]]:
    unit = granule(point)
    return [
        {"do": name, "at": [first * unit + beyond, many * unit or _PART]}
        if name not in _UNPLACED
        else {"do": name}
        for name, first, beyond, many in _HISTORY[point["history"]]
    ]


def _third(point: Mapping[str, str], low: int, high: int) -> dict[str, Any]:
    """The third operation; *low* to *high* is where the first is."""
    name, after = _THIRD[point["third"]]
    op: dict[str, Any] = {"do": name}
    if name in ("guest_read", "guest_dirty_bitmap"):
        op["at"] = [0, size(point)]
    elif name not in _UNPLACED:
        start = low if after == 0 else (low + high) // 2
        op["at"] = [start, min(high - low, size(point) - start)]
    if after is not None:
        op["after"] = after
    return op


def node_options(form: str) -> Mapping[str, tuple[tuple[str, str, Any], ...]]:
    """The options that the nodes of a form may be opened with, by value of the dimension."""
    return {value: forms[form] for value, forms in _OPTIONS.items() if form in forms}


def options_of(point: Mapping[str, str], dimension: str) -> tuple[tuple[str, str, Any], ...]:
    """What a dimension adds to the options of the chain's nodes: node, option, value."""
    if dimension == "bitmap":
        return _bitmap(point)
    if dimension == "subclusters":
        images = TOPOLOGIES[point["form"]].images
        return tuple(
            (name, IMAGE_EXTENDED, True)
            for name in _SUBCLUSTERS[point["subclusters"]]
            if name in images
        )
    if dimension == "disks":
        return _DISKS[point["disks"]]
    by_value = _CHAIN_OPTIONS.get(dimension)
    given = () if by_value is None else by_value[point[dimension]][point["form"]]
    bytes_ = granule(point) * SECTOR
    return tuple(
        (node, key, bytes_ if what is _Size.GRANULE else what) for node, key, what in given
    )


def _bitmap(point: Mapping[str, str]) -> tuple[tuple[str, str, Any], ...]:
    if point["bitmap"] == NONE:
        return ()
    unit, end = granule(point) * SECTOR, size(point) * SECTOR
    places = (
        (first * unit + beyond * SECTOR, many * unit or _PART * SECTOR)
        for first, beyond, many in _BITMAPS[point["bitmap"]]
    )
    written = tuple((start, min(start + count, end)) for start, count in places)
    return ((*_BITMAP_OF[point["form"]], written),)


def scenario_object(point: Mapping[str, str], name: str) -> dict[str, Any]:
    """The scenario of a point of the space, as JSON.

    Without a first operation the second is by itself. Where there are two disks, the second
    operation is on the other one, and a third one that does not come after the first.
    """
    edges = _boundaries(point)
    a, b, c, d = (edges[n] for n in RELATIONS[point["relation"]])
    other = outwards(0, size(point), granule(point))[1] if point["disks"] != "one" else 0
    placed = (("first", [a, b - a]), ("second", [other + c, d - c]))
    ops: list[dict[str, Any]] = [
        {"do": point[which]} | ({} if point[which] in _UNPLACED else {"at": at})
        for which, at in placed
        if point[which] != NONE
    ]
    if point["third"] != NONE:
        ops.append(_third(point, a, b))
        if "at" in ops[2] and ops[2].get("after") != 0:
            ops[2]["at"][0] += other
    return {
        "name": name,
        "form": point["form"],
        "size": size(point) + other,
        "cluster": CLUSTERS[point["cluster"]],
        "contract": TOPOLOGIES[point["form"]].keeps_contract(
            [op["do"] for op in ops if op["do"] != "status"]
        ),
        "secondary": point["secondary"],
        "setup": _history(point),
        "ops": ops,
        "options": [list(one) for d in DIMENSIONS for one in options_of(point, d.name)],
    }
