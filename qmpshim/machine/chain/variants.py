"""The same chain otherwise: under other names, with other images, or with more options or parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from qmpshim.machine.chain.build import opening
from qmpshim.machine.chain.parts import (
    EXTENDED,
    OTHER,
    REFERENCES,
    DirtyBitmap,
    Export,
    Node,
    Part,
    QemuDevice,
)
from qmpshim.machine.chain.qmp_commands import (
    BACKS_UP,
    TRANSACTION,
    QmpCommand,
    actions_of,
    with_arguments,
)
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.pointintime.push import FIRST, GRANULARITY, NEW
from qmpshim.model.units import SECTOR

#: In the place of a node's name: the commands that start a backup job.
JOB = "job"
#: In the place of an option: bytes of a cluster of the node's image.
IMAGE_CLUSTER = "image.cluster"
#: In the place of an option: the node's image, if it is qcow2, has subclusters.
IMAGE_EXTENDED = "image.extended_l2"
#: In the place of an option of a filter: the bytes, first and end, that a bitmap of the disk below
#: names when the filter is opened.
WRITTEN = "bitmap.written"
_FINE = 4096  # bytes of a granule of that bitmap
_NO_OPTIONS = IMAGE_CLUSTER, IMAGE_EXTENDED, WRITTEN  # of the node itself
#: In the place of an option of an export, the reader's: the bytes, first and end, that a bitmap of
#: the disk names which is frozen when the backup job begins, and which the export offers.
FROZEN = "bitmap.frozen"

#: In the place of a node's name: the whole chain; and of its option: whether it has two disks,
#: with jobs that end together or not. It is in the place of the last option.
CHAIN = "chain"
TWO_DISKS = "two-disks"
GROUPED, INDIVIDUAL = "grouped", "individual"

#: More options of nodes: node, option, value.
Options = tuple[tuple[str, str, Any], ...]


def prefixed(topology: Topology, prefix: str) -> Topology:
    """The same chain under other names: *prefix* before each name of a part and of the job.

    Files of images keep their names.
    """
    parts = (*topology.parts, *topology.nodes)
    own = {part.name for part in parts if not isinstance(part, DirtyBitmap)} | {topology.job}

    def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: _prefixed(value, prefix, own) if key in REFERENCES else value
            for key, value in options.items()
        }

    def command(one: QmpCommand) -> QmpCommand:
        if one.name != TRANSACTION:
            return replace(one, arguments=renamed(one.arguments))
        actions = [_action(kind, renamed(data)) for kind, data in actions_of(one)]
        return replace(one, arguments={**one.arguments, "actions": actions})

    def node(one: Node) -> Node:
        image = one.image and replace(one.image, file=one.image.file or one.name)
        name = prefix + one.name
        return replace(one, name=name, options=renamed(one.options), image=image)

    def part(one: Part) -> Part:
        match one:
            case Node():
                return one.mapped(node)
            case Export():
                return replace(one, name=prefix + one.name, node=prefix + one.node)
            case DirtyBitmap():  # its name is its node's affair
                return replace(one, node=prefix + one.node)
            case QemuDevice():
                return replace(one, name=prefix + one.name, options=renamed(one.options))

    return replace(
        topology,
        parts=tuple(map(part, topology.parts)),
        commands={do: command(one) for do, one in topology.commands.items()},
        begins=topology.begins and command(topology.begins),
        job=topology.job and prefix + topology.job,
        prefix=prefix + topology.prefix,
    )


def _action(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """An action of a transaction."""
    return {"type": kind, "data": dict(data)}


def doubled(topology: Topology, grouped: bool) -> Topology:
    """The same with two disks, on which one transaction begins.

    :param grouped: the jobs end together (``completion-mode``), which QEMU has for jobs alone:
        there is no bitmap then (``action_check_completion_mode``, blockdev.c)
    :raises KeyError: no operation starts it
    """
    pair = topology, prefixed(topology, OTHER)
    actions = [
        _action(kind, data)
        for one in pair
        for kind, data in actions_of(one.commands["start"])
        if kind == BACKS_UP or not grouped
    ]
    properties = {"properties": {"completion-mode": "grouped"}} if grouped else {}
    start = QmpCommand(TRANSACTION, {"actions": actions, **properties})
    parts = [part for one in pair for part in (_jobs_alone(one) if grouped else one.parts)]
    reads = {"guest_dirty_bitmap"} if grouped else set()
    return replace(
        topology,
        parts=tuple(parts),
        commands={**topology.commands, "start": start},
        operations=topology.operations - reads,
        disks=len(pair),
    )


def _jobs_alone(topology: Topology) -> tuple[Part, ...]:
    """The parts without dirty bitmaps and the exports that offer them."""
    return tuple(part for part in topology.first if not isinstance(part, DirtyBitmap))


def with_parts(topology: Topology, *parts: Part) -> Topology:
    """The same with more parts, opened last."""
    return replace(topology, parts=(*topology.parts, *parts))


def with_image(topology: Topology, node: str, **changes: Any) -> Topology:
    """The same with another image of a node: see :class:`.parts.ImageSpec`.

    :raises KeyError: there is no such node, or it has no image
    """
    changed = replace(topology.image(node), **changes)
    return _with(topology, node, lambda one: replace(one, image=changed))


def with_format(topology: Topology, node: str, driver: str) -> Topology:
    """The same with another image format for a node."""
    return _with(topology, node, lambda one: replace(one, driver=driver))


def with_options(topology: Topology, options: Mapping[str, Mapping[str, Any]]) -> Topology:
    """The same with more options of nodes.

    :param options: by node's name; of :data:`JOB` those of the commands that start it.
        :data:`IMAGE_CLUSTER` and :data:`IMAGE_EXTENDED` are about how a node's image is made,
        :data:`WRITTEN` about the bitmap that a filter goes by, :data:`FROZEN` about the one that
        an export offers
    :raises KeyError: there is no such node, or no job for a bitmap to be frozen with
    """
    changed = topology
    for name, more in options.items():
        if FROZEN in more:
            changed = _pulled(changed, name, more[FROZEN])
            continue
        if name == CHAIN:
            changed = doubled(changed, more[TWO_DISKS] == GROUPED)
            continue
        if name == JOB:
            changed = _with_job(changed, more)
            continue
        own = {key: value for key, value in more.items() if key not in _NO_OPTIONS}
        both = {**changed.node(name).options, **own}
        changed = _with(changed, name, functools.partial(replace, options=both))
        if IMAGE_CLUSTER in more:
            changed = with_image(changed, name, cluster=more[IMAGE_CLUSTER])
        if more.get(IMAGE_EXTENDED):
            changed = with_image(changed, name, create=(*changed.image(name).create, EXTENDED))
        if WRITTEN in more:
            changed = _with_bitmap(changed, name, more[WRITTEN])
    return changed


def _with_bitmap(topology: Topology, name: str, written: tuple[tuple[int, int], ...]) -> Topology:
    """The same with a bitmap of the disk below a filter, by which that goes."""
    disk = str(topology.node(name).options["file"])
    bitmap = DirtyBitmap("written", disk, _FINE, written)
    both = {**topology.node(name).options, "bitmap": {"node": disk, "name": bitmap.name}}
    changed = _with(topology, name, functools.partial(replace, options=both))
    place = 1 + next(n for n, part in enumerate(topology.parts) if part.name == disk)
    return replace(changed, parts=(*changed.parts[:place], bitmap, *changed.parts[place:]))


def pulling(job: QmpCommand, bitmap: DirtyBitmap) -> QmpCommand:
    """The transaction that begins a pull: it freezes a bitmap, adds :data:`.push.NEW`, and starts
    a backup job.
    """
    new = opening(replace(bitmap, name=NEW), lambda node: {})
    disabled = {"node": bitmap.node, "name": bitmap.name}
    actions = [
        _action("block-dirty-bitmap-disable", disabled),
        _action(new.name, new.arguments),
        _action(job.name, job.arguments),
    ]
    return QmpCommand(TRANSACTION, {"actions": actions})


def _pulled(topology: Topology, reader: str, written: tuple[tuple[int, int], ...]) -> Topology:
    """The same as libvirt begins a pull: in the transaction that starts the job a bitmap of the
    disk is frozen, which the reader's export offers, and one is added that records from then on.
    """
    job = topology.begins
    if job is None or job.name != BACKS_UP:
        raise KeyError(JOB)
    disk = job.arguments["device"]
    bitmap = DirtyBitmap(FIRST, disk, GRANULARITY * SECTOR, written)
    export = replace(topology.export(reader), bitmaps=(bitmap.name,))
    parts = [export if part.name == reader else part for part in topology.parts]
    parts.insert(1 + next(n for n, part in enumerate(parts) if part.name == disk), bitmap)
    return replace(
        topology,
        parts=tuple(parts),
        begins=pulling(job, bitmap),
        operations=topology.operations | {f"{reader}_dirty_bitmap"},
    )


def _with_job(topology: Topology, options: Mapping[str, Any]) -> Topology:
    """The same with more arguments of the commands that start jobs.

    :raises KeyError: there is no job
    """
    if not any(topology.backups):
        raise KeyError(JOB)
    return replace(
        topology,
        begins=topology.begins and with_arguments(topology.begins, options),
        commands={do: with_arguments(one, options) for do, one in topology.commands.items()},
    )


def _with(topology: Topology, name: str, change: Callable[[Node], Node]) -> Topology:
    def changed(node: Node) -> Node:
        return change(node) if node.name == name else node

    parts = (part.mapped(changed) if isinstance(part, Node) else part for part in topology.parts)
    return replace(topology, parts=tuple(parts))


def _prefixed(value: Any, prefix: str, own: Collection[str | None]) -> Any:
    if isinstance(value, list):
        return [_prefixed(one, prefix, own) for one in value]
    if not isinstance(value, str):
        return value
    return prefix + value if value.partition(".")[0] in own else value  # a bus: its device.number
