"""Job errors: a backup job does at an error what its options are; one that pauses can go on.

``block_job_error_action`` in blockjob.c of QEMU 5.2, 7.2 and 10.0: an event reports the error and
what is done. A job that stops is ``paused``, as if by its user; its ``io-status`` is ``nospace`` or
``failed``, and it has not ended. Once it is resumed it copies again what failed (``backup_loop``,
block/backup.c). Where a disk is gone for good it cannot, and is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EIO, ENOSPC

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.point_in_time import disk_of, may_be_of_job
from qmpshim.conformance.explore.harness.choices import CUTS, failures
from qmpshim.conformance.explore.harness.events import JobPaused, Note
from qmpshim.conformance.explore.harness.operations import command
from qmpshim.conformance.explore.harness.push import (
    JobError,
    ending_of_job,
    errors_of_job,
    paused_by_error,
)
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import CommandFailed
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb

_JOB = "backup job"


def actions_fit_options(end: End) -> RealViolation | None:
    """Whether each error that the job reports was one, and is met as the options have it."""
    if not end.scenario.backs_up:
        return None
    possible = {
        JobError(disk, end.scenario.on_error(disk).at(errno)) for disk, errno in _job_errors(end)
    }
    for error in errors_of_job(end.machine):
        if error not in possible:
            predicted = tuple(sorted(one.action for one in possible if one.disk == error.disk))
            wanted = " or ".join(predicted) or "none"
            text = f"the backup job does at an error of its {error.disk}: {error.action}"
            text += f", predicted {wanted}"
            cause = Cause(CauseKind.JOB_ACTION, error.disk, error.action, predicted)
            return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
    return None


def paused_job_is_there(end: End) -> RealViolation | None:
    """Whether a job that an error has paused has not ended, and is shown as what it is."""
    if not _is_paused(end):
        return None
    if (ending := ending_of_job(end.machine)) is not None:
        how = ending.name.lower()
        text = f"the backup job ends as {how}, although an error has paused it"
        cause = Cause(CauseKind.JOB_ENDS, _JOB, how, ("paused",))
        return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
    jobs = end.machine.call("query-block-jobs")
    found: Mapping[str, object] = jobs[0] if jobs else {}
    full = {errno == ENOSPC for _, errno in _job_errors(end)}
    predicted = {
        "status": ("paused",),
        "paused": (True,),
        "io-status": tuple("nospace" if one else "failed" for one in sorted(full)),
    }
    for what, wanted in predicted.items():
        if found.get(what) not in wanted:
            words = tuple(map(str, wanted))
            text = f"a backup job that an error has paused has {what} {found.get(what)}"
            text += f", predicted {' or '.join(words)}"
            cause = Cause(CauseKind.JOB_STATE, what, str(found.get(what)), words)
            return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
    return None


def paused_job_obeys(end: End) -> RealViolation | None:
    """Resume a job that an error has paused; cancel it where a disk is gone for good.

    That it then ends, and as what, other checkers find out.
    """
    if not _is_paused(end):
        return None
    verb = Verb.JOB_CANCEL if end.history.gone() else Verb.JOB_RESUME
    try:
        end.machine.call(*command(end.machine, verb))
    except CommandFailed as error:
        text = f"{verb} of a backup job that an error has paused fails: {error.desc}"
        cause = Cause(CauseKind.WRONG_ANSWER, verb, error.desc)
        return RealViolation(Verdict.ERROR_CONTRACT, text, cause=cause)
    end.history.given_up = verb is Verb.JOB_CANCEL
    end.history.events += [JobPaused(), Note(f"afterwards: {verb.replace('_', ' ')}")]
    return None


def _is_paused(end: End) -> bool:
    return end.scenario.stops and paused_by_error(end.machine, end.scenario, end.history)


def _job_errors(end: End) -> set[tuple[str, int]]:
    """The errors that the job may have met: of which disk, and which errno."""
    found = set()
    for io, fault in failures(end.history.steps):
        if fault in CUTS:
            found.add((disk_of(io), EIO))
        elif may_be_of_job(io):
            found.add((disk_of(io), fault))
    return found
