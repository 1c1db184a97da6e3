"""The directed cases about the monitor see what they look at."""

from __future__ import annotations

from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import expect_finding, sees
from vmtests.support.mutants.clients import copied_zeroes
from vmtests.support.mutants.disks import nothing_held, spoilt_copy, spoilt_store, succeeding
from vmtests.support.mutants.qmp import (
    all_shared,
    answering,
    asking,
    event_without_reason,
    larger,
    more_done,
    none_taken,
    without_child,
)

ERROR_CONTRACT = Verdict.ERROR_CONTRACT
PROTOCOL = Verdict.PROTOCOL


test_a_case_sees = sees(
    ("job-progress", answering("query-block-jobs", more_done), PROTOCOL,
     "job status before the first write"),
    ("job-progress", asking("blockdev-backup", speed=1 << 20), PROTOCOL,
     "job status before the first write"),
    ("job-progress", copied_zeroes, Verdict.ALLOCATION, "the copy of zeroes is no zero"),
    ("job-progress", spoilt_copy, Verdict.CONTENT, "the copy beside zeroes"),
    ("sizes-stay", answering("query-named-block-nodes", larger), PROTOCOL, "size of "),
    ("write-threshold", asking("block-set-write-threshold", **{"write-threshold": 512}),
     PROTOCOL, "BLOCK_WRITE_THRESHOLD"),
    ("quorum-reads-first", event_without_reason, PROTOCOL, "quorum event without a failure"),
    ("quorum-reads-first", spoilt_store("primary", 0), Verdict.CONTENT, "quorum read"),
    *(("quorum-permissions", all_shared(node), PROTOCOL, "permissions that a quorum shares")
      for node in ("primary", "forward")),
    ("quorum-permissions", without_child("forward"), PROTOCOL, "forward is no child of top"),
    ("quorum-permissions", none_taken("secondary"), PROTOCOL,
     "permissions that a filter takes"),
    ("quorum-refused", asking("blockdev-add"), ERROR_CONTRACT, "blockdev-add fails silently"),
    ("quorum-refused", asking("human-monitor-command", **{
        "command-line": "drive_add 0 if=none,id=bad,driver=null-co"}), PROTOCOL,
     "a drive with a quorum and bad options"),
    ("backup-refused", asking("blockdev-backup"), ERROR_CONTRACT,
     "blockdev-backup fails silently"),
    ("backup-refused", answering("query-block-jobs", lambda jobs: [{}]), PROTOCOL,
     "a job that was refused"),
    ("job-progress", answering("query-block-jobs", lambda jobs: []), PROTOCOL, "job status"),
    ("quorum-flush-fails", nothing_held, Verdict.ORDER, "a flush of a quorum: other I/O"),
    ("quorum-flush-fails", succeeding, PROTOCOL, "quorum event of a failed flush"),
    ("quorum-fails", succeeding, ERROR_CONTRACT, "failed write to a quorum"),
    ("quorum-fails", GatedMachine.start, ERROR_CONTRACT, "failed write to a quorum"),
    ("quorum-fails", nothing_held, Verdict.ORDER, "a write to a quorum: other I/O"),
    *(("filter-permissions", all_shared(node), PROTOCOL,
       f"permissions that a filter shares: {node}") for node in ("secondary", "hidden")),
    *(("filter-permissions", none_taken(node), PROTOCOL,
       f"permissions that a filter takes: {node}") for node in ("secondary", "hidden")),
)  # fmt: skip


def test_a_quorum_needs_as_many_flushes_as_votes(qemu_build: Build) -> None:
    expect_finding(
        *("quorum-flush-fails", lambda machine: None, ERROR_CONTRACT, "a flush of a quorum fails"),
        qemu_build,
        options=(("top", "vote-threshold", 2),),
    )
