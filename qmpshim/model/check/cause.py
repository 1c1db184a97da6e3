"""Causes: what went wrong, as data that is the same for all schedules that fail in the same way.

A cause groups findings, is what a replay looks for, and is what a write-up of a known defect
matches. Nothing decides by its text: that is rendered last, from :data:`WORDING`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

NO_ANSWER = "no answer"


#: Of :attr:`CauseKind.FINAL_STATUS`, where the status reports none.
NO_ERROR = "None"


class CauseKind(StrEnum):
    """What went wrong. In a :class:`Cause` *subject* is of what, *detail* is how."""

    # The process or its monitor. Detail: QEMU's last words, without numbers and paths.
    ENDED = "ended"
    # The same in a directed case, which is the subject.
    DIRECTED_ENDED = "directed-ended"
    # An operation of the setup. Subject: the operation; detail: its answer, without numbers.
    SETUP_FAILS = "setup-fails"
    # Operations. Subject: the operation.
    HANGS = "hangs"
    WRONG_ANSWER = "wrong-answer"  # detail: the answer
    ERROR_MASKED = "error-masked"  # detail: image and verb of the I/O that failed
    ERROR_MASKED_BY_BOTH = "error-masked-by-both"  # detail: the same; the other disk's failed, too
    ERROR_MASKED_OLD_DATA = "error-masked-old-data"  # detail: the same; a read returns old data
    NO_QUORUM_EVENT = "no-quorum-event"
    # Commands and jobs.
    MISLEADING_STATUS = "misleading-status"
    FINAL_STATUS = "final-status"  # detail: the error that the status reports, or NO_ERROR
    NOT_IN_STATUS = "not-in-status"  # subject, detail: the failure, docs/block-replication.txt's
    ANSWERS_FIT_NO_ORDER = "answers-fit-no-order"
    STAYS = "stays"  # subject: an export or a job that was removed
    JOB_GONE = "job-gone"
    JOB_STATE = "job-state"  # subject: what QEMU reports of the job; detail: its value
    COMMIT_HANGS = "commit-hangs"
    COMMIT_NOT_FLUSHED = "commit-not-flushed"
    # An export's server.
    REPLY_OVERRUN = "reply-overrun"  # a reply goes on after the chunk that ends it
    # What reads return and disks hold. Subject: the read or the disk.
    WRONG_DATA = "wrong-data"  # detail: whose data there is
    NEW_DATA_AFTER_ERROR = "new-data-after-error"
    VIEW_UNREADABLE = "view-unreadable"
    VIEW_READABLE = "view-readable"
    DISKS_DIFFER = "disks-differ"
    VOTERS_DIFFER = "voters-differ"
    DATA_FITS_NO_ORDER = "data-fits-no-order"
    ALLOCATION = "allocation"  # subject: the overlay; detail: what kind of cluster there is
    CORRUPTION = "corruption"  # subject: the overlay; detail: what the reader reports
    # Backup jobs and dirty bitmaps. Subject: the job, or the bitmap's name.
    JOB_ENDS = "job-ends"  # detail: how
    JOB_ACTION = "job-action"  # what the job does at an error of the subject, a disk
    NO_POINT_IN_TIME = (
        "no-point-in-time"  # each sector of the target is old enough, not all at once
    )
    BITMAP_MISSES = "bitmap-misses"
    BITMAP_EXCEEDS = "bitmap-exceeds"
    BITMAP_STATE = "bitmap-state"  # detail: the state
    # Order of I/O.
    NEW_BEFORE_OLD = "new-before-old"
    COPY_OF_NEW_DATA = "copy-of-new-data"
    PRIMARY_NOT_FLUSHED = "primary-not-flushed"
    VOTER_NOT_FLUSHED = "voter-not-flushed"  # subject: the flush; detail: the disk
    NOT_ON_DISK = "not-on-disk"  # subject: the write; detail: the flush
    # What was done after the execution to see whether the chain works still.
    PROBE_FAILS = "probe-fails"  # subject: the probe
    PROBE_LOST = "probe-lost"  # subject: the disk
    VIEW_CHANGES = "view-changes"
    VIEW_CHANGES_AFTER_FAILED_CHECKPOINT = "view-changes-after-failed-checkpoint"
    # What a crash leaves.
    BROKEN_BY_CRASH = "broken-by-crash"  # subject: the image; detail: which reader reports it
    UNUSABLE_AFTER_CRASH = "unusable-after-crash"
    # What a directed case promises and does not hold. Detail: the name it has there.
    DIRECTED = "directed"
    DIRECTED_FAILED = "directed-failed"  # subject: the case; detail: the verdict
    # A COLO pair. Subject: the side, by its role.
    PAIR_DIVERGES = "pair-diverges"  # subject: what was compared; detail: the verdict
    PAIR_ENDED = "pair-ended"  # detail: by what, and its last words
    PAIR_DEADLOCKED = "pair-deadlocked"  # detail: which of its threads wait for what
    PAIR_UNRESPONSIVE = "pair-unresponsive"
    PAIR_MIGRATION = "pair-migration"  # detail: its status, and its error if there is one
    PAIR_GUEST_STOPS = "pair-guest-stops"  # detail: how the side's guest is found
    PAIR_STUCK = "pair-stuck"
    PAIR_FAILS = "pair-fails"  # detail: the error that a step ended with
    PAIR_WRITES_LEFT_OUT = "pair-writes-left-out"

    @property
    def after_crash(self) -> bool:
        """Whether only crash points show it."""
        return self in (CauseKind.BROKEN_BY_CRASH, CauseKind.UNUSABLE_AFTER_CRASH)

    @property
    def of_probe(self) -> bool:
        """Whether only what is done after the execution shows it."""
        return self in (
            CauseKind.PROBE_FAILS,
            CauseKind.PROBE_LOST,
            CauseKind.VIEW_CHANGES,
            CauseKind.VIEW_CHANGES_AFTER_FAILED_CHECKPOINT,
        )


class Phase(StrEnum):
    """When it went wrong."""

    SETUP = "setup"
    EXECUTION = "execution"
    TEAR_DOWN = "tear-down"


class Relation(StrEnum):
    """How an injected fault bears on what went wrong."""

    AFTER = "after"  # every operation that met it is as the model has it
    BESIDE = "beside"  # operations were taken at their own word


@dataclass(frozen=True, slots=True)
class FaultContext:
    """The injected fault beside which it went wrong.

    :ivar what: ``failed hidden write``, or ``hidden`` for an image that is gone for good
    :ivar gone: the image is gone for good
    """

    relation: Relation
    what: str
    gone: bool = False

    def __str__(self) -> str:
        what = f"the {self.what} disk went away" if self.gone else f"a failed {self.what}"
        return f"{self.relation} {what}"


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong.

    :ivar subject: of what: an operation, a disk; see :class:`CauseKind`
    :ivar detail: how
    :ivar predicted: what was predicted in place of *detail*, each possibility
    :ivar fault: the injected fault that it came of, where that is part of the cause
    """

    kind: CauseKind
    subject: str = ""
    detail: str = ""
    predicted: tuple[str, ...] = ()
    phase: Phase = Phase.EXECUTION
    fault: FaultContext | None = None

    def beside(self, fault: FaultContext) -> Cause:
        """The same, with an injected fault."""
        return replace(self, fault=fault)

    def __str__(self) -> str:
        text = WORDING[self.kind].format(
            subject=self.subject, detail=self.detail, predicted=OR.join(self.predicted)
        )
        behind = f", {self.fault}" if self.fault else ""
        return f"{PHASES[self.phase]}{text}{behind}"

    def to_json(self) -> dict[str, Any]:
        """As :func:`~.cause_reader.cause_from_json` reads it; what is empty is left out."""
        value: dict[str, Any] = {"kind": self.kind.value}
        if self.subject:
            value["subject"] = self.subject
        if self.detail:
            value["detail"] = self.detail
        if self.predicted:
            value["predicted"] = list(self.predicted)
        if self.phase is not Phase.EXECUTION:
            value["phase"] = self.phase.value
        if self.fault is not None:
            value["fault"] = {
                "relation": self.fault.relation.value,
                "what": self.fault.what,
                "gone": self.fault.gone,
            }
        return value


#: How each kind is put in words.
WORDING: dict[CauseKind, str] = {
    CauseKind.SETUP_FAILS: "{subject} of the setup: {detail}",
    CauseKind.HANGS: "{subject} hangs",
    CauseKind.WRONG_ANSWER: "{subject} answers {detail}",
    CauseKind.ERROR_MASKED: "{subject} says success after a refused {detail}",
    CauseKind.ERROR_MASKED_BY_BOTH: (
        "{subject} says success after a refused {detail} and a refused secondary one"
    ),
    CauseKind.ERROR_MASKED_OLD_DATA: (
        "{subject} says success after a refused {detail}, and is not read back"
    ),
    CauseKind.NO_QUORUM_EVENT: "{subject}: neither an error nor QUORUM_REPORT_BAD",
    CauseKind.MISLEADING_STATUS: "status answers I/O error occurred while failing over",
    CauseKind.FINAL_STATUS: "final status {detail}",
    CauseKind.NOT_IN_STATUS: "case {subject}. {detail}: not in the status",
    CauseKind.ANSWERS_FIT_NO_ORDER: "answers do not fit together",
    CauseKind.STAYS: "{subject} does not go",
    CauseKind.JOB_GONE: "the backup job is gone",
    CauseKind.JOB_STATE: "the backup job has {subject} {detail} instead of {predicted}",
    CauseKind.COMMIT_HANGS: "failover's commit hangs",
    CauseKind.COMMIT_NOT_FLUSHED: "commit not flushed",
    CauseKind.REPLY_OVERRUN: "a reply of the NBD server goes on after its last chunk",
    CauseKind.WRONG_DATA: "{subject}: {detail} instead of {predicted}",
    CauseKind.NEW_DATA_AFTER_ERROR: "{subject}: new data after an I/O error",
    CauseKind.VIEW_UNREADABLE: "the view cannot be read",
    CauseKind.VIEW_READABLE: "the view can be read",
    CauseKind.DISKS_DIFFER: "primary and secondary disk differ",
    CauseKind.VOTERS_DIFFER: "disks that vote differ",
    CauseKind.DATA_FITS_NO_ORDER: "reads and disks fit no order",
    CauseKind.ALLOCATION: "{subject} cluster {detail} instead of {predicted}",
    CauseKind.CORRUPTION: "{subject} disk: {detail}",
    CauseKind.JOB_ENDS: "the {subject} ends as {detail} instead of {predicted}",
    CauseKind.JOB_ACTION: "the backup job does {detail} instead of {predicted} at the {subject}",
    CauseKind.NO_POINT_IN_TIME: "the {subject} is the disk at no single point in time",
    CauseKind.BITMAP_MISSES: "bitmap {subject} misses a change",
    CauseKind.BITMAP_EXCEEDS: "bitmap {subject} names what was not touched",
    CauseKind.BITMAP_STATE: "bitmap {subject} is {detail} instead of {predicted}",
    CauseKind.NEW_BEFORE_OLD: "new data before old is saved",
    CauseKind.COPY_OF_NEW_DATA: "the copy holds new data",
    CauseKind.PRIMARY_NOT_FLUSHED: "{subject} does not flush the primary disk",
    CauseKind.VOTER_NOT_FLUSHED: "{subject} does not flush the {detail} disk",
    CauseKind.NOT_ON_DISK: "{subject} not on disk after {detail}",
    CauseKind.PROBE_FAILS: "a {subject} afterwards fails",
    CauseKind.PROBE_LOST: "the next guest write is not on the {subject} disk",
    CauseKind.VIEW_CHANGES: "the view changes with the next primary write",
    CauseKind.VIEW_CHANGES_AFTER_FAILED_CHECKPOINT: (
        "the view changes with the next primary write, after a failed checkpoint"
    ),
    CauseKind.BROKEN_BY_CRASH: "{subject} broken, says {detail}, after a crash",
    CauseKind.UNUSABLE_AFTER_CRASH: "reopening after a crash",
    CauseKind.DIRECTED_ENDED: "{subject}: crash: {detail}",
    CauseKind.DIRECTED_FAILED: "{subject}: {detail}",
    CauseKind.DIRECTED: "{detail}",
    CauseKind.PAIR_DIVERGES: "{detail}: {subject}",
    CauseKind.PAIR_ENDED: "{subject} ended by {detail}",
    CauseKind.PAIR_DEADLOCKED: "{subject} deadlocked: {detail}",
    CauseKind.PAIR_UNRESPONSIVE: "{subject} does not answer QMP",
    CauseKind.PAIR_MIGRATION: "{subject}: migration is {detail} instead of colo",
    CauseKind.PAIR_GUEST_STOPS: "the guest of the {subject} {detail}",
    CauseKind.PAIR_STUCK: "both sides answer, and nothing moves",
    CauseKind.PAIR_FAILS: "{detail}",
    CauseKind.PAIR_WRITES_LEFT_OUT: (
        "a checkpoint is taken although writes have not reached the secondary"
    ),
    CauseKind.ENDED: "{detail}",
}

OR = " or "  # between the possibilities of what was predicted
#: What stands before the words of a cause, by its phase.
PHASES = {
    Phase.SETUP: "before the scenario begins: ",
    Phase.EXECUTION: "",
    Phase.TEAR_DOWN: "taken apart: ",
}


def migration_detail(status: str, error: str) -> str:
    """The detail of :attr:`CauseKind.PAIR_MIGRATION`."""
    return f"{status} ({error})" if error else status
