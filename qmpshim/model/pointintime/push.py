"""One disk with a dirty bitmap, and a backup job of it: operations in one order.

What the job copies in the background is not run here: whatever it copies is the disk at T0, the
moment at which its command is carried out. Restates block/backup.c and blockdev.c of QEMU 7.2 and
10.0; see :mod:`.jobs` and :mod:`.bitmap`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from qmpshim.model.disks.image import Owners
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.pointintime.bitmap import Bitmap, ErrorClass, RefusedError
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.jobs import (
    BackupJob,
    BitmapMode,
    Ending,
    JobSpec,
    Sync,
    check_request,
    copied,
)

GRANULARITY = 128  # sectors
FIRST, NEW = "b0", "b1"  # bitmaps: from the beginning; of a transaction with a full backup

_JOBS: Mapping[Verb, JobSpec] = {
    Verb.BACKUP_FULL: JobSpec(0, Sync.FULL),
    Verb.BACKUP_AND_BITMAP: JobSpec(0, Sync.FULL),
    Verb.BACKUP_INCREMENTAL: JobSpec(0, Sync.INCREMENTAL, FIRST),
    Verb.BACKUP_ALWAYS: JobSpec(0, Sync.BITMAP, FIRST, BitmapMode.ALWAYS),
    Verb.BACKUP_NEVER: JobSpec(0, Sync.BITMAP, FIRST, BitmapMode.NEVER),
    Verb.BACKUP_TOP: JobSpec(0, Sync.TOP),
}


@dataclass(slots=True)
class PushChain:
    """A disk, its bitmaps, and the job that backs it up, if there is one.

    :ivar granule: sectors that are copied at once
    :ivar discards: the disk's node has ``discard=unmap``
    :ivar discard_passes_job: so has the filter of a backup job
    :ivar job: the latest job, also when it has ended
    :ivar before: the numbers of the changes that were done at T0
    :ivar paused: an error has paused the job (``BLOCK_ERROR_ACTION_STOP``)
    """

    disk: Disk
    granule: int
    discards: bool
    discard_passes_job: bool
    done: frozenset[int]
    job: BackupJob | None
    before: frozenset[int]
    paused: bool

    def __init__(self, disk: Disk, granule: int, discards: bool, discard_passes_job: bool) -> None:
        self.disk = disk
        self.disk.bitmaps[FIRST] = Bitmap(FIRST, GRANULARITY, disk.size)
        self.granule = granule
        self.discards = discards
        self.discard_passes_job = discard_passes_job
        self.done = self.before = frozenset()
        self.job = None
        self.paused = False

    def do(self, op: Operation, number: int) -> Owners:
        """Do one operation under its number; what a read returns, nothing for others.

        :raises RefusedError: QEMU refuses it
        """
        match op.verb:
            case Verb.READ:
                return self.disk.now.read(op.start, op.count)
            case Verb.WRITE | Verb.WRITE_FUA:
                self.disk.write(op.start, op.count, number)
            case Verb.ZERO | Verb.ZERO_NO_HOLE:
                self.disk.zero(op.start, op.count, -number)
            case Verb.DISCARD:
                done = self.discards and (not self._active or self.discard_passes_job)
                self.disk.discard(op.start, op.count, -number, done)
            case Verb.STOP:
                job = self._running_job()
                if self.paused:  # qmp_block_job_cancel(), blockdev.c
                    raise RefusedError("the job is paused")
                job.cancelled = True
            case Verb.JOB_CANCEL:
                job = self._running_job()
                job.cancelled = True
                job.doomed = self.paused  # job_cancel_async(), job.c: it does not go on
            case Verb.JOB_RESUME:
                self._running_job()
                if not self.paused:  # job_user_resume(), job.c
                    raise RefusedError("the job is not paused")
            case Verb.BITMAP_CLEAR:
                self._usable().clear(self.disk.version)
            case Verb.BITMAP_DISABLE:
                self._usable().enabled = False
            case Verb.BITMAP_ENABLE:
                self._usable().enabled = True
            case Verb.BITMAP_REMOVE:
                self._usable()
                del self.disk.bitmaps[FIRST]
            case Verb.BITMAP_ADD:
                self.add_bitmap()
            case Verb.BITMAP_MERGE:
                target, source = self._usable(NEW), self._usable()
                target.merge(source)
            case verb if verb in _JOBS:
                self._start(_JOBS[verb], verb is Verb.BACKUP_AND_BITMAP)
        self.done |= {number}
        return array("q")

    @property
    def _active(self) -> bool:
        return self.job is not None and self.job.active

    def _running_job(self) -> BackupJob:
        if self.job is None or not self.job.active:
            raise RefusedError("there is no job", ErrorClass.NOT_ACTIVE)
        return self.job

    def _usable(self, name: str = FIRST) -> Bitmap:
        bitmap = self.disk.bitmap(name)
        bitmap.check()
        return bitmap

    def add_bitmap(self) -> None:
        """Add :data:`NEW`, empty.

        :raises RefusedError: it is there
        """
        if NEW in self.disk.bitmaps:
            raise RefusedError(f"there is a bitmap {NEW}")
        self.disk.bitmaps[NEW] = Bitmap(NEW, GRANULARITY, self.disk.size)

    def _start(self, spec: JobSpec, new_bitmap: bool) -> None:
        disk = self.disk
        if self._active:
            raise RefusedError("there is a job of this name")
        bitmap, mode = check_request(spec, disk)
        must, may = copied(spec.sync, disk, bitmap, self.granule)
        t0 = disk.now.copy()
        if new_bitmap:
            self.add_bitmap()
        if bitmap is not None:
            bitmap.use(spec.id, disk.version)
        whole = spec.sync in (Sync.FULL, Sync.TOP)
        self.job = BackupJob(spec, t0, disk.version, must, may, whole, mode)
        self.before = self.done

    def end_job(self, ending: Ending | None = None) -> None:
        """The job ends, if there is one.

        :param ending: how; None: as it must if nothing fails
        """
        if self.job is None or not self.job.active:
            return
        if ending is None:
            ending = Ending.CANCELLED if self.job.cancelled else Ending.COMPLETED
        name = self.job.spec.bitmap
        self.job.end(ending, self.disk.bitmaps[name] if name is not None else None)
