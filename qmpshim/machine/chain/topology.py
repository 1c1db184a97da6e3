"""Topologies: nodes, images, exports, jobs, operations and contract of a chain, as data.

A topology is opened in the order of its parts (:mod:`.parts`) and taken apart in the reverse order
(:mod:`.build`). Another chain is another value in :mod:`.chains`; another option of a node is
:func:`.variants.with_options`. Names of commands are QEMU's own (qapi/block-core.json); names of
operations are those of scenarios.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qmpshim.machine.chain.parts import DirtyBitmap, Export, ImageSpec, Node, Part, below, on_disk
from qmpshim.machine.chain.qmp_commands import BACKS_UP, QmpCommand, actions_of


@dataclass(frozen=True)
class Topology:
    """What a chain is made of, and what can be done with it.

    :ivar parts: nodes, exports and devices, in the order in which they are opened
    :ivar commands: by operation, what does it in QEMU; ``status`` is a query
    :ivar begins: the command that starts it, once it is open; None: nothing needs to be started
    :ivar needs: what a build must have, in words, for the choice of one
    :ivar operations: what can be done: it has an export, a filter or a job for that
    :ivar allows: by command, the operations that may be in flight while it runs, as QEMU's
        documents have it; a command that is not here wants all I/O settled
    :ivar outside: the operations that no document allows while the chain is in use
    :ivar job: the id of the block job that ``begins`` starts; None: there is none to be seen
    :ivar formats: the formats that the secondary disk may have
    :ivar prefix: of the names of nodes, exports and jobs: several chains on one QEMU
    :ivar roles: by node and by export, what it is there for, in words for people
    :ivar disks: there are so many secondary disks, each with all that belongs to it
    """

    name: str
    parts: tuple[Part, ...]
    commands: Mapping[str, QmpCommand]
    begins: QmpCommand | None
    needs: str
    operations: frozenset[str]
    allows: Mapping[str, frozenset[str]] = field(default_factory=dict)
    outside: frozenset[str] = frozenset({"unexport"})
    job: str | None = None
    formats: tuple[str, ...] = ("raw", "qcow2")
    prefix: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    disks: int = 1

    @functools.cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, in the order in which they are opened."""
        return tuple(n for part in self.parts if isinstance(part, Node) for n in part.within)

    @property
    def exports(self) -> tuple[Export, ...]:
        """The exports, in the order in which they are made."""
        return tuple(part for part in self.parts if isinstance(part, Export))

    @property
    def bitmaps(self) -> tuple[DirtyBitmap, ...]:
        """The dirty bitmaps that name something from the beginning."""
        return tuple(part for part in self.parts if isinstance(part, DirtyBitmap))

    @property
    def first(self) -> tuple[Part, ...]:
        """The parts that are opened before it begins: all but the exports that offer bitmaps."""
        return tuple(p for p in self.parts if not isinstance(p, Export) or not p.bitmaps)

    @property
    def offering(self) -> tuple[Export, ...]:
        """The exports that offer bitmaps, which are frozen when it begins."""
        return tuple(export for export in self.exports if export.bitmaps)

    @property
    def begins_late(self) -> bool:
        """Whether an operation starts the job; an export that offers a bitmap comes after that."""
        return self.begins is None and self.job is not None

    @property
    def jobs(self) -> tuple[str, ...]:
        """The ids of the block jobs that there are once it has begun, by disk."""
        return tuple(on_disk(self.job, disk) for disk in range(self.disks)) if self.job else ()

    def drains(self, operation: str) -> bool:
        """Whether all requests under way end before an operation of this name does anything."""
        return operation in self.commands and self.commands[operation].drains

    @property
    def frozen(self) -> DirtyBitmap | None:
        """The bitmap that is frozen when it begins and offered since; None: there is none."""
        offered = {name for export in self.offering for name in export.bitmaps}
        return next((bitmap for bitmap in self.bitmaps if bitmap.name in offered), None)

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the images, those that clients see first."""
        own = [node for node in self.nodes if node.image is not None]
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

    def node(self, name: str) -> Node:
        """The node of this name.

        :raises KeyError: there is none
        """
        for one in self.nodes:
            if one.name == name:
                return one
        raise KeyError(name)

    def image(self, node: str) -> ImageSpec:
        """How the image of a node is made.

        :raises KeyError: there is no such node, or it has no image
        """
        image = self.node(node).image
        if image is None:
            raise KeyError(node)
        return image

    def export(self, name: str) -> Export:
        """The export of this name.

        :raises KeyError: there is none
        """
        for one in self.exports:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def targets(self) -> tuple[str, ...]:
        """The overlays that a filter writes to, and that only the monitor holds otherwise.

        Neither a flush of the filter nor, in QEMU 10.0, ``stop`` reaches them
        (``cbw_co_flush``, block/copy-before-write.c).
        """
        used = {node.options.get("target") for node in self.nodes}
        return tuple(name for name in self.overlays if name in used)

    def parts_to_json(self) -> list[dict[str, Any]]:
        """The nodes and exports, for a script that opens them: ``part`` is which it is."""
        found: list[dict[str, Any]] = []
        for part in self.parts:
            match part:
                case Export(name, node, writable, bitmaps):
                    offered = {"bitmaps": [*bitmaps]} if bitmaps else {}
                    names = {"part": "export", "name": name, "node": node}
                    found.append({**names, "writable": writable, **offered})
                case Node(name, driver, options, image):
                    made = {"image": image is not None, "options": dict(options)}
                    found.append({"part": "node", "name": name, "driver": driver, **made})
        return found

    def has(self, driver: str) -> bool:
        """Whether there is a node of this driver."""
        return any(node.driver == driver for node in self.nodes)

    @property
    def voters(self) -> tuple[str, ...]:
        """The nodes that vote on what is read of a quorum; empty: none do."""
        for node in self.nodes:
            if node.driver == "quorum" and node.options.get("read-pattern") != "fifo":
                return tuple(node.options["children"])
        return ()

    @property
    def threshold(self) -> int:
        """How many of them have to agree."""
        return next(int(n.options["vote-threshold"]) for n in self.nodes if n.driver == "quorum")

    @property
    def min_copy(self) -> int:
        """Bytes that a copy has at least, by an option; 0: there is none."""
        jobs = (one.get("x-perf", {}) for one in self.backups)
        for options in (*(node.options for node in self.nodes), *jobs):
            if "min-cluster-size" in options:
                return int(options["min-cluster-size"])
        return 0

    @property
    def replication_mode(self) -> str | None:
        """``primary`` or ``secondary``, the side of the replication filter; None: there is none."""
        modes = [n.options["mode"] for n in self.nodes if n.driver == "replication"]
        return modes[0] if modes else None

    @property
    def commits(self) -> bool:
        """Whether a failover commits overlays into the secondary disk, in the background."""
        return "failover" in self.operations and bool(self.overlays)

    @property
    def backs_up(self) -> bool:
        """Whether operations start backup jobs, which go on in the background."""
        return "backup_full" in self.operations

    @property
    def backups(self) -> Iterator[Mapping[str, Any]]:
        """The arguments of each backup job that a command starts."""
        for command in (self.begins, *self.commands.values()):
            if command is not None:
                yield from (data for kind, data in actions_of(command) if kind == BACKS_UP)

    @property
    def renewed(self) -> tuple[Part, ...]:
        """The parts that have to be opened again when the overlays are: they and all above them."""
        found: list[Part] = []
        names: set[str] = set()
        for part in self.parts:
            within = list(part.within) if isinstance(part, Node) else []
            if any(node.overlay for node in within) or not names.isdisjoint(below(part)):
                found.append(part)
                names.update(node.name for node in within)
        return tuple(found)

    def keeps_contract(self, operations: Collection[str]) -> bool:
        """Whether QEMU's documents allow these operations at the same time.

        :param operations: I/O and commands that change the chain; queries are always allowed
        """
        commands = [do for do in operations if do in self.commands and do != "status"]
        io = [do for do in operations if do not in self.commands]
        nothing: frozenset[str] = frozenset()
        return self.outside.isdisjoint(operations) and all(
            do in self.allows.get(command, nothing) for command in commands for do in io
        )
