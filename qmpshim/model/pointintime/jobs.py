"""Backup jobs: parameters of one, what its target must and may hold, how it ends.

Restates block/backup.c, block/block-copy.c, blockdev.c (``do_backup_common``) and job.c of QEMU 7.2
and 10.0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from errno import ENOSPC

from qmpshim.model.disks.image import Contents
from qmpshim.model.pointintime.bitmap import Bitmap, RefusedError
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors


class Sync(StrEnum):
    """``MirrorSyncMode``."""

    FULL = "full"
    TOP = "top"
    INCREMENTAL = "incremental"
    BITMAP = "bitmap"
    NONE = "none"


class BitmapMode(StrEnum):
    """``BitmapSyncMode``."""

    ON_SUCCESS = "on-success"
    ALWAYS = "always"
    NEVER = "never"


class OnError(StrEnum):
    """``BlockdevOnError``, of the source or the target."""

    REPORT = "report"
    STOP = "stop"
    IGNORE = "ignore"
    ENOSPC = "enospc"

    def at(self, errno: int) -> OnError:
        """What is done at an error, which its event reports as the action.

        One of the first three (``block_job_error_action`` in blockjob.c of QEMU 5.2, 7.2 and 10.0).
        """
        if self is OnError.ENOSPC:
            return OnError.STOP if errno == ENOSPC else OnError.REPORT
        return self


@dataclass(frozen=True, slots=True)
class Copying:
    """How a job copies, which changes nothing of what it copies, but for the last; 0 is QEMU's own
    choice.

    :ivar compress: its target is written in compressed clusters
    :ivar copy_range: the host may copy by itself (``x-perf.use-copy-range``)
    :ivar workers: copies at once, at most (``x-perf.max-workers``)
    :ivar chunk: bytes of one copy, at most (``x-perf.max-chunk``)
    :ivar granule: bytes that are copied at once, at least (``x-perf.min-cluster-size``)
    """

    compress: bool = False
    copy_range: bool = False
    workers: int = 0
    chunk: int = 0
    granule: int = 0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The parameters of a ``blockdev-backup`` or ``drive-backup``.

    :ivar disk: number of the source disk
    :ivar slow: it is throttled so that it does not end by itself while there is much to copy
    :ivar fault: its target fails: always where that ends the job, else once
    :ivar manual: neither finalized nor dismissed by itself
    :ivar drive: it is a ``drive-backup`` with ``mode=existing``, which opens its target itself, by
        its file or, where that fails, by options in its name, and is the same job else
        (``do_backup_common`` in blockdev.c)
    :ivar errno: with which its target fails
    """

    disk: int
    sync: Sync
    bitmap: str | None = None
    mode: BitmapMode | None = None
    slow: bool = False
    fault: OnError | None = None
    manual: bool = False
    copying: Copying = Copying()
    drive: bool = False
    errno: int = ENOSPC

    @property
    def fails(self) -> bool:
        """Whether an error of its target ends it."""
        return self.fault is not None and self.fault.at(self.errno) is OnError.REPORT

    @property
    def throttled(self) -> bool:
        """Whether it is throttled: one whose target fails would not report that while it waits.

        ``block_copy_dirty_clusters`` in block/block-copy.c sleeps before it looks at its tasks.
        """
        return self.slow and self.fault is None

    @property
    def id(self) -> str:
        """Of the job: there is one for a disk."""
        return f"job{self.disk}"


class Stage(Enum):
    """Where a job stands, as far as it matters to commands (``JobStatus``)."""

    RUNNING = auto()
    PAUSED = auto()
    WAITING = auto()  # done, but not all of its transaction are
    PENDING = auto()
    CONCLUDED = auto()


class Ending(Enum):
    """How a job ended, as its event has it."""

    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()


@dataclass(slots=True)
class BackupJob:
    """A job that was started.

    :ivar t0: the disk as it was then; :ivar version: its number
    :ivar must: sectors that it has to copy; :ivar may: those that it may copy
    :ivar mismarked: those that it copies by a bitmap in which a known defect has marked them
    :ivar whole: the target with its backing chain is the disk at T0 once the job has completed
    :ivar mode: what becomes of its bitmap
    :ivar partners: ids of the jobs that end with it (completion-mode ``grouped``)
    :ivar cancelled: by a command; it may have been done already
    :ivar finalized: the same of ``job-finalize``, of it or of a partner
    :ivar doomed: it must not complete: a partner has not, or it was paused when it was cancelled
    """

    spec: JobSpec
    t0: Contents
    version: int
    must: Sectors
    may: Sectors
    whole: bool
    mode: BitmapMode | None
    partners: frozenset[str] = frozenset()
    mismarked: Sectors = NOTHING
    stage: Stage = Stage.RUNNING
    cancelled: bool = False
    finalized: bool = False
    doomed: bool = False

    @property
    def active(self) -> bool:
        """Whether its filter is above the disk."""
        return self.stage is not Stage.CONCLUDED

    @property
    def endings(self) -> frozenset[Ending]:
        """The ways in which it may end now, its partners aside."""
        allowed = set()
        if self.cancelled or self.doomed:
            allowed.add(Ending.CANCELLED)
        if self.may_fail:
            allowed.add(Ending.FAILED)
        if not self.must_fail and not self.doomed and self.spec.sync is not Sync.NONE:
            allowed.add(Ending.COMPLETED)
        return frozenset(allowed)

    @property
    def with_defect(self) -> BackupJob | None:
        """As a QEMU with the known defect has it; None: the defect was not met."""
        wrong = self.mismarked
        return replace(self, must=self.must | wrong, may=self.may | wrong) if wrong else None

    @property
    def may_fail(self) -> bool:
        """Whether its target's fault may end it."""
        return self.spec.fails and bool(self.may)

    @property
    def must_fail(self) -> bool:
        """Whether its target's fault has to."""
        return self.spec.fails and bool(self.must)

    def end(self, ending: Ending, bitmap: Bitmap | None) -> None:
        """It has ended: what becomes of its bitmap (``backup_cleanup_sync_bitmap``)."""
        self.stage = Stage.CONCLUDED
        if bitmap is None:
            return
        mode, completed = self.mode, ending is Ending.COMPLETED
        if mode is BitmapMode.NEVER or not (completed or mode is BitmapMode.ALWAYS):
            bitmap.reclaim()
        elif completed:
            bitmap.abdicate()
        else:
            # sync=top takes what the image does not hold out of its copy bitmap once it runs
            # (backup_run in block/backup.c): a job that ends before has the whole disk in there.
            whole = self.spec.sync is Sync.TOP
            bitmap.reclaim_uncopied(self.must, sectors(0, bitmap.size) if whole else self.may)


def check_request(spec: JobSpec, disk: Disk) -> tuple[Bitmap | None, BitmapMode | None]:
    """The bitmap and its mode that a request names (``do_backup_common`` in blockdev.c).

    :raises RefusedError: they do not go together, or the bitmap cannot be used
    """
    mode = spec.mode
    if spec.sync in (Sync.INCREMENTAL, Sync.BITMAP) and spec.bitmap is None:
        raise RefusedError(f"sync={spec.sync} needs a bitmap")
    if spec.sync is Sync.INCREMENTAL:
        if mode not in (None, BitmapMode.ON_SUCCESS):
            raise RefusedError("sync=incremental means bitmap-mode=on-success")
        mode = BitmapMode.ON_SUCCESS
    if spec.bitmap is None:
        if mode is not None:
            raise RefusedError("a bitmap-mode without a bitmap")
        return None, None
    bitmap = disk.bitmap(spec.bitmap)
    if mode is None:
        raise RefusedError("a bitmap without a bitmap-mode")
    bitmap.check()
    if spec.sync is Sync.NONE:
        raise RefusedError("sync=none takes no bitmap")
    if mode is BitmapMode.NEVER and spec.sync is not Sync.BITMAP:
        raise RefusedError("bitmap-mode=never has no effect with this sync")
    return bitmap, mode


def copied(sync: Sync, disk: Disk, bitmap: Bitmap | None, granule: int) -> tuple[Sectors, Sectors]:
    """The sectors that a job must and may copy: whole granules.

    :param granule: sectors that are copied at once (``backup_calculate_cluster_size``)
    """
    everything = sectors(0, disk.size)
    match sync:
        case Sync.FULL:
            return everything, everything
        case Sync.TOP:
            return disk.held, disk.written.cover(granule, disk.size)
        case Sync.NONE:
            return NOTHING, everything
    assert bitmap is not None
    return bitmap.must.cover(granule, disk.size), bitmap.may.cover(granule, disk.size)
