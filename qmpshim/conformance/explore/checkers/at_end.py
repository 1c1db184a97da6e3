"""The end of an execution: what checkers are given of it, and which run, in order."""

from __future__ import annotations

from collections.abc import Sequence

from qmpshim.conformance.explore.checkers import (
    bitmaps,
    durability,
    final_state,
    liveness,
    point_in_time,
    probe,
    quorum,
)
from qmpshim.conformance.explore.checkers.end import Check, End
from qmpshim.conformance.explore.checkers.linearizability import RealViolation

#: While the gate still holds what it would hold.
HELD: Sequence[Check] = (liveness.operations_end,)
#: When the gate is open, and before the disks are looked at: that may fail, and hide these.
OPEN: Sequence[Check] = (
    liveness.commit_ends,
    liveness.backup_job_ends,
    liveness.rest_is_there,
    quorum.error_is_reported,
)
#: When the disks were looked at.
LOOKED: Sequence[Check] = (
    final_state.images_are_sound,
    final_state.outcome_is_explained,
    point_in_time.target_is_point_in_time,
    bitmaps.bitmaps_name_changes,
    durability.commit_is_flushed,
    probe.chain_works_on,
)


def check_end(end: End) -> RealViolation | None:
    """What is wrong with the end of an execution: the first that a checker finds."""
    wrong = first(HELD, end)
    if wrong is not None:
        return wrong
    end.machine.gate.open()
    wrong = first(OPEN, end)
    end.unflushed = durability.unflushed(end.machine, end.scenario, end.history)
    end.outcome, end.broken = final_state.look(end.machine, end.scenario, end.history)
    end.history.outcome = end.outcome
    return wrong or first(LOOKED, end)


def first(checks: Sequence[Check], end: End) -> RealViolation | None:
    """The first violation that one of these checks finds."""
    return next((wrong for check in checks if (wrong := check(end)) is not None), None)
