"""Judges a pair that stands still: four images against each other and against the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import DiskLeft, DisksDiffer, Evidence, GuestSees, Unsound
from qmpshim.conformance.compare.overlay import read_overlay, wrong_allocation
from qmpshim.conformance.pair.model import PairModel
from qmpshim.errors import ImageError
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.host.files import map_file
from qmpshim.machine.images.image_view import ImageView
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

Bytes = bytes | bytearray | memoryview


def first_difference(one: Bytes, other: Bytes) -> tuple[int, int] | None:
    """The first sector that differs, and how many do; None when none does."""
    left, right = (np.frombuffer(each, np.uint8) for each in (one, other))
    if np.array_equal(left, right):  # memoryviews compare byte by byte, in Python's time
        return None
    length = min(len(left), len(right))
    bad = (left[:length] != right[:length]).reshape(-1, SECTOR).any(axis=1)
    where = np.flatnonzero(bad)
    return (int(where[0]), len(where)) if len(where) else (length // SECTOR, 1)


def describe_sector(data: Bytes) -> str:
    """The beginning of a sector, for people."""
    return "zeroes" if not any(data) else f"{bytes(data[:8]).hex()}..."


class PairChecker:
    """Compares; :attr:`compared` counts the bytes."""

    def __init__(self, model: PairModel) -> None:
        self.model = model
        self.compared = 0
        self.checks = 0

    def disks(self, primary: ColoNode, secondary: ColoNode) -> Iterator[Divergence]:
        """All I/O has ended: both disks must be equal, and hold what passed the link."""
        self.checks += 1
        model, there = self.model, map_file(secondary.disk)
        self.compared += 2 * len(there)
        yield from self._equal(
            Verdict.CONTENT,
            "secondary disk",
            model.disk,
            there,
            DisksDiffer(),
            lambda sector: f" ({model.describe_writer(sector)})",
        )
        yield from self._equal(
            Verdict.LOST_WRITE,
            "secondary disk against primary disk",
            map_file(primary.disk),
            there,
            DisksDiffer(),
            lambda sector: ", as the primary disk has it",
        )

    def _equal(
        self,
        verdict: Verdict,
        where: str,
        expected: Bytes,
        there: Bytes,
        evidence: Evidence,
        remark: Callable[[int], str] = lambda sector: "",
    ) -> Iterator[Divergence]:
        """A disk's bytes against those it must have; *remark*: what to add of a sector."""
        if found := first_difference(there, expected):
            sector, count = found
            predicted = describe_sector(_sector(expected, sector)) + remark(sector)
            observed = describe_sector(_sector(there, sector))
            yield self._differs(verdict, where, predicted, observed, sector, count, evidence)

    def _differs(
        self,
        verdict: Verdict,
        where: str,
        predicted: str,
        observed: str,
        sector: int,
        count: int,
        evidence: Evidence,
    ) -> Divergence:
        more = f" (and {count - 1} more sectors)" if count > 1 else ""
        at = f" in sector {sector} (byte {sector * SECTOR})"
        observed = f"{observed} there{more}"
        return self.divergence(verdict, where, predicted + at, observed, evidence)

    def disk_alone(
        self, path: Path, expected: Bytes, where: str, side: str
    ) -> Iterator[Divergence]:
        """After a failover: one disk against what it must hold.

        :param side: whose it is
        """
        self.checks += 1
        there = map_file(path)
        self.compared += len(there)
        yield from self._equal(Verdict.LOST_WRITE, where, expected, there, DiskLeft(side))

    def overlay(self, member: ColoNode, node: str) -> Iterator[Divergence]:
        """Hidden or active disk: its allocation, then its bytes."""
        where = f"{node} disk"
        overlay, broken = read_overlay(map_file(member.image(node)))
        if broken is not None:
            yield self.divergence(
                Verdict.CORRUPTION, where, broken.predicted, broken.observed, Unsound(node)
            )
        if overlay is None:
            return
        predicted = self.model.allocation(node)
        if wrong := wrong_allocation(predicted, overlay.allocation, self.model.cluster):
            yield self.divergence(Verdict.ALLOCATION, where, wrong.predicted, wrong.observed)
        for piece in overlay.view.pieces():
            if piece.alloc is not Alloc.DATA or piece.data is None:
                continue
            self.compared += piece.length
            expected = self.model.content(node, piece.offset, piece.length)
            if found := first_difference(piece.data, expected):
                sector, count = found
                yield self._differs(
                    Verdict.CONTENT if node == "active" else Verdict.ISOLATION,
                    where,
                    describe_sector(_sector(expected, sector)),
                    describe_sector(_sector(piece.data, sector)),
                    piece.offset // SECTOR + sector,
                    count,
                    GuestSees(),
                )
                return

    def divergence(
        self,
        verdict: Verdict,
        where: str,
        predicted: str,
        observed: str,
        evidence: Evidence | None = None,
    ) -> Divergence:
        """What is wrong now, after the checkpoints that were taken so far."""
        checkpoint = self.model.checkpoints
        return Divergence(verdict, where, checkpoint, predicted, observed, evidence=evidence)

    @staticmethod
    def holds(image: Path, offset: int, data: bytes) -> bool:
        """Whether an overlay has these bytes itself, from byte *offset* on."""
        try:
            pieces = list(ImageView.open(image).pieces(offset, len(data)))
        except ImageError:
            return False
        return all(piece.data is not None for piece in pieces) and data == b"".join(
            piece.data for piece in pieces if piece.data is not None
        )

    def all(self, primary: ColoNode, secondary: ColoNode) -> list[Divergence]:
        """Everything there is to compare while both sides stand still."""
        found = list(self.disks(primary, secondary))
        for node in ("hidden", "active"):
            found += self.overlay(secondary, node)
        return found


def _sector(data: Bytes, sector: int) -> Bytes:
    return data[sector * SECTOR : (sector + 1) * SECTOR]
