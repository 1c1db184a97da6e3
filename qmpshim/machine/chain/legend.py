"""What the names of a chain stand for, for its readers: options and roles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from qmpshim.machine.chain.build import node_options
from qmpshim.machine.chain.parts import DirtyBitmap, Export, Node, QemuDevice, first_of
from qmpshim.machine.chain.topology import Topology


def _file(node: Node) -> dict[str, Any]:
    """Each image as a file in the working directory, called as its node."""
    return {"driver": "file", "filename": f"{node.name}.{node.driver}"}


def legend(topology: Topology) -> Iterator[tuple[str, str]]:
    """What each part of a chain is, in the order in which they are opened.

    :returns: what it is, in a line; and the ``-blockdev`` option that opens it, as JSON (null is no
        backing file), ``""``: a command does
    """
    for part in topology.parts:
        role = topology.roles.get(first_of(part.name.removeprefix(topology.prefix)), "")
        meant = f": {role}" if role else ""
        match part:
            case Node(name, driver):
                empty = ", empty in the beginning" if part.overlay else ""
                option = json.dumps(node_options(part, _file))
                yield f"node `{name}` ({driver}{empty}){meant}", option
            case Export(name, node, writable, bitmaps):
                how = "writable" if writable else "read-only"
                how += "".join(f", offers the bitmap `{bitmap}`" for bitmap in bitmaps)
                yield f"`{name}`, the client of an NBD export of `{node}` ({how}){meant}", ""
            case DirtyBitmap(name, node, granularity):
                yield f"dirty bitmap `{name}` of `{node}`, granularity {granularity}{meant}", ""
            case QemuDevice(name, driver, is_object=is_object):
                what = "object" if is_object else "device"
                yield f"{what} `{name}` ({driver}){meant}", ""
