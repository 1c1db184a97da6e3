"""Pulled bitmaps: what was frozen at T0 stays as it was; what began then names all changes since.

That is what a backup program is to rely on that pulls a snapshot: by the bitmap that was frozen it
knows what to read now, by the one that began in the same transaction what the next time. T0 is when
the chain begins: before the operations of the setup. The disk holds what nothing writes again, so
each sector that ends as another has been changed, whatever failed and in whatever order; a request
that ended with an error may be named, too (``bdrv_co_write_req_finish``, block/io.c).

What a client reads of the frozen one meanwhile is in :mod:`.linearizability`.
"""

from __future__ import annotations

from qmpshim.conformance.compare.model_chain import frozen_at_start
from qmpshim.conformance.explore.checkers.bitmaps import granules_differ, state_differs
from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.masks import span
from qmpshim.model.pointintime.push import NEW


def pulled_bitmaps_hold(end: End) -> RealViolation | None:
    """Whether both bitmaps are as they must be, where a snapshot is pulled."""
    scenario, frozen = end.scenario, end.scenario.topology.frozen
    if frozen is None or end.outcome is None:
        return None
    left = {one.name: one for one in end.outcome.bitmaps if one.name}
    if left.keys() != {frozen.name, NEW}:
        seen = ", ".join(left) or "none"
        text = f"the disk has the bitmaps {seen}, predicted {frozen.name} and {NEW}"
        cause = Cause(CauseKind.BITMAP_STATE, "list", seen, (frozen.name, NEW))
        return RealViolation(Verdict.PROTOCOL, text, cause=cause)
    then, since = left[frozen.name], left[NEW]
    named = frozen_at_start(scenario.topology, scenario.size)
    must = changed(end.outcome)
    return (
        state_differs(then, recording=False, busy=True)  # the export uses it
        or granules_differ(then, named, named, scenario.size)
        or state_differs(since, recording=True)
        or granules_differ(since, must, must | touched(scenario), scenario.size)
    )


def changed(outcome: Outcome) -> int:
    """The sectors that do not hold what they held at T0, as a set."""
    return sum(1 << sector for sector, owner in enumerate(outcome.secondary) if owner != BASE)


def touched(scenario: RealScenario) -> int:
    """The sectors that some operation is to change, as a set."""
    found = 0
    for op in (*scenario.setup, *scenario.ops):
        if op.changes:
            found |= span(op.start, op.count)
    return found
