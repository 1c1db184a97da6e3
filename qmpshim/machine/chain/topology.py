"""Topologies: nodes, images, exports, jobs, operations and contract of a chain, as data.

A topology is opened in the order of its parts and taken apart in the reverse order
(:mod:`qmpshim.machine.chain.build`). Another chain is another value in :mod:`.chains`; another
option of a node is :meth:`Topology.with_options`. Names of drivers, options and commands are QEMU's
own (qapi/block-core.json); names of operations are those of scenarios.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How the image of a node is made.

    :ivar overlay: it is empty in the beginning; the others hold what the run begins with
    :ivar cluster: bytes of a qcow2 cluster; None: the chain's
    :ivar create: more options of ``qemu-img create -o``, names and values
    :ivar file: the name of its file, without the suffix; empty: the node's
    """

    overlay: bool = False
    cluster: int | None = None
    create: tuple[tuple[str, str], ...] = ()
    file: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A block node.

    :ivar options: of ``blockdev-add``, beyond ``driver``, ``node-name``, ``file`` of an image and
        ``log``; one that is a node itself is opened with this one
    :ivar image: its own image, of the same name; its format is the driver
    :ivar log: what is written through it is recorded in a file of its own (``blklogwrites``)
    :ivar backend: the id of its block backend, where ``-drive`` opens it; empty: it has none
    :ivar placeholder: it is there from the beginning, on the node of this name, and put on its
        ``file`` by ``blockdev-reopen``; empty: it is not
    """

    name: str
    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    image: ImageSpec | None = None
    log: bool = False
    backend: str = ""
    placeholder: str = ""

    @property
    def within(self) -> Iterator[Node]:
        """The nodes that are opened with it, those below first, and itself."""
        for value in self.options.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Node):
                    yield from one.within
        yield self

    def mapped(self, change: Callable[[Node], Node]) -> Node:
        """It with a change made to each node that is opened with it, and to itself."""

        def mapped(value: Any) -> Any:
            if isinstance(value, list):
                return [mapped(one) for one in value]
            return value.mapped(change) if isinstance(value, Node) else value

        options = {key: mapped(value) for key, value in self.options.items()}
        return change(replace(self, options=options))

    @property
    def overlay(self) -> bool:
        """Whether it has an image that is empty in the beginning."""
        return self.image is not None and self.image.overlay


@dataclass(frozen=True, slots=True)
class Export:
    """An NBD export, under the name of its client."""

    name: str
    node: str
    writable: bool


@dataclass(frozen=True, slots=True)
class DirtyBitmap:
    """A dirty bitmap of a node that names something from the beginning.

    :ivar granularity: bytes of a granule
    :ivar written: of what was written, by which it has granules: first byte and end
    """

    name: str
    node: str
    granularity: int
    written: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class QemuDevice:
    """A device of the virtual machine, or an object that devices use.

    :ivar name: its id
    :ivar driver: of the device, or the type of the object
    :ivar options: of ``device_add`` or ``object-add``, beyond id and driver or type
    :ivar is_object: it is made by ``object-add``
    """

    name: str
    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_object: bool = False


#: What a chain is opened from.
Part = Node | Export | QemuDevice | DirtyBitmap


@dataclass(frozen=True, slots=True)
class QmpCommand:
    """A QMP command and its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> list[Any]:
        """Name and arguments, for a script that sends it."""
        return [self.name, dict(self.arguments)]

    def to_words(self) -> str:
        """Name and arguments, as they are typed in the shell."""
        values = (
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self.arguments.items()
        )
        return " ".join((self.name, *values))


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
        """The parts, for a script that opens them: ``part`` is ``node`` or ``export``."""
        found: list[dict[str, Any]] = []
        for part in self.parts:
            match part:
                case Export(name, node, writable):
                    found.append(
                        {"part": "export", "name": name, "node": node, "writable": writable}
                    )
                case Node(name, driver, options, image):
                    made = {"image": image is not None, "options": dict(options)}
                    found.append({"part": "node", "name": name, "driver": driver, **made})
        return found

    def has(self, driver: str) -> bool:
        """Whether there is a node of this driver."""
        return any(node.driver == driver for node in self.nodes)

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
                yield from (data for kind, data in _actions(command) if kind == _BACKS_UP)

    @property
    def renewed(self) -> tuple[Part, ...]:
        """The parts that have to be opened again when the overlays are: they and all above them."""
        found: list[Part] = []
        names: set[str] = set()
        for part in self.parts:
            within = list(part.within) if isinstance(part, Node) else []
            if any(node.overlay for node in within) or not names.isdisjoint(_below(part)):
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

    def prefixed(self, prefix: str) -> Topology:
        """The same chain under other names: *prefix* before each name of a part and of the job.

        Files of images keep their names.
        """
        own = {part.name for part in (*self.parts, *self.nodes)} | {self.job}

        def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
            return {
                key: _prefixed(value, prefix, own) if key in _REFERENCES else value
                for key, value in options.items()
            }

        def command(one: QmpCommand) -> QmpCommand:
            return replace(one, arguments=renamed(one.arguments))

        def node(one: Node) -> Node:
            image = one.image and replace(one.image, file=one.image.file or one.name)
            name = prefix + one.name
            return replace(one, name=name, options=renamed(one.options), image=image)

        def part(one: Part) -> Part:
            match one:
                case Node():
                    return one.mapped(node)
                case Export() | DirtyBitmap():
                    return replace(one, name=prefix + one.name, node=prefix + one.node)
                case QemuDevice():
                    return replace(one, name=prefix + one.name, options=renamed(one.options))

        return replace(
            self,
            parts=tuple(map(part, self.parts)),
            commands={do: command(one) for do, one in self.commands.items()},
            begins=self.begins and command(self.begins),
            job=self.job and prefix + self.job,
            prefix=prefix + self.prefix,
        )

    def with_parts(self, *parts: Part) -> Topology:
        """The same with more parts, opened last."""
        return replace(self, parts=(*self.parts, *parts))

    def with_image(self, node: str, **changes: Any) -> Topology:
        """The same with another image of a node: see :class:`ImageSpec`.

        :raises KeyError: there is no such node, or it has no image
        """
        changed = replace(self.image(node), **changes)
        return self._with(node, lambda one: replace(one, image=changed))

    def with_format(self, node: str, driver: str) -> Topology:
        """The same with another image format for a node."""
        return self._with(node, lambda one: replace(one, driver=driver))

    def with_options(self, options: Mapping[str, Mapping[str, Any]]) -> Topology:
        """The same with more options of nodes.

        :param options: by node's name; of :data:`JOB` those of the commands that start it.
            :data:`IMAGE_CLUSTER` is about how a node's image is made, :data:`WRITTEN` about the
            bitmap that a filter goes by
        :raises KeyError: there is no such node
        """
        changed = self
        for name, more in options.items():
            if name == JOB:
                changed = changed._with_job(more)
                continue
            own = {key: value for key, value in more.items() if key not in (IMAGE_CLUSTER, WRITTEN)}
            both = {**changed.node(name).options, **own}
            changed = changed._with(name, functools.partial(replace, options=both))
            if IMAGE_CLUSTER in more:
                changed = changed.with_image(name, cluster=more[IMAGE_CLUSTER])
            if WRITTEN in more:
                changed = changed._with_bitmap(name, more[WRITTEN])
        return changed

    def _with_bitmap(self, name: str, written: tuple[tuple[int, int], ...]) -> Topology:
        """The same with a bitmap of the disk below a filter, by which that goes."""
        disk = str(self.node(name).options["file"])
        bitmap = DirtyBitmap("written", disk, _FINE, written)
        both = {**self.node(name).options, "bitmap": {"node": disk, "name": bitmap.name}}
        changed = self._with(name, functools.partial(replace, options=both))
        place = 1 + next(n for n, part in enumerate(self.parts) if part.name == disk)
        return replace(changed, parts=(*changed.parts[:place], bitmap, *changed.parts[place:]))

    def _with_job(self, options: Mapping[str, Any]) -> Topology:
        """The same with more arguments of the commands that start jobs.

        :raises KeyError: there is no job
        """
        if not any(self.backups):
            raise KeyError(JOB)
        return replace(
            self,
            begins=self.begins and _with_arguments(self.begins, options),
            commands={do: _with_arguments(one, options) for do, one in self.commands.items()},
        )

    def _with(self, name: str, change: Callable[[Node], Node]) -> Topology:
        def changed(node: Node) -> Node:
            return change(node) if node.name == name else node

        parts = (part.mapped(changed) if isinstance(part, Node) else part for part in self.parts)
        return replace(self, parts=tuple(parts))


#: Options that are names of nodes below, or of what a device uses.
_BELOW = frozenset({"file", "backing", "target", "children", "drive", "bus", "iothread"})
#: Options and arguments that are names of nodes, exports, jobs or devices.
_REFERENCES = _BELOW | {"top-id", "device", "job-id", "id", "node-name"}


def _below(part: Part) -> set[str]:
    """The names of the parts that a part refers to."""
    if isinstance(part, Export | DirtyBitmap):
        return {part.node}
    found: set[str] = set()
    for one in part.within if isinstance(part, Node) else (part,):
        for key in _BELOW & set(one.options):
            value = one.options[key]
            names = value if isinstance(value, list) else [value]
            found.update(name for name in names if isinstance(name, str))
    return found


def _prefixed(value: Any, prefix: str, own: Collection[str | None]) -> Any:
    if isinstance(value, list):
        return [_prefixed(one, prefix, own) for one in value]
    if not isinstance(value, str):
        return value
    return prefix + value if value.partition(".")[0] in own else value  # a bus: its device.number


_BACKS_UP = "blockdev-backup"


def _actions(command: QmpCommand) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What a command does, one or, in a transaction, several: names and arguments."""
    if command.name != "transaction":
        yield command.name, command.arguments
        return
    for action in command.arguments["actions"]:
        yield action["type"], action["data"]


def _with_arguments(command: QmpCommand, options: Mapping[str, Any]) -> QmpCommand:
    """A command with more arguments of the backup job that it starts, if it does."""
    if command.name == _BACKS_UP:
        return replace(command, arguments=_nested(command.arguments, options))
    if command.name != "transaction":
        return command
    actions = [
        {"type": kind, "data": _nested(data, options) if kind == _BACKS_UP else data}
        for kind, data in _actions(command)
    ]
    return replace(command, arguments={**command.arguments, "actions": actions})


def _nested(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments and more of them; ``x-perf.max-workers`` is one of ``x-perf``."""
    arguments: dict[str, Any] = dict(given)
    for option, value in options.items():
        outer, dot, inner = option.partition(".")
        arguments[outer] = {**arguments.get(outer, {}), inner: value} if dot else value
    return arguments


#: In the place of a node's name: the commands that start a backup job.
JOB = "job"
#: In the place of an option: bytes of a cluster of the node's image.
IMAGE_CLUSTER = "image.cluster"
#: In the place of an option of a filter: the bytes, first and end, that a bitmap of the disk below
#: names when the filter is opened.
WRITTEN = "bitmap.written"
_FINE = 4096  # bytes of a granule of that bitmap

#: More options of nodes: node, option, value.
Options = tuple[tuple[str, str, Any], ...]
