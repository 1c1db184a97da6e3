"""Directed cases: sequences of commands and I/O, each on a fresh chain.

Where no interleaving is needed they are enough: for QEMU's error paths, for requests that begin or
end where granules, clusters and blocks do, for what the monitor shows and refuses. Each case names
what QEMU promises; what it does instead is a :class:`RealViolation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    transactions,
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


#: Cases on the other chains.
_push, _primary, _fleecing, _backup = (
    partial(Directed, form=form) for form in ("push", "primary", "fleecing", "backup")
)

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
    _primary("quorum-reads-first", monitor.first_child_is_read),
    _primary("quorum-permissions", monitor.quorum_permissions, affects=_QUORUM),
    Directed("quorum-refused", monitor.quorum_refused, affects=_QUORUM),
    Directed("backup-refused", monitor.backup_refused, affects=_BACKUP),
    Directed("backup-source-error", jobs.errors_of_disks, affects=_BACKUP),
    Directed("backup-of-bitmap", jobs.bitmap_backup, affects=(*_BACKUP, Use.BITMAPS)),
    _push("backup-between-files", sources.files, affects=_BACKUP),
    _push("backup-keeps-failed-copies", jobs.failed_copy_stays, size=2 * SIZE, affects=_BACKUP),
    _push("backup-of-overlay", sources.overlay_backup, size=2 * SIZE, affects=_BACKUP),
    _push("backup-in-small-transfers", sources.small_transfers, size=2 * SIZE, affects=_BACKUP),
    _push("backup-compressed", sources.compressed_backup, size=2 * SIZE),
    _fleecing(
        "backup-of-snapshot",
        sources.snapshot_backup,
        size=2 * SIZE,
        affects=(*_BACKUP, Use.FLEECING),
    ),
    _backup("copy-of-zeroes-in-part", ranges.zeroes_in_part, size=_ODD),
    _push("copy-fills-clusters", ranges.whole_clusters, size=4 * SIZE, affects=_BACKUP),
    _backup("neighbours-of-copy", ranges.neighbours, size=2 * SIZE),
    _fleecing("neighbours-of-snapshot", ranges.neighbours, size=2 * SIZE),
    _push("discard-in-part", ranges.ragged_discard, affects=_EXPORT),
    _push("bitmap-grows", ranges.resized, affects=_BITMAPS),
    _backup("write-waits-for-copies", ranges.waits_for_all, size=3 * SIZE),
    _backup("reads-wait-for-copy", ranges.reads_beside_copy, size=2 * SIZE),
    _push("writes-of-one-cluster", overlays.writes_of_one_cluster, affects=_OVERLAYS),
    _push("write-over-subclusters", overlays.write_over_subclusters, affects=_OVERLAYS),
    _push("discard-of-all", overlays.discard_of_all, affects=_OVERLAYS),
    _push("allocation-fails", overlays.failed_allocation, affects=_OVERLAYS),
    _primary("quorum-flush-fails", monitor.flush_error, affects=_QUORUM),
    _primary("quorum-fails", monitor.failed_quorum, affects=_QUORUM),
    _push("quorum-votes", votes.most_votes, affects=_VOTES),
    _push("quorum-votes-fail", votes.failed_votes, affects=_VOTES),
    _push("quorum-reads-next", votes.next_is_read, affects=_QUORUM),
    _push("quorum-rewrites", votes.rewritten, affects=_VOTES),
    _push("quorum-rewrite-fails", votes.rewrite_fails, affects=_VOTES),
    _push("quorum-rewrites-for-reader", votes.rewritten_for_reader, affects=_VOTES),
    _push("quorum-rewrite-beside-write", votes.write_beside_rewrite, affects=_VOTES),
    _push("quorum-changes-children", votes.changed_children, affects=_VOTES),
    _push("quorum-child-leaves", votes.child_leaves_beside_write, affects=_VOTES),
    _push("quorum-zeroes", votes.zeroes_by_votes, affects=_VOTES),
    _push("quorum-compares", votes.compared, affects=_VOTES),
    _push("parts-of-blocks", ranges.padded, affects=_EXPORT),
    _push("bitmap-names-edges", ranges.edges_of_bitmap, affects=_BITMAPS),
    _push("parts-of-blocks-read-fails", ranges.padded_read_fails, affects=_NBD),
    _push("parts-of-blocks-write-fails", ranges.padded_write_fails, affects=_NBD),
    _push("large-requests", large.requests, affects=(Use.NBD_EXPORT, Use.BITMAPS)),
    _push("large-requests-are-copied", large.copied, affects=_FLEECING),
    _push("bitmap-granularity", ranges.granularity, affects=_BITMAPS),
    _push("refused-enable-stops-bitmap", ranges.enabled_in_vain, affects=_BITMAPS),
    _push("bitmap-is-stored", ranges.stored_bitmap, affects=_BITMAPS),
    _push("transaction-is-undone", transactions.undone, affects=_BITMAPS),
    _push("transaction-is-done", transactions.done, affects=_BITMAPS),
    _push("backup-is-undone", transactions.backup_undone, affects=_BACKUP),
    _push("bitmap-commands-refused", transactions.refused, affects=_BITMAPS),
    _push("fua-is-durable", ranges.durable_fua, affects=_EXPORT),
    _push("flush-is-durable", ranges.durable_flush, affects=_EXPORT),
    _push("flush-waits-for-flush", ranges.flushes_in_line, affects=_EXPORT),
    _push("throttled-job-obeys", jobs.throttled, affects=_BACKUP),
    _push("quit-beside-concluded-job", jobs.concluded, affects=_BACKUP),
    _push("cancel-beside-lost-target", jobs.cancelled_beside_lost_target, affects=_BACKUP),
    _push("zeroes-are-detected", storage.detected_zeroes),
    _push("snapshot-of-nothing", storage.snapshot_of_nothing),
    _push("blkdebug-small-discard", storage.small_discard, affects=_NBD),
    _push("ejected-target", storage.ejected_target, affects=_BACKUP),
    _push("ejected-beside-requests", ejected.beside_requests, affects=_NBD),
    _push("ejected-beside-copy", ejected.beside_copy, affects=_FLEECING),
    _push("ejected-by-copy", ejected.beside_copy_to_it, size=ejected.DISK, affects=_FLEECING),
    Directed("checkpoint-of-ejected-disk", replication.ejected_disk),
    Directed("checkpoint-of-ejected-active", replication.ejected_active_disk),
    Directed("checkpoint-to-the-end", replication.checkpoint_to_the_end, size=_ODD),
    Directed("replication-refused", replication.refused),
    _push(
        "start-refused", replication.start_refused, contract=False, affects=(Use.COLO_SECONDARY,)
    ),
    _primary("primary-forwards", primary.forwards_while_running),
    _primary("primary-forwards-zeroes", primary.forwards_zeroes),
    _primary("primary-forward-fails", primary.forward_fails),
    _primary("primary-stays-stopped", primary.stays_stopped, contract=False),
    _primary("primary-filter-is-not-read", primary.filter_is_not_read, contract=False),
    _fleecing("filter-permissions", monitor.filter_permissions),
    _fleecing("filter-passes-on", filters.passed_on, options=_UNMAPS, size=6 * SIZE),
    _fleecing("filter-reports", filters.failed_copies, options=_UNMAPS, size=2 * SIZE),
    _fleecing("filter-keeps-holes", filters.kept_holes, options=_UNMAPS),
    _fleecing("snapshot-read-freezes", filters.frozen_read, size=2 * SIZE),
    _fleecing("snapshot-discard-stays", filters.discarded_stays, size=2 * SIZE),
    _fleecing("snapshot-has-a-name", filters.named_as_its_disk),
    _fleecing("snapshot-refuses-changes", filters.changes_refused),
    _fleecing("snapshot-of-smaller-disk", filters.shrunk),
    _fleecing("filter-refused", filters.refused),
    _fleecing("timeout-is-long", timeouts.timeout_is_long, options=_LONG),
    _fleecing("timeout-breaks-write", timeouts.breaks_write, options=_SHORT),
    _fleecing(
        "timeout-breaks-snapshot",
        timeouts.breaks_snapshot,
        options=(*_SHORT, ("filter", "on-cbw-error", "break-snapshot")),
    ),
    Directed("nbd-answer-waits", storage.answer_waits),
)
