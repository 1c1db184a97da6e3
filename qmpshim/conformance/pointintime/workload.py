"""Seeded random workloads on disks, bitmaps and jobs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from errno import EIO, ENOSPC
from typing import TypeVar

from qmpshim.conformance.pointintime.operations import Action, PointKind, PointOperation
from qmpshim.conformance.uses import Use
from qmpshim.machine.chain.points import MOST_COPIED, PointsSpec
from qmpshim.model.disks.backup_job import backup_calculate_cluster_size
from qmpshim.model.pointintime.jobs import BitmapMode, Copying, JobSpec, OnError, Sync
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb, JobVerb
from qmpshim.model.units import SECTOR


class PointsWorkflow(StrEnum):
    """What a workload is about."""

    PUSH = "push"  # backup jobs that write to targets
    BITMAPS = "bitmaps"  # bitmaps alone, over restarts
    PULL = "pull"  # snapshots that are read by NBD

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that such a workload stands for."""
        return _USES[self]


_USES: Mapping[PointsWorkflow, tuple[Use, ...]] = {
    PointsWorkflow.PUSH: (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS),
    PointsWorkflow.BITMAPS: (Use.BITMAPS, Use.INCREMENTAL_BACKUP),
    PointsWorkflow.PULL: (Use.FLEECING, Use.NBD_EXPORT),
}
_NAMES = ("a", "b", "c")
_GRANULARITIES = (0, 1, 8, 128, 512)  # sectors
_LARGE_GRANULARITIES = (0, 128, 512)  # of smaller ones a large disk has too many
_HOT = 12  # clusters

_IO: Mapping[PointKind, int] = {
    PointKind.WRITE: 60,
    PointKind.ZERO: 12,
    PointKind.DISCARD: 10,
    PointKind.READ: 10,
    PointKind.FLUSH: 2,
}
_MIX: Mapping[PointsWorkflow, Mapping[PointKind, int]] = {
    PointsWorkflow.PUSH: {
        **_IO,
        PointKind.BITMAP: 12,
        PointKind.BACKUP: 9,
        PointKind.TRANSACTION: 7,
        PointKind.JOB: 14,
        PointKind.FINISH: 12,
        PointKind.CHECK: 3,
        PointKind.RESTART: 1,
        PointKind.KILL: 0,  # half of the restarts are
    },
    PointsWorkflow.BITMAPS: {
        **_IO,
        PointKind.BITMAP: 40,
        PointKind.TRANSACTION: 8,
        PointKind.CHECK: 8,
        PointKind.RESTART: 2,
        PointKind.KILL: 1,
    },
    PointsWorkflow.PULL: {
        **_IO,
        PointKind.BITMAP: 8,
        PointKind.TRANSACTION: 8,
        PointKind.JOB: 4,
        PointKind.RACE: 3,
        PointKind.SNAPSHOT_READ: 40,
        PointKind.SNAPSHOT_MAP: 5,
        PointKind.CHECK: 2,
        PointKind.RESTART: 1,
        PointKind.KILL: 0,
    },
}

_VERBS: Mapping[BitmapVerb, int] = {
    BitmapVerb.ADD: 12,
    BitmapVerb.REMOVE: 4,
    BitmapVerb.CLEAR: 3,
    BitmapVerb.ENABLE: 4,
    BitmapVerb.DISABLE: 3,
    BitmapVerb.MERGE: 4,
}
_JOBS: Mapping[JobVerb, int] = {
    JobVerb.PAUSE: 3,
    JobVerb.RESUME: 3,
    JobVerb.SET_SPEED: 1,
    JobVerb.CANCEL: 9,
    JobVerb.COMPLETE: 1,
    JobVerb.FINALIZE: 4,
    JobVerb.DISMISS: 4,
}
_SYNCS: Mapping[Sync, int] = {Sync.FULL: 4, Sync.TOP: 2, Sync.INCREMENTAL: 8, Sync.BITMAP: 5}

_T = TypeVar("_T")


def all_kinds(workflow: PointsWorkflow) -> set[str]:
    """The names of what a workload may do, as :attr:`PointOperation.name` gives them."""
    verbs = [JobVerb.CANCEL] if workflow is PointsWorkflow.PULL else [*_JOBS]
    of_kind = {
        PointKind.BITMAP: [f"bitmap {verb}" for verb in _VERBS],
        PointKind.BACKUP: [f"backup {sync}" for sync in _SYNCS],
        PointKind.JOB: [f"job {verb}" for verb in verbs],
    }
    return {name for kind in _MIX[workflow] for name in of_kind.get(kind, [str(kind)])}


class PointsWorkload:
    """An endless seeded stream of operations; :meth:`take` cuts it off.

    Positions favour a few hot clusters, so that bitmaps are neither empty nor full, and the end of
    the disk, where a granule and a cluster may be cut short.
    """

    def __init__(self, workflow: PointsWorkflow, spec: PointsSpec, seed: int) -> None:
        self._workflow = workflow
        self._random = random.Random(f"{seed}/{workflow}/{spec}")
        self._large = spec.size > MOST_COPIED
        # The rest is as without these.
        self._drives, self._kills, self._granules = (
            random.Random(f"{seed}/{of}") for of in ("drives", "kills", "granules")
        )
        self._disks = spec.disks
        self._size = spec.size // SECTOR
        self._cluster = max(8, spec.cluster // SECTOR)
        # Two of what is copied at once: less than one of them is refused (``backup_job_create``).
        self._chunk = 2 * SECTOR * backup_calculate_cluster_size(spec.cluster // SECTOR)
        self._number = 0

    def take(self, count: int) -> Iterator[PointOperation]:
        """The first *count* operations; the last is a check."""
        mix = _MIX[self._workflow]
        begin = list(self._beginning())[: max(0, count - 1)]
        for operation in (*begin, *(self._next(mix) for _ in range(count - 1 - len(begin)))):
            self._number += 1
            yield replace(operation, number=self._number)
        yield PointOperation(self._number + 1, PointKind.CHECK)

    def _beginning(self) -> Iterator[PointOperation]:
        """A bitmap on each disk, and a full backup with it."""
        for disk in range(self._disks):
            add = BitmapAction(BitmapVerb.ADD, disk, "a", persistent=True)
            yield PointOperation(1, PointKind.BITMAP, disk, actions=(add,))
        if self._workflow is PointsWorkflow.PUSH:
            sync = self._possible(Sync.FULL)
            jobs = [JobSpec(disk, sync, "a", BitmapMode.ON_SUCCESS) for disk in range(self._disks)]
            yield PointOperation(1, PointKind.TRANSACTION, actions=tuple(jobs), grouped=True)

    def _pick(self, weights: Mapping[_T, int]) -> _T:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _next(self, mix: Mapping[PointKind, int]) -> PointOperation:
        kind, disk = self._pick(mix), self._random.randrange(self._disks)
        plain = PointOperation(1, kind, disk)
        match kind:
            case PointKind.BITMAP:
                return replace(plain, actions=(self._bitmap(disk),))
            case PointKind.BACKUP:
                return replace(plain, actions=(self._job(disk),))
            case PointKind.TRANSACTION:
                actions = tuple(self._transaction())
                return replace(plain, actions=actions, grouped=self._grouped(actions))
            case PointKind.JOB:
                if self._workflow is PointsWorkflow.PULL:
                    return replace(plain, verb=JobVerb.CANCEL, force=True)
                force = self._random.random() < 0.5
                return replace(plain, verb=self._pick(_JOBS), force=force)
            case PointKind.RESTART if self._kills_instead():
                return replace(plain, kind=PointKind.KILL)
            case PointKind.RACE:
                count = min(self._size, 64)
                return replace(
                    plain, start=self._random.randrange(self._size - count + 1), count=count
                )
            case (
                PointKind.WRITE
                | PointKind.ZERO
                | PointKind.DISCARD
                | PointKind.READ
                | PointKind.SNAPSHOT_READ
            ):
                start, count = self._place()
                return replace(plain, start=start, count=count)
            case _:
                return plain

    def _kills_instead(self) -> bool:
        """Whether QEMU is killed with the jobs that it has, and not ended by ``quit``."""
        return self._workflow is not PointsWorkflow.BITMAPS and self._kills.random() < 0.5

    def _grouped(self, actions: Sequence[Action]) -> bool:
        # "completion-mode=grouped" wants actions that are jobs (action_check_completion_mode).
        jobs = all(isinstance(action, JobSpec) for action in actions)
        return jobs and self._random.random() < 0.6

    def _bitmap(self, disk: int, verb: BitmapVerb | None = None) -> BitmapAction:
        pick = self._random
        verb = self._pick(_VERBS) if verb is None else verb
        name = pick.choice(_NAMES)
        if verb is BitmapVerb.ADD:
            return BitmapAction(
                verb,
                disk,
                name,
                pick.choice(_LARGE_GRANULARITIES if self._large else _GRANULARITIES),
                pick.random() < 0.6,
                pick.random() < 0.15,
            )
        if verb is BitmapVerb.MERGE:
            sources = [
                (disk if pick.random() < 0.7 else pick.randrange(self._disks), pick.choice(_NAMES))
                for _ in range(pick.randint(1, 2))
            ]
            return BitmapAction(verb, disk, name, sources=tuple(sources))
        return BitmapAction(verb, disk, name)

    def _job(self, disk: int) -> JobSpec:
        job = self._blockdev_job(disk)
        drive, errno = self._drives.random() < 0.4, self._drives.choice((ENOSPC, EIO))
        granule = self._chunk * self._granules.choice((0, 0, 0, 1))  # no more than a chunk
        return replace(
            job,
            drive=drive,
            errno=ENOSPC if job.fault is None else errno,
            copying=replace(job.copying, granule=granule),
        )

    def _possible(self, sync: Sync) -> Sync:
        """What is copied of these disks: of large ones not all, which takes QEMU minutes."""
        return Sync.TOP if self._large and sync is Sync.FULL else sync

    def _blockdev_job(self, disk: int) -> JobSpec:
        pick = self._random
        sync = self._possible(self._pick(_SYNCS))
        name = pick.choice(("a", "a", "a", *_NAMES))
        slow, manual = pick.random() < 0.5, pick.random() < 0.2
        fault = pick.choice(list(OnError)) if pick.random() < 0.4 else None
        mode: BitmapMode | None = pick.choice(list(BitmapMode))
        copying = self._copying(fault)
        if sync is Sync.INCREMENTAL:
            mode = None if pick.random() < 0.9 else mode
        elif sync is not Sync.BITMAP and pick.random() < 0.5:
            return JobSpec(disk, sync, None, None, slow, fault, manual, copying)
        return JobSpec(disk, sync, name, mode, slow, fault, manual, copying)

    def _copying(self, fault: OnError | None) -> Copying:
        pick = self._random
        if pick.random() < 0.5:
            return Copying()
        # The target that fails is not written to in compressed clusters: a copy that is done again
        # would find its cluster allocated, which is an error of its own
        # (``qcow2_alloc_compressed_cluster_offset``, block/qcow2-cluster.c).
        compress = fault is None and pick.random() < 0.5
        chunk = pick.choice((0, 0, self._chunk))
        return Copying(compress, pick.random() < 0.5, pick.choice((0, 1, 2)), chunk)

    def _transaction(self) -> Iterator[Action]:
        pick = self._random
        disks = list(range(self._disks))
        verbs = (BitmapVerb.ADD, BitmapVerb.CLEAR, BitmapVerb.ENABLE, BitmapVerb.DISABLE)
        if self._workflow is PointsWorkflow.BITMAPS:
            for _ in range(pick.randint(2, 4)):
                yield self._bitmap(pick.choice(disks), pick.choice((*verbs, BitmapVerb.MERGE)))
            return
        chosen = pick.sample(disks, pick.randint(1, len(disks)))
        together = pick.random() < 0.5  # with bitmaps, as libvirt does it
        for disk in chosen:
            if together:
                yield self._bitmap(disk, pick.choice((BitmapVerb.ADD, BitmapVerb.DISABLE)))
        manual = pick.random() < 0.15
        for disk in chosen:
            if self._workflow is PointsWorkflow.PULL:
                yield JobSpec(disk, Sync.NONE)
            else:
                yield replace(self._job(disk), manual=manual)

    def _place(self) -> tuple[int, int]:
        pick, cluster, size = self._random, self._cluster, self._size
        count = pick.choice((1, 8, pick.randint(1, cluster), cluster, pick.randint(1, 3 * cluster)))
        count = min(count, size, 1024)
        where = pick.random()
        if where < 0.8:
            start = pick.randrange(min(size, _HOT * cluster))
        elif where < 0.92:
            start = pick.randrange(size)
        else:
            start = size - pick.randint(1, 2 * cluster)
        if pick.random() < 0.4:
            start -= start % cluster
        start = max(0, min(start, size - 1))
        return start, min(count, size - start)
