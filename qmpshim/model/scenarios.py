"""The scenarios that ship with the tool.

Clusters are 128 sectors (64 KiB) unless a scenario is about something else.
"""

from __future__ import annotations

from qmpshim.errors import InputError, no_such
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Operation, operation
from qmpshim.model.scenario import Fault, Scenario

C = 128  # sectors of a cluster


def _write(start: int, count: int = C, after: int | None = None) -> Operation:
    return operation("primary_write", start, count, after)


def _read(start: int, count: int = C, after: int | None = None) -> Operation:
    return operation("guest_read", start, count, after)


def _guest(start: int, count: int = C) -> Operation:
    return operation("guest_write", start, count)


def _zero() -> Operation:
    return operation("primary_zero", 0, C)


def _discard() -> Operation:
    return operation("primary_discard", 0, C)


def _snap(start: int, count: int = C, after: int | None = None) -> Operation:
    return operation("snapshot_read", start, count, after)


START = operation("start")
CHECKPOINT = operation("checkpoint")
FAILOVER = operation("failover")
STOP = operation("stop")
OLD = (_write(0, 2 * C), START)  # old data on both clusters, then replication starts
OLD3 = (_write(0, 3 * C), START)
BACKUP = Workflow.BACKUP
COPY = Fault(disk="hidden", op="write")  # the first write to the hidden disk fails
OLD_READ = Fault(disk="secondary", op="read")
CBW = ("copy-before-write",)

_PAIRS = (
    Scenario("write-read", (_write(0), _read(0)), OLD, "a read of the cluster being written"),
    Scenario("write-read-apart", (_write(0), _read(C)), OLD, "a read of another cluster"),
    Scenario("write-read-both", (_write(0), _read(0, 2 * C)), OLD, "a read across the copy"),
    Scenario("write2-read", (_write(0, 2 * C), _read(0)), OLD, "a write across the read"),
    Scenario("write2-read2", (_write(0, 2 * C), _read(0, 2 * C)), OLD, "both across two clusters"),
    Scenario("edge-write-read", (_write(C - 8, 16), _read(C - 16, 32)), OLD,
             "a few sectors on either side of a cluster boundary"),
    Scenario("part-write-read", (_write(16, 8), _read(0)), OLD, "a part of a cluster is written"),
    Scenario("part-write-tail", (_write(C + 8, 8), _read(C)), OLD, "the same in another cluster"),
    Scenario("zero-read", (_zero(), _read(0)), OLD, "zeroes over old data"),
    Scenario("discard-read", (_discard(), _read(0)), OLD, "old data discarded"),
    Scenario("write-write", (_write(0), _write(0)), OLD, "one copy for two writes"),
    Scenario("write-write-part", (_write(0, 80), _write(40, 80)), OLD, "two overlapping writes"),
    Scenario("write-fill", (_write(0), _guest(16, 8)), OLD, "qcow2 fills up what it reads below"),
    Scenario("write-guest", (_write(0), _guest(0)), OLD, "a whole cluster of the guest's"),
    Scenario("guest-guest", (_guest(16, 8), _guest(0)), OLD, "part of a cluster and all of it"),
    Scenario("guest-parts", (_guest(16, 8), _guest(64, 8)), OLD, "two parts of one cluster"),
    Scenario("guest-read", (_guest(0, 2 * C), _read(0, 2 * C)), OLD,
             "the guest reads what it writes"),
    Scenario("write-checkpoint", (_write(0), CHECKPOINT), OLD, "the copy bitmap is reset"),
    Scenario("write-failover", (_write(0), FAILOVER), OLD, "the secondary takes over"),
    Scenario("write-stop", (_write(0), STOP), OLD, "replication stops"),
    Scenario("checkpoint-failover", (CHECKPOINT, FAILOVER), (*OLD, _write(0)), "commands"),
)  # fmt: skip
_TRIPLES = (
    Scenario("write-read-read", (_write(0), _read(0), _read(0)), OLD, "two readers in the way"),
    Scenario("write-write-read", (_write(0), _write(0), _read(0)), OLD, "two writers, one reader"),
    Scenario("write-write2-read2", (_write(0), _write(0, 2 * C), _read(0, 2 * C)), OLD,
             "waiting for one request is not enough"),
    Scenario("write-read-fill", (_write(0), _read(0), _guest(16, 8)), OLD, "a reader and a fill"),
    Scenario("fill-fill", (_write(0), _guest(16, 8), _guest(64, 8)), OLD, "two fills, one write"),
    Scenario("write-read-checkpoint", (_write(0), _read(0), CHECKPOINT), OLD,
             "every function of block_backup.h"),
    Scenario("guest-read-checkpoint", (_guest(0), _read(0), CHECKPOINT), OLD, "guest data goes"),
    Scenario("checkpoint-write-read",
             (CHECKPOINT, _write(0, 2 * C, after=0), _read(0, 2 * C, after=0)),
             (*OLD, _write(0, 2 * C)), "after a checkpoint everything is copied again"),
    Scenario("checkpoint-tail", (CHECKPOINT, _write(C, C, after=0), _read(C, C, after=0)),
             (*OLD, _write(0, 2 * C)), "the bitmap's second half"),
    Scenario("guest-failover-read", (_guest(16, 8), FAILOVER, _read(0, C, after=1)), OLD,
             "what the guest wrote is what it reads after failover"),
    Scenario("write-stop-read", (_write(0), STOP, _read(0)), OLD, "the filter lets go"),
    Scenario("write-write-apart-read", (_write(0), _write(C), _read(0)), OLD,
             "a third in the list"),
    Scenario("write-write-apart-read2", (_write(0), _write(C), _read(0, 2 * C)), OLD, "two copies"),
)  # fmt: skip
_SHAPES = (
    Scenario("qcow2-secondary", (_write(16, 8), _read(0)), OLD, "a qcow2 secondary disk",
             secondary="qcow2"),
    Scenario("small-clusters", (_write(16, 8), _read(0, C)), OLD,
             "hidden clusters smaller than backup's", cluster=32),
    Scenario("big-clusters", (_write(16, 8), _read(C, C)), OLD,
             "hidden clusters larger than 64 KiB", cluster=256, size=512),
    Scenario("short-end", (_write(C, 72), _read(C, 72)), (_write(0, C + 72), START),
             "the disk ends within a cluster", size=C + 72),
    Scenario("hole", (_write(0, 3 * C), _read(0, 3 * C)), (*OLD3, _write(C)),
             "the middle cluster is copied already", size=3 * C),
    Scenario("hole-writer", (_write(0, 3 * C), _write(C)), OLD3,
             "a copy in the middle of a longer one", size=3 * C),
    Scenario("half-zero", (_write(0, 2 * C), _read(0, 2 * C)), (_write(C), START),
             "the first cluster was never written: block status differs"),
)  # fmt: skip
_FAULTS = (
    Scenario("old-read-fails", (_write(0), _write(0, C, after=0), _read(0)), OLD,
             "reading the old data fails; the next write copies", faults=(OLD_READ,)),
    Scenario("copy-fails", (_write(0), _write(0, C, after=0), _read(0)), OLD,
             "writing the copy fails; the next write copies", faults=(COPY,)),
    Scenario("copy-fails-two", (_write(0), _write(0)), OLD,
             "one copy fails while another write waits for it", faults=(COPY,)),
    Scenario("copy-fails-late", (_write(0, 2 * C), _write(C, C, after=0)), OLD,
             "the copy of the second cluster fails",
             faults=(Fault(disk="hidden", op="write", sector=C),)),
    Scenario("copy-fails-overlap", (_write(0, 2 * C), _write(C)), OLD,
             "a longer copy meets one that fails",
             faults=(Fault(disk="hidden", op="write", sector=C),)),
    Scenario("new-write-fails", (_write(0), _read(0)), OLD, "the new data does not arrive",
             faults=(Fault(disk="secondary", op="write"),)),
    Scenario("guest-read-fails", (_write(0), _read(0)), OLD, "the guest's read fails",
             faults=(Fault(by=1),)),
    Scenario("fill-fails", (_write(0), _guest(16, 8)), OLD, "what qcow2 fills up with is lost",
             faults=(Fault(disk="secondary", op="read", by=1),)),
)  # fmt: skip
_BACKUP = (
    Scenario("snapshot", (_write(0), _snap(0)), OLD, "a reader of the snapshot", BACKUP),
    Scenario("snapshot-both", (_write(0), _snap(0, 2 * C)), OLD, "half copied, half not", BACKUP),
    Scenario("snapshot-two", (_write(0), _snap(0), _snap(0)), OLD, "two readers", BACKUP),
    Scenario("snapshot-write2", (_write(0, 2 * C), _snap(0, 2 * C)), (*OLD, _write(0)),
             "a cluster is copied already", BACKUP),
    Scenario("snapshot-zero", (_zero(), _snap(0)), OLD, "zeroes", BACKUP),
    Scenario("snapshot-discarding", (_discard(), _snap(0)), OLD, "TRIM", BACKUP),
    Scenario("hidden-read", (_write(0), _read(0)), OLD, "a reader of the hidden disk", BACKUP),
    Scenario("snapshot-copy-fails", (_write(0), _snap(0), _write(0, C, after=0)), OLD,
             "the copy fails under a reader", BACKUP, faults=(COPY,)),
    Scenario("snapshot-given-up",
             (operation("snapshot_discard", 0, C), _write(0), _snap(C), _snap(0, C, after=0)), OLD,
             "the reader gives up a cluster: no more copy, no more access", BACKUP, protocols=CBW),
    Scenario("backup-stop", (_write(0), STOP), OLD, "the job is cancelled", BACKUP),
)  # fmt: skip
_LONG = (
    Scenario("seed", (_write(0), _write(C), _read(0, 2 * C), _read(0, 2 * C), CHECKPOINT), OLD,
             "two writers, two readers and a checkpoint over two clusters"),
    Scenario("crossing", (_write(0, 2 * C), _write(C, 2 * C), _read(0, 3 * C), _guest(C + 8, 8)),
             OLD3, "everything overlaps with everything", size=3 * C),
)  # fmt: skip
_ROBUSTNESS = (
    Scenario("checkpoint-fails", (CHECKPOINT, _write(0, C, after=0), _read(0, C, after=1)),
             (*OLD, _write(0)),
             "the hidden disk cannot be emptied, but the bitmap is reset already",
             faults=(Fault(disk="hidden", op="empty"),)),
    Scenario("checkpoint-meets-copy", (_write(0), CHECKPOINT), OLD,
             "a checkpoint while a copy is in flight", contract=False),
    Scenario("failover-meets-copy", (_write(0), _read(0), FAILOVER), OLD,
             "a failover while a copy is in flight", contract=False),
    Scenario("snapshot-discard-meets-read", (_snap(0), operation("snapshot_discard", 0, C)),
             (*OLD, _write(0)), "a reader gives up what it is still reading", BACKUP,
             protocols=CBW),
)  # fmt: skip
SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (*_PAIRS, *_TRIPLES, *_SHAPES, *_FAULTS, *_BACKUP, *_LONG)
}
"""Those that every correct protocol must stand."""

ROBUSTNESS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ROBUSTNESS}
"""Those beyond the contract: here QEMU breaks the promise, and the explorer shows how."""


def scenario_named(name: str) -> Scenario:
    """One of :data:`SCENARIOS` or :data:`ROBUSTNESS`.

    :raises InputError: there is none of that name
    """
    every = SCENARIOS | ROBUSTNESS
    if name not in every:
        listing = "qmpshim explore --model --scenario list"
        raise InputError(no_such("scenario", name, every, listing))
    return every[name]
