"""Bitmaps: each names every granule that was changed since it began, and none that was not touched.

What a job leaves of its bitmap depends on its ``bitmap-mode`` and on how it ended, and is explained
by the same changes before T0 as its target. With ``always``, what a job that failed or was
cancelled has not copied stays in the bitmap. A copy that the target acknowledged counts as copied
also where the target is gone with it: QEMU does not flush the target of a job that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.point_in_time import Named, explaining, possible_ends
from qmpshim.conformance.explore.outcome import BackupLeft, BitmapLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.masks import cover, span, units
from qmpshim.model.pointintime.push import GRANULARITY, NEW


def bitmaps_name_changes(end: End) -> RealViolation | None:
    """Whether some order that explains the target explains all bitmaps."""
    if not end.scenario.backs_up or end.outcome is None or end.outcome.backup is None:
        return None
    left = end.outcome.backup
    gone = any(fault.gone and fault.image == "hidden" for _, fault in end.history.failed)
    beside = beside_transaction(end.scenario, end.history.precedence)
    wrong: list[RealViolation] = []
    for one in explaining(left, possible_ends(end)):
        for predicted in one.bitmaps:
            found = _first(_wrong(end.scenario, left, predicted, gone, beside))
            if found is None:
                return None
            wrong.append(found)
    return wrong[0] if wrong else None


def _first(found: Iterable[RealViolation | None]) -> RealViolation | None:
    return next((one for one in found if one is not None), None)


def _wrong(
    scenario: RealScenario,
    left: BackupLeft,
    predicted: dict[str, Named],
    gone: bool,
    beside: int,
) -> Iterable[RealViolation | None]:
    names = [one.name for one in left.bitmaps]
    if sorted(predicted) != names:
        seen = ", ".join(name or "one without a name" for name in names) or "none"
        cause = Cause(CauseKind.BITMAP_STATE, "list", seen, tuple(sorted(predicted)))
        text = f"the disk has the bitmaps {seen}, predicted {', '.join(sorted(predicted))}"
        yield RealViolation(Verdict.PROTOCOL, text, cause=cause)
        return
    for one in left.bitmaps:
        want = predicted[one.name]
        yield state_differs(one, want.recording)
        must, may = want.must, want.may
        if one.name == NEW:
            may |= beside
        if not gone:  # what the target did not keep of a copy when it went away is in no bitmap
            must |= want.uncopied & _not_copied(left, scenario.granule)
        yield granules_differ(one, must, may | must, scenario.size)


def beside_transaction(scenario: RealScenario, precedence: Sequence[frozenset[int]]) -> int:
    """What was written while a transaction made a bitmap and started a job, in whole granules.

    The bitmap is made before the disk is drained for the job, so it may name what is in the backup
    already (``qmp_transaction`` and ``blockdev_backup_action``, blockdev.c).

    :param precedence: for each operation those that had ended when it started
    """
    touched = 0
    for index, op in enumerate(scenario.ops):
        if op.verb is Verb.BACKUP_AND_BITMAP:
            for other, beside in enumerate(scenario.ops):
                apart = other in precedence[index] or index in precedence[other]
                if beside.changes and not apart:
                    touched |= span(beside.start, beside.count)
    return cover(touched, GRANULARITY, scenario.size)


def _not_copied(left: BackupLeft, granule: int) -> int:
    """The sectors of the granules of which the target has nothing.

    :param granule: sectors that are copied at once
    """
    nothing = 0
    for start in range(0, len(left.target), granule):
        sectors = range(start, min(start + granule, len(left.target)))
        if all(left.target[sector] is None for sector in sectors):
            nothing |= span(start, len(sectors))
    return nothing


def state_differs(one: BitmapLeft, recording: bool, busy: bool = False) -> RealViolation | None:
    """Whether a bitmap records or not, and is in use or not, as it should be; and can be read."""
    if one.granules is None:
        text = f"bitmap {one.name} has other granules than it was made with, or than it counts"
        cause = Cause(CauseKind.BITMAP_STATE, one.name, "unreadable", ("readable",))
        return RealViolation(Verdict.PROTOCOL, text, cause=cause)
    seen, predicted = _state(one.recording, one.busy), _state(recording, busy)
    if seen == predicted:
        return None
    text = f"bitmap {one.name} is {seen}, predicted {predicted}"
    cause = Cause(CauseKind.BITMAP_STATE, one.name, seen, (predicted,))
    return RealViolation(Verdict.PROTOCOL, text, cause=cause)


def _state(recording: bool, busy: bool) -> str:
    return f"{'busy' if busy else 'idle'} and {'' if recording else 'not '}recording"


def granules_differ(one: BitmapLeft, must: int, may: int, size: int) -> RealViolation | None:
    """Whether a bitmap names each granule that it must, and none that it may not.

    :param must: sectors, as a set; a granule that has one of them has to be named
    :param may: sectors; a granule that has none of them must not be
    :param size: sectors of the disk
    """
    named = one.granules
    assert named is not None, "state_differs() comes first"
    for granule in range(-(-size // GRANULARITY)):
        start = granule * GRANULARITY
        bits = span(start, min(GRANULARITY, size - start))
        if granule not in named and must & bits:
            text = f"bitmap {one.name} does not name granule {granule}, which was changed"
            cause = Cause(CauseKind.BITMAP_MISSES, one.name)
            return RealViolation(Verdict.LOST_WRITE, text, cluster=granule, cause=cause)
        if granule in named and not may & bits:
            text = f"bitmap {one.name} names granule {granule}, which was not touched"
            text += f" ({units(may, GRANULARITY)} were)"
            cause = Cause(CauseKind.BITMAP_EXCEEDS, one.name)
            return RealViolation(Verdict.ALLOCATION, text, cluster=granule, cause=cause)
    return None
