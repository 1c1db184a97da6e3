"""The end of an execution: what checkers are given of it, and which run, in order."""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.conformance.explore.checkers import (
    bitmaps,
    durability,
    final_state,
    job_errors,
    liveness,
    point_in_time,
    probe,
    pulled_bitmaps,
    pulled_point,
    quorum,
)
from qmpshim.conformance.explore.checkers.end import Check, End
from qmpshim.conformance.explore.violation import RealViolation

#: While the gate still holds requests.
GATE_CLOSED: Sequence[Check] = (
    liveness.operations_end,
    job_errors.actions_fit_options,
    job_errors.paused_job_is_there,
)
#: When the gate is open, and before the disks are read: that may fail, and hide these.
GATE_OPEN: Sequence[Check] = (
    job_errors.paused_job_obeys,
    liveness.commit_ends,
    liveness.backup_job_ends,
    liveness.rest_is_there,
    liveness.job_is_as_controlled,
    quorum.error_is_reported,
    quorum.bad_disk_is_named,
)
#: When the disks were read.
DISKS_READ: Sequence[Check] = (
    final_state.images_are_sound,
    final_state.outcome_is_explained,
    point_in_time.target_is_point_in_time,
    bitmaps.bitmaps_name_changes,
    pulled_point.snapshot_is_point_in_time,
    pulled_bitmaps.pulled_bitmaps_hold,
    durability.commit_is_flushed,
    probe.chain_works_on,
)


def check_end(end: End) -> RealViolation | None:
    """What is wrong with the end of an execution: the first that a checker finds."""
    wrong = first(GATE_CLOSED, end)
    if wrong is not None:
        return wrong
    end.machine.gate.open()
    wrong = first(GATE_OPEN, end)
    end.unflushed = durability.unflushed(end.machine, end.scenario, end.history)
    end.outcome, end.broken = final_state.look(end.machine, end.scenario, end.history)
    end.history.outcome = end.outcome
    return wrong or first(DISKS_READ, end)


def first(checks: Sequence[Check], end: End) -> RealViolation | None:
    """The first violation that one of these checks finds."""
    return next((wrong for check in checks if (wrong := check(end)) is not None), None)
