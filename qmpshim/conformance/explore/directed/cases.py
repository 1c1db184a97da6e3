"""Directed cases: sequences of commands and I/O, each on a fresh chain.

Where no interleaving is needed they are enough: for QEMU's error paths, for requests that begin or
end where granules, clusters and blocks do, for what the monitor shows and refuses. Each case names
what QEMU promises; what it does instead is a :class:`RealViolation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qmpshim.conformance.compare.divergence import Ending, stable, verdict_of
from qmpshim.conformance.explore.directed import (
    ejected,
    filters,
    jobs,
    large,
    monitor,
    overlays,
    primary,
    ranges,
    replication,
    sources,
    starts,
    storage,
    timeouts,
    votes,
)
from qmpshim.conformance.explore.directed.machine import CLUSTER, SIZE, Broken, CaseMachine
from qmpshim.conformance.explore.harness.qemu_pool import base_content
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.uses import Use, uses_of
from qmpshim.errors import MachineError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.chains import topology_of
from qmpshim.machine.chain.gated import Shape
from qmpshim.machine.chain.variants import Options
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR


@dataclass(frozen=True, slots=True)
class Directed:
    """One case.

    :ivar run: does it; its docstring is :attr:`about`
    :ivar form: the chain it is done on
    :ivar options: more options of the chain's nodes
    :ivar size: bytes of the disk
    :ivar affects: uses of QEMU that it stands for; empty: those of its chain
    """

    name: str
    run: Callable[[CaseMachine], None]
    contract: bool = True
    reconnect: int = 0  # seconds that QEMU waits for a broken connection to its disks
    form: str = "replication"
    options: Options = ()
    size: int = SIZE
    affects: tuple[Use, ...] = ()

    @property
    def id(self) -> str:
        """As it is called beside scenarios and write-ups."""
        return f"directed/{self.name}"

    @property
    def about(self) -> str:
        """What is done, and what QEMU's documents promise of it."""
        return " ".join((self.run.__doc__ or "").split())

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that it stands for."""
        return self.affects or uses_of(self.form)


def run_directed(
    case: Directed, build: Build, begin: Callable[[CaseMachine], None] = lambda machine: None
) -> RealViolation | None:
    """Run one case on a fresh QEMU, and end that in its own way.

    :param begin: is given the machine before the case is run
    :raises BuildError: the build cannot build the chain, or lacks a command
    :raises OutOfBudget: the machine was given a deadline, which is over
    """
    topology = topology_of(case.form, options=case.options)
    try:
        machine = CaseMachine(build, Shape(topology, case.size, CLUSTER, case.reconnect))
    except MachineError as error:
        return _failed(case, error)
    try:
        begin(machine)
        for name in machine.stores.keys() - topology.overlays:
            machine.stores[name].restore(base_content(case.size // SECTOR))
        case.run(machine)
        machine.gate.open()
        machine.gate.release_all()
        machine.quit()
        return None
    except Broken as broken:
        return broken.violation
    except MachineError as error:
        return _failed(case, machine.root_error(error))
    finally:
        machine.close()


def _failed(case: Directed, error: MachineError) -> RealViolation:
    """What a QEMU that misbehaved is."""
    verdict, ending = verdict_of(error), Ending.of(error)
    how = "error" if verdict is Verdict.PROTOCOL else str(verdict)
    cause = Cause(CauseKind.DIRECTED_FAILED, case.name, how)
    if ending is not None:
        cause = crash_cause(case.name, ending)
    return RealViolation(verdict, str(error), cause=cause)


def crash_cause(case: str, ending: Ending) -> Cause:
    """How a crash is called: a crash somewhere else is another finding.

    :param case: the directed case that ends so
    """
    detail = stable(ending.last_words or f"QEMU {ending.how}")
    return Cause(CauseKind.DIRECTED_ENDED, case, detail)


_ODD = 2 * SIZE + SECTOR  # bytes of a disk that ends inside a cluster
_UNMAPS = (("filter", "discard", "unmap"),)
_LONG = (("filter", "cbw-timeout", timeouts.LONG),)
_SHORT = (("filter", "cbw-timeout", 1),)

_BACKUP = (Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP)
_BITMAPS = (Use.BITMAPS, Use.INCREMENTAL_BACKUP)
_FLEECING = (Use.FLEECING,)
_NBD = (Use.NBD_EXPORT,)
_EXPORT = (Use.NBD_EXPORT, Use.FLEECING)
_VOTES = (Use.QUORUM,)
_OVERLAYS = (Use.COLO_SECONDARY, Use.SYNC_NONE_BACKUP, Use.FLEECING)
_QUORUM = (Use.QUORUM, Use.COLO_PRIMARY)

DIRECTED: tuple[Directed, ...] = (
    Directed("start-busy-twice", replication.busy_start, contract=False),
    Directed("start-bad-top-twice", replication.bad_top, contract=False),
    Directed("copy-fails", replication.failed_copy),
    Directed("old-read-fails", replication.failed_old_read),
    Directed("new-write-fails", replication.failed_new_write),
    Directed("empty-fails", replication.failed_empty),
    Directed("start-fails", replication.failed_start),
    Directed("failover-fails", replication.failed_failover),
    Directed("quit-running", replication.quit_running),
    Directed("snapshot-after-checkpoint", storage.snapshot_after_checkpoint),
    Directed("disk-back-in-time", storage.back_in_time, reconnect=10),
    Directed("disk-back-too-late", storage.back_too_late, reconnect=1),
    Directed("iothread-client-leaves", storage.client_of_iothread, affects=_EXPORT),
    Directed("stop-leaves-nodes-unflushed", replication.stop_flushes_all),
    Directed("io-before-start", replication.not_running),
    Directed("start-without-backend", replication.no_backend),
    Directed("start-read-only", replication.read_only, options=(("hidden", "read-only", True),)),
    Directed("start-read-only-secondary", starts.read_only_secondary),
    Directed("start-named-above", starts.named_above),
    Directed("start-named-elsewhere", starts.named_elsewhere, contract=False),
    Directed("guest-reads-in-failover", starts.reads_in_failover),
    Directed("start-disks-in-use", starts.disks_in_use, contract=False),
    Directed("start-beside-mirror", starts.filtered_disk, contract=False),
    Directed("close-in-failover", starts.closed_in_failover, contract=False),
    Directed("job-progress", monitor.job_progress, affects=_BACKUP),
    Directed("sizes-stay", monitor.sizes_stay),
    Directed("write-threshold", monitor.write_threshold),
    Directed("quorum-reads-first", monitor.first_child_is_read, form="primary"),
    Directed("quorum-permissions", monitor.quorum_permissions, form="primary", affects=_QUORUM),
    Directed("quorum-refused", monitor.quorum_refused, affects=_QUORUM),
    Directed("backup-refused", monitor.backup_refused, affects=_BACKUP),
    Directed("backup-source-error", jobs.errors_of_disks, affects=_BACKUP),
    Directed("backup-of-bitmap", jobs.bitmap_backup, affects=(*_BACKUP, Use.BITMAPS)),
    Directed("backup-between-files", sources.files, form="push", affects=_BACKUP),
    Directed(
        "backup-keeps-failed-copies",
        jobs.failed_copy_stays,
        form="push",
        size=2 * SIZE,
        affects=_BACKUP,
    ),
    Directed(
        "backup-of-overlay", sources.overlay_backup, form="push", size=2 * SIZE, affects=_BACKUP
    ),
    Directed(
        "backup-in-small-transfers",
        sources.small_transfers,
        form="push",
        size=2 * SIZE,
        affects=_BACKUP,
    ),
    Directed("backup-compressed", sources.compressed_backup, form="push", size=2 * SIZE),
    Directed(
        "backup-of-snapshot",
        sources.snapshot_backup,
        form="fleecing",
        size=2 * SIZE,
        affects=(*_BACKUP, Use.FLEECING),
    ),
    Directed("copy-of-zeroes-in-part", ranges.zeroes_in_part, form="backup", size=_ODD),
    Directed(
        "copy-fills-clusters", ranges.whole_clusters, form="push", size=4 * SIZE, affects=_BACKUP
    ),
    Directed("neighbours-of-copy", ranges.neighbours, form="backup", size=2 * SIZE),
    Directed("neighbours-of-snapshot", ranges.neighbours, form="fleecing", size=2 * SIZE),
    Directed("discard-in-part", ranges.ragged_discard, form="push", affects=_EXPORT),
    Directed("bitmap-grows", ranges.resized, form="push", affects=_BITMAPS),
    Directed("write-waits-for-copies", ranges.waits_for_all, form="backup", size=3 * SIZE),
    Directed("reads-wait-for-copy", ranges.reads_beside_copy, form="backup", size=2 * SIZE),
    Directed(
        "writes-of-one-cluster", overlays.writes_of_one_cluster, form="push", affects=_OVERLAYS
    ),
    Directed("discard-of-all", overlays.discard_of_all, form="push", affects=_OVERLAYS),
    Directed("allocation-fails", overlays.failed_allocation, form="push", affects=_OVERLAYS),
    Directed("quorum-flush-fails", monitor.flush_error, form="primary", affects=_QUORUM),
    Directed("quorum-fails", monitor.failed_quorum, form="primary", affects=_QUORUM),
    Directed("quorum-votes", votes.most_votes, form="push", affects=_VOTES),
    Directed("quorum-votes-fail", votes.failed_votes, form="push", affects=_VOTES),
    Directed("quorum-reads-next", votes.next_is_read, form="push", affects=_QUORUM),
    Directed("quorum-rewrites", votes.rewritten, form="push", affects=_VOTES),
    Directed("quorum-rewrite-fails", votes.rewrite_fails, form="push", affects=_VOTES),
    Directed("quorum-rewrites-for-reader", votes.rewritten_for_reader, form="push", affects=_VOTES),
    Directed(
        "quorum-rewrite-beside-write", votes.write_beside_rewrite, form="push", affects=_VOTES
    ),
    Directed("quorum-changes-children", votes.changed_children, form="push", affects=_VOTES),
    Directed("quorum-child-leaves", votes.child_leaves_beside_write, form="push", affects=_VOTES),
    Directed("quorum-zeroes", votes.zeroes_by_votes, form="push", affects=_VOTES),
    Directed("quorum-compares", votes.compared, form="push", affects=_VOTES),
    Directed("parts-of-blocks", ranges.padded, form="push", affects=_EXPORT),
    Directed("bitmap-names-edges", ranges.edges_of_bitmap, form="push", affects=_BITMAPS),
    Directed("parts-of-blocks-read-fails", ranges.padded_read_fails, form="push", affects=_NBD),
    Directed("parts-of-blocks-write-fails", ranges.padded_write_fails, form="push", affects=_NBD),
    Directed("large-requests", large.requests, form="push", affects=(Use.NBD_EXPORT, Use.BITMAPS)),
    Directed("large-requests-are-copied", large.copied, form="push", affects=_FLEECING),
    Directed("bitmap-granularity", ranges.granularity, form="push", affects=_BITMAPS),
    Directed("refused-enable-stops-bitmap", ranges.enabled_in_vain, form="push", affects=_BITMAPS),
    Directed("bitmap-is-stored", ranges.stored_bitmap, form="push", affects=_BITMAPS),
    Directed("fua-is-durable", ranges.durable_fua, form="push", affects=_EXPORT),
    Directed("flush-is-durable", ranges.durable_flush, form="push", affects=_EXPORT),
    Directed("flush-waits-for-flush", ranges.flushes_in_line, form="push", affects=_EXPORT),
    Directed("throttled-job-obeys", jobs.throttled, form="push", affects=_BACKUP),
    Directed(
        "cancel-beside-lost-target", jobs.cancelled_beside_lost_target, form="push", affects=_BACKUP
    ),
    Directed("zeroes-are-detected", storage.detected_zeroes, form="push"),
    Directed("snapshot-of-nothing", storage.snapshot_of_nothing, form="push"),
    Directed("blkdebug-small-discard", storage.small_discard, form="push", affects=_NBD),
    Directed("ejected-target", storage.ejected_target, form="push", affects=_BACKUP),
    Directed("ejected-beside-requests", ejected.beside_requests, form="push", affects=_NBD),
    Directed("ejected-beside-copy", ejected.beside_copy, form="push", affects=_FLEECING),
    Directed(
        "ejected-by-copy",
        ejected.beside_copy_to_it,
        form="push",
        size=ejected.DISK,
        affects=_FLEECING,
    ),
    Directed("checkpoint-of-ejected-disk", replication.ejected_disk),
    Directed("checkpoint-of-ejected-active", replication.ejected_active_disk),
    Directed("checkpoint-to-the-end", replication.checkpoint_to_the_end, size=_ODD),
    Directed("replication-refused", replication.refused),
    Directed(
        "start-refused",
        replication.start_refused,
        contract=False,
        form="push",
        affects=(Use.COLO_SECONDARY,),
    ),
    Directed("primary-forwards", primary.forwards_while_running, form="primary"),
    Directed("primary-forwards-zeroes", primary.forwards_zeroes, form="primary"),
    Directed("primary-forward-fails", primary.forward_fails, form="primary"),
    Directed("primary-stays-stopped", primary.stays_stopped, contract=False, form="primary"),
    Directed(
        "primary-filter-is-not-read", primary.filter_is_not_read, contract=False, form="primary"
    ),
    Directed("filter-permissions", monitor.filter_permissions, form="fleecing"),
    Directed(
        "filter-passes-on", filters.passed_on, form="fleecing", options=_UNMAPS, size=6 * SIZE
    ),
    Directed(
        "filter-reports", filters.failed_copies, form="fleecing", options=_UNMAPS, size=2 * SIZE
    ),
    Directed("filter-keeps-holes", filters.kept_holes, form="fleecing", options=_UNMAPS),
    Directed("snapshot-read-freezes", filters.frozen_read, form="fleecing", size=2 * SIZE),
    Directed("snapshot-discard-stays", filters.discarded_stays, form="fleecing", size=2 * SIZE),
    Directed("snapshot-has-a-name", filters.named_as_its_disk, form="fleecing"),
    Directed("snapshot-refuses-changes", filters.changes_refused, form="fleecing"),
    Directed("snapshot-of-smaller-disk", filters.shrunk, form="fleecing"),
    Directed("filter-refused", filters.refused, form="fleecing"),
    Directed("timeout-is-long", timeouts.timeout_is_long, form="fleecing", options=_LONG),
    Directed("timeout-breaks-write", timeouts.breaks_write, form="fleecing", options=_SHORT),
    Directed(
        "timeout-breaks-snapshot",
        timeouts.breaks_snapshot,
        form="fleecing",
        options=(*_SHORT, ("filter", "on-cbw-error", "break-snapshot")),
    ),
    Directed("nbd-answer-waits", storage.answer_waits),
)
