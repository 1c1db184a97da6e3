"""Copy-before-write as QEMU does it now: tasks over a dirty bitmap, and frozen snapshot reads.

Restates block/block-copy.c, block/copy-before-write.c and block/reqlist.c (QEMU 7.2).  Positions
are backup clusters, except in the public coroutines of :class:`CopyBeforeWriteJob`: sectors.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qmpshim.model.disks.backup_job import BackupJob, copy_clusters
from qmpshim.model.disks.image import Alloc, Image, Owners, Qcow2Image
from qmpshim.model.disks.request_list import RangeRequest
from qmpshim.model.disks.serialising import TrackedRequests
from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.runtime.coroutines import AioTaskPool, Co, ModelAssertion, ModelIOError
from qmpshim.model.units import inside

EACCES = 13


@dataclass(frozen=True, slots=True)
class Below:
    """What a snapshot read reads from: functions of (first sector, sectors)."""

    target: Callable[[int, int], Co[Owners]]
    source: Callable[[int, int], Co[Owners]]


class SerialisingJob(BackupJob):
    """A backup whose writes to the hidden disk are serialising requests (since QEMU 3.0)."""

    def __init__(
        self,
        source: Image,
        target: Qcow2Image,
        copy_range: bool = False,
        memory: StateContainers = PLAIN,
        *,
        min_cluster: int = 0,
    ) -> None:
        super().__init__(source, target, copy_range, memory, min_cluster=min_cluster)
        self.tracked: TrackedRequests = memory.requests("hidden tracked", TrackedRequests)

    def put(self, start: int, owners: Owners, kinds: dict[int, Alloc] | Alloc) -> Co[None]:
        tracked = self.tracked
        req = tracked.begin(start, start + len(owners))
        try:
            tracked.set_serialising(req, self.target.info_cluster)
            yield from self.memory.aside(tracked.wait_serialising(req))
            yield from self.target.put(start, owners, kinds)
        finally:
            tracked.end(req)

    def read_target(self, start: int, count: int, read: Co[Owners]) -> Co[Owners]:
        """Do *read*, which arrives at the hidden disk, as one of its tracked requests."""
        tracked = self.tracked
        req = tracked.begin(start, start + count)
        try:
            yield from self.memory.aside(tracked.wait_serialising(req))
            return (yield from read)
        finally:
            tracked.end(req)


class BlockCopyTask(RangeRequest):
    """A range of clusters [start, end) that is being copied."""

    __slots__ = ()


class CopyBeforeWriteJob(SerialisingJob):
    """A backup job with its copy-before-write filter.

    :ivar copy_bitmap: clusters still to be copied; a task's are cleared as long as it runs
    :ivar reqs: the tasks (``BlockCopyState.reqs``)
    :ivar access_bitmap: clusters that snapshot reads may see
    :ivar done_bitmap: clusters copied, for snapshot reads; a checkpoint does not reset it
    :ivar frozen_read_reqs: snapshot reads from the secondary disk; no write may touch them
    :param break_snapshot: ``on-cbw-error=break-snapshot`` instead of ``break-guest-write``
    :param bitmap: the clusters that the filter's ``bitmap`` names; None: there is none
    """

    def __init__(
        self,
        source: Image,
        target: Qcow2Image,
        copy_range: bool = False,
        memory: StateContainers = PLAIN,
        break_snapshot: bool = False,
        misreads: Callable[[], None] | None = None,
        *,
        bitmap: Collection[int] | None = None,
        min_cluster: int = 0,
    ) -> None:
        super().__init__(source, target, copy_range, memory, min_cluster=min_cluster)
        self.break_snapshot = break_snapshot
        self._misreads = misreads
        named = self.clusters if bitmap is None else bitmap
        self.copy_bitmap = memory.bits("to copy")
        self.copy_bitmap.update(named)
        self.reqs = memory.requests("copy tasks")
        self.access_bitmap = memory.bits("accessible")
        self.access_bitmap.update(named)
        self.frozen_read_reqs = memory.requests("frozen reads")
        self.snapshot_error: dict[int, int] = memory.table("snapshot error")  # by cluster 0 only

    def is_copied(self, cluster: int) -> bool:
        return cluster not in self.copy_bitmap

    def owes(self, cluster: int) -> bool:
        return cluster in self.access_bitmap and not self.snapshot_error.get(0)

    def forget(self) -> None:
        self.copy_bitmap.update(self.clusters)

    # -- block/copy-before-write.c ---------------------------------------------------------------

    def copy_before_write(self, start: int, count: int) -> Co[None]:
        """``cbw_do_copy_before_write``: when it returns, the write may happen.

        :raises ModelIOError: the copy failed and the write has to fail, too
        """
        if self.snapshot_error.get(0):
            return
        first, end = self.cluster_range(start, count)
        try:
            yield from self.block_copy(first, end)
            self.done_bitmap.update(range(first, end))
        except ModelIOError as error:
            if not self.break_snapshot:
                raise
            if not self.snapshot_error.get(0):
                self.snapshot_error[0] = error.errno
        yield from self.frozen_read_reqs.wait_all(first, end)

    def snapshot_read(self, start: int, count: int, below: Below) -> Co[Owners]:
        """``cbw_co_preadv_snapshot``: read what was copied there, the rest here, frozen.

        :raises ModelIOError: EACCES where access was given up or the snapshot is broken
        """
        owners = array("q")
        end = start + count
        while start < end:
            first, last = self.cluster_range(start, end - start)
            if self.snapshot_error.get(0) or not self._accessible(first, last):
                raise ModelIOError(EACCES)
            done = first in self.done_bitmap
            following = first + 1
            while following < last and (following in self.done_bitmap) is done:
                following += 1
            stop = min(end, following * self.cluster_size)
            if done and following < last and self._misreads is not None:
                self._misreads()
                done = False
            if done:
                owners += yield from below.target(start, stop - start)
            else:
                req = self._freeze(first, following)
                try:
                    owners += yield from below.source(start, stop - start)
                finally:
                    self.frozen_read_reqs.end(req)
            start = stop
        return owners

    def _freeze(self, first: int, end: int) -> RangeRequest:
        req = RangeRequest(first, end, "frozen read")
        self.frozen_read_reqs.insert(0, req)
        return req

    def _accessible(self, first: int, end: int) -> bool:
        return all(cluster in self.access_bitmap for cluster in range(first, end))

    def snapshot_discard(self, start: int, count: int, op: int) -> Co[None]:
        """``cbw_co_pdiscard_snapshot``: whole clusters need no copy any more."""
        whole = inside(start, count, self.cluster_size, self.len)
        for cluster in whole:
            self.access_bitmap.discard(cluster)
        for cluster in whole:
            self.copy_bitmap.discard(cluster)
        yield from self.target.discard(start, count, -op)

    # -- block/block-copy.c ----------------------------------------------------------------------

    def block_copy(self, start: int, end: int) -> Co[None]:
        """Copy what is dirty in [start, end); on return nothing there is, or being copied.

        A parallel call's success is as good as our own; what it failed to copy we copy ourselves.

        :raises ModelIOError: a copy of this very call failed
        """
        while True:
            if (yield from self._copy_dirty_clusters(start, end)):
                continue
            if (yield from self.reqs.wait_one(start, end)):
                continue
            if self._next_dirty(start, end) is None:
                return

    def _next_dirty(self, start: int, end: int) -> int | None:
        for cluster in range(start, end):
            if cluster in self.copy_bitmap:
                return cluster
        return None

    def _copy_dirty_clusters(self, start: int, end: int) -> Co[bool]:
        """Copy the dirty clusters; whether there were any."""
        found = False
        pool: AioTaskPool | None = None
        while start < end and not (pool is not None and pool.error):
            first = self._next_dirty(start, end)
            if first is None:
                break
            found = True
            task = self._task_create(first, end)
            self._task_shrink(task)
            start = task.end
            if pool is None and start < end:
                pool = AioTaskPool()
            if pool is None:
                yield from self._task_run(task)
            else:
                yield from pool.start(self._task_run(task))
        if pool is not None:
            yield from pool.wait_all()
        return found

    def _task_create(self, first: int, end: int) -> BlockCopyTask:
        following = first + 1
        while following < end and following in self.copy_bitmap:
            following += 1
        if self.reqs.find(first, following) is not None:
            raise ModelAssertion("region is dirty, so no existent tasks possible in it")
        for cluster in range(first, following):
            self.copy_bitmap.discard(cluster)
        task = BlockCopyTask(first, following, "copy")
        self.reqs.insert(0, task)
        return task

    def _task_shrink(self, task: BlockCopyTask) -> None:
        """Keep only what one block status covers, from the first cluster on.

        A block status that is zero covers clusters of one type (``block_copy_task_shrink`` after
        ``block_copy_block_status``): unallocated ones beside zero clusters are another task.
        """
        status, end = self._status(task.start), task.start + 1
        while end < task.end and self._status(end) is status:
            if status is Alloc.ZERO and self._status(task.start, end + 1) is Alloc.DATA:
                break
            end += 1
        if end < task.end:
            self.copy_bitmap.update(range(end, task.end))
            self.reqs.shrink(task, end)

    def _status(self, first: int, end: int | None = None) -> Alloc:
        """The block status of the clusters from *first* to *end*; None: of one cluster."""
        start = first * self.cluster_size
        stop = (first + 1 if end is None else end) * self.cluster_size
        return self.source.status_zero(start, min(stop, self.len) - start)

    def _task_run(self, task: BlockCopyTask) -> Co[None]:
        try:
            yield from copy_clusters(self, task.start, task.end)
        except ModelIOError:
            self._restore(task)
            raise
        finally:
            self.reqs.end(task)

    def _restore(self, task: BlockCopyTask) -> None:
        """A task failed: its clusters are dirty again."""
        self.copy_bitmap.update(range(task.start, task.end))
