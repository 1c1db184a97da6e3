"""Directed cases: sequences of commands and I/O, each on a fresh chain.

Where no interleaving is needed they are enough: for QEMU's error paths, for requests that begin or
end where granules, clusters and blocks do, for what the monitor shows and refuses. Each case names
what QEMU promises; what it does instead is a :class:`RealViolation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qmpshim.conformance.compare.divergence import Ending, stable, verdict_of
from qmpshim.conformance.explore.directed import ejected as ejected
from qmpshim.conformance.explore.directed import filters as filters
from qmpshim.conformance.explore.directed import jobs as jobs
from qmpshim.conformance.explore.directed import large as large
from qmpshim.conformance.explore.directed import monitor as monitor
from qmpshim.conformance.explore.directed import primary as primary
from qmpshim.conformance.explore.directed import ranges as ranges
from qmpshim.conformance.explore.directed import replication as replication
from qmpshim.conformance.explore.directed import sources as sources
from qmpshim.conformance.explore.directed import starts as starts
from qmpshim.conformance.explore.directed import storage as storage
from qmpshim.conformance.explore.directed import timeouts as timeouts
from qmpshim.conformance.explore.directed import votes as votes
from qmpshim.conformance.explore.directed.machine import CLUSTER, SIZE, Broken, CaseMachine
from qmpshim.conformance.explore.directed.uses import USES_OF_CASES
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

    :ivar about: what is done, and what QEMU's documents promise of it
    :ivar form: the chain it is done on
    :ivar options: more options of the chain's nodes
    :ivar size: bytes of the disk
    """

    name: str
    about: str
    contract: bool
    run: Callable[[CaseMachine], RealViolation | None]
    reconnect: int = 0  # seconds that QEMU waits for a broken connection to its disks
    form: str = "replication"
    options: Options = ()
    size: int = SIZE

    @property
    def id(self) -> str:
        """As it is called beside scenarios and write-ups."""
        return f"directed/{self.name}"

    @property
    def uses(self) -> tuple[Use, ...]:
        """The uses of QEMU that it stands for."""
        return USES_OF_CASES.get(self.name) or uses_of(self.form)


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
        found = case.run(machine)
        if found is None:
            machine.gate.open()
            machine.gate.release_all()
            machine.quit()
        return found
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


def _case(
    name: str,
    contract: bool,
    run: Callable[[CaseMachine], None],
    reconnect: int = 0,
    form: str = "replication",
    options: Options = (),
    size: int = SIZE,
) -> Directed:
    def go(machine: CaseMachine) -> RealViolation | None:
        run(machine)
        return None

    about = " ".join((run.__doc__ or "").split())
    return Directed(name, about, contract, go, reconnect, form, options, size)


_ODD = 2 * SIZE + SECTOR  # bytes of a disk that ends inside a cluster
_FILTER_UNMAPS = (("filter", "discard", "unmap"),)
_LONG = (("filter", "cbw-timeout", timeouts.LONG),)
_SHORT = (("filter", "cbw-timeout", 1),)

DIRECTED: tuple[Directed, ...] = (
    _case("start-busy-twice", False, replication.busy_start),
    _case("start-bad-top-twice", False, replication.bad_top),
    _case("copy-fails", True, replication.failed_copy),
    _case("old-read-fails", True, replication.failed_old_read),
    _case("new-write-fails", True, replication.failed_new_write),
    _case("empty-fails", True, replication.failed_empty),
    _case("start-fails", True, replication.failed_start),
    _case("failover-fails", True, replication.failed_failover),
    _case("quit-running", True, replication.quit_running),
    _case("snapshot-after-checkpoint", True, storage.snapshot_after_checkpoint),
    _case("disk-back-in-time", True, storage.back_in_time, 10),
    _case("disk-back-too-late", True, storage.back_too_late, 1),
    _case("iothread-client-leaves", True, storage.client_of_iothread),
    _case("stop-leaves-nodes-unflushed", True, replication.stop_flushes_all),
    _case("io-before-start", True, replication.not_running),
    _case("start-without-backend", True, replication.no_backend),
    _case("start-read-only", True, replication.read_only, options=(("hidden", "read-only", True),)),
    _case("start-read-only-secondary", True, starts.read_only_secondary),
    _case("start-named-above", True, starts.named_above),
    _case("start-named-elsewhere", False, starts.named_elsewhere),
    _case("guest-reads-in-failover", True, starts.reads_in_failover),
    _case("start-disks-in-use", False, starts.disks_in_use),
    _case("start-beside-mirror", False, starts.filtered_disk),
    _case("close-in-failover", False, starts.closed_in_failover),
    _case("job-progress", True, monitor.job_progress),
    _case("sizes-stay", True, monitor.sizes_stay),
    _case("write-threshold", True, monitor.write_threshold),
    _case("quorum-reads-first", True, monitor.first_child_is_read, form="primary"),
    _case("quorum-permissions", True, monitor.quorum_permissions, form="primary"),
    _case("quorum-refused", True, monitor.quorum_refused),
    _case("backup-refused", True, monitor.backup_refused),
    _case("backup-source-error", True, jobs.errors_of_disks),
    _case("backup-of-bitmap", True, jobs.bitmap_backup),
    _case("backup-between-files", True, sources.files, form="push"),
    _case("backup-keeps-failed-copies", True, jobs.failed_copy_stays, form="push", size=2 * SIZE),
    _case("backup-of-overlay", True, sources.overlay_backup, form="push", size=2 * SIZE),
    _case("backup-in-small-transfers", True, sources.small_transfers, form="push", size=2 * SIZE),
    _case("backup-compressed", True, sources.compressed_backup, form="push", size=2 * SIZE),
    _case("backup-of-snapshot", True, sources.snapshot_backup, 0, "fleecing", (), 2 * SIZE),
    _case("copy-of-zeroes-in-part", True, ranges.zeroes_in_part, form="backup", size=_ODD),
    _case("copy-fills-clusters", True, ranges.whole_clusters, form="push", size=4 * SIZE),
    _case("neighbours-of-copy", True, ranges.neighbours, form="backup", size=2 * SIZE),
    _case("neighbours-of-snapshot", True, ranges.neighbours, form="fleecing", size=2 * SIZE),
    _case("discard-in-part", True, ranges.ragged_discard, form="push"),
    _case("bitmap-grows", True, ranges.resized, form="push"),
    _case("write-waits-for-copies", True, ranges.waits_for_all, form="backup", size=3 * SIZE),
    _case("reads-wait-for-copy", True, ranges.reads_beside_copy, form="backup", size=2 * SIZE),
    _case("quorum-flush-fails", True, monitor.flush_error, form="primary"),
    _case("quorum-fails", True, monitor.failed_quorum, form="primary"),
    _case("quorum-votes", True, votes.most_votes, form="push"),
    _case("quorum-votes-fail", True, votes.failed_votes, form="push"),
    _case("quorum-reads-next", True, votes.next_is_read, form="push"),
    _case("quorum-rewrites", True, votes.rewritten, form="push"),
    _case("quorum-rewrite-fails", True, votes.rewrite_fails, form="push"),
    _case("quorum-rewrites-for-reader", True, votes.rewritten_for_reader, form="push"),
    _case("quorum-rewrite-beside-write", True, votes.write_beside_rewrite, form="push"),
    _case("quorum-changes-children", True, votes.changed_children, form="push"),
    _case("quorum-child-leaves", True, votes.child_leaves_beside_write, form="push"),
    _case("quorum-zeroes", True, votes.zeroes_by_votes, form="push"),
    _case("quorum-compares", True, votes.compared, form="push"),
    _case("parts-of-blocks", True, ranges.padded, form="push"),
    _case("bitmap-names-edges", True, ranges.edges_of_bitmap, form="push"),
    _case("parts-of-blocks-read-fails", True, ranges.padded_read_fails, form="push"),
    _case("parts-of-blocks-write-fails", True, ranges.padded_write_fails, form="push"),
    _case("large-requests", True, large.requests, form="push"),
    _case("large-requests-are-copied", True, large.copied, form="push"),
    _case("bitmap-granularity", True, ranges.granularity, form="push"),
    _case("refused-enable-stops-bitmap", True, ranges.enabled_in_vain, form="push"),
    _case("bitmap-is-stored", True, ranges.stored_bitmap, form="push"),
    _case("fua-is-durable", True, ranges.durable_fua, form="push"),
    _case("flush-is-durable", True, ranges.durable_flush, form="push"),
    _case("flush-waits-for-flush", True, ranges.flushes_in_line, form="push"),
    _case("throttled-job-obeys", True, jobs.throttled, form="push"),
    _case("cancel-beside-lost-target", True, jobs.cancelled_beside_lost_target, form="push"),
    _case("zeroes-are-detected", True, storage.detected_zeroes, form="push"),
    _case("snapshot-of-nothing", True, storage.snapshot_of_nothing, form="push"),
    _case("blkdebug-small-discard", True, storage.small_discard, form="push"),
    _case("ejected-target", True, storage.ejected_target, form="push"),
    _case("ejected-beside-requests", True, ejected.beside_requests, form="push"),
    _case("ejected-beside-copy", True, ejected.beside_copy, form="push"),
    _case("ejected-by-copy", True, ejected.beside_copy_to_it, form="push", size=ejected.DISK),
    _case("checkpoint-of-ejected-disk", True, replication.ejected_disk),
    _case("checkpoint-of-ejected-active", True, replication.ejected_active_disk),
    _case("checkpoint-to-the-end", True, replication.checkpoint_to_the_end, size=_ODD),
    _case("replication-refused", True, replication.refused),
    _case("start-refused", False, replication.start_refused, form="push"),
    _case("primary-forwards", True, primary.forwards_while_running, form="primary"),
    _case("primary-forwards-zeroes", True, primary.forwards_zeroes, form="primary"),
    _case("primary-forward-fails", True, primary.forward_fails, form="primary"),
    _case("primary-stays-stopped", False, primary.stays_stopped, form="primary"),
    _case("primary-filter-is-not-read", False, primary.filter_is_not_read, form="primary"),
    _case("filter-permissions", True, monitor.filter_permissions, form="fleecing"),
    _case("filter-passes-on", True, filters.passed_on, 0, "fleecing", _FILTER_UNMAPS, 6 * SIZE),
    _case("filter-reports", True, filters.failed_copies, 0, "fleecing", _FILTER_UNMAPS, 2 * SIZE),
    _case("filter-keeps-holes", True, filters.kept_holes, form="fleecing", options=_FILTER_UNMAPS),
    _case("snapshot-read-freezes", True, filters.frozen_read, form="fleecing", size=2 * SIZE),
    _case("snapshot-discard-stays", True, filters.discarded_stays, form="fleecing", size=2 * SIZE),
    _case("snapshot-has-a-name", True, filters.named_as_its_disk, form="fleecing"),
    _case("snapshot-refuses-changes", True, filters.changes_refused, form="fleecing"),
    _case("snapshot-of-smaller-disk", True, filters.shrunk, form="fleecing"),
    _case("filter-refused", True, filters.refused, form="fleecing"),
    _case("timeout-is-long", True, timeouts.timeout_is_long, form="fleecing", options=_LONG),
    _case("timeout-breaks-write", True, timeouts.breaks_write, form="fleecing", options=_SHORT),
    _case(
        *("timeout-breaks-snapshot", True, timeouts.breaks_snapshot),
        form="fleecing",
        options=(*_SHORT, ("filter", "on-cbw-error", "break-snapshot")),
    ),
    _case("nbd-answer-waits", True, storage.answer_waits),
)
