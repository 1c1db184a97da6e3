"""The scenario space: what varies from scenario to scenario, and which combinations make sense.

Operations work on a disk of three to four *granules*. A granule is what one copy consists of: the
largest of 64 KiB, the target's cluster and an option (``block_copy_calculate_cluster_size``,
block/block-copy.c). The ranges of the two placed operations are in one of Allen's relations; the
inverse of a relation is the same with the operations exchanged.
"""

from __future__ import annotations

from qmpshim.conformance.explore.space.covering import Constraint, Dimension, Space
from qmpshim.conformance.explore.space.values import (
    BACKUP_JOBS,
    BITMAP_COMMANDS,
    BITMAP_OF,
    BITMAPS,
    CLUSTERS,
    COMMANDS,
    DISKS,
    FORMS,
    HISTORY,
    LARGE,
    NONE,
    OPERATIONS,
    OPTIONS,
    RELATIONS,
    SUBCLUSTERS,
    TARGETS,
    THIRD,
    UNPLACED,
    copies_more,
)
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.model.operations import Verb

#: Requests that beside a backup job only the first operation is: two of them are exchanged at will.
_FIRST_OF_PUSH = ("primary_write_fua", "primary_zero", "primary_zero_no_hole")
#: Requests that beside the start of a pull only the first operation is.
_FIRST_OF_PULL = ("primary_write_fua", "primary_zero_no_hole", "primary_zero_fast")
#: Histories that are left to other forms: a bitmap names whole granules, whatever was written.
_NOT_OF_PUSH = ("copied", "copied-part", "discarded")

#: Chains of raw disks alone.
_WITHOUT_QCOW2 = tuple(
    form for form in FORMS if all(node.driver != "qcow2" for node in TOPOLOGIES[form].nodes)
)

#: What finds nothing to do by itself.
BESIDE_ANOTHER = frozenset(("status", "job_cancel", "job_resume", "primary_vanish", "guest_vanish"))
#: Operations that push has as a third one only, after the second.
_OF_SECOND = frozenset(("job_resume", "job_cancel"))

_SMALLEST_EXTENDED = 32  # sectors of a cluster: 32 subclusters of 512 bytes

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
         "guest_flush", *COMMANDS, "primary_vanish", "guest_vanish", *BACKUP_JOBS,
         *BITMAP_COMMANDS),
    ),
    Dimension("third", tuple(THIRD)),
    Dimension("relation", tuple(RELATIONS)),
    Dimension("place", ("granules", "ragged", "small", "end")),
    Dimension("disk", ("whole", "half", "odd")),
    Dimension("cluster", tuple(CLUSTERS)),
    Dimension("secondary", ("raw", "qcow2")),
    Dimension("history", tuple(HISTORY)),
    Dimension("options", tuple(OPTIONS)),
    Dimension("target", tuple(TARGETS)),
    Dimension("subclusters", tuple(SUBCLUSTERS)),
    Dimension("bitmap", tuple(BITMAPS)),
    Dimension("disks", tuple(DISKS)),
)  # fmt: skip


def _is_by_itself(second: str, third: str, relation: str) -> bool:
    return (third, relation) == (NONE, "equals") and second not in BESIDE_ANOTHER


def _third_fits(form: str, third: str) -> bool:
    return third == NONE or THIRD[third][0] in OPERATIONS[form] | _of_pull(form)


def _of_pull(form: str) -> frozenset[str]:
    """What a form can do where a bitmap is frozen when its job begins."""
    return frozenset(("guest_dirty_bitmap",) if form == "backup" else ())


def _bitmap_is_offered(form: str, bitmap: str, second: str, third: str) -> bool:
    """Whether there is a frozen bitmap to be read, where an operation reads one."""
    reads = "guest_dirty_bitmap" in (second, THIRD[third][0])
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
    if THIRD[third][1] == 1 and second not in BACKUP_JOBS:
        return False
    if form != "push":
        return True
    names = (second, THIRD[third][0])
    if names[1] in _OF_SECOND:
        return True
    jobs = sum(name in BACKUP_JOBS for name in names)
    return jobs == 1 or (
        jobs == 0 and Verb.STOP not in names and any(name in BITMAP_COMMANDS for name in names)
    )


def _pulls_once(second: str, third: str) -> bool:
    """Whether a pull is started once, and what comes after that comes after the second."""
    name, after = THIRD[third]
    if after == 1:
        return second == "start"
    names = (second, name)
    return names.count("start") == 1 and not {"guest_dirty_bitmap", "stop"} & {*names}


def _third_fits_disks(third: str, disks: str) -> bool:
    name, _ = THIRD[third]
    if name == "guest_dirty_bitmap":
        return disks != "two-grouped"
    return name != "stop" or disks != "two"


def _history_fits(form: str, history: str) -> bool:
    names = {name for name, *_ in HISTORY[history]}
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
            lambda form, options: form in OPTIONS[options],
            "the chain has no such node",
        ),
        Constraint(
            ("form", "target"),
            lambda form, target: form in TARGETS[target],
            "the chain has no such target, or what is not copied would not be read",
        ),
        Constraint(
            ("form", "bitmap"),
            lambda form, bitmap: bitmap == NONE or form in BITMAP_OF,
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
            lambda cluster, target: CLUSTERS[cluster] < LARGE or not copies_more(target),
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
            lambda second, relation: second not in UNPLACED or relation == "equals",
            "the second operation has no range",
        ),
    ),
)
