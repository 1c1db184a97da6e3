"""QEMU 2.8's interface: coarse serialization between backup's copies and replication's reads.

Restates block/backup.c and include/block/block_backup.h as of commit a8bbee0edf (QEMU 2.8): a list
of :class:`CowRequest`, each with a wait queue, over a bitmap of the clusters already copied.
Callers speak in sectors, the list in clusters.
"""

from __future__ import annotations

from qmpshim.model.disks.image import Alloc, Image, Owners, Qcow2Image
from qmpshim.model.disks.request_list import RangeRequest, RequestList
from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.runtime.coroutines import Co, CoQueue

BACKUP_CLUSTER_SIZE_DEFAULT = 128  # sectors: 64 KiB


class CowRequest(RangeRequest):
    """A range of clusters [start, end) that is being copied, or read and to be left alone.

    Empty until ``backup_cow_request_begin``, which sets the *list* it is in.
    """

    __slots__ = ("list",)

    list: RequestList

    def __init__(self) -> None:
        pass


def backup_calculate_cluster_size(target_cluster: int, min_cluster: int = 0) -> int:
    """Backup's granularity in sectors: the larger of 64 KiB and the target's cluster size.

    Restates ``backup_calculate_cluster_size`` (block/backup.c), later
    ``block_copy_calculate_cluster_size`` (block/block-copy.c, QEMU 7.2 and 10.0).

    :param target_cluster: sectors of a cluster of the target
    :param min_cluster: sectors it has at least: the option ``min-cluster-size`` (10.0)
    """
    return max(BACKUP_CLUSTER_SIZE_DEFAULT, target_cluster, min_cluster)


class BackupJob:
    """A ``sync=none`` backup job: what it has copied and what it is copying.

    :param source: the secondary disk
    :param target: the hidden disk
    :param copy_range: QEMU's ``use_copy_range``; replication sets it, ``blockdev-backup`` does not
    :param memory: makes the containers that requests share
    :param min_cluster: sectors of a cluster, at least
    """

    def __init__(
        self,
        source: Image,
        target: Qcow2Image,
        copy_range: bool = False,
        memory: StateContainers = PLAIN,
        *,
        min_cluster: int = 0,
    ) -> None:
        self.source = source
        self.target = target
        self.copy_range = copy_range
        self.memory = memory
        self.sync_mode = "none"
        self.len = source.size  # sectors
        size = backup_calculate_cluster_size(target.info_cluster, min_cluster)
        self.cluster_size = size  # sectors
        self.inflight_reqs = memory.requests("requests")
        self.done_bitmap = memory.bits("copied")

    @property
    def clusters(self) -> range:
        """All cluster numbers of the job."""
        return range(-(-self.len // self.cluster_size))

    def is_copied(self, cluster: int) -> bool:
        """Whether the next write to *cluster* needs no copy."""
        return cluster in self.done_bitmap

    def owes(self, cluster: int) -> bool:
        """Whether the hidden disk must hold *cluster* before the secondary disk's may change."""
        return True

    def forget(self) -> None:
        """Every cluster is to be copied again."""
        self.done_bitmap.clear()

    def put(self, start: int, owners: Owners, kinds: dict[int, Alloc] | Alloc) -> Co[None]:
        """Write sectors that were copied to the hidden disk."""
        return self.target.put(start, owners, kinds)

    def cluster_range(self, sector_num: int, nb_sectors: int) -> tuple[int, int]:
        """The clusters [start, end) that *nb_sectors* from *sector_num* touch."""
        start = sector_num // self.cluster_size
        end = -(-(sector_num + nb_sectors) // self.cluster_size)
        return start, end


def _cow_request_begin(req: CowRequest, job: BackupJob, start: int, end: int) -> None:
    req.start = start
    req.end = end
    req.wait_queue = CoQueue(f"CowRequest [{start}, {end})")
    req.list = job.inflight_reqs
    req.list.insert(0, req)


def backup_wait_for_overlapping_requests(
    job: BackupJob, sector_num: int, nb_sectors: int
) -> Co[None]:
    """Wait until no request in the list overlaps these sectors' clusters.

    After each wake-up the whole list is looked at again: somebody else may have been quicker.
    """
    start, end = job.cluster_range(sector_num, nb_sectors)
    yield from job.inflight_reqs.wait_all(start, end)


def backup_cow_request_begin(
    req: CowRequest, job: BackupJob, sector_num: int, nb_sectors: int
) -> None:
    """Put *req* over these sectors' clusters into the list; overlapping requests now wait."""
    start, end = job.cluster_range(sector_num, nb_sectors)
    _cow_request_begin(req, job, start, end)


def backup_cow_request_end(req: CowRequest) -> None:
    """Take *req* out of its list and wake all that wait for it."""
    req.list.end(req)


def backup_do_checkpoint(job: BackupJob) -> None:
    """Forget what was copied: from now on every cluster is copied again before its next write.

    :raises ValueError: the job is not ``sync=none``, with QEMU's text
    """
    if job.sync_mode != "none":
        raise ValueError("The backup job only supports block checkpoint in sync=none mode")
    job.forget()


def backup_do_cow(job: BackupJob, sector_num: int, nb_sectors: int) -> Co[None]:
    """Copy the old contents of these sectors' clusters, unless that was done, before a write."""
    start, end = job.cluster_range(sector_num, nb_sectors)
    yield from job.inflight_reqs.wait_all(start, end)
    req = CowRequest()
    _cow_request_begin(req, job, start, end)
    try:
        for cluster in range(start, end):
            if cluster not in job.done_bitmap:
                yield from copy_cluster(job, cluster)
                job.done_bitmap.add(cluster)
    finally:
        backup_cow_request_end(req)


def copy_cluster(job: BackupJob, cluster: int) -> Co[None]:
    """Read one backup cluster from the secondary disk and write it to the hidden disk."""
    yield from copy_clusters(job, cluster, cluster + 1)


def copy_clusters(job: BackupJob, first: int, end: int) -> Co[None]:
    """Copy the clusters [first, end) in one go; all must have the same block status."""
    start = first * job.cluster_size
    count = min(end * job.cluster_size, job.len) - start
    owners = yield from job.source.read(start, count)
    yield from job.put(start, owners, _copied_kinds(job, start, count))


def _copied_kinds(job: BackupJob, start: int, count: int) -> dict[int, Alloc] | Alloc:
    """What the hidden disk's clusters become when these sectors are copied.

    Restates ``block_copy_block_status`` and ``block_copy_do_copy`` (block/block-copy.c, QEMU 7.2):
    a whole backup cluster that one block status calls zero is written as zeroes, any other as data.
    One cut short by the disk's end is data when a task begins with it, and zeroes when a task that
    begins with zeroes before takes it along; which tasks there are is not modelled.  With
    copy_range a qcow2 source passes on its own zero clusters, too, as long as the host can offload
    copies at all.
    """
    source, target = job.source, job.target
    status = Alloc.DATA
    if count == job.cluster_size:
        status = source.status_zero(start, count)
    elif start and source.status_zero(start, count) is not Alloc.DATA:
        status = Alloc.ALLOCATED
    if status is not Alloc.DATA or not (job.copy_range and isinstance(source, Qcow2Image)):
        return status
    return {
        index: Alloc.DATA
        if any(
            source.alloc.get(i) is Alloc.DATA
            for i in source.clusters(
                index * target.cluster, min(target.cluster, job.len - index * target.cluster)
            )
        )
        else Alloc.ALLOCATED
        for index in target.clusters(start, count)
    }
