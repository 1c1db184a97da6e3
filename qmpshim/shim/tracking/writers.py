"""What may write to the disks of a chain, and whether the shim sees it.

A chain's subgraph are its disks' nodes and what holds their data below them. What has taken the
permission to write to a node of it from outside is a writer, however many nodes are between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qmpshim.machine.chain.block_graph import LOG_NODE, BlockGraph, Edge, Vertex, VertexKind


class WriterKind(StrEnum):
    """What a writer is."""

    DEVICE = "device"
    EXPORT = "export"
    JOB = "job"
    NODE = "node"  # a driver that writes by itself
    BACKEND = "backend"  # one that QEMU does not name
    COMMAND = "command"  # over when it was answered


@dataclass(frozen=True, slots=True)
class Writer:
    """Something that may change a chain's disk.

    :ivar name: the device's path, the export's or job's id, the node's name, the command
    :ivar role: of the chain's disk that it reaches
    """

    kind: WriterKind
    name: str
    role: str

    def describe(self) -> str:
        """In words."""
        return f"{self.kind} '{self.name}'" if self.name else f"an unnamed {self.kind}"


@dataclass(frozen=True, slots=True)
class Export:
    """An export that may be writable.

    :ivar node: which is exported
    :ivar disk: which is meant by it: what is relayed to the export is done to that
    :ivar seen: all writes through it so far came through a relay
    """

    id: str
    node: str
    disk: str
    seen: bool


class ChainSubgraph:
    """The nodes of one chain.

    :param roles: node names by role
    :param exports: all that may be writable
    :param jobs: the chains' own
    :ivar roles: role by the number of a vertex
    """

    def __init__(
        self,
        graph: BlockGraph,
        roles: Mapping[str, str],
        exports: Sequence[Export] = (),
        jobs: Collection[str] = (),
    ) -> None:
        self._graph = graph
        self._exports = exports
        self._jobs = jobs
        self._logged: set[int] = set()  # the job's filter, where it is above a log
        heads = {role: node for role, name in roles.items() if (node := graph.node(name))}
        self.roles = {node.number: role for role, node in heads.items()}
        if "secondary" in heads and "hidden" in heads:
            self._add_filter(heads["secondary"], heads["hidden"])
        for role, head in heads.items():
            self._descend(head, role)

    def _add_filter(self, secondary: Vertex, hidden: Vertex) -> None:
        """What is written to the filter of the chain's backup job is written to the secondary."""
        sources = {e.parent for e in self._graph.above(secondary) if e.name in ("file", "backing")}
        for edge in self._graph.above(hidden):
            if edge.name != "target" or edge.parent.kind is not VertexKind.DRIVER:
                continue
            if edge.parent in sources:
                self.roles[edge.parent.number] = "secondary"
            elif any(
                e.child in sources and _is_log(e.child) for e in self._graph.below(edge.parent)
            ):
                self.roles[edge.parent.number] = "secondary"
                self._logged.add(edge.parent.number)

    def _descend(self, vertex: Vertex, role: str) -> None:
        for edge in self._graph.below(vertex):
            if edge.child.number not in self.roles:
                self.roles[edge.child.number] = role
                self._descend(edge.child, role)

    def writers(self) -> Iterator[Writer]:
        """The writers that may write now without being seen in a log."""
        for number, role in self.roles.items():
            if number in self._logged:
                continue
            for edge in self._graph.above(self._graph.vertices[number]):
                if edge.parent.number not in self.roles and edge.changes:
                    yield from self._climb(edge, role)

    def _climb(self, edge: Edge, role: str) -> Iterator[Writer]:
        parent = edge.parent
        if parent.kind is VertexKind.JOB:
            if parent.name and parent.name not in self._jobs:
                yield Writer(WriterKind.JOB, parent.name, role)
        elif parent.kind is VertexKind.BACKEND:
            yield from self._backend(edge, role)
        elif not _is_log(parent):  # above a log all is seen
            above = [e for e in self._graph.above(parent) if e.changes]
            for further in above:
                if further.parent.number not in self.roles:
                    yield from self._climb(further, role)
            if not above:
                yield Writer(WriterKind.NODE, parent.name, role)

    def _backend(self, edge: Edge, role: str) -> Iterator[Writer]:
        """QEMU names the backends of devices only; exports and jobs are known by their node."""
        node = edge.child.name
        if edge.parent.name:
            yield Writer(WriterKind.DEVICE, edge.parent.name, role)
            return
        above = self._graph.above(edge.child)
        here = [export for export in self._exports if export.node == node]
        for export in here:
            yield Writer(WriterKind.EXPORT, export.id, role)
        unnamed = [e for e in above if e.changes and e.parent.kind is VertexKind.BACKEND]
        if sum(not e.parent.name for e in unnamed) <= len(here):
            return
        jobs = [e.parent.name for e in above if e.parent.kind is VertexKind.JOB]
        for job in jobs:
            if job and job not in self._jobs:  # without a name: replication's own
                yield Writer(WriterKind.JOB, job, role)
        if not jobs:
            yield Writer(WriterKind.BACKEND, "", role)

    def reached(self, node: Vertex) -> set[str]:
        """The roles of the disks that a write to *node* changes without being seen."""
        if node.number in self._logged or _is_log(node):
            return set()
        if node.number in self.roles:
            return {self.roles[node.number]}
        roles: set[str] = set()
        for edge in self._graph.below(node):
            if edge.name != "backing" or node.name.startswith("#"):  # a job's filter
                roles |= self.reached(edge.child)
        return roles


def _is_log(vertex: Vertex) -> bool:
    return vertex.kind is VertexKind.DRIVER and vertex.name.startswith(LOG_NODE)
