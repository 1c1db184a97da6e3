"""The chains there are, as values: nodes and images, exports, jobs, operations and commands."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from qmpshim.machine.chain.parts import DirtyBitmap, Export, ImageSpec, Node
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.chain.variants import Options, pulling, with_format, with_options
from qmpshim.model.pointintime.push import FIRST, GRANULARITY, NEW
from qmpshim.model.units import SECTOR

#: The images that are no overlays, of whatever chain: they hold what the run begins with.
DISKS = ("primary", "secondary", "tertiary")


@functools.lru_cache(maxsize=256)
def topology_of(name: str, secondary: str = "raw", options: Options = ()) -> Topology:
    """A chain of :data:`TOPOLOGIES`.

    :param secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :raises KeyError: there is no chain of this name, or no node of a name that *options* has
    """
    by_node: dict[str, dict[str, Any]] = {}
    for node, option, value in options:
        by_node.setdefault(node, {})[option] = value
    return with_options(with_format(TOPOLOGIES[name], "secondary", secondary), by_node)


def replication_commands(primary: bool) -> dict[str, QmpCommand]:
    """The commands of block replication, for either side."""
    side = {"primary": primary}
    off = {"enable": False, **side}
    return {
        "start": QmpCommand("xen-set-replication", {"enable": True, **side}),
        "stop": QmpCommand("xen-set-replication", {**off, "failover": False}),
        "failover": QmpCommand("xen-set-replication", {**off, "failover": True}),
        "checkpoint": QmpCommand("xen-colo-do-checkpoint"),
        "status": QmpCommand("query-xen-replication-status"),
    }


_PRIMARY_IO = frozenset(
    f"primary_{do}"
    for do in (
        *("write", "write_fua", "zero", "zero_no_hole", "zero_fast", "discard"),
        *("read", "flush", "vanish"),
    )
)
_GUEST_IO = frozenset(f"guest_{do}" for do in ("read", "write", "zero", "flush"))
_READER_IO = frozenset(("guest_read", "guest_block_status", "guest_vanish"))
_REPLICATION = frozenset(("start", "checkpoint", "failover", "stop", "status"))
# docs/block-replication.txt: "The vm should be stopped ... except failover".
_FAILOVER: Mapping[str, frozenset[str]] = {"failover": _GUEST_IO}

_UNMAP = {"discard": "unmap"}
_UNEXPORT = {"unexport": QmpCommand("block-export-del", {"id": "primary", "mode": "hard"})}
_JOBS = {"status": QmpCommand("query-block-jobs")}
_OF_JOB = {"device": "backup"}
# qapi/block-core.json allows them at any time but where it names what is refused.
_CONTROLS = {
    "stop": QmpCommand("block-job-cancel", _OF_JOB),
    "job_pause": QmpCommand("block-job-pause", _OF_JOB),
    "job_resume": QmpCommand("block-job-resume", _OF_JOB),
    "job_speed": QmpCommand("block-job-set-speed", {**_OF_JOB, "speed": 1}),
}
_SECONDARY = Node("secondary", "raw", _UNMAP, ImageSpec())
_HIDDEN = Node("hidden", "qcow2", {**_UNMAP, "backing": "secondary"}, ImageSpec(overlay=True))
_ACTIVE = Node("active", "qcow2", {**_UNMAP, "backing": "hidden"}, ImageSpec(overlay=True))
_BACKUP_JOB = QmpCommand(
    "blockdev-backup",
    {"job-id": "backup", "device": "secondary", "target": "hidden", "sync": "none"},
)
_GRANULARITY = {"granularity": GRANULARITY * SECTOR}
_RECORDING = DirtyBitmap(FIRST, "secondary", GRANULARITY * SECTOR, ())
_BACKUP = {"job-id": "backup", "device": "secondary", "target": "hidden"}
_BY_BITMAP = {**_BACKUP, "sync": "bitmap", "bitmap": FIRST}
_OF_BITMAP = {"node": "secondary", "name": FIRST}
_FULL = {**_BACKUP, "sync": "full"}
_NEW = {"node": "secondary", "name": NEW, **_GRANULARITY}
_PUSH: Mapping[str, QmpCommand] = {
    "backup_full": QmpCommand("blockdev-backup", _FULL),
    "backup_incremental": QmpCommand(
        "blockdev-backup", {**_BACKUP, "sync": "incremental", "bitmap": FIRST}
    ),
    "backup_always": QmpCommand("blockdev-backup", {**_BY_BITMAP, "bitmap-mode": "always"}),
    "backup_never": QmpCommand("blockdev-backup", {**_BY_BITMAP, "bitmap-mode": "never"}),
    "backup_and_bitmap": QmpCommand(
        "transaction",
        {
            "actions": [
                {"type": "block-dirty-bitmap-add", "data": _NEW},
                {"type": "blockdev-backup", "data": _FULL},
            ]
        },
    ),
    "backup_top": QmpCommand("blockdev-backup", {**_BACKUP, "sync": "top"}),
    **{
        f"bitmap_{do}": QmpCommand(f"block-dirty-bitmap-{do}", _OF_BITMAP)
        for do in ("clear", "disable", "enable", "remove")
    },
    "bitmap_add": QmpCommand("block-dirty-bitmap-add", _NEW),
    "bitmap_merge": QmpCommand(
        "block-dirty-bitmap-merge", {"node": "secondary", "target": NEW, "bitmaps": [FIRST]}
    ),
    "stop": QmpCommand("block-job-cancel", _OF_JOB),
    "job_resume": QmpCommand("block-job-resume", _OF_JOB),
    "job_cancel": QmpCommand("job-cancel", {"id": "backup"}),
}

_CHAINS = (
    # secondary <- hidden <- active <- replication filter
    Topology(
        "replication",
        (
            _SECONDARY,
            Export("primary", "secondary", True),
            _HIDDEN,
            _ACTIVE,
            Node("top", "replication", {"mode": "secondary", "top-id": "top", "file": "active"}),
            Export("guest", "top", True),
        ),
        {**replication_commands(primary=False), **_UNEXPORT},
        replication_commands(primary=False)["start"],
        "with the replication driver",
        (
            _PRIMARY_IO
            | _GUEST_IO
            | _REPLICATION
            | {"guest_write_fua", "guest_discard", "guest_vanish", "unexport"}
        )
        - {"guest_zero"},
        _FAILOVER,
        roles={
            "secondary": "the secondary's disk: what the primary writes comes here",
            "hidden": "what the secondary's disk held before, copied there before each write",
            "active": "what the secondary's guest has written since the last checkpoint",
            "top": "the replication filter, which is the secondary's guest's disk",
            "primary": "the primary, which forwards its guest's writes",
            "guest": "the secondary's guest",
        },
    ),
    # secondary <- hidden, with blockdev-backup sync=none
    Topology(
        "backup",
        (
            _SECONDARY,
            Export("primary", "secondary", True),
            _HIDDEN,
            Export("guest", "hidden", False),
        ),
        {**_CONTROLS, **_JOBS, **_UNEXPORT},
        _BACKUP_JOB,
        "with the NBD driver",
        _PRIMARY_IO | _READER_IO | _CONTROLS.keys() | {"status", "unexport"},
        dict.fromkeys(
            _CONTROLS.keys() - {"stop"}, _PRIMARY_IO | _READER_IO | {"guest_dirty_bitmap"}
        ),
        job="backup",
        roles={
            "secondary": "the disk that is backed up while it is written to",
            "hidden": "the target of the backup: what the disk held, copied before each write",
            "primary": "who writes to the disk",
            "guest": "who reads the backup",
        },
    ),
    # the same with a dirty bitmap; an operation starts the job, freezes the bitmap, and adds
    # another one. The export that offers the frozen one is made by the operation that reads it
    Topology(
        "pull",
        (
            _SECONDARY,
            _RECORDING,
            Export("primary", "secondary", True),
            _HIDDEN,
            Export("guest", "hidden", False),
            Export("pulled", "hidden", False, (FIRST,)),
        ),
        {"start": pulling(_BACKUP_JOB, _RECORDING), "stop": _CONTROLS["stop"]},
        None,
        "with the NBD driver",
        (_PRIMARY_IO | _READER_IO | {"start", "stop", "guest_dirty_bitmap"})
        - {"primary_vanish", "guest_vanish"},
        {"start": _PRIMARY_IO | _READER_IO | {"guest_dirty_bitmap"}},
        job="backup",
        roles={
            "secondary": "the disk that is backed up while it is written to",
            FIRST: "which names what was written before the backup, and is frozen when that starts",
            "hidden": "the target of the backup: what the disk held, copied before each write",
            "primary": "who writes to the disk",
            "guest": "who reads the backup",
            "pulled": "who asks for the frozen bitmap",
        },
    ),
    # copy-before-write on the secondary disk, hidden disk as its target, and snapshot-access above:
    # no job (QEMU 7.2 and later)
    Topology(
        "fleecing",
        (
            _SECONDARY,
            _HIDDEN,
            Node("filter", "copy-before-write", {"file": "secondary", "target": "hidden"}),
            Node("snapshot", "snapshot-access", {"file": "filter", **_UNMAP}),
            Export("primary", "filter", True),
            Export("guest", "snapshot", True),  # writable: it may discard
        ),
        {**_JOBS, **_UNEXPORT},
        None,
        "of 7.0 or later",
        _PRIMARY_IO | _READER_IO | {"guest_discard", "status", "unexport"},
        roles={
            "secondary": "the disk whose snapshot is read while it is written to",
            "hidden": "the target of the copies: what the disk held, copied before each write",
            "filter": "the filter that copies before it writes",
            "snapshot": "the disk as it was when the filter was put there",
            "primary": "who writes to the disk",
            "guest": "the backup tool, which reads the snapshot",
        },
    ),
    # secondary, with a dirty bitmap, and a target; operations start the backup jobs
    Topology(
        "push",
        (
            _SECONDARY,
            Export("primary", "secondary", True),
            Node("before", "null-co", {"read-zeroes": True}),  # what a target may be put on
            Node("hidden", "qcow2", {**_UNMAP, "backing": None}, ImageSpec(overlay=True)),
        ),
        _PUSH,
        QmpCommand("block-dirty-bitmap-add", {**_OF_BITMAP, **_GRANULARITY}),
        "with the NBD driver",
        (_PRIMARY_IO - {"primary_vanish", "primary_zero_fast"}) | _PUSH.keys(),
        dict.fromkeys(_PUSH, _PRIMARY_IO),
        roles={
            "secondary": "the disk that backup jobs read",
            "before": "zeroes",
            "hidden": "the target of the backup jobs",
            "primary": "who writes to the disk",
        },
    ),
    # the other side: quorum on the primary disk and on the replication filter that forwards to the
    # secondary disk
    Topology(
        "primary",
        (
            _SECONDARY,
            Node("primary", "raw", _UNMAP, ImageSpec()),
            Node("forward", "replication", {"mode": "primary", "file": "secondary"}),
            Node(
                "top",
                "quorum",
                {
                    "children": ["primary", "forward"],
                    "read-pattern": "fifo",
                    "vote-threshold": 1,
                },
            ),
            Export("guest", "top", True),
        ),
        replication_commands(primary=True),
        replication_commands(primary=True)["start"],
        "with the replication and the quorum driver",
        _GUEST_IO | _REPLICATION | {"guest_discard", "guest_vanish"},
        _FAILOVER,
        formats=("raw",),
        roles={
            "secondary": "the secondary's disk, which is this image here, without a secondary",
            "primary": "the primary's own disk",
            "forward": "the replication filter, which forwards writes to the secondary",
            "top": "the primary's guest's disk",
            "guest": "the primary's guest",
        },
    ),
    # three disks with the same content: what most of them hold is read
    Topology(
        "votes",
        (
            Node("primary", "raw", _UNMAP, ImageSpec()),
            _SECONDARY,
            Node("tertiary", "raw", _UNMAP, ImageSpec()),
            Node("top", "quorum", {"children": [*DISKS], "vote-threshold": 2}),
            Export("guest", "top", True),
        ),
        {},
        None,
        "with the quorum driver",
        _GUEST_IO | {"guest_discard", "guest_vanish"},
        formats=("raw",),
        roles={
            "primary": "the first of the disks that vote",
            "secondary": "the second",
            "tertiary": "the third",
            "top": "the guest's disk, which is what two of them hold at least",
            "guest": "the guest",
        },
    ),
)

#: The chains there are, by name.
TOPOLOGIES: dict[str, Topology] = {topology.name: topology for topology in _CHAINS}


def chain_name(word: Any) -> str:
    """A word that names one of :data:`TOPOLOGIES`.

    :raises ValueError: it names none
    """
    name = str(word)
    if name not in TOPOLOGIES:
        raise ValueError(f"no chain {name!r}; there are {', '.join(TOPOLOGIES)}")
    return name


#: The images of the secondary's chain.
IMAGES = TOPOLOGIES["replication"].images
