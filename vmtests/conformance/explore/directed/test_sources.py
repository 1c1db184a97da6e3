"""The directed cases about the sources and targets of backups see what they look at."""

from __future__ import annotations

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.conformance.workload import pattern
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import sees
from vmtests.support.mutants.clients import client_with, read_differently
from vmtests.support.mutants.disks import not_copied, nothing_held, seen_as, succeeding, taken_for
from vmtests.support.mutants.qmp import Arguments, asking, asking_otherwise, jobs_failed

OLD = bytes(pattern.data_of(1, 0, 1))
ERROR_CONTRACT = Verdict.ERROR_CONTRACT
PROTOCOL = Verdict.PROTOCOL


def raw_is_not_compressed(name: str, arguments: Arguments) -> Arguments:
    """A backup that cannot be compressed is done without."""
    return {**arguments, "compress": False} if arguments.get("target") == "raw" else arguments


test_a_case_sees = sees(
    ("backup-of-overlay", asking("blockdev-backup", sync="full"), PROTOCOL,
     "end of a backup of an overlay"),
    ("backup-of-overlay", not_copied("early"), Verdict.CONTENT,
     "clusters of a backup of an overlay: early"),
    ("backup-of-overlay", taken_for("snapshot", "nothing", "full"), Verdict.ALLOCATION,
     "clusters of a backup of an overlay: nothing"),
    ("backup-of-overlay", client_with("full", Nbd.READ, NbdAnswer(0, bytes(CLUSTER))),
     Verdict.CONTENT, "data of a backup of an overlay: full"),
    ("backup-of-overlay", nothing_held, Verdict.ORDER, "a job that looks what an overlay"),
    ("backup-of-overlay", succeeding, ERROR_CONTRACT, "sync=top without the overlay's tables"),
    ("backup-in-small-transfers", jobs_failed, ERROR_CONTRACT,
     "a backup in small transfers fails"),
    ("backup-in-small-transfers",
     client_with("image", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))), Verdict.CONTENT,
     "data of a backup in small transfers"),
    ("backup-compressed", asking("blockdev-backup", compress=False), Verdict.ALLOCATION,
     "compressed clusters of a packed backup"),
    ("backup-compressed", asking("blockdev-backup", compress=True), Verdict.ALLOCATION,
     "compressed clusters of a plain backup"),
    ("backup-compressed", jobs_failed, ERROR_CONTRACT, "a compressed backup fails"),
    ("backup-compressed", client_with("packed", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))),
     Verdict.CONTENT, "data of a packed backup"),
    ("backup-compressed", seen_as("plain", lambda image: image.replace(OLD, bytes(len(OLD)))),
     Verdict.CONTENT, "data of a plain backup"),
    ("backup-compressed", asking_otherwise(raw_is_not_compressed), ERROR_CONTRACT,
     "blockdev-backup fails silently"),
    ("backup-of-snapshot", client_with("image", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))),
     Verdict.CONTENT, "data of a backup of a snapshot"),
    ("backup-of-snapshot", jobs_failed, ERROR_CONTRACT, "a backup of a snapshot fails"),
    ("backup-between-files", jobs_failed, ERROR_CONTRACT, "a backup between files fails"),
    ("backup-of-snapshot", read_differently, PROTOCOL, "what a backup of a snapshot gives up"),
    ("backup-between-files", client_with("same", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))),
     Verdict.CONTENT, "a backup to a raw file"),
    ("backup-between-files", client_with("grows", Nbd.READ, NbdAnswer(0, bytes(4 * CLUSTER))),
     Verdict.CONTENT, "a backup to a qcow2 file"),
)  # fmt: skip
