"""Compares what is seen of a disk and of its bitmaps with the model; a difference is raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.workload import pattern
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Owners
from qmpshim.model.pointintime.bitmap import Bitmap
from qmpshim.model.pointintime.masks import runs, units
from qmpshim.model.units import SECTOR


class Diverged(Exception):
    """Something differs from its prediction."""

    def __init__(self, verdict: Verdict, where: str, predicted: str, observed: str) -> None:
        super().__init__(where)
        self.verdict, self.where = verdict, where
        self.predicted, self.observed = predicted, observed

    def at(self, operation: int) -> Divergence:
        """The divergence, after this operation."""
        return Divergence(self.verdict, self.where, operation, self.predicted, self.observed)


def first_run(sectors: int) -> str:
    """The first run of a set of sectors that is not empty, in words."""
    at, count = next(runs(sectors))
    return f"sectors {at}..{at + count - 1}"


def compare_data(
    verdict: Verdict, where: str, found: pattern.Bytes, owners: Owners, start: int
) -> None:
    """Compare bytes with what these *owners* wrote, from sector *start* on.

    :raises Diverged: they differ
    """
    if wrong := pattern.mismatches(found, owners, start):
        raise Diverged(verdict, where, wrong[0].prediction, wrong[0].found)


def compare_bits(where: str, bitmap: Bitmap, marked: int) -> None:
    """Compare the sectors that are *marked* in a bitmap, and fix the model's bitmap to them.

    :raises Diverged: one is missing, or there are more than there may be
    """
    if missing := bitmap.must & ~marked:
        place = first_run(missing)
        raise Diverged(Verdict.LOST_WRITE, where, f"{place} are dirty", "they are clean")
    if more := marked & ~bitmap.may:
        place = first_run(more)
        raise Diverged(Verdict.ALLOCATION, where, f"{place} are clean", "they are dirty")
    # What is marked stays so until a command or a job clears it.
    bitmap.must = bitmap.may = marked


def compare_state(where: str, bitmap: Bitmap, state: Mapping[str, Any]) -> None:
    """Compare what ``query-named-block-nodes`` has of a bitmap.

    :raises Diverged: it differs
    """
    predicted = {
        "granularity": bitmap.granularity * SECTOR,
        "recording": bitmap.recording,
        "busy": bitmap.user is not None,
        "persistent": bitmap.persistent,
        "inconsistent": bitmap.inconsistent,
    }
    observed = {key: state.get(key, False) for key in predicted}
    if predicted != observed:
        raise Diverged(Verdict.PROTOCOL, where, str(predicted), str(observed))
    if bitmap.inconsistent:
        return
    unit = bitmap.granularity
    least, most = (units(m, unit) * unit * SECTOR for m in (bitmap.must, bitmap.may))
    if not least <= state["count"] <= most:
        range_ = f"a count from {least} to {most}"
        verdict = Verdict.LOST_WRITE if state["count"] < least else Verdict.ALLOCATION
        raise Diverged(verdict, where, range_, str(state["count"]))
