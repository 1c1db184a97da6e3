"""Finds the chains of disks in a running QEMU: which node is the secondary, hidden, active disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.machine.chain.block_graph import LOG_NODE, BlockGraph
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.units import SECTOR

Execute = Callable[..., Awaitable[Any]]
#: Node names by (parent's node name, child's name).
Below = Mapping[tuple[str | None, str], str]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a qcow2 image is laid out.

    :ivar cluster: bytes
    :ivar extended_l2: clusters are allocated by subclusters
    :ivar version: of the format
    """

    cluster: int
    extended_l2: bool
    version: int


@dataclass(frozen=True, slots=True)
class ChainNodes:
    """A chain as it is in QEMU.

    :ivar nodes: node names by role: secondary, hidden, and in replication active and top
    :ivar size: bytes
    :ivar cluster: bytes, of the overlays
    :ivar secondary: the secondary disk's format
    :ivar files: by role, the path of the image's file, for local files
    :ivar data_files: the same of external data files
    :ivar geometry: by role, of the qcow2 images
    :ivar based: the secondary disk has a backing file of its own
    """

    workflow: Workflow
    nodes: Mapping[str, str]
    size: int
    cluster: int
    secondary: str
    files: Mapping[str, Path]
    data_files: Mapping[str, Path]
    geometry: Mapping[str, Geometry]
    based: bool

    def role(self, node: str) -> str | None:
        """What *node* is in this chain: a role's name or a node's."""
        if node in self.nodes:
            return node
        return next((role for role, name in self.nodes.items() if name == node), None)


async def find_replication(execute: Execute) -> list[ChainNodes]:
    """The chains under the replication filters in secondary mode."""
    nodes = {n["node-name"]: n for n in await execute("query-named-block-nodes")}
    below = await children(execute)
    chains = []
    for top in (name for name, n in nodes.items() if n["drv"] == "replication"):
        active = below.get((top, "file"))
        hidden = below.get((active, "backing"))
        secondary = below.get((hidden, "backing"))
        if active is None or hidden is None or secondary is None:
            continue
        roles = {"secondary": secondary, "hidden": hidden, "active": active, "top": top}
        if found := _found(Workflow.REPLICATION, roles, nodes, below):
            chains.append(found)
    return chains


async def source_of_backup(execute: Execute, device: str) -> str:
    """The node that a job on *device* (a node's or a backend's name) copies from."""
    for block in await execute("query-block"):
        if block["device"] == device and "inserted" in block:
            return str(block["inserted"]["node-name"])
    return device


async def find_backup(execute: Execute, source: str, target: str | None) -> ChainNodes | None:
    """The two disks of a backup job that was or will be started.

    :param source: a node's name
    :param target: a node's name; None: the job runs, and made its target itself
    """
    nodes = {n["node-name"]: n for n in await execute("query-named-block-nodes")}
    below = await children(execute)
    if target is None:
        target = _target_of(source, below)
    if source not in nodes or target not in nodes:
        return None
    secondary = _under_logs(source, below)
    if _under_logs(below.get((target, "backing"), ""), below) != secondary:
        return None  # what is read through the target is not this disk
    return _found(Workflow.BACKUP, {"secondary": secondary, "hidden": target}, nodes, below)


async def children(execute: Execute) -> dict[tuple[str | None, str], str]:
    """Node names by (parent's node name, child's name), e.g. ``("hidden", "backing")``."""
    return BlockGraph(await execute("x-debug-query-block-graph")).children()


def _target_of(source: str, below: Below) -> str:
    """Where the filter of the job that runs on *source* copies to."""
    for (parent, name), child in below.items():
        if child == source and name in ("file", "backing") and (parent, "target") in below:
            return below[parent, "target"]
    return ""


def _under_logs(node: str, below: Below) -> str:
    while node.startswith(LOG_NODE):
        node = below[node, "file"]
    return node


def _found(
    workflow: Workflow,
    roles: Mapping[str, str],
    nodes: Mapping[str, Mapping[str, Any]],
    below: Below,
) -> ChainNodes | None:
    hidden = nodes[roles["hidden"]]["image"]
    secondary = nodes[roles["secondary"]]["image"]
    size = int(secondary["virtual-size"])
    if hidden["format"] != "qcow2" or secondary["format"] not in ("raw", "qcow2") or size % SECTOR:
        return None
    disks = {role: name for role, name in roles.items() if role != "top"}

    def files(child: str) -> dict[str, Path]:
        # The image's own name is a json: text once a child was given by reference.
        there = {role: nodes.get(below.get((name, child), "")) for role, name in disks.items()}
        return {
            role: Path(file["image"]["filename"])
            for role, file in there.items()
            if file is not None and file["drv"] in ("file", "host_device")
        }

    return ChainNodes(
        workflow,
        dict(roles),
        size,
        int(hidden["cluster-size"]),
        secondary["format"],
        files("file"),
        files("data-file"),
        {
            role: _geometry(nodes[name]["image"])
            for role, name in disks.items()
            if nodes[name]["image"]["format"] == "qcow2"
        },
        (roles["secondary"], "backing") in below,
    )


def _geometry(image: Mapping[str, Any]) -> Geometry:
    data = image["format-specific"]["data"]
    version = 2 if data["compat"] == "0.10" else 3
    return Geometry(int(image["cluster-size"]), data.get("extended-l2", False), version)
