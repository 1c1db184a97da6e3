"""Dirty bitmaps: what they must and what they may name, and when a command is refused.

Restates block/dirty-bitmap.c and block/monitor/bitmap-qmp-cmds.c of QEMU 7.2 and 10.0, and what
docs/interop/bitmaps.rst promises of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from qmpshim.model.pointintime.sectors import NOTHING, Sectors


class ErrorClass(StrEnum):
    """QEMU's error classes (qapi/error.json), as far as these commands use them."""

    GENERIC = "GenericError"
    NOT_ACTIVE = "DeviceNotActive"


class RefusedError(Exception):
    """A command that QEMU's documents want refused.

    :ivar error_class: of the answer
    """

    def __init__(self, why: str, error_class: ErrorClass = ErrorClass.GENERIC) -> None:
        super().__init__(why)
        self.error_class = error_class


@dataclass(slots=True)
class Bitmap:
    """One dirty bitmap. Its sets are in whole granules.

    :ivar granularity: sectors of a granule
    :ivar size: sectors of the disk
    :ivar must: granules that were changed since it began; each has to be marked
    :ivar may: granules that were touched since it began; no other may be marked
    :ivar enabled: it records (its own flag: a bitmap with a successor does not)
    :ivar since: the version of the disk since which it names every change; None: it does not
    :ivar stored: the image holds it, marked as in use as long as QEMU runs
    :ivar user: what keeps it busy, a job's id or an export's; None: nothing does
    :ivar uncopied: sectors of which it has to name each that a failed job has not copied
    :ivar mismarked: granules that a known defect has marked in it, and nothing has cleared since
    :ivar successor: records while a job uses it (bdrv_dirty_bitmap_create_successor)
    """

    name: str
    granularity: int
    size: int
    enabled: bool = True
    persistent: bool = False
    since: int | None = None
    must: Sectors = NOTHING
    may: Sectors = NOTHING
    stored: bool = False
    inconsistent: bool = False
    user: str | None = None
    uncopied: Sectors = NOTHING
    mismarked: Sectors = NOTHING
    successor: Bitmap | None = None

    @property
    def recording(self) -> bool:
        """Whether changes are recorded, be it in its successor (bdrv_dirty_bitmap_recording)."""
        return self.enabled or (self.successor is not None and self.successor.enabled)

    def covering(self, changed: Sectors) -> Sectors:
        """A set of sectors in whole granules of this bitmap."""
        return changed.cover(self.granularity, self.size)

    def record(self, changed: Sectors, touched: Sectors) -> None:
        """Record a request (bdrv_set_dirty).

        :param changed: sectors that read differently after it
        :param touched: sectors that it names
        """
        recorder = self.successor or self
        if recorder.enabled:
            recorder.must |= self.covering(changed)
            recorder.may |= self.covering(touched)
        elif changed:
            recorder.since = None

    @property
    def with_defect(self) -> Bitmap | None:
        """As a QEMU with the known defect has it; None: the defect was not met."""
        wrong = self.mismarked
        return replace(self, must=self.must | wrong, may=self.may | wrong) if wrong else None

    def check(self) -> None:
        """That it can be used (bdrv_dirty_bitmap_check).

        :raises RefusedError: it is busy or inconsistent
        """
        if self.user is not None:
            raise RefusedError(f"bitmap {self.name} is busy")
        if self.inconsistent:
            raise RefusedError(f"bitmap {self.name} is inconsistent")

    def clear(self, version: int) -> None:
        """Forget everything: it begins at this version of the disk."""
        self.must = self.may = self.uncopied = self.mismarked = NOTHING
        self.since = version

    def merge(self, source: Bitmap) -> None:
        """Take in what *source* names (hbitmap_merge, also of another granularity)."""
        self.must |= self.covering(source.must)
        self.may |= self.covering(source.may)
        self.uncopied |= source.uncopied
        self.mismarked |= self.covering(source.mismarked)

    def use(self, job: str, version: int) -> None:
        """A job begins to use it: from now on a successor records, which is empty."""
        self.successor = Bitmap("", self.granularity, self.size, self.enabled, since=version)
        self.enabled, self.user = False, job

    def abdicate(self) -> None:
        """The job has copied what it names: what its successor recorded is all that is left."""
        self._rejoin(NOTHING, NOTHING, since=True)
        self.uncopied = self.mismarked = NOTHING

    def reclaim(self) -> None:
        """The job has not: everything is given back, with what was recorded meanwhile."""
        self._rejoin(self.must, self.may, since=False)

    def reclaim_uncopied(self, must: Sectors, may: Sectors) -> None:
        """The job failed with bitmap-mode ``always``: what it did not copy is given back.

        :param must: sectors that the job had to copy, :param may: and those that it may have had to
        """
        self._rejoin(NOTHING, self.covering(may), since=False)
        self.uncopied, self.mismarked = must, NOTHING
        self.since = None

    def _rejoin(self, must: Sectors, may: Sectors, since: bool) -> None:
        successor = self.successor
        assert successor is not None
        self.must, self.may = must | successor.must, may | successor.may
        if since or successor.since is None:
            self.since = successor.since
        self.enabled, self.user, self.successor = successor.enabled, None, None
