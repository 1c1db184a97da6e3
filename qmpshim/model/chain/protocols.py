"""The serialization protocols by which QEMU has kept the promise over the years.

A protocol wraps the moments of the chain at which copying and reading can meet: the copy before
a write to the secondary disk, a read by the guest's side, and a read that arrives at the hidden
disk.  All of them keep the same promise: before new data reaches the secondary disk the old data
is in the hidden disk, and every read through the hidden disk returns the old data.
Positions and lengths are sectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.disks.backup_job import (
    BackupJob,
    CowRequest,
    backup_cow_request_begin,
    backup_cow_request_end,
    backup_do_cow,
    backup_wait_for_overlapping_requests,
    copy_cluster,
)
from qmpshim.model.disks.block_copy import Below, CopyBeforeWriteJob, SerialisingJob
from qmpshim.model.disks.image import Image, Owners, Qcow2Image
from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.runtime.coroutines import Co

__all__ = [
    "PROTOCOLS",
    "REFERENCE_PROTOCOLS",
    "Below",
    "CopyBeforeWriteProtocol",
    "CowRequestProtocol",
    "JobMaker",
    "SerialisingWriteProtocol",
    "SerializationProtocol",
]


class JobMaker(Protocol):
    """Makes a backup job; the class of one, for instance."""

    def __call__(
        self,
        source: Image,
        target: Qcow2Image,
        copy_range: bool = ...,
        memory: StateContainers = ...,
        *,
        min_cluster: int = ...,
    ) -> BackupJob: ...


class SerializationProtocol:
    """``none``: no operation waits for another.  Broken on purpose; the base of the others.

    :cvar behaviour: what else the versions that it stands for do
    """

    name = "none"
    behaviour = Behaviour()

    def new_job(
        self,
        source: Image,
        target: Qcow2Image,
        copy_range: bool,
        memory: StateContainers = PLAIN,
        min_cluster: int = 0,
    ) -> BackupJob:
        """The backup job that copies from *source* (secondary) to *target* (hidden disk).

        :param min_cluster: sectors that it copies at once, at least
        """
        return self.make_job(source, target, copy_range, memory, min_cluster=min_cluster)

    @property
    def make_job(self) -> JobMaker:
        """Makes the jobs of this protocol."""
        return BackupJob

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        """Copy what these sectors' clusters hold before they are written.

        :raises ModelIOError: the copy failed; the write must not happen
        """
        for cluster in range(*job.cluster_range(start, count)):
            if cluster not in job.done_bitmap:
                yield from copy_cluster(job, cluster)
                job.done_bitmap.add(cluster)

    def replication_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        """Do *read*, which falls through to the secondary disk, as the guest's side does it."""
        return (yield from read)

    def fill_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        """Do *read*, by which qcow2 fills up a cluster that the guest writes a part of."""
        return self.replication_read(job, start, count, read)

    def hidden_read(self, job: BackupJob, start: int, count: int, read: Co[Owners]) -> Co[Owners]:
        """Do *read*, which has arrived at the hidden disk and may fall through from there."""
        return read

    def snapshot_read(self, job: BackupJob, start: int, count: int, below: Below) -> Co[Owners]:
        """Read the state at the job's start: here through the hidden disk, like a fleecing export.

        :raises ModelIOError: that state is not accessible (any more)
        """
        read = below.target(start, count)
        return (yield from self.replication_read(job, start, count, read))

    def snapshot_discard(self, job: BackupJob, start: int, count: int, op: int) -> Co[None]:
        """The reader of the snapshot gives up a range; only ``snapshot-access`` knows that."""
        return
        yield


class CowRequestProtocol(SerializationProtocol):
    """``cow-request`` (QEMU 2.8 to 2.12).

    Backup's before-write notifier keeps a list of :class:`CowRequest`; the replication filter puts
    its own reads into the same list (QEMU 2.8's ``xxx_co_readv``).  The promise: no cluster is
    copied while it is read, and none is read while it is copied.

    QEMU 2.8 itself protected the filter's reads only.  Here every read that can fall through to the
    secondary disk is protected: also qcow2's copy-on-write fill, and a reader of the hidden disk.
    """

    name = "cow-request"
    behaviour = Behaviour(discard_passes_job=True)

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        yield from backup_do_cow(job, start, count)

    def replication_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        if job is None:
            return (yield from read)
        req = CowRequest()
        yield from backup_wait_for_overlapping_requests(job, start, count)
        backup_cow_request_begin(req, job, start, count)
        try:
            return (yield from read)
        finally:
            backup_cow_request_end(req)


class SerialisingWriteProtocol(SerializationProtocol):
    """``serialising-write`` (QEMU 3.0 to 6.0): backup has the hidden disk's clusters to itself.

    The explicit interface is gone from the readers; copies keep the list among themselves.  When
    the source is in the target's backing chain, backup writes with ``BDRV_REQ_SERIALISING`` (commit
    f8d59dfb40bb): the write waits for every read that is under way at the hidden disk, also where
    that has fallen through to the secondary disk, and later reads wait for the write.  The promise:
    a read that began before the copy was there ends before new data reaches the secondary disk.
    """

    name = "serialising-write"
    behaviour = Behaviour(discard_passes_job=True)

    @property
    def make_job(self) -> JobMaker:
        return SerialisingJob

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        yield from backup_do_cow(job, start, count)

    def hidden_read(self, job: BackupJob, start: int, count: int, read: Co[Owners]) -> Co[Owners]:
        assert isinstance(job, SerialisingJob)
        return job.read_target(start, count, read)


class CopyBeforeWriteProtocol(SerialisingWriteProtocol):
    """``copy-before-write`` (QEMU 6.1 to now; snapshot access since 7.1): a filter node copies.

    block-copy's tasks over a dirty bitmap take the place of the list: a task clears its clusters'
    bits when it is created and sets them again when it fails, and a write that finds nothing dirty
    waits for the conflicting tasks and looks again.  Its writes to the hidden disk still are
    serialising. Reads through ``snapshot-access`` freeze what they read from the secondary disk
    instead.

    :param break_snapshot: ``on-cbw-error=break-snapshot``: an error of the copy breaks the
        snapshot, not the guest's write
    :param bitmap: the clusters that are copied, and that may be read; None: all
    :param misreads: called where a snapshot read of a copied run takes it from the source; None:
        none does (see ``KnownDefect.SNAPSHOT_READS_NEW_DATA``)
    """

    name = "copy-before-write"
    behaviour = Behaviour()

    def __init__(
        self,
        break_snapshot: bool = False,
        misreads: Callable[[], None] | None = None,
        bitmap: Collection[int] | None = None,
    ) -> None:
        self.break_snapshot = break_snapshot
        self.bitmap = bitmap
        self.misreads = misreads

    @property
    def make_job(self) -> JobMaker:
        return partial(
            CopyBeforeWriteJob,
            break_snapshot=self.break_snapshot,
            misreads=self.misreads,
            bitmap=self.bitmap,
        )

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        assert isinstance(job, CopyBeforeWriteJob)
        return job.copy_before_write(start, count)

    def snapshot_read(self, job: BackupJob, start: int, count: int, below: Below) -> Co[Owners]:
        assert isinstance(job, CopyBeforeWriteJob)
        return job.snapshot_read(start, count, below)

    def snapshot_discard(self, job: BackupJob, start: int, count: int, op: int) -> Co[None]:
        assert isinstance(job, CopyBeforeWriteJob)
        return job.snapshot_discard(start, count, op)


REFERENCE_PROTOCOLS: tuple[type[SerializationProtocol], ...] = (
    CowRequestProtocol,
    SerialisingWriteProtocol,
    CopyBeforeWriteProtocol,
)
_ALL: tuple[type[SerializationProtocol], ...] = (*REFERENCE_PROTOCOLS, SerializationProtocol)
PROTOCOLS: dict[str, type[SerializationProtocol]] = {kind.name: kind for kind in _ALL}
