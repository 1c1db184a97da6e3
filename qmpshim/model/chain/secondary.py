"""The chain of disks: what primary writes, guest I/O and the commands do to the three images.

Each operation is a coroutine (see :mod:`qmpshim.model.runtime.coroutines`); the sequential
driver, the explorer and the run in step with a real QEMU all drive these same coroutines.
Positions and lengths are sectors.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from enum import Enum, StrEnum
from errno import EIO

from qmpshim.model.answers import REPLICATION_ERROR
from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.chain.commit import commit
from qmpshim.model.chain.protocols import Below, CowRequestProtocol, SerializationProtocol
from qmpshim.model.disks.backup_job import BackupJob, backup_do_checkpoint
from qmpshim.model.disks.image import (
    Alloc,
    Fill,
    Image,
    Owners,
    Qcow2Image,
    RawImage,
    is_zero,
    owned,
)
from qmpshim.model.pointintime.masks import cover, span
from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.runtime.coroutines import Co, ModelIOError, OperationError
from qmpshim.model.units import touched


class Workflow(StrEnum):
    """QEMU 2.8's two workflows."""

    BACKUP = "backup"
    REPLICATION = "replication"


class Stage(Enum):
    """``ReplicationStage`` of block/replication.c."""

    NONE = "none"
    RUNNING = "running"
    FAILOVER = "failover"
    FAILOVER_FAILED = "failover-failed"
    DONE = "done"


class CommandError(OperationError):
    """A QMP command of the model fails; the text is QEMU's."""

    def __init__(self, desc: str) -> None:
        super().__init__(desc)
        self.desc = desc


class _ChainFill(Fill):
    """qcow2's copy-on-write in the active disk reads from the hidden disk downwards."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def read(self, start: int, count: int) -> Co[Owners]:
        chain = self._chain
        below = chain.read_through((chain.hidden, chain.secondary), start, count)
        return (yield from chain.protocol.fill_read(chain.job, start, count, below))


class Chain:
    """Secondary, hidden and active disk, the backup job between them and the replication filter.

    :param workflow: plain ``sync=none`` backup (no active disk, no filter) or replication
    :param size: virtual size in sectors
    :param cluster: cluster size of the qcow2 images in sectors
    :param secondary: format of the secondary disk, ``raw`` or ``qcow2``
    :param memory: makes the containers that operations share
    :ivar min_cluster: sectors that a copy has at least; 0: the target decides
    :ivar frozen: sectors of the granules that the snapshot's dirty bitmap names, as a set
    :ivar freezes: sectors of a granule of the bitmap that is frozen when the job starts; 0: none is
    :ivar recorded: sectors that were changed since that bitmap began, as a set
    """

    def __init__(
        self,
        workflow: Workflow,
        size: int,
        cluster: int,
        secondary: str = "raw",
        protocol: SerializationProtocol | None = None,
        behaviour: Behaviour | None = None,
        memory: StateContainers = PLAIN,
    ) -> None:
        self.workflow = workflow
        self.size = size
        self.cluster = cluster
        self.protocol = protocol or CowRequestProtocol()
        self.behaviour = behaviour or Behaviour()
        self.memory = memory
        self.min_cluster = 0
        self.frozen = self.freezes = self.recorded = 0
        self.secondary: Image = (
            RawImage("secondary", size, memory)
            if secondary == "raw"
            else Qcow2Image("secondary", size, cluster, backed=False, memory=memory)
        )
        self.relied_on: Counter[KnownDefect] = Counter()  # predictions that rest on a known defect
        self.rebuild()

    def rebuild(self) -> None:
        """Fresh hidden and active disks on the same secondary disk, nothing running."""
        self.hidden = Qcow2Image("hidden", self.size, self.cluster, True, self.memory)
        self.active = Qcow2Image("active", self.size, self.cluster, True, self.memory)
        self.job: BackupJob | None = None
        self.paused = False  # the job, by its user
        self.stage = Stage.NONE
        self.error = False
        self.failed_over = False
        self._fill = _ChainFill(self)

    def place(self, image: Image) -> None:
        """Replace the disk of the same name by *image*.

        For an image of another geometry, or one that holds something; before anything begins.
        """
        setattr(self, image.name, image)

    # -- the primary's side: the NBD export of the secondary disk --------------------------------

    def primary_write(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes its data."""
        if self.job is not None:
            yield from self.before_write(self.job, start, count)
        self.record(start, count)
        yield from self.secondary.write(start, owned(op, count))

    def record(self, start: int, count: int) -> None:
        """A bitmap of the secondary disk that records marks a change (``bdrv_set_dirty``)."""
        if self.freezes and self.job is None:
            self.recorded |= span(start, count)

    def primary_write_fua(self, start: int, count: int, op: int) -> Co[None]:
        """The same, durable when it ends: NBD_CMD_FLAG_FUA.

        A raw disk passes the flag on; qcow2 knows none, so the node is flushed after the write
        (``bdrv_driver_pwritev``, block/io.c).
        """
        yield from self.primary_write(start, count, op)
        if isinstance(self.secondary, Qcow2Image):
            yield from self.secondary.flush()

    def primary_zero(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes zeroes and allows unmapping.

        Whether the flag reaches the secondary disk while backup runs depends on the version.
        """
        unmap = self.job is None or self.behaviour.unmap_passes_job
        return self.zero_after_copy(start, count, op, unmap)

    def primary_zero_no_hole(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes zeroes and does not allow unmapping: NBD_CMD_FLAG_NO_HOLE."""
        return self.zero_after_copy(start, count, op, unmap=False)

    def primary_zero_fast(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes zeroes, or fails at once: NBD_CMD_FLAG_FAST_ZERO.

        A raw disk has what its file has, here zeroes that cost nothing, and so have the filters
        above it (``supported_zero_flags``, BDRV_REQ_NO_FALLBACK). On qcow2 a part of a cluster
        fails, which is not modelled.
        """
        return self.primary_zero(start, count, op)

    def zero_after_copy(self, start: int, count: int, op: int, unmap: bool) -> Co[None]:
        """Write zeroes to the secondary disk; a backup job copies before it."""
        if self.job is not None:
            yield from self.before_write(self.job, start, count)
        self.record(start, count)
        yield from self.secondary.zero(start, count, -op, unmap)

    def primary_discard(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* discards; while backup runs newer QEMUs do nothing, not even a copy."""
        if self.job is not None:
            if not self.behaviour.discard_passes_job:
                return
            yield from self.before_write(self.job, start, count)
        if self.secondary.discards:  # else nothing is done, nor marked: bdrv_co_pdiscard()
            self.record(start, count)
        yield from self.secondary.discard(start, count, -op)

    def before_write(self, job: BackupJob, start: int, count: int) -> Co[None]:
        """What the serialization protocol does before a write to the secondary disk."""
        return self.memory.aside(self.protocol.before_write(job, start, count))

    def primary_read(self, start: int, count: int) -> Co[Owners]:
        """What the primary would read back from the secondary disk."""
        return (yield from self.read_through((self.secondary,), start, count))

    def primary_flush(self) -> Co[None]:
        yield from self.secondary.flush()

    # -- the guest's side: the top of the chain ----------------------------------------------------

    @property
    def top(self) -> tuple[Image, ...]:
        """What the guest reads through, topmost first."""
        if self.workflow is Workflow.BACKUP:
            return (self.hidden, self.secondary)
        if self.stage is Stage.DONE and self.failed_over:
            return (self.secondary,)
        return (self.active, self.hidden, self.secondary)

    def _check_stage(self) -> None:
        # replication_get_io_status(): before the start the filter refuses all I/O.
        if self.workflow is Workflow.REPLICATION and self.stage is Stage.NONE:
            raise ModelIOError(EIO)

    def guest_read(self, start: int, count: int) -> Co[Owners]:
        """What the guest (in the backup workflow: a reader of the hidden disk) sees.

        :raises ModelIOError: replication has not been started
        """
        self._check_stage()
        read = self.read_through(self.top, start, count)
        return (yield from self.protocol.replication_read(self.job, start, count, read))

    def guest_block_status(self, start: int, count: int) -> Co[Owners]:
        """What may be reported of a range: never that it is zeroes where :meth:`guest_read` sees
        others.

        :raises ModelIOError: replication has not been started
        """
        return self.guest_read(start, count)

    def guest_dirty_bitmap(self, start: int, count: int) -> Co[Owners]:
        """By sector whether the snapshot's bitmap names it, 1 or 0: whatever is written meanwhile.

        It is frozen when the job starts (``block_dirty_bitmap_disable_action``, blockdev.c;
        ``bdrv_set_dirty``, block/dirty-bitmap.c; QEMU 10.0). A client that queries the block
        status, too, gets both or neither (``nbd_handle_request``, nbd/server.c).

        :raises ModelIOError: as :meth:`guest_block_status`
        """
        yield from self.guest_block_status(start, count)
        return array("q", (self.frozen >> sector & 1 for sector in range(start, start + count)))

    def snapshot_read(self, start: int, count: int) -> Co[Owners]:
        """What a backup program reads: the disk as it was when the job started.

        :raises ModelIOError: the protocol has no access to the snapshot (any more)
        """
        if self.job is None:
            return (yield from self.guest_read(start, count))
        below = Below(
            lambda first, length: self.read_through((self.hidden, self.secondary), first, length),
            lambda first, length: self.read_through((self.secondary,), first, length),
        )
        return (yield from self.protocol.snapshot_read(self.job, start, count, below))

    def snapshot_discard(self, start: int, count: int, op: int) -> Co[None]:
        """A backup program has no more use for a range of the snapshot."""
        if self.job is None:
            return
        end = start + count
        if self.behaviour.snapshot_discard_rounds:
            size = self.job.cluster_size
            start, end = start + -start % size, end - end % size
        if start < end:
            yield from self.protocol.snapshot_discard(self.job, start, end - start, op)

    def guest_write(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes its data through the replication filter.

        :raises ModelIOError: replication has not been started
        """
        yield from self._filter_write(start, owned(op, count))

    def guest_write_fua(self, start: int, count: int, op: int) -> Co[None]:
        """The same, durable when it ends: the filter has no FUA and is flushed after the write.

        :raises ModelIOError: replication has not been started
        """
        yield from self.guest_write(start, count, op)
        yield from self.guest_flush()

    def _filter_write(self, start: int, owners: Owners) -> Co[None]:
        self._check_stage()
        if self.stage is Stage.FAILOVER_FAILED:
            yield from self._write_where_it_is(start, owners)
        else:
            yield from self._pass_on(self.top[0], start, owners, self._fill)

    def _pass_on(
        self, image: Image, start: int, owners: Owners, fill: Fill | None = None
    ) -> Co[None]:
        """One request of the filter's: data, which the image's node may find to be zeroes.

        :param start: in sectors, as :meth:`Image.write` has it; see :attr:`Image.detects_zeroes`
        """
        if image.detects_zeroes and is_zero(owners):
            yield from image.zero(start, len(owners), owners[0], unmap=True)
        else:
            yield from image.write(start, owners, fill)

    def _write_where_it_is(self, start: int, owners: Owners) -> Co[None]:
        """After a failed failover a write goes where the guest's data of its place is.

        Restates ``replication_co_writev`` (block/replication.c, QEMU 7.2): to the active disk what
        active or hidden disk have allocated, to the secondary disk the rest.
        """
        end = start + len(owners)
        step = min(self.active.cluster, self.hidden.cluster)
        for index in touched(start, len(owners), step):
            low, high = max(start, index * step), min(end, (index + 1) * step)
            part = owners[low - start : high - start]
            if low // self.active.cluster in self.active.alloc or (
                low // self.hidden.cluster in self.hidden.alloc
            ):
                yield from self._pass_on(self.active, low, part, self._fill)
            else:
                yield from self._pass_on(self.secondary, low, part)

    def guest_zero(self, start: int, count: int, op: int) -> Co[None]:
        """The filter has no ``bdrv_co_pwrite_zeroes``: zeroes arrive as written data."""
        yield from self._filter_write(start, owned(-op, count))

    def guest_discard(self, start: int, count: int, op: int) -> Co[None]:
        """The filter has no ``bdrv_co_pdiscard``: nothing happens, and that is not an error."""
        return
        yield

    def guest_flush(self) -> Co[None]:
        """A flush of the filter flushes all of its writable children, or up to 5.2 its file.

        Backing files come first, and all are flushed, whichever fails (``bdrv_co_flush``).

        :raises ModelIOError: the first error
        """
        reached = self.top if self.behaviour.filter_flushes_all else self.top[:1]
        first: ModelIOError | None = None
        for image in reversed(reached):
            try:
                yield from image.flush()
            except ModelIOError as error:
                first = first or error
        if first is not None:
            raise first

    def read_through(self, images: Sequence[Image], start: int, count: int) -> Co[Owners]:
        """Read *images* from the first to the last, each falling through where unallocated."""
        if images[0] is self.hidden and self.job is not None:
            read = self._read_through(images, start, count)
            return self.protocol.hidden_read(self.job, start, count, read)
        return self._read_through(images, start, count)

    def _read_through(self, images: Sequence[Image], start: int, count: int) -> Co[Owners]:
        image, below = images[0], images[1:]
        owners = array("q")
        for first, length, kind in image.runs(start, count):
            if kind is Alloc.UNALLOCATED and below:
                owners += yield from self.read_through(below, first, length)
            elif kind in (Alloc.DATA, Alloc.ALLOCATED, Alloc.UNKNOWN):
                owners += yield from image.read(first, length)
            else:  # a zero cluster is known from the tables; no I/O
                owners += image.contents.read(first, length)
        return owners

    # -- the commands ------------------------------------------------------------------------------

    def start(self) -> Co[None]:
        """``blockdev-backup sync=none``, or ``xen-set-replication enable=true primary=false``.

        :raises CommandError: it is running already
        """
        if self.workflow is Workflow.BACKUP:
            if self.job is not None:
                raise CommandError("a backup job is running on this chain already")
            self.job = self._new_job(self.behaviour.backup_copy_range)
            if self.freezes:
                self.frozen = cover(self.recorded, self.freezes, self.size)
            return
        if self.stage in (Stage.DONE, Stage.FAILOVER):
            return  # a promoted secondary ignores the request on purpose
        if self.stage is not Stage.NONE:
            raise CommandError("Block replication is running or done")
        self.job = self._new_job(self.behaviour.copy_range)
        self.stage = Stage.RUNNING
        yield from self._empty()
        self.error = False

    def _new_job(self, copy_range: bool) -> BackupJob:
        images = self.secondary, self.hidden
        return self.protocol.new_job(*images, copy_range, self.memory, self.min_cluster)

    def checkpoint(self) -> Co[None]:
        """``xen-colo-do-checkpoint``: what the disks hold now is what the guest starts from.

        :raises CommandError: there is no backup job
        """
        if self.stage in (Stage.DONE, Stage.FAILOVER):
            return
        yield from self._empty()

    def _empty(self) -> Co[None]:
        # secondary_do_checkpoint()
        if self.job is None:
            raise CommandError("Backup job was cancelled unexpectedly")
        backup_do_checkpoint(self.job)
        yield from self.active.make_empty()
        yield from self.hidden.make_empty()

    def stop(self) -> Co[None]:
        """``block-job-cancel``, or ``xen-set-replication enable=false``: back to one disk.

        :raises CommandError: it is not running
        """
        if self.workflow is Workflow.BACKUP:
            self._check_job()
            if self.paused:  # qmp_block_job_cancel(), blockdev.c
                raise CommandError("The block job for device 'backup' is currently paused")
            self.job = None
            return
        if self.stage in (Stage.DONE, Stage.FAILOVER):
            return
        if self.stage is not Stage.RUNNING:
            raise CommandError("Block replication is not running")
        if KnownDefect.STOP_ALWAYS_FAILS in self.behaviour.known:
            self.relied_on[KnownDefect.STOP_ALWAYS_FAILS] += 1
            self.job = None
            self.stage = Stage.DONE
            self.error = True
            raise CommandError("Backup job was cancelled unexpectedly")
        yield from self._empty()
        self.job = None
        self.stage = Stage.DONE

    # What follows changes nothing of what a sync=none job does: its filter copies before a write,
    # whether the job is paused, and however slow it may be (cbw_do_copy_before_write() calls
    # block_copy() with ignore_ratelimit, block/copy-before-write.c, QEMU 7.2 and 10.0).

    def _check_job(self) -> None:
        if self.job is None:
            raise CommandError("Block job 'backup' not found")

    def job_pause(self) -> Co[None]:
        """``block-job-pause`` (``job_user_pause``, job.c).

        :raises CommandError: there is no job, or it is paused
        """
        self._check_job()
        if self.paused:
            raise CommandError("Job is already paused")
        self.paused = True
        return
        yield

    def job_resume(self) -> Co[None]:
        """``block-job-resume`` (``job_user_resume``, job.c).

        :raises CommandError: there is no job, or it is not paused
        """
        self._check_job()
        if not self.paused:
            raise CommandError("Can't resume a job that was not paused")
        self.paused = False
        return
        yield

    def job_speed(self) -> Co[None]:
        """``block-job-set-speed``.

        :raises CommandError: there is no job
        """
        self._check_job()
        return
        yield

    def failover(self) -> Co[None]:
        """``xen-set-replication enable=false failover=true``: the guest's view becomes the disk.

        It never fails: ``qmp_xen_set_replication`` (migration/colo.c) gives the stop no Error to
        fill in when failover is requested, so with nothing running nothing happens. When the
        commit fails the status reports it and the disks stay as they are, one behind the other:
        case 7 of the block-replication document (``replication_done``).
        """
        self.begin_failover()
        yield from self.end_failover()
        self.forget_error()

    def begin_failover(self) -> None:
        """What is done when the command is answered: the commit is yet to come.

        Until it is over checkpoint and stop are taken for those of a promoted secondary and do
        nothing (``replication_do_checkpoint``, ``replication_stop``).
        """
        if self.stage is not Stage.RUNNING:
            return
        self.job = None
        self.stage = Stage.FAILOVER
        if KnownDefect.FAILOVER_REPORTS_ERROR in self.behaviour.known:
            self.error = True

    def end_failover(self) -> Co[None]:
        """The commit that a failover leaves running, if one was begun."""
        if self.stage is not Stage.FAILOVER:
            return
        try:
            yield from commit(
                self.secondary,
                (self.active, self.hidden),
                lambda start, count: self.read_through(self.top, start, count),
            )
        except ModelIOError:
            self.stage = Stage.FAILOVER_FAILED
            self.error = True
            return
        self.stage = Stage.DONE
        self.failed_over = True

    def forget_error(self) -> None:
        """The status when a commit is over: it changes after the commit's writes have arrived."""
        if self.failed_over:
            self.error = False

    def status(self) -> str | None:
        """``query-xen-replication-status``: the error's text, or ``None``."""
        if self.stage is Stage.NONE:
            return "Block replication is not running"
        return REPLICATION_ERROR if self.error else None
