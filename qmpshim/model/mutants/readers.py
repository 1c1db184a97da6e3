"""Mutants of readers: QEMU 2.8's ``block_backup.h`` used in the wrong order, or not at all."""

from __future__ import annotations

from qmpshim.model.chain.protocols import CowRequestProtocol, SerializationProtocol
from qmpshim.model.disks.backup_job import (
    BackupJob,
    CowRequest,
    backup_cow_request_begin,
    backup_cow_request_end,
    backup_wait_for_overlapping_requests,
)
from qmpshim.model.disks.block_copy import Below
from qmpshim.model.disks.image import Owners
from qmpshim.model.mutants.register import COW, add
from qmpshim.model.runtime.coroutines import Co


class _Reader(CowRequestProtocol):
    """QEMU 2.8's xxx_co_readv() with its four calls in the wrong order, or fewer of them.

    :param calls: ``w`` wait, ``b`` begin, ``r`` read, ``e`` end
    :param unit: what the reader passes for a sector number is divided by this first
    """

    def __init__(self, calls: str, unit: int = 1) -> None:
        self.calls = calls
        self.unit = unit

    def replication_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        if job is None:
            return (yield from read)
        req, owners = CowRequest(), None
        first, length = start // self.unit, -(-count // self.unit)
        for call in self.calls:
            if call == "w":
                yield from backup_wait_for_overlapping_requests(job, first, length)
            elif call == "b":
                backup_cow_request_begin(req, job, first, length)
            elif call == "r":
                owners = yield from read
            else:
                backup_cow_request_end(req)
        assert owners is not None
        return owners


for _name, _about, _calls, _unit, *_scenarios in (
    ("reader-skips-wait", "the reader does not wait", "bre", 1, "write-read"),
    ("reader-skips-begin", "the reader is in no list", "wr", 1, "write-read"),
    ("reader-skips-interface", "the reader just reads", "r", 1, "write-read"),
    ("begin-after-read", "the reader's request begins after the read", "wrbe", 1, "write-read"),
    ("end-before-read", "the reader's request ends before the read", "wber", 1, "write-read"),
    ("begin-before-wait", "the reader waits for its own request", "bwre", 1, "write-read"),
    ("reader-forgets-end", "the reader's request never ends", "wbr", 1, "write-read"),
    ("reader-in-clusters", "the reader passes clusters instead of sectors", "wbre", 128,
     "part-write-tail"),
):  # fmt: skip
    add(_name, _about, COW, lambda c=_calls, u=_unit: _Reader(c, u), *_scenarios)  # type: ignore[misc]


class _Fill28(CowRequestProtocol):
    def fill_read(
        self, job: BackupJob | None, start: int, count: int, read: Co[Owners]
    ) -> Co[Owners]:
        return read


class _Fleecing28(CowRequestProtocol):
    def snapshot_read(self, job: BackupJob, start: int, count: int, below: Below) -> Co[Owners]:
        return below.target(start, count)


# QEMU 2.8 to 2.12:
add("cow-request-2.8-fill", "replication_co_writev does not protect what qcow2 fills up with",
     COW, _Fill28, "write-fill")  # fmt: skip
add("cow-request-2.8-fleecing", "an export of the hidden disk knows nothing of the interface",
     COW, _Fleecing28, "snapshot")  # fmt: skip
add("none", "no operation waits for another", COW, SerializationProtocol, "write-read")
