"""Mutants of request lists, rounding and bitmaps in QEMU 2.8's ``block_backup.h``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmpshim.model.chain.protocols import CowRequestProtocol, SerializationProtocol
from qmpshim.model.disks.backup_job import BackupJob
from qmpshim.model.disks.image import Alloc, Owners
from qmpshim.model.disks.request_list import RequestList
from qmpshim.model.mutants.register import COW, add, with_job
from qmpshim.model.runtime.coroutines import Co


class _WaitOnce(RequestList):
    def wait_all(self, start: int, end: int) -> Co[None]:
        yield from self.wait_one(start, end)


class _NoWait(RequestList):
    def wait_all(self, start: int, end: int) -> Co[None]:
        return
        yield


class _NoWakeUp(RequestList):
    def end(self, req: Any) -> None:
        self.remove(req)


class _WakeFirstOnly(RequestList):
    def end(self, req: Any) -> None:
        self.remove(req)
        waiters = req.wait_queue.waiters
        if waiters:
            waiters.pop(0)()


class _NeverRemoved(RequestList):
    def end(self, req: Any) -> None:
        req.wait_queue.restart_all()


class _OverlapMissesLast(RequestList):
    def find(self, start: int, end: int) -> Any | None:
        self.looked(start, end)
        for req in self:
            if end - 1 > req.start and start < req.end:
                return req
        return None


class _OverlapMissesFirst(RequestList):
    def find(self, start: int, end: int) -> Any | None:
        self.looked(start, end)
        for req in self:
            if end > req.start and start + 1 < req.end:
                return req
        return None


class _OnlyNewest(RequestList):
    def find(self, start: int, end: int) -> Any | None:
        self.looked(0, 2)  # the newest may be anywhere on a disk of two clusters
        for req in self[:1]:
            if end > req.start and start < req.end:
                return req
        return None


def _with_list(kind: type[RequestList]) -> Callable[[], SerializationProtocol]:
    class Job(BackupJob):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.inflight_reqs = self.memory.requests("requests", kind)

    return with_job(CowRequestProtocol, Job)


for _name, _about, _kind, *_scenarios in (
    ("wait-once", "no second check after a wake-up", _WaitOnce, "write-write2-read2"),
    ("no-wait", "overlapping requests are not waited for", _NoWait, "write-read"),
    ("no-wake-up", "the end of a request wakes no waiter", _NoWakeUp, "write-read"),
    ("wake-first-only", "the end of a request wakes only one of its waiters", _WakeFirstOnly,
     "write-read-read"),
    ("never-removed", "a request stays in the list", _NeverRemoved, "write-read"),
    ("overlap-misses-last", "the overlap test is off by one at the end", _OverlapMissesLast,
     "write-read"),
    ("overlap-misses-first", "the overlap test is off by one at the start", _OverlapMissesFirst,
     "write-read"),
    ("only-newest", "only the newest request is looked at", _OnlyNewest,
     "write-write-apart-read"),
):  # fmt: skip
    add(_name, _about, COW, _with_list(_kind), *_scenarios)


class _EndRoundedDown(BackupJob):
    def cluster_range(self, sector_num: int, nb_sectors: int) -> tuple[int, int]:
        start, _ = super().cluster_range(sector_num, nb_sectors)
        return start, (sector_num + nb_sectors) // self.cluster_size


class _StartRoundedUp(BackupJob):
    def cluster_range(self, sector_num: int, nb_sectors: int) -> tuple[int, int]:
        _, end = super().cluster_range(sector_num, nb_sectors)
        return -(-sector_num // self.cluster_size), end


class _ClearsHalf(BackupJob):
    def forget(self) -> None:
        for cluster in range(self.clusters.stop // 2):
            self.done_bitmap.discard(cluster)


class _ClearsNothing(BackupJob):
    def forget(self) -> None:
        pass


class _PutNothing(BackupJob):
    def put(self, start: int, owners: Owners, kinds: dict[int, Alloc] | Alloc) -> Co[None]:
        return
        yield


for _name, _about, _job, *_scenarios in (
    ("end-rounded-down", "the end of a range is rounded down", _EndRoundedDown, "part-write-read"),
    ("start-rounded-up", "the start of a range is rounded up", _StartRoundedUp, "part-write-tail"),
    ("checkpoint-clears-half", "a checkpoint resets half of the bitmap", _ClearsHalf,
     "checkpoint-tail"),
    ("checkpoint-clears-nothing", "a checkpoint resets no bitmap", _ClearsNothing,
     "checkpoint-tail"),
    ("nothing-copied", "the copy is never written", _PutNothing, "write-read"),
):  # fmt: skip
    add(_name, _about, COW, with_job(COW, _job), *_scenarios)
