"""The builder: the QMP commands that open a topology and take it apart, in their order.

It does no I/O. :class:`~qmpshim.machine.chain.gated.GatedMachine` sends the commands by the
non-blocking client, :class:`~qmpshim.machine.chain.secondary.SecondaryChain` by the async one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from qmpshim.machine.chain.topology import Export, Node, QmpCommand

#: By a node's name, the options of the protocol node under its image.
Storage = Callable[[str], dict[str, Any]]


def opening(part: Node | Export, storage: Storage) -> QmpCommand:
    """The command that opens a part of a chain."""
    if isinstance(part, Export):
        names = {"id": part.name, "name": part.name, "node-name": part.node}
        return QmpCommand("block-export-add", {"type": "nbd", **names, "writable": part.writable})
    options = {"driver": part.driver, "node-name": part.name, **part.options}
    if part.image is not None:
        options["file"] = {**storage(part.name), "discard": "unmap"}
    return QmpCommand("blockdev-add", options)


def removals(parts: Iterable[Node | Export]) -> tuple[list[str], list[QmpCommand]]:
    """How parts of a chain, as they were opened, are taken apart: exports first.

    :returns: the exports to remove and wait for, and then the commands that close the nodes
    """
    backwards = list(reversed(list(parts)))
    exports = [part.name for part in backwards if isinstance(part, Export)]
    nodes = [part.name for part in backwards if isinstance(part, Node)]
    return exports, [QmpCommand("blockdev-del", {"node-name": name}) for name in nodes]


def export_removal(name: str) -> QmpCommand:
    """The command that removes an export, its clients with it; it is gone a little later."""
    return QmpCommand("block-export-del", {"id": name, "mode": "hard"})
