"""The end of an execution, real or sequential: answers, what was read, what all disks hold."""

from __future__ import annotations

from dataclasses import dataclass

from qmpshim.model.answers import Prediction
from qmpshim.model.pointintime.jobs import Ending

#: In the place of the owner of a sector that cannot be read.
UNREADABLE = -2
#: In the place of the owner of a sector between the end of a disk and the next one: as of zeroes.
GAP = 0
#: In the place of the allocation of a cluster that there is not, or that is not looked at.
NO_CLUSTER = -1


@dataclass(frozen=True, slots=True)
class BitmapLeft:
    """A dirty bitmap as QEMU reports it.

    :ivar granules: those that it names; None: they are of another size than those wanted, or not
        as many as it counts
    """

    name: str
    granules: frozenset[int] | None
    recording: bool
    busy: bool


@dataclass(frozen=True, slots=True)
class BackupLeft:
    """What a backup job and the dirty bitmaps left.

    :ivar target: owners of all sectors, ``None`` where the target has nothing
    :ivar ending: how the job ended; None: there was none
    """

    target: tuple[int | None, ...]
    ending: Ending | None
    bitmaps: tuple[BitmapLeft, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an execution, sequential or real.

    :ivar answers: by operation, predicted or real
    :ivar data: by reading operation: the owners of its sectors
    :ivar secondary: owners of all sectors
    :ivar hidden: owners, ``None`` where the image has nothing
    :ivar active: the same
    :ivar view: what is read at the guest's end, ``None`` if it cannot be read; a sector is ``None``
        where of two disks its own cannot
    :ivar alloc: by overlay, by cluster
    :ivar status: the error that replication reports
    :ivar primary: owners of all sectors of the primary's own disk, or of the first disk that votes;
        ``None`` where there is none
    :ivar tertiary: the same of the third disk that votes; the second is ``secondary``
    :ivar backup: what a backup job and the dirty bitmaps left, where there may be such
    :ivar bitmaps: those of a disk whose snapshot is pulled
    """

    answers: tuple[Prediction, ...]
    data: tuple[tuple[int, ...] | None, ...]
    secondary: tuple[int, ...]
    hidden: tuple[int | None, ...]
    active: tuple[int | None, ...]
    view: tuple[int | None, ...] | None
    alloc: tuple[tuple[int, ...], ...]
    status: str | None
    primary: tuple[int, ...] | None = None
    tertiary: tuple[int, ...] | None = None
    backup: BackupLeft | None = None
    bitmaps: tuple[BitmapLeft, ...] = ()
