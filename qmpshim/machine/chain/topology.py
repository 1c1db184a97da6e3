"""Topologies: the nodes, images, exports and commands of a chain, as data.

A topology is opened in the order of its parts and taken apart in the reverse order. A chain with
another node, or with another option of a node, is another value: see :data:`TOPOLOGIES` and
:meth:`Topology.with_options`. Names are QEMU's own (qapi/block-core.json).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Form(StrEnum):
    """The topologies by name."""

    REPLICATION = "replication"  # secondary <- hidden <- active <- replication filter
    BACKUP = "backup"  # secondary <- hidden, with blockdev-backup sync=none
    FLEECING = "fleecing"  # copy-before-write on the secondary disk, hidden disk as its target,
    # and snapshot-access above: no job (QEMU 7.2 and later)
    PRIMARY = "primary"  # the other side: quorum on the primary disk and on the replication filter
    # that forwards to the secondary disk


@dataclass(frozen=True, slots=True)
class Node:
    """A block node.

    :ivar options: of ``blockdev-add``, beyond ``driver``, ``node-name``, and ``file`` of an image
    :ivar image: it has an image of its own, of the same name
    :ivar overlay: that image is empty in the beginning, and qcow2
    """

    name: str
    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    image: bool = False
    overlay: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """An NBD export, under the name of who is its client."""

    name: str
    node: str
    writable: bool


@dataclass(frozen=True, slots=True)
class QmpCommand:
    """A QMP command and its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> list[Any]:
        """Name and arguments, for a script that sends it."""
        return [self.name, dict(self.arguments)]


@dataclass(frozen=True, slots=True)
class Topology:
    """What a chain is made of.

    :ivar parts: nodes and exports, in the order in which they are opened
    :ivar commands: by operation, what does it in QEMU; ``status`` is a query
    :ivar begins: the command that starts it, once it is open; None: nothing needs to be started
    :ivar needs: what a build must have, for who is to choose one
    """

    form: Form
    parts: tuple[Node | Export, ...]
    commands: Mapping[str, QmpCommand]
    begins: QmpCommand | None
    needs: str

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in the order in which they are opened."""
        return tuple(part for part in self.parts if isinstance(part, Node))

    @property
    def exports(self) -> tuple[Export, ...]:
        """The exports, in the order in which they are made."""
        return tuple(part for part in self.parts if isinstance(part, Export))

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images, those that clients see first."""
        own = [node for node in self.nodes if node.image]
        return tuple(node.name for node in sorted(own, key=lambda node: node.name != "primary"))

    @property
    def overlays(self) -> tuple[str, ...]:
        """The images that are empty in the beginning."""
        return tuple(node.name for node in self.nodes if node.overlay)

    @property
    def qcow2(self) -> tuple[str, ...]:
        """The images that have tables and can break."""
        return tuple(
            name
            for name in self.images
            if any(node.name == name and node.driver == "qcow2" for node in self.nodes)
        )

    def parts_to_json(self) -> list[dict[str, Any]]:
        """The parts, for a script that opens them: ``part`` is ``node`` or ``export``."""
        return [
            {"part": "export", "name": part.name, "node": part.node, "writable": part.writable}
            if isinstance(part, Export)
            else {
                "part": "node",
                "name": part.name,
                "driver": part.driver,
                "image": part.image,
                "options": dict(part.options),
            }
            for part in self.parts
        ]

    def has(self, driver: str) -> bool:
        """Whether there is a node of this driver."""
        return any(node.driver == driver for node in self.nodes)

    def with_format(self, node: str, driver: str) -> Topology:
        """The same with another image format for a node."""
        return self._with(node, lambda one: replace(one, driver=driver))

    def with_options(self, options: Mapping[str, Mapping[str, Any]]) -> Topology:
        """The same with more options of nodes.

        :param options: by node's name; a name that is no node's is a KeyError
        :raises KeyError: there is no such node
        """
        there = {node.name for node in self.nodes}
        changed = self
        for name, more in options.items():
            if name not in there:
                raise KeyError(name)
            changed = changed._with(
                name, lambda one, more=more: replace(one, options={**one.options, **more})
            )
        return changed

    def _with(self, name: str, change: Any) -> Topology:
        parts = tuple(
            change(part) if isinstance(part, Node) and part.name == name else part
            for part in self.parts
        )
        return replace(self, parts=parts)


#: More options of nodes: node, option, value.
Options = tuple[tuple[str, str, Any], ...]


@functools.lru_cache(maxsize=256)
def topology_of(form: Form, secondary: str = "raw", options: Options = ()) -> Topology:
    """The chain of a form.

    :param secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :raises KeyError: there is no node of a name that *options* has
    """
    by_node: dict[str, dict[str, Any]] = {}
    for node, option, value in options:
        by_node.setdefault(node, {})[option] = value
    return TOPOLOGIES[form].with_format("secondary", secondary).with_options(by_node)


def _replication(primary: bool) -> dict[str, QmpCommand]:
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


_UNMAP = {"discard": "unmap"}
_UNEXPORT = {"unexport": QmpCommand("block-export-del", {"id": "primary", "mode": "hard"})}
_JOBS = {"status": QmpCommand("query-block-jobs")}
_SECONDARY = Node("secondary", "raw", _UNMAP, image=True)
_HIDDEN = Node("hidden", "qcow2", {**_UNMAP, "backing": "secondary"}, image=True, overlay=True)
_ACTIVE = Node("active", "qcow2", {**_UNMAP, "backing": "hidden"}, image=True, overlay=True)
_BACKUP_JOB = QmpCommand(
    "blockdev-backup",
    {"job-id": "backup", "device": "secondary", "target": "hidden", "sync": "none"},
)

#: The chains there are.
TOPOLOGIES: dict[Form, Topology] = {
    Form.REPLICATION: Topology(
        Form.REPLICATION,
        (
            _SECONDARY,
            Export("primary", "secondary", True),
            _HIDDEN,
            _ACTIVE,
            Node("top", "replication", {"mode": "secondary", "top-id": "top", "file": "active"}),
            Export("guest", "top", True),
        ),
        {**_replication(primary=False), **_UNEXPORT},
        _replication(primary=False)["start"],
        "with the replication driver",
    ),
    Form.BACKUP: Topology(
        Form.BACKUP,
        (
            _SECONDARY,
            Export("primary", "secondary", True),
            _HIDDEN,
            Export("guest", "hidden", False),
        ),
        {"stop": QmpCommand("block-job-cancel", {"device": "backup"}), **_JOBS, **_UNEXPORT},
        _BACKUP_JOB,
        "with the NBD driver",
    ),
    Form.FLEECING: Topology(
        Form.FLEECING,
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
    ),
    Form.PRIMARY: Topology(
        Form.PRIMARY,
        (
            _SECONDARY,
            Node("primary", "raw", _UNMAP, image=True),
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
        _replication(primary=True),
        _replication(primary=True)["start"],
        "with the replication and the quorum driver",
    ),
}

#: The images of the secondary's chain, and of the primary's: those are raw, both.
IMAGES = TOPOLOGIES[Form.REPLICATION].images
PRIMARY_IMAGES = TOPOLOGIES[Form.PRIMARY].images
