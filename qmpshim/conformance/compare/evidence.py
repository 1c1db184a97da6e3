"""What a divergence was seen by, as data: a stand-alone script looks for the same.

Sectors are of 512 bytes. Owners are operations by their numbers, 0 is zeroes; a run of them is
``(owner, sectors)``, a range of sectors ``(first, count)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import msgspec

Runs = tuple[tuple[int, int], ...]
Ranges = tuple[tuple[int, int], ...]


def owner_runs(owners: Iterable[int]) -> Runs:
    """Owners as runs; what the model has as zero is 0."""
    return tuple(
        (owner, sum(1 for _ in run)) for owner, run in groupby(max(0, owner) for owner in owners)
    )


class Answered(msgspec.Struct, frozen=True, tag="answer"):
    """An error of a command or a status (its text), or of a request (its errno); None: success."""

    predicted: str | int | None
    observed: str | int | None


class Returned(msgspec.Struct, frozen=True, tag="data"):
    """What reading an export, or a node by an export of its own, has to return.

    :ivar start: first sector
    """

    export: str
    start: int
    owners: Runs


class InFiles(msgspec.Struct, frozen=True, tag="file"):
    """What the files of images have to hold: the first, and the ones below it.

    :ivar start: first sector
    """

    images: tuple[str, ...]
    start: int
    owners: Runs


class NotInFile(msgspec.Struct, frozen=True, tag="nothing"):
    """Sectors that an image must not have of its own."""

    image: str
    ranges: Ranges


class Allocated(msgspec.Struct, frozen=True, tag="allocation"):
    """What an image's cluster may be: of ``unallocated``, ``zero``, ``data``."""

    image: str
    cluster: int
    allowed: tuple[str, ...]


class Held(msgspec.Struct, frozen=True, tag="held"):
    """What a disk holds in the end, the guest's end reads then, or an operation has read.

    :ivar where: ``hidden``, ``secondary``, ...; ``view``; or the operation's index
    :ivar start: first sector
    :ivar allowed: the owners that there may be, by sector, None for whatever it is
    """

    where: str | int
    start: int
    allowed: tuple[tuple[int | None, ...], ...]


class Unsound(msgspec.Struct, frozen=True, tag="check"):
    """An image in which ``qemu-img check`` finds something."""

    image: str


class JobEnded(msgspec.Struct, frozen=True, tag="job"):
    """How a job ended, and how it may: ``completed``, ``failed``, ``cancelled``."""

    job: str
    allowed: tuple[str, ...]
    observed: str


class JobSilent(msgspec.Struct, frozen=True, tag="silent"):
    """A job that had to report an error, and did not."""

    job: str


class BitmapNames(msgspec.Struct, frozen=True, tag="bitmaps"):
    """The bitmaps that a node has to have."""

    node: str
    names: tuple[str, ...]


class BitmapState(msgspec.Struct, frozen=True, tag="bitmap"):
    """What ``query-named-block-nodes`` has to have of a bitmap.

    :ivar least: the least ``count``, in bytes; :ivar most: the greatest
    """

    node: str
    name: str
    state: dict[str, bool | int]
    least: int
    most: int


class BitmapBits(msgspec.Struct, frozen=True, tag="bits"):
    """What a bitmap has to have of an export's sectors, and what it may have."""

    export: str
    name: str
    must: Ranges
    may: Ranges


class DisksDiffer(msgspec.Struct, frozen=True, tag="disks"):
    """Both disks of a pair, which have to be equal while no I/O is under way."""


class GuestSees(msgspec.Struct, frozen=True, tag="view"):
    """What a secondary's guest has to read: the last checkpoint's data, and what it wrote since."""


class DiskLeft(msgspec.Struct, frozen=True, tag="left"):
    """The disk of the side that is left, which has to hold what was acknowledged to its guest."""

    side: str


class AcknowledgedAlone(msgspec.Struct, frozen=True, tag="alone"):
    """A write of the primary's guest that was answered while the link is silent."""


class GuestReports(msgspec.Struct, frozen=True, tag="guest"):
    """A side's guest, which has to find what it wrote, and whose writes have to succeed."""

    side: str


class ReplicationStatus(msgspec.Struct, frozen=True, tag="status"):
    """Whether ``query-xen-replication-status`` of a side has to report an error."""

    side: str
    error: bool


class MigrationStatus(msgspec.Struct, frozen=True, tag="migration"):
    """The status that ``query-migrate`` of a side has where it has to be ``colo``."""

    side: str
    status: str


Evidence = (
    Answered
    | Returned
    | InFiles
    | NotInFile
    | Allocated
    | Held
    | Unsound
    | JobEnded
    | JobSilent
    | BitmapNames
    | BitmapState
    | BitmapBits
    | DisksDiffer
    | GuestSees
    | DiskLeft
    | AcknowledgedAlone
    | GuestReports
    | ReplicationStatus
    | MigrationStatus
)
