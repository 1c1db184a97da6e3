"""The model of point-in-time backups: disks, bitmaps, jobs and transactions, one after another.

Every method is one QMP command or request. A command that is refused changes nothing, and of a
transaction nothing (qapi/transaction.json).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from enum import StrEnum

from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.disks.image import Contents
from qmpshim.model.pointintime.bitmap import Bitmap, ErrorClass, RefusedError
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.jobs import (
    BackupJob,
    BitmapMode,
    Ending,
    JobSpec,
    Stage,
    Sync,
    check_request,
    copied,
)
from qmpshim.model.pointintime.sectors import NOTHING, sectors
from qmpshim.model.units import SECTOR

_CANCELLABLE = (Stage.RUNNING, Stage.WAITING, Stage.PENDING)
_DEFAULT_LEAST, _DEFAULT_MOST = 8, 128  # sectors: bdrv_get_default_bitmap_granularity


class BitmapVerb(StrEnum):
    """The ``block-dirty-bitmap-*`` commands."""

    ADD = "add"
    REMOVE = "remove"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


class JobVerb(StrEnum):
    """The ``block-job-*`` commands."""

    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    CANCEL = "cancel"
    COMPLETE = "complete"
    FINALIZE = "finalize"
    DISMISS = "dismiss"


class PointDefect(StrEnum):
    """Defects of real QEMU versions that a workload steers clear of, and counts."""

    ENABLE_UNDONE = "transaction-undoes-enable-that-was-refused"
    """A ``block-dirty-bitmap-enable`` that is refused in a transaction is undone all the same
    (``block_dirty_bitmap_enable_abort`` in blockdev.c): where there is no such bitmap QEMU
    dereferences a null pointer, and where it is busy it is disabled (5.2 to at least 11.1), which
    is a write-up of its own, ``directed/refused-enable-stops-bitmap``."""

    ALWAYS_MARKS = "refused-transaction-marks-everything"
    """A job with bitmap-mode ``always`` that is undone with its transaction has copied nothing, and
    ``backup_cleanup_sync_bitmap`` (block/backup.c) gives back all of the copy bitmap, in which
    everything is set until the job runs: the whole disk is dirty (7.2 to at least 11.1)."""

    ALWAYS_LOSES = "refused-transaction-loses-bitmap"
    """The same, when nothing was set in the copy bitmap until the job ran: what the bitmap named is
    lost (5.2)."""


def point_defects(version: tuple[int, ...]) -> frozenset[PointDefect]:
    """The defects of a QEMU *version*."""
    other = PointDefect.ALWAYS_MARKS if version < (6, 1) else PointDefect.ALWAYS_LOSES
    return frozenset(PointDefect) - {other}


@dataclass(frozen=True, slots=True)
class BitmapAction:
    """A command about a bitmap, alone or in a transaction.

    :ivar granularity: sectors; 0: QEMU's default
    :ivar sources: of a merge: (disk, name)
    """

    verb: BitmapVerb
    disk: int
    name: str
    granularity: int = 0
    persistent: bool = False
    disabled: bool = False
    sources: tuple[tuple[int, str], ...] = ()


@dataclass(slots=True)
class Link:
    """The disk at one T0, as a chain of targets holds it."""

    version: int
    t0: Contents


@dataclass(slots=True)
class PointInTime:
    """Disks and everything that is known of their backups.

    :ivar chains: by disk, the backups that build on each other, the full one first
    :ivar jobs: by id; a concluded one stays until it is dismissed
    """

    disks: list[Disk]
    jobs: dict[str, BackupJob] = field(default_factory=dict)
    chains: list[list[Link]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chains = [[] for _ in self.disks]

    # -- commands ----------------------------------------------------------------------------

    def refusal(
        self, actions: Sequence[BitmapAction | JobSpec], grouped: bool = False
    ) -> ErrorClass | None:
        """What a transaction will be answered; nothing changes.

        :returns: the class of the error, None for success
        """
        saved = self._save()
        try:
            self._carry_out(actions, grouped)
        except RefusedError as refused:
            return refused.error_class
        finally:
            self._restore(saved)
        return None

    def refused_at(self, actions: Sequence[BitmapAction | JobSpec]) -> int | None:
        """The place in a transaction of the action that is refused; None: none is."""
        saved = self._save()
        try:
            for at, action in enumerate(actions):
                try:
                    self._carry_out([action])
                except RefusedError:
                    return at
            return None
        finally:
            self._restore(saved)

    def known_defects(self, actions: Sequence[BitmapAction | JobSpec]) -> frozenset[PointDefect]:
        """The known defects that a transaction meets when it is undone, each of some version."""
        at = self.refused_at(actions)
        if at is None:
            return frozenset()
        refused = actions[at]
        if isinstance(refused, BitmapAction) and refused.verb is BitmapVerb.ENABLE:
            return frozenset({PointDefect.ENABLE_UNDONE})
        if _always_undone(actions[:at]):
            return frozenset({PointDefect.ALWAYS_MARKS, PointDefect.ALWAYS_LOSES})
        return frozenset()

    def mismark(self, actions: Sequence[BitmapAction | JobSpec]) -> None:
        """Note what a transaction that was refused has marked by :attr:`PointDefect.ALWAYS_MARKS`.

        Aborts run in reverse (qmp_transaction() in 5.2, tran_abort() in 10.0): a bitmap that the
        transaction had cleared or merged before the job is given its old bits back after it.
        """
        if not _always_undone(actions) or (refused := self.refused_at(actions)) is None:
            return
        for at, spec in _always_undone(actions[:refused]):
            bitmap = self.disks[spec.disk].bitmaps.get(spec.bitmap or "")
            restored = any(
                isinstance(one, BitmapAction)
                and one.verb in (BitmapVerb.CLEAR, BitmapVerb.MERGE)
                and (one.disk, one.name) == (spec.disk, spec.bitmap)
                for one in actions[:at]
            )
            if bitmap is not None and not restored:
                bitmap.mismarked = sectors(0, bitmap.size)

    def transact(self, actions: Sequence[BitmapAction | JobSpec], grouped: bool = False) -> None:
        """Carry out actions, all or none. Several jobs have one T0.

        :param grouped: completion-mode of the jobs
        :raises RefusedError: one of them cannot be carried out
        """
        saved = self._save()
        try:
            self._carry_out(actions, grouped)
        except RefusedError:
            self._restore(saved)
            raise

    def _carry_out(self, actions: Sequence[BitmapAction | JobSpec], grouped: bool = False) -> None:
        specs = [action for action in actions if isinstance(action, JobSpec)]
        partners = frozenset(spec.id for spec in specs) if grouped else frozenset()
        for action in actions:
            if isinstance(action, JobSpec):
                self._start(action, partners - {action.id})
            else:
                self._bitmap(action)

    def _save(self) -> tuple[list[dict[str, Bitmap]], dict[str, BackupJob]]:
        return [{n: copy(b) for n, b in d.bitmaps.items()} for d in self.disks], dict(self.jobs)

    def _restore(self, saved: tuple[list[dict[str, Bitmap]], dict[str, BackupJob]]) -> None:
        bitmaps, self.jobs = saved
        for disk, its in zip(self.disks, bitmaps, strict=True):
            disk.bitmaps = its

    def _bitmap(self, action: BitmapAction) -> None:
        disk = self.disks[action.disk]
        if action.verb is BitmapVerb.ADD:
            self._add(action, disk)
            return
        bitmap = disk.bitmap(action.name)
        if action.verb is BitmapVerb.REMOVE:
            if bitmap.user is not None:
                raise RefusedError("it is busy")
            del disk.bitmaps[action.name]
            return
        if action.verb is BitmapVerb.MERGE:
            for number, name in action.sources:
                source = self.disks[number].bitmap(name)
                bitmap.check()
                source.check()
                bitmap.merge(source)
            return
        bitmap.check()
        if action.verb is BitmapVerb.CLEAR:
            bitmap.clear(disk.version)
        else:
            bitmap.enabled = action.verb is BitmapVerb.ENABLE

    def _add(self, action: BitmapAction, disk: Disk) -> None:
        if action.name in disk.bitmaps:
            raise RefusedError("it exists")
        default = min(_DEFAULT_MOST, max(_DEFAULT_LEAST, disk.cluster))
        disk.bitmaps[action.name] = Bitmap(
            action.name,
            action.granularity or default,
            disk.size,
            enabled=not action.disabled,
            persistent=action.persistent,
            since=disk.version,
        )

    def _start(self, spec: JobSpec, partners: frozenset[str]) -> None:
        disk = self.disks[spec.disk]
        bitmap, mode = check_request(spec, disk)
        if spec.id in self.jobs:
            raise RefusedError("its id is taken")
        least = spec.copying.granule // SECTOR  # the target's clusters are as large as the disk's
        granule = backup_calculate_cluster_size(disk.cluster, least)
        must, may = copied(spec.sync, disk, bitmap, granule)
        whole = spec.sync is not Sync.NONE
        if spec.sync in (Sync.INCREMENTAL, Sync.BITMAP):
            chain = self.chains[spec.disk]
            assert bitmap is not None
            whole = bool(chain) and bitmap.since == chain[-1].version
        wrong = NOTHING
        if bitmap is not None:
            if spec.sync in (Sync.INCREMENTAL, Sync.BITMAP):
                wrong = bitmap.mismarked.cover(granule, disk.size)
            bitmap.use(spec.id, disk.version)
        self.jobs[spec.id] = BackupJob(
            spec, disk.now.copy(), disk.version, must, may, whole, mode, partners, wrong
        )

    def active(self, disk: int) -> BackupJob | None:
        """The job whose filter is above a disk."""
        job = self.jobs.get(f"job{disk}")
        return job if job is not None and job.active else None

    def job_refusal(self, job_id: str, verb: JobVerb, force: bool = False) -> ErrorClass | None:
        """What a command about a job will be answered: an error's class, None for success.

        Restates ``JobVerbTable`` in job.c and the ``qmp_block_job_*`` commands in blockdev.c.

        :param force: of a cancellation: also where the job is paused
        """
        job = self.jobs.get(job_id)
        if job is None:
            return ErrorClass.NOT_ACTIVE
        allowed = {
            JobVerb.PAUSE: (Stage.RUNNING,),
            JobVerb.RESUME: (Stage.PAUSED,),
            JobVerb.SET_SPEED: (Stage.RUNNING, Stage.PAUSED),
            JobVerb.CANCEL: (*_CANCELLABLE, *((Stage.PAUSED,) if force else ())),
            JobVerb.COMPLETE: (),
            JobVerb.FINALIZE: (Stage.PENDING,),
            JobVerb.DISMISS: (Stage.CONCLUDED,),
        }
        return None if job.stage in allowed[verb] else ErrorClass.GENERIC

    def command(self, job_id: str, verb: JobVerb) -> None:
        """Carry out a command about a job that is not refused."""
        job = self.jobs[job_id]
        match verb:
            case JobVerb.PAUSE:
                job.stage = Stage.PAUSED
            case JobVerb.RESUME:
                job.stage = Stage.RUNNING
            case JobVerb.CANCEL:
                job.cancelled = True
            case JobVerb.DISMISS:
                del self.jobs[job_id]
            case _:
                pass

    # -- what a job does by itself -----------------------------------------------------------

    def endings(self, job_id: str) -> frozenset[Ending]:
        """The ways in which an active job may end now."""
        job = self.jobs[job_id]
        partners = self._partners(job)
        allowed = set(job.endings)
        # A grouped job is cancelled with the first that fails, and ends well when all have done.
        if any(one.may_fail or one.cancelled for one in partners):
            allowed.add(Ending.CANCELLED)
        if any(one.must_fail for one in partners):
            allowed.discard(Ending.COMPLETED)
        if self.waits(job_id) and not job.finalized:
            allowed.discard(Ending.COMPLETED)
        return frozenset(allowed)

    def waits(self, job_id: str) -> bool:
        """Whether a job waits for a ``job-finalize`` when it has done its work: where one that ends
        with it has no ``auto-finalize`` (``job_completed_txn_success_locked`` in job.c).
        """
        job = self.jobs[job_id]
        return any(one.spec.manual for one in (job, *self._partners(job)))

    def finalizing(self, job_id: str) -> list[BackupJob]:
        """A ``job-finalize`` is sent, which is about all jobs that end together.

        :returns: those that were not finalized before, and are not if it is refused
        """
        job = self.jobs.get(job_id)
        new = [one for one in (job, *self._partners(job)) if not one.finalized] if job else []
        for one in new:
            one.finalized = True
        return new

    def _partners(self, job: BackupJob) -> list[BackupJob]:
        return [self.jobs[one] for one in job.partners if one in self.jobs]

    def end(self, job_id: str, ending: Ending) -> BackupJob:
        """A job has ended; one that is not to be dismissed is forgotten."""
        job = self.jobs[job_id]
        job.end(ending, self._bitmap_of(job))
        if ending is not Ending.COMPLETED:
            for partner in job.partners & self.jobs.keys():
                self.jobs[partner].doomed = True
        if ending is Ending.COMPLETED and job.whole:
            chain = self.chains[job.spec.disk]
            if job.spec.sync in (Sync.FULL, Sync.TOP):
                chain.clear()
            chain.append(Link(job.version, job.t0))
        if not job.spec.manual:
            del self.jobs[job_id]
        return job

    def _bitmap_of(self, job: BackupJob) -> Bitmap | None:
        if job.spec.bitmap is None:
            return None
        return self.disks[job.spec.disk].bitmaps[job.spec.bitmap]

    # -- QEMU as a whole ---------------------------------------------------------------------

    def restart(self) -> None:
        """A clean shutdown and a new QEMU: jobs are cancelled, persistent bitmaps stay."""
        for job in list(self.jobs.values()):
            if job.active:
                self.end(job.spec.id, Ending.CANCELLED)
        self.jobs.clear()
        for disk in self.disks:
            disk.bitmaps = {name: b for name, b in disk.bitmaps.items() if b.persistent}
            for bitmap in disk.bitmaps.values():
                bitmap.user, bitmap.stored = None, True

    def kill(self) -> None:
        """QEMU is killed, and a new one started: what the image holds was marked as in use.

        A persistent bitmap is stored when its image is closed, so one that was added since is lost
        (``qcow2_store_persistent_dirty_bitmaps`` in block/qcow2-bitmap.c, docs/interop/qcow2.txt).
        """
        self.jobs.clear()
        for disk in self.disks:
            disk.bitmaps = {name: b for name, b in disk.bitmaps.items() if b.stored}
            for bitmap in disk.bitmaps.values():
                bitmap.inconsistent, bitmap.enabled = True, False
                bitmap.user = bitmap.successor = bitmap.since = None


def _always_undone(actions: Sequence[BitmapAction | JobSpec]) -> list[tuple[int, JobSpec]]:
    """The jobs of actions that keep what they did not copy, each with its place."""
    return [
        (at, one)
        for at, one in enumerate(actions)
        if isinstance(one, JobSpec) and one.mode is BitmapMode.ALWAYS
    ]


def uses_always(job: BackupJob) -> bool:
    """Whether its bitmap names what its target lacks, even when it has failed."""
    return job.mode is BitmapMode.ALWAYS
