"""Mutants of the copy-before-write filter."""

from __future__ import annotations

from contextlib import suppress

from qmpshim.model.disks.block_copy import BlockCopyTask, CopyBeforeWriteJob
from qmpshim.model.disks.request_list import RangeRequest
from qmpshim.model.mutants.register import CBW, add, with_job
from qmpshim.model.runtime.coroutines import Co, ModelAssertion, ModelIOError


class _BitsNotCleared(CopyBeforeWriteJob):
    def _task_create(self, first: int, end: int) -> BlockCopyTask:
        task = super()._task_create(first, end)
        self.copy_bitmap.update(range(task.start, task.end))
        return task

    def _task_run(self, task: BlockCopyTask) -> Co[None]:
        yield from super()._task_run(task)
        for cluster in range(task.start, task.end):
            self.copy_bitmap.discard(cluster)


class _BitsNotRestored(CopyBeforeWriteJob):
    def _restore(self, task: BlockCopyTask) -> None:
        pass


class _NoWaitForTasks(CopyBeforeWriteJob):
    def block_copy(self, start: int, end: int) -> Co[None]:
        yield from self._copy_dirty_clusters(start, end)


class _NoSecondLook(CopyBeforeWriteJob):
    def block_copy(self, start: int, end: int) -> Co[None]:
        yield from self._copy_dirty_clusters(start, end)
        yield from self.reqs.wait_all(start, end)


class _ShrinkLosesTail(CopyBeforeWriteJob):
    def _task_shrink(self, task: BlockCopyTask) -> None:
        full = task.end
        super()._task_shrink(task)
        for cluster in range(task.end, full):
            self.copy_bitmap.discard(cluster)


class _TaskErrorIgnored(CopyBeforeWriteJob):
    def copy_before_write(self, start: int, count: int) -> Co[None]:
        with suppress(ModelIOError):
            yield from super().copy_before_write(start, count)


class _FrozenIgnored(CopyBeforeWriteJob):
    def copy_before_write(self, start: int, count: int) -> Co[None]:
        yield from self.block_copy(*self.cluster_range(start, count))
        self.done_bitmap.update(range(*self.cluster_range(start, count)))


class _FrozenBeforeCopy(CopyBeforeWriteJob):
    def copy_before_write(self, start: int, count: int) -> Co[None]:
        first, end = self.cluster_range(start, count)
        yield from self.frozen_read_reqs.wait_all(first, end)
        yield from self.block_copy(first, end)
        self.done_bitmap.update(range(first, end))


class _NothingDone(CopyBeforeWriteJob):
    def copy_before_write(self, start: int, count: int) -> Co[None]:
        first, end = self.cluster_range(start, count)
        yield from self.block_copy(first, end)
        yield from self.frozen_read_reqs.wait_all(first, end)


class _FreezesNothing(CopyBeforeWriteJob):
    def _freeze(self, first: int, end: int) -> RangeRequest:
        req = RangeRequest(0, 0, "frozen read")
        self.frozen_read_reqs.insert(0, req)
        return req


class _AccessIgnored(CopyBeforeWriteJob):
    def _accessible(self, first: int, end: int) -> bool:
        return True


class _AssertsNoOverlap(CopyBeforeWriteJob):
    def _freeze(self, first: int, end: int) -> RangeRequest:
        if self.frozen_read_reqs.find(first, end) is not None:
            raise ModelAssertion("reqlist_init_req: !reqlist_find_conflict(reqs, offset, bytes)")
        return super()._freeze(first, end)


for _name, _about, _cbw, *_scenarios in (
    ("bits-not-cleared", "a task's bits stay set while it runs", _BitsNotCleared, "write-write"),
    ("bits-not-restored", "a failed task's bits stay cleared", _BitsNotRestored, "copy-fails"),
    ("no-wait-for-tasks", "a write does not wait for another's copy", _NoWaitForTasks,
     "write-write"),
    ("no-second-look", "a write that waited for a task assumes its success", _NoSecondLook,
     "copy-fails-two"),
    ("shrink-loses-tail", "what a task lets go of is not dirty again", _ShrinkLosesTail,
     "half-zero"),
    ("task-error-ignored", "a failed task does not fail the write", _TaskErrorIgnored,
     "copy-fails"),
    ("frozen-ignored", "writes do not wait for frozen reads", _FrozenIgnored, "snapshot"),
    ("frozen-before-copy", "frozen reads are waited for too early", _FrozenBeforeCopy, "snapshot"),
    ("nothing-done", "the done bitmap is never set", _NothingDone, "snapshot"),
    ("freezes-nothing", "snapshot reads freeze nothing", _FreezesNothing, "snapshot"),
    ("access-ignored", "snapshot reads do not look at the access bitmap", _AccessIgnored,
     "snapshot-given-up"),
):  # fmt: skip
    add(_name, _about, CBW, with_job(CBW, _cbw), *_scenarios)
# QEMU 7.1 to at least 7.2 (block/reqlist.c, reqlist_init_req):
add("cbw-7.2-overlap-assert", "two snapshot reads of one range that is not copied yet abort QEMU",
     CBW, with_job(CBW, _AssertsNoOverlap), "snapshot-two")  # fmt: skip
