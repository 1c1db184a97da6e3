"""The builder: the QMP commands that open a topology and take it apart, in their order.

It does no I/O. :class:`~qmpshim.machine.chain.gated.GatedMachine` sends the commands by the
non-blocking client, :class:`~qmpshim.machine.chain.secondary.SecondaryChain` by the async one. A
:class:`~qmpshim.machine.colo.node.ColoNode` opens its nodes by ``-drive``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qmpshim.machine.chain.parts import DirtyBitmap, Export, Node, Part, QemuDevice
from qmpshim.machine.chain.qmp_commands import QmpCommand

#: The options of the protocol node that holds a node's image, or its log.
Storage = Callable[[Node], dict[str, Any]]


def opening(part: Part, storage: Storage) -> QmpCommand:
    """The command that opens a part of a chain."""
    match part:
        case Export(name, node, writable, bitmaps):
            names = {"type": "nbd", "id": name, "name": name, "node-name": node}
            offered = {"bitmaps": list(bitmaps)} if bitmaps else {}
            return QmpCommand("block-export-add", {**names, "writable": writable, **offered})
        case DirtyBitmap(name, node, granularity):
            names = {"node": node, "name": name}
            return QmpCommand("block-dirty-bitmap-add", {**names, "granularity": granularity})
        case QemuDevice(name, driver, options, True):
            return QmpCommand("object-add", {"qom-type": driver, "id": name, **options})
        case QemuDevice(name, driver, options):
            return QmpCommand("device_add", {"driver": driver, "id": name, **options})
        case Node():
            options = node_options(part, storage)
            if part.placeholder:
                return QmpCommand("blockdev-reopen", {"options": [options]})
            return QmpCommand("blockdev-add", options)


def node_options(node: Node, storage: Storage) -> dict[str, Any]:
    """A node and all that is opened with it, as ``blockdev-add`` takes it."""

    def value(of: Any) -> Any:
        if isinstance(of, list):
            return [value(one) for one in of]
        return node_options(of, storage) if isinstance(of, Node) else of

    options: dict[str, Any] = {"driver": node.driver, "node-name": node.name}
    options |= {key: value(of) for key, of in node.options.items()}
    if node.image is not None:
        options["file"] = {**storage(node), "discard": "unmap"}
    if node.log:
        options["log"] = storage(node)
    return options


def drive(node: Node, storage: Storage) -> str:
    """A node and all that is opened with it, as ``-drive`` and ``drive_add`` take it."""
    backend = {"if": "none", "id": node.backend} if node.backend else {}
    options = {**backend, **node_options(node, storage)}
    return ",".join(
        f"{name}={value.replace(',', ',,')}" for name, value in _flat("", options)
    )  # QemuOpts: a comma in a value is doubled


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
        case list():
            for number, inner in enumerate(value):
                yield from _flat(f"{prefix}.{number}", inner)
        case bool():
            yield prefix, "on" if value else "off"
        case _:
            yield prefix, str(value)


_MARKED = "marked"  # a node that nothing reads


def marking(bitmap: DirtyBitmap, size: int) -> Iterator[QmpCommand]:
    """The commands after which a bitmap that was made names what it is to name.

    What is written is written to a node of its own, whose bitmap is merged: the disk stays as it
    is.

    :param size: bytes of the disk
    """
    if not bitmap.written:
        return
    own = DirtyBitmap(bitmap.name, _MARKED, bitmap.granularity, bitmap.written)
    yield QmpCommand("blockdev-add", {"driver": "null-co", "node-name": _MARKED, "size": size})
    yield opening(own, lambda node: {})
    within = ((start, min(end, size)) for start, end in bitmap.written if start < size)
    for start, end in within:
        line = f'qemu-io {_MARKED} "write {start} {end - start}"'
        yield QmpCommand("human-monitor-command", {"command-line": line})
    source = {"node": _MARKED, "name": own.name}
    names = {"node": bitmap.node, "target": bitmap.name}
    yield QmpCommand("block-dirty-bitmap-merge", {**names, "bitmaps": [source]})
    yield QmpCommand("blockdev-del", {"node-name": _MARKED})


def removals(
    parts: Iterable[Part],
) -> tuple[list[QemuDevice | Export | DirtyBitmap], list[QmpCommand]]:
    """How parts of a chain, as they were opened, are taken apart: exports and devices first.

    :returns: what to remove and to wait for, and then the commands that close the nodes
    """
    backwards = list(reversed(list(parts)))
    users = [part for part in backwards if not isinstance(part, Node)]
    return users, [closing(part) for part in backwards if isinstance(part, Node)]


def closing(part: Part) -> QmpCommand:
    """The command that closes a part: an export with its clients, and it is gone a little later,
    as is a device.
    """
    match part:
        case Export(name):
            return QmpCommand("block-export-del", {"id": name, "mode": "hard"})
        case DirtyBitmap(name, node):
            return QmpCommand("block-dirty-bitmap-remove", {"node": node, "name": name})
        case QemuDevice(name, is_object=True):
            return QmpCommand("object-del", {"id": name})
        case QemuDevice(name):
            return QmpCommand("device_del", {"id": name})
        case Node(name, driver, placeholder=str(nothing)) if nothing:
            options = {"driver": driver, "node-name": name, "file": nothing}
            return QmpCommand("blockdev-reopen", {"options": [options]})
        case Node(name):
            return QmpCommand("blockdev-del", {"node-name": name})
