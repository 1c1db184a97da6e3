"""Mutants of the copy before a write in QEMU 2.8's protocol (``block_backup.h``)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import Any

from qmpshim.model.chain.protocols import CowRequestProtocol
from qmpshim.model.disks.backup_job import BackupJob, copy_cluster
from qmpshim.model.disks.request_list import RangeRequest
from qmpshim.model.mutants.register import COW, add
from qmpshim.model.runtime.coroutines import Co, ModelIOError, Spawn


class _Copier(CowRequestProtocol):
    """backup_do_cow() in pieces, for the subclasses to break one."""

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        first, end = job.cluster_range(start, count)
        yield from self._wait(job, first, end)
        req = self._begin(job, first, end)
        try:
            yield from self._copy(job, req, first, end)
        finally:
            self._end(job, req)

    def _wait(self, job: BackupJob, first: int, end: int) -> Co[None]:
        yield from job.inflight_reqs.wait_all(first, end)

    def _begin(self, job: BackupJob, first: int, end: int) -> RangeRequest:
        req = RangeRequest(first, end, "CowRequest")
        job.inflight_reqs.insert(0, req)
        return req

    def _copy(self, job: BackupJob, req: RangeRequest, first: int, end: int) -> Co[None]:
        for cluster in range(first, end):
            if cluster not in job.done_bitmap:
                yield from copy_cluster(job, cluster)
                job.done_bitmap.add(cluster)

    def _end(self, job: BackupJob, req: RangeRequest) -> None:
        if req in job.inflight_reqs:
            job.inflight_reqs.end(req)


class _WriterWaitsForNothing(_Copier):
    def _wait(self, job: BackupJob, first: int, end: int) -> Co[None]:
        return
        yield


class _WriterSkipsBegin(_Copier):
    def _begin(self, job: BackupJob, first: int, end: int) -> RangeRequest:
        return RangeRequest(first, end)


class _EndBeforeWrite(_Copier):
    def _copy(self, job: BackupJob, req: RangeRequest, first: int, end: int) -> Co[None]:
        for cluster in range(first, end):
            if cluster not in job.done_bitmap:
                copying = copy_cluster(job, cluster)
                owners = yield next(copying)  # the old data is read
                self._end(job, req)
                yield from _go_on(copying, owners)
                job.done_bitmap.add(cluster)


def _go_on(co: Generator[Any, Any, None], value: Any) -> Co[None]:
    """Drive the rest of *co*, which waits for *value*."""
    try:
        event = co.send(value)
        while True:
            event = co.send((yield event))
    except StopIteration:
        return


class _DoneBeforeCopy(_Copier):
    def _copy(self, job: BackupJob, req: RangeRequest, first: int, end: int) -> Co[None]:
        for cluster in range(first, end):
            if cluster not in job.done_bitmap:
                job.done_bitmap.add(cluster)
                yield from copy_cluster(job, cluster)


class _DoneOnlyFirst(_Copier):
    def _copy(self, job: BackupJob, req: RangeRequest, first: int, end: int) -> Co[None]:
        yield from super()._copy(job, req, first, first + 1)
        for cluster in range(first + 1, end):
            job.done_bitmap.add(cluster)


class _NeverDone(_Copier):
    def _copy(self, job: BackupJob, req: RangeRequest, first: int, end: int) -> Co[None]:
        for cluster in range(first, end):
            yield from copy_cluster(job, cluster)


class _LooksBeforeWaiting(_Copier):
    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        first, end = job.cluster_range(start, count)
        todo = [cluster for cluster in range(first, end) if cluster not in job.done_bitmap]
        yield from self._wait(job, first, end)
        req = self._begin(job, first, end)
        try:
            for cluster in todo:
                yield from copy_cluster(job, cluster)
                job.done_bitmap.add(cluster)
        finally:
            self._end(job, req)


class _CopiesInTheBackground(_Copier):
    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        yield Spawn(super().before_write(job, start, count))


class _SwallowsErrors(_Copier):
    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        with suppress(ModelIOError):
            yield from super().before_write(job, start, count)


class _LeaksOnError(_Copier):
    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        first, end = job.cluster_range(start, count)
        yield from self._wait(job, first, end)
        req = self._begin(job, first, end)
        yield from self._copy(job, req, first, end)
        self._end(job, req)


for _name, _about, _made, *_scenarios in (
    ("writer-waits-for-nobody", "the copy does not wait for readers", _WriterWaitsForNothing,
     "write-read"),
    ("writer-skips-begin", "the copy is in no list", _WriterSkipsBegin, "write-read"),
    ("end-before-copy-written", "the request ends before the copy is written", _EndBeforeWrite,
     "write-read"),
    ("done-before-copy", "the done bit is set before the copy is written", _DoneBeforeCopy,
     "copy-fails"),
    ("copies-first-only", "only the first cluster of a write is copied", _DoneOnlyFirst,
     "write2-read2"),
    ("never-done", "the done bit is not set", _NeverDone, "write-write"),
    ("looks-before-waiting", "the bitmap is looked at before the wait", _LooksBeforeWaiting,
     "write-write"),
    ("copies-in-background", "the write does not wait for its copy", _CopiesInTheBackground,
     "write-read"),
    ("errors-swallowed", "a failed copy does not fail the write", _SwallowsErrors, "copy-fails"),
    ("request-leaks-on-error", "a failed copy's request stays", _LeaksOnError, "copy-fails"),
):  # fmt: skip
    add(_name, _about, COW, _made, *_scenarios)
