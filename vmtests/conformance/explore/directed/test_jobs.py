"""The directed cases about jobs see what they look at."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import sees
from vmtests.support.mutants.disks import copied_once, nothing_held, spoilt_copy, succeeding
from vmtests.support.mutants.qmp import answering, asking, not_cancelled, other_job_failed

ERROR_CONTRACT = Verdict.ERROR_CONTRACT
PROTOCOL = Verdict.PROTOCOL


def still_failed(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Jobs that have not forgotten an error when they go on."""
    return [{**job, "io-status": "failed"} for job in jobs]


test_a_case_sees = sees(
    ("backup-source-error", nothing_held, Verdict.ORDER, "a backup job: other I/O"),
    ("backup-source-error", asking("blockdev-backup", **{"on-source-error": "report"}),
     ERROR_CONTRACT, "on-source-error=stop"),
    ("backup-source-error", asking("blockdev-backup", **{"on-target-error": "report"}),
     ERROR_CONTRACT, "on-target-error=stop"),
    ("backup-source-error", answering("query-block-jobs", still_failed), ERROR_CONTRACT,
     "on-source-error=stop, then block-job-resume"),
    ("backup-source-error", spoilt_copy, Verdict.CONTENT, "a backup's content"),
    ("backup-source-error", copied_once, Verdict.CONTENT, "a backup's content"),
    ("backup-of-bitmap", asking("block-dirty-bitmap-add", granularity=2 * CLUSTER), PROTOCOL,
     "a bitmap after a discard"),
    ("backup-of-bitmap", asking("blockdev-backup", **{"bitmap-mode": "always"}), PROTOCOL,
     "a bitmap after a backup"),
    ("backup-of-bitmap", spoilt_copy, Verdict.CONTENT, "a backup's content"),
    ("backup-of-bitmap", other_job_failed, PROTOCOL, "end of a backup job"),
    ("backup-keeps-failed-copies", nothing_held, Verdict.ORDER, "a backup job: other I/O"),
    ("backup-keeps-failed-copies", succeeding, PROTOCOL, "end of a backup job"),
    ("backup-keeps-failed-copies", asking("blockdev-backup", **{"bitmap-mode": "never"}),
     PROTOCOL, "a bitmap after a backup that copied a quarter"),
    ("throttled-job-obeys", asking("block-job-set-speed"), Verdict.HANG,
     "throttled-job-obeys: hang"),
    ("quit-beside-concluded-job", asking("blockdev-backup", **{"auto-dismiss": True}), PROTOCOL,
     "a job without auto-dismiss"),
    ("throttled-job-obeys", not_cancelled, PROTOCOL, "end of a cancelled job"),
)  # fmt: skip
