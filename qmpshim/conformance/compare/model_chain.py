"""The model of a chain of disks, with the options that its nodes were opened with."""

from __future__ import annotations

from dataclasses import replace

from qmpshim.machine.chain.parts import Node
from qmpshim.machine.chain.topology import Topology
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.protocols import SerializationProtocol
from qmpshim.model.chain.secondary import Chain, Workflow
from qmpshim.model.disks.image import Qcow2Image
from qmpshim.model.disks.subclusters import ExtendedQcow2
from qmpshim.model.pointintime.masks import cover, span
from qmpshim.model.units import SECTOR


def model_chain(
    topology: Topology,
    size: int,
    cluster: int,
    secondary: str,
    behaviour: Behaviour,
    protocol: SerializationProtocol | None = None,
) -> Chain:
    """The model of a secondary's chain.

    :param size: sectors of the disk
    :param cluster: sectors of a cluster of an image that has none of its own
    :param secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :param protocol: see :class:`Chain`
    """
    replicates = topology.replication_mode == "secondary"
    if any(n.driver == "copy-before-write" and unmaps(n) for n in topology.nodes):
        behaviour = replace(behaviour, discard_passes_job=True, unmap_passes_job=True)
    chain = Chain(
        Workflow.REPLICATION if replicates else Workflow.BACKUP,
        size,
        cluster,
        secondary,
        protocol=protocol,
        behaviour=behaviour,
    )
    if topology.node("secondary").driver == "qcow2" and topology.image("secondary").extended:
        chain.place(ExtendedQcow2("secondary", size, cluster, backed=False))
    chain.min_cluster = topology.min_copy // SECTOR
    chain.frozen = frozen_at_start(topology, size)
    if topology.frozen is not None and topology.begins_late:
        chain.freezes = topology.frozen.granularity // SECTOR
    equip(chain, topology)
    return chain


def frozen_at_start(topology: Topology, size: int) -> int:
    """The sectors of the granules that the frozen bitmap names, as a set; nothing without one.

    :param size: sectors of the disk
    """
    bitmap = topology.frozen
    if bitmap is None:
        return 0
    written = 0
    for start, end in bitmap.written:
        written |= span(start // SECTOR, -(-end // SECTOR) - start // SECTOR)
    return cover(written & span(0, size), bitmap.granularity // SECTOR, size)


def equip(chain: Chain, topology: Topology) -> None:
    """Open the disks of a chain that is new, or was rebuilt, with the options of their nodes."""
    nodes = {node.name: node for node in topology.nodes}
    for name in {"hidden", "active"} & nodes.keys():
        spec = topology.image(name)
        own = spec.cluster // SECTOR if spec.cluster else chain.cluster
        backed = nodes[name].options.get("backing") is not None
        kind = ExtendedQcow2 if spec.extended else Qcow2Image
        chain.place(kind(name, chain.size, own, backed))
    for image in (chain.secondary, chain.hidden, chain.active):
        if image.name in nodes:
            image.discards = unmaps(nodes[image.name])
            image.detects_zeroes = nodes[image.name].options.get("detect-zeroes", "off") != "off"


def unmaps(node: Node) -> bool:
    """Whether a node was opened with BDRV_O_UNMAP."""
    return node.options.get("discard") == "unmap"
