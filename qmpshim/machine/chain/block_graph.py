"""QEMU's block graph at one moment: the nodes, their parents, and which may write.

Restates the answer of ``x-debug-query-block-graph`` (QEMU's ``qapi/block-core.json``): the nodes
are block drivers, block backends and block jobs, and each edge holds the permissions that its
parent has taken. QEMU requires ``write`` of each writer: no attached writer is missing here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: ``write-unchanged`` keeps the content, but may allocate; ``resize`` may cut it.
_CHANGING = frozenset({"write", "write-unchanged", "resize"})
#: Begins the names of nodes that the shim made; what is below them is meant.
OWN_NODE = "x-shim-"
#: Begins the names of the nodes that log what is written to the node below.
LOG_NODE = f"{OWN_NODE}log-"


class VertexKind(StrEnum):
    """``XDbgBlockGraphNodeType``."""

    BACKEND = "block-backend"
    JOB = "block-job"
    DRIVER = "block-driver"


@dataclass(frozen=True, slots=True)
class Vertex:
    """A node, a backend or a job.

    :ivar name: a node's name, a backend's name or its device's path, a job's id; may be ``""``
    """

    number: int
    kind: VertexKind
    name: str


@dataclass(frozen=True, slots=True)
class Edge:
    """*parent* uses *child* under a *name*; *changes*: it may write, allocate or resize."""

    parent: Vertex
    child: Vertex
    name: str
    changes: bool


class BlockGraph:
    """The graph.

    :param described: what ``x-debug-query-block-graph`` returned
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.vertices = {
            node["id"]: Vertex(node["id"], VertexKind(node["type"]), node["name"])
            for node in described["nodes"]
        }
        self._nodes = {v.name: v for v in self.vertices.values() if v.kind is VertexKind.DRIVER}
        self._above: dict[int, list[Edge]] = defaultdict(list)
        self._below: dict[int, list[Edge]] = defaultdict(list)
        for edge in described["edges"]:
            made = Edge(
                self.vertices[edge["parent"]],
                self.vertices[edge["child"]],
                edge["name"],
                not _CHANGING.isdisjoint(edge["perm"]),
            )
            self._above[made.child.number].append(made)
            self._below[made.parent.number].append(made)

    def node(self, name: str) -> Vertex | None:
        """The node of that name."""
        return self._nodes.get(name)

    def above(self, vertex: Vertex) -> list[Edge]:
        """The edges to its parents."""
        return self._above[vertex.number]

    def below(self, vertex: Vertex) -> list[Edge]:
        """The edges to its children."""
        return self._below[vertex.number]

    def behind(self, name: str) -> Vertex | None:
        """The node that a command means by *name*: of a backend, of a device's path, of a node."""
        for vertex in self.vertices.values():
            if vertex.kind is VertexKind.BACKEND and vertex.name:
                named = vertex.name == name or vertex.name.endswith(f"/{name}")
                # A path may stop at the device itself: its backend belongs to a part of it.
                if named or f"/{name}/" in vertex.name:
                    return next((e.child for e in self.below(vertex) if e.name == "root"), None)
        return self.node(name)

    def children(self) -> dict[tuple[str | None, str], str]:
        """Node names by (parent's name, child's name), e.g. ``("hidden", "backing")``."""
        return {
            (e.parent.name, e.name): e.child.name for edges in self._below.values() for e in edges
        }
