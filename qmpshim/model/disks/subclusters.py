"""A qcow2 image with extended L2 entries: 32 subclusters a cluster, each allocated on its own.

Restates block/qcow2-cluster.c of QEMU 10.0 (the same since 5.2) for ``has_subclusters(s)``. A write
copies what is missing of its first and last subcluster, not of the cluster, and zeroes are written
by subclusters; a discard, and what it frees, is of whole clusters.
"""

from __future__ import annotations

from qmpshim.model.disks.image import Alloc, Qcow2Image, owned
from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.units import SECTOR

SUBCLUSTERS = 32  # in a cluster


class ExtendedQcow2(Qcow2Image):
    """As :class:`Qcow2Image`; what is a cluster there is a subcluster here.

    :param cluster: size of a whole cluster in sectors
    :ivar hosts: numbers of the whole clusters that have a host cluster
    """

    def __init__(
        self, name: str, size: int, cluster: int, backed: bool, memory: StateContainers = PLAIN
    ) -> None:
        super().__init__(name, size, cluster // SUBCLUSTERS, backed, memory)
        self.info_cluster = cluster
        self.hosts: set[int] = set()

    @property
    def slice_clusters(self) -> int:
        # 16-byte entries
        return min(self.info_cluster * SECTOR, 1 << 16) // 16 * SUBCLUSTERS

    def is_preallocated(self, index: int) -> bool:
        return index // SUBCLUSTERS in self.hosts

    def _become(self, index: int, kind: Alloc, unmap: bool = False) -> None:
        if kind is Alloc.DATA:
            self.hosts.add(index // SUBCLUSTERS)
        elif self.alloc.get(index) is Alloc.UNKNOWN:
            return  # whether its cluster has a host cluster
        self.alloc[index] = kind

    def whole_clusters(self, start: int, count: int) -> list[tuple[int, int, int]]:
        """Clusters that a range covers wholly: (number, first sector, sectors)."""
        found = []
        for number in range(start // self.info_cluster, (start + count) // self.info_cluster + 1):
            low = number * self.info_cluster
            high = min(low + self.info_cluster, self.size)
            if start <= low < high <= start + count:
                found.append((number, low, high - low))
        return found

    def apply_zero(self, start: int, count: int, owner: int, unmap: bool) -> None:
        # zero_l2_subclusters() frees nothing, zero_in_l2_slice() does with BDRV_REQ_MAY_UNMAP
        super().apply_zero(start, count, owner, unmap)
        if unmap:
            self.hosts.difference_update(
                number for number, _, _ in self.whole_clusters(start, count)
            )

    def apply_discard(self, start: int, count: int, owner: int) -> None:
        for number, low, length in self.whole_clusters(start, count):
            inside = self.clusters(low, length)
            unknown = any(self.alloc.get(index) is Alloc.UNKNOWN for index in inside)
            if not (self.backed or unknown or number in self.hosts):
                continue
            self.hosts.discard(number)
            for index in inside:
                self.alloc[index] = Alloc.UNKNOWN if unknown else Alloc.ZERO
            self.contents.write(low, owned(owner, length))

    def _do_empty(self) -> None:
        super()._do_empty()
        self.hosts.clear()
