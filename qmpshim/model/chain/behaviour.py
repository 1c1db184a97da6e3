"""What a QEMU version does where the promise leaves it free, and where it breaks the promise.

Everything here restates QEMU's source, not what some run of it was seen to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KnownDefect(StrEnum):
    """Defects of real QEMU versions that the model predicts when they are in ``Behaviour.known``.

    Without them the model predicts what QEMU's documentation and interfaces promise.
    """

    STOP_ALWAYS_FAILS = "stop-always-fails"
    """``xen-set-replication enable=false failover=false`` on a running secondary cancels the
    backup job and then reports "Backup job was cancelled unexpectedly", because
    ``replication_stop`` calls ``secondary_do_checkpoint`` after ``backup_job_cleanup`` has cleared
    ``s->backup_job``.  Active and hidden disk keep their contents, and the status stays
    "I/O error occurred" for ever (block/replication.c, 5.2 to at least 10.0)."""

    FAILOVER_REPORTS_ERROR = "failover-reports-io-error"
    """``replication_stop`` cancels the backup job while the stage is still RUNNING, so that
    ``backup_job_completed`` sets ``s->error``: until the commit has ended well the status is
    "I/O error occurred", although nothing failed (block/replication.c, 5.2 to at least 11.1)."""

    QUORUM_MASKS_PRIMARY = "primary-error-masked"
    """On the primary an I/O error of its own disk is not reported to the request: with
    ``vote-threshold=1`` the quorum takes one child's success for its own (``quorum_co_pwritev``),
    and the replication filter turns each error into success (``replication_return_value``) as long
    as it runs (block/quorum.c, block/replication.c, 5.2 to at least 11.1)."""

    QUORUM_MASKS_FLUSH = "primary-flush-error-masked"
    """The same of a flush (``quorum_co_flush``), whether the filter runs or not. 5.2 flushes the
    children once more outside the quorum, and may report what the quorum masks."""

    SNAPSHOT_READS_NEW_DATA = "snapshot-read-returns-new-data"
    """A read through ``snapshot-access`` over a copied and an uncopied cluster takes the copied
    part from the source, where new data may be: ``hbitmap_status`` calls a dirty run that ends
    within the range clean (util/hbitmap.c, 7.0 to 7.2; commit a4d5224c2cb6 in 8.0)."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one QEMU version behaves.

    :ivar discard_passes_job: a discard on the secondary disk still happens while backup runs.
        False since the copy-before-write filter (6.1; its forerunner backup-top from 4.2): the
        filter node is opened without ``BDRV_O_UNMAP``, so ``bdrv_co_pdiscard`` does nothing there.
    :ivar unmap_passes_job: BDRV_REQ_MAY_UNMAP of a write of zeroes gets through the same filter.
        It did while only ``bdrv_co_pwrite_zeroes`` looked at the flags of the node below it
        (block/io.c, 7.2); since ``bdrv_co_do_pwrite_zeroes`` looks at its own node's (10.0), not.
    :ivar copy_range: replication's backup job uses copy offload (``BackupPerf.use_copy_range``).
    :ivar backup_copy_range: so does ``blockdev-backup`` by default until 5.2; later only with
        ``x-perf``.
    :ivar snapshot_discard_rounds: a discard through ``snapshot-access`` is rounded inwards to
        backup's clusters, also at the disk's end (``cbw_co_pdiscard_snapshot``, 9.1).
    :ivar filter_flushes_all: a flush of replication's filter reaches all its disks, not the active
        one alone (``bdrv_co_flush``, block/io.c, 6.0).
    :ivar forgets_fast_zeroes: a connection that is not made again has no fast zeroes any more, so
        that they fail with ENOTSUP (``nbd_client_handshake``, block/nbd.c, up to 6.0).
    :ivar known: defects to predict.
    """

    discard_passes_job: bool = False
    unmap_passes_job: bool = True
    copy_range: bool = True
    backup_copy_range: bool = False
    snapshot_discard_rounds: bool = False
    filter_flushes_all: bool = True
    forgets_fast_zeroes: bool = False
    known: frozenset[KnownDefect] = frozenset()


def snapshot_defects(version: tuple[int, ...]) -> frozenset[KnownDefect]:
    """The known defects of the snapshots of a QEMU *version* that show without any overlap."""
    misreads = (7, 0) <= version < (8, 0)
    return frozenset({KnownDefect.SNAPSHOT_READS_NEW_DATA} if misreads else ())


def behaviour_of(version: tuple[int, ...], strict: bool = False) -> Behaviour:
    """The behaviour of a QEMU *version*.

    :param strict: predict only what is promised, no known defect
    """
    known = frozenset() if strict else frozenset({KnownDefect.STOP_ALWAYS_FAILS})
    return Behaviour(
        discard_passes_job=version < (4, 2),
        unmap_passes_job=version < (9, 1),
        backup_copy_range=version < (6, 0),
        snapshot_discard_rounds=version >= (9, 1),
        filter_flushes_all=version >= (6, 0),
        forgets_fast_zeroes=version < (6, 1),
        known=known,
    )


@dataclass(frozen=True, slots=True)
class Features:
    """What a QEMU version has and does that its callers have to know, and no model predicts.

    :ivar x_perf: ``blockdev-backup`` has ``x-perf`` (6.0)
    :ivar min_cluster_size: that has ``min-cluster-size`` (9.2)
    :ivar concluded_job_frees_target: a job that has concluded lets go of its target before it is
        dismissed (``backup_clean``, block/backup.c, 6.1)
    :ivar discard_source: it has ``discard-source`` (9.1)
    :ivar snapshot_takes_discards: a discard of a part of a cluster through ``snapshot-access``
        does not abort (9.1; the known defect ``snapshot-discard-aborts``)
    :ivar stop_flushes_target: the filter of a backup job is a parent of the job's target, so that
        ``stop`` flushes that, too (6.2)
    :ivar remembers_data: a protocol node keeps the last range that was reported as data, and
        requests no more than is in it (``bdrv_co_block_status``, block/io.c, 6.2)
    :ivar replicates_in_iothread: replication starts on a disk in an iothread (6.0; before: "Cannot
        change iothread of active block backend")
    :ivar ejected_disk_is_reported: a checkpoint after one that lost its disk reports that (6.1;
        before it divides by zero, ``failover-over-ejected-disk-divides-by-zero``)
    :ivar checkpoint_drains: a checkpoint waits for all I/O below the overlays, so that a breakpoint
        of blkdebug keeps the monitor (``blk_unref`` in ``secondary_do_checkpoint``, 5.1 to 6.0)
    :ivar colo_takes_return_path: the migration capability ``return-path`` is needed (10.2; before,
        the thread that reads it took COLO's messages for its own: "Received invalid message 0x0")
    """

    x_perf: bool
    min_cluster_size: bool
    concluded_job_frees_target: bool
    discard_source: bool
    snapshot_takes_discards: bool
    stop_flushes_target: bool
    remembers_data: bool
    replicates_in_iothread: bool
    ejected_disk_is_reported: bool
    checkpoint_drains: bool
    colo_takes_return_path: bool


def features_of(version: tuple[int, ...]) -> Features:
    """The features of a QEMU *version*; a micro number from 50 on is the next one's development."""
    return Features(
        x_perf=version >= (6, 0),
        min_cluster_size=version >= (9, 1, 50),
        concluded_job_frees_target=version >= (6, 1),
        discard_source=version >= (9, 1),
        snapshot_takes_discards=version >= (9, 1),
        stop_flushes_target=version >= (6, 1, 50),
        remembers_data=version >= (6, 2),
        replicates_in_iothread=version >= (6, 0),
        ejected_disk_is_reported=version >= (6, 1),
        checkpoint_drains=(5, 1) <= version < (6, 1),
        colo_takes_return_path=version >= (10, 1, 50),
    )


#: A version of each behaviour: what is the same in all of them is the same in every QEMU.
VERSIONS = ((4, 1, 0), (5, 2, 0), (7, 2, 0), (9, 1, 0))
