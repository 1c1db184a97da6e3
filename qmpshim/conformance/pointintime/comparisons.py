"""Compares what is seen of a disk and of its bitmaps with the model; a difference is raised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import (
    BitmapBits,
    BitmapState,
    Evidence,
    Runs,
    owner_runs,
)
from qmpshim.conformance.workload.pattern import Comparer
from qmpshim.machine.host.files import Bytes
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Contents
from qmpshim.model.pointintime.bitmap import Bitmap
from qmpshim.model.pointintime.points import PointDefect
from qmpshim.model.pointintime.sectors import Sectors
from qmpshim.model.units import SECTOR

_COMPARER = Comparer()  # of what is looked at once


class Diverged(Exception):
    """Something differs from its prediction; after which operation is not known yet.

    :ivar defect: the known defect with which it would not differ
    """

    def __init__(
        self,
        verdict: Verdict,
        where: str,
        predicted: str,
        observed: str,
        evidence: Evidence | None = None,
    ) -> None:
        super().__init__(where)
        self._found = Divergence(verdict, where, 0, predicted, observed, evidence=evidence)
        self.defect: PointDefect | None = None

    def at(self, operation: int) -> Divergence:
        """The divergence, after this operation."""
        return replace(self._found, operation=operation)


class Mismarked(Protocol):
    """A prediction that a bitmap marked by a known defect changes."""

    @property
    def with_defect(self) -> Self | None:
        """What a QEMU with the defect has; None: the defect was not met."""


M = TypeVar("M", bound=Mismarked)


def compare_mismarked(predicted: M, compare: Callable[[M], None]) -> None:
    """Compare with what is predicted, and what differs with what a known defect makes of that.

    Only where nothing is left to differ is it the defect.

    :param compare: with this prediction
    :raises Diverged: it differs
    """
    try:
        compare(predicted)
    except Diverged as found:
        other = predicted.with_defect
        if other is not None:
            with suppress(Diverged):
                compare(other)
                found.defect = PointDefect.ALWAYS_MARKS
        raise


def first_run(sectors: Sectors) -> str:
    """The first run of a set of sectors that is not empty, in words."""
    at, count = next(sectors.runs())
    return f"sectors {at}..{at + count - 1}"


def compare_data(
    verdict: Verdict,
    where: str,
    found: Bytes,
    contents: Contents,
    start: int,
    evidence: Callable[[Runs], Evidence],
    comparer: Comparer = _COMPARER,
) -> None:
    """Compare bytes with what is predicted from sector *start* on.

    :param evidence: made of the owners predicted, where they differ
    :raises Diverged: they differ
    """
    if wrong := comparer.compare(found, contents, start):
        owners = contents.read(start, len(found) // SECTOR)
        found_out = evidence(owner_runs(owners))
        raise Diverged(verdict, where, wrong[0].prediction, wrong[0].found, found_out)


@dataclass(frozen=True, slots=True)
class BitmapPlace:
    """A bitmap of a disk."""

    disk: int
    name: str

    @property
    def node(self) -> str:
        """The node that has it."""
        return f"disk{self.disk}"

    def __str__(self) -> str:
        return f"bitmap {self.node}/{self.name}"


def compare_bits(place: BitmapPlace, export: str, marked: Sectors, bitmap: Bitmap) -> None:
    """Compare the sectors that are *marked* in a bitmap.

    :param export: by which they were read
    :raises Diverged: one is missing, or there are more than there may be
    """
    where = str(place)
    missing, more = bitmap.must - marked, marked - bitmap.may
    if missing or more:
        must, may = tuple(bitmap.must.runs()), tuple(bitmap.may.runs())
        evidence = BitmapBits(export, place.name, must, may)
        at = first_run(missing or more)
        if missing:
            raise Diverged(Verdict.LOST_WRITE, where, f"{at} are dirty", "they are clean", evidence)
        raise Diverged(Verdict.ALLOCATION, where, f"{at} are clean", "they are dirty", evidence)


def compare_state(place: BitmapPlace, state: Mapping[str, Any], bitmap: Bitmap) -> None:
    """Compare what ``query-named-block-nodes`` has of a bitmap.

    :raises Diverged: it differs
    """
    where = str(place)
    predicted = {
        "granularity": bitmap.granularity * SECTOR,
        "recording": bitmap.recording,
        "busy": bitmap.user is not None,
        "persistent": bitmap.persistent,
        "inconsistent": bitmap.inconsistent,
    }
    observed = {key: state.get(key, False) for key in predicted}
    unit = bitmap.granularity
    least, most = (m.units(unit) * unit * SECTOR for m in (bitmap.must, bitmap.may))
    if bitmap.inconsistent:
        least, most = 0, state["count"]
    evidence = BitmapState(place.node, place.name, predicted, least, most)
    if predicted != observed:
        raise Diverged(Verdict.PROTOCOL, where, str(predicted), str(observed), evidence)
    if not least <= state["count"] <= most:
        range_ = f"a count from {least} to {most}"
        verdict = Verdict.LOST_WRITE if state["count"] < least else Verdict.ALLOCATION
        raise Diverged(verdict, where, range_, str(state["count"]), evidence)
