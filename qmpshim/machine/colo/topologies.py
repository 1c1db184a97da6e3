"""The two chains of a COLO pair, as docs/COLO-FT.txt has them: values of a chain's topology.

They are opened by ``-drive``, one for each node that has a backend's id, and what is below it.
"""

from __future__ import annotations

from pathlib import Path

from qmpshim.machine.chain.chains import replication_commands
from qmpshim.machine.chain.parts import Export, ImageSpec, Node
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.chain.variants import with_options, with_parts

DISK = "colo-disk0"  # the backend of the guest's disk, on both sides
LINK = "parent0"  # the secondary disk's backend and export
FORWARD = "replication0"  # the primary's filter
CLIENT = "nbd0"  # the primary's NBD client

_UNMAP = {"discard": "unmap"}
_QUORUM = {"read-pattern": "fifo", "vote-threshold": 1}
_RAW = ImageSpec(file="disk")
_OVERLAY = ImageSpec(overlay=True)
_OPERATIONS = frozenset(("start", "checkpoint", "failover", "stop", "status"))
_NEEDS = "with the replication and the quorum driver"

#: The primary's side, with no way to the secondary yet: see :func:`forward`.
COLO_PRIMARY = Topology(
    "colo-primary",
    (
        Node(
            *("quorum", "quorum"),
            {**_QUORUM, "children": [Node("primary-disk", "raw", _UNMAP, _RAW)]},
            backend=DISK,
        ),
    ),
    replication_commands(primary=True),
    replication_commands(primary=True)["start"],
    _NEEDS,
    _OPERATIONS,
)

_HIDDEN = Node("hidden", "qcow2", {**_UNMAP, "backing": "secondary"}, _OVERLAY)
_ACTIVE = Node("active", "qcow2", {**_UNMAP, "backing": _HIDDEN}, _OVERLAY)

#: The secondary's side.
COLO_SECONDARY = Topology(
    "colo-secondary",
    (
        Node("secondary", "raw", _UNMAP, _RAW, backend=LINK),
        Node(
            *("filter", "replication"),
            {"mode": "secondary", "top-id": DISK, "file": _ACTIVE},
            backend="childs0",
        ),
        Node("quorum", "quorum", {**_QUORUM, "children": ["filter"]}, backend=DISK),
        Export(LINK, "secondary", True),
    ),
    replication_commands(primary=False),
    replication_commands(primary=False)["start"],
    _NEEDS,
    _OPERATIONS,
)


def recorded(secondary: Topology) -> Topology:
    """The secondary's side with a log of what its guest writes."""
    log = Node("logged", "blklogwrites", {"file": "filter"}, log=True)
    return with_options(secondary, {"quorum": {"children": [log]}})


def exported(side: Topology) -> Topology:
    """A side without a virtual machine: its disk is exported instead."""
    return with_parts(side, Export("guest", "quorum", True))


def forward(link: Path) -> Node:
    """The primary's way to the secondary: a filter on an NBD client.

    :param link: the socket of the secondary's NBD server, or of what stands before it
    """
    server = {"type": "unix", "path": str(link)}
    client = Node(CLIENT, "nbd", {"server": server, "export": LINK})
    return Node(FORWARD, "replication", {"mode": "primary", "file": client})
