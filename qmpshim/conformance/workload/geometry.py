"""The disks of a random workload, chosen by its seed: their size, clusters, format and options.

The values are those of the scenario space (:mod:`qmpshim.conformance.explore.space.values`), and
sizes that end within a cluster. What the caller gives is kept.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from qmpshim.conformance.explore.space.values import CLUSTERS, node_options
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.points import PointsSpec, least_cluster
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.units import SECTOR

_CLUSTERS = (*(count * SECTOR for count in CLUSTERS.values()), *[64 << 10] * 3, 2 << 20)  # bytes
_GRANULES = 8, 256  # of a disk, at least and at most
_LARGEST = 64 << 20  # bytes
_MOST_CLUSTERS = 1 << 14  # of a disk: an overlay may be emptied cluster by cluster


@dataclass(frozen=True, slots=True)
class Given:
    """What of a geometry the caller has chosen; None: the seed decides.

    :ivar size: bytes of a disk
    :ivar cluster: bytes of a qcow2 cluster
    :ivar secondary: format of the secondary disk, ``raw`` or ``qcow2``
    """

    size: int | None = None
    cluster: int | None = None
    secondary: str | None = None

    @property
    def nothing(self) -> bool:
        """Whether the seed decides all of it."""
        return self == Given()


def chain_by_seed(workflow: str, seed: int, given: Given) -> ChainSpec:
    """The disks of one of the chains; options of nodes only where all is the seed's to decide.

    :raises InputError: what is given makes no chain
    """
    pick = random.Random(f"{seed}/{workflow}/geometry")
    cluster = pick.choice(_CLUSTERS) if given.cluster is None else given.cluster
    size = _size(pick, cluster, _LARGEST)
    secondary = pick.choice(TOPOLOGIES[workflow].formats)
    options = node_options(workflow)
    chosen = options[pick.choice(sorted(options))]
    return ChainSpec(
        workflow,
        size if given.size is None else given.size,
        cluster,
        given.secondary or secondary,
        chosen if given.nothing else (),
    )


def points_by_seed(workflow: str, seed: int, given: Given) -> PointsSpec:
    """The disks with bitmaps and backup jobs.

    :raises InputError: what is given makes no disks
    """
    pick = random.Random(f"{seed}/{workflow}/geometry")
    cluster = pick.choice(_CLUSTERS) if given.cluster is None else given.cluster
    size = _size(pick, cluster, _LARGEST // 4)
    if given.size is None:
        return PointsSpec(size, cluster)
    if given.cluster is None:
        cluster = max(cluster, least_cluster(given.size))
    return PointsSpec(given.size, cluster)


def _size(pick: random.Random, cluster: int, largest: int) -> int:
    """Bytes of a disk of some granules, which may end within one, or within a sector's cluster."""
    granule = backup_calculate_cluster_size(cluster // SECTOR) * SECTOR
    most = min(largest, _MOST_CLUSTERS * cluster) // granule
    granules = pick.randint(_GRANULES[0], max(_GRANULES[0], min(_GRANULES[1], most)))
    return granules * granule + pick.choice((0, 0, SECTOR, 3 * SECTOR, granule - SECTOR))
