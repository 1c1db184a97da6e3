"""Compares images read from their files, by our own walk of the tables: targets of backups, and
disks that no QEMU has open.

* What a target holds is the disk at T0, however its job ended, and it holds nothing that the job
  was not to copy.
* The target of a job that completed holds all that had to be copied; with the backups below it it
  is the disk at T0, where its bitmap goes back to the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from qmpshim.conformance.compare.evidence import InFiles, NotInFile
from qmpshim.conformance.pointintime.comparisons import Diverged, compare_data, first_run
from qmpshim.conformance.workload.pattern import Comparer
from qmpshim.machine.chain.points import PointsChain, base_name, is_base
from qmpshim.machine.images.image_view import ImageView, InPieces, Piece, RawFile, through
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc, Contents
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.jobs import BackupJob, Ending
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors
from qmpshim.model.units import SECTOR


@dataclass(frozen=True, slots=True)
class Target:
    """Where a job copies to.

    :ivar name: what a command names: a node, a file, or all of its options
    :ivar image: the node's name of its file; :ivar backing: the images below it, from the top
    :ivar fails: a write to it fails, and its job has to report that. It need not where another job
        may end meanwhile: the drain pauses this one, which takes the error for the pause
        (``block_copy_call_failed`` in block/block-copy.c, 10.0) and copies again
    """

    name: str
    image: str
    backing: tuple[str, ...]
    fails: bool


def compare_target(
    chain: PointsChain, target: Target, job: BackupJob, ending: Ending, has: Sectors | None = None
) -> None:
    """Compare what a target holds.

    What it holds itself is compared as a whole; of what it has to hold, what is then left is
    looked for in the images below it.

    :param has: the sectors that it has to hold; None: what follows from how the job ended
    :raises Diverged: it holds other data, what was not to be copied, or less than it has to
    """
    where = f"target of a backup with sync={job.spec.sync} ({ending.name.lower()})"
    top = ImageView.open(chain.image(target.image))
    below = [_view(chain, name) for name in target.backing]
    files = tuple(chain.image(name).name for name in (target.image, *target.backing))
    there = _compare_held(where, files, top, job.t0)
    if extra := there - job.may:
        predicted = f"{first_run(extra)} are not copied"
        evidence = NotInFile(files[0], tuple(extra.runs()))
        raise Diverged(Verdict.ALLOCATION, where, predicted, "they are", evidence)
    if has is None:
        if ending is not Ending.COMPLETED:
            return
        has = sectors(0, chain.spec.size // SECTOR) if job.whole else job.must
    _compare_read(where, files, [top, *below], job.t0, has - there)


def compare_image(chain: PointsChain, number: int, disk: Disk, comparer: Comparer) -> None:
    """Compare what the image of a disk holds, which no QEMU has open.

    :raises Diverged: it holds other data, or lacks some
    """
    names = (f"disk{number}", base_name(number))
    files = tuple(chain.image(name).name for name in names)
    top, base = (_view(chain, name) for name in names)
    where = f"{names[0]} (file)"
    there = _compare_held(where, files, top, disk.now, comparer)
    _compare_read(where, files, [top, base], disk.now, disk.written - there, comparer)


def _compare_held(
    where: str, files: tuple[str, ...], image: InPieces, predicted: Contents, *more: Comparer
) -> Sectors:
    """Compare what an image holds itself; the sectors."""
    there = NOTHING
    for piece in image.pieces():
        if piece.alloc is not Alloc.UNALLOCATED:
            _compare(where, files, piece, predicted, *more)
            there |= sectors(piece.offset // SECTOR, piece.length // SECTOR)
    return there


def _compare_read(
    where: str,
    files: tuple[str, ...],
    images: Sequence[InPieces],
    predicted: Contents,
    part: Sectors,
    *more: Comparer,
) -> None:
    """Compare what is read of a chain of images, the top one first."""
    for start, count in part.runs():
        for piece in through(images, start * SECTOR, count * SECTOR):
            _compare(where, files, piece, predicted, *more)


def _view(chain: PointsChain, name: str) -> InPieces:
    path = chain.image(name)
    return RawFile(path) if is_base(name) else ImageView.open(path)


def _compare(
    where: str, files: tuple[str, ...], piece: Piece, t0: Contents, *more: Comparer
) -> None:
    start, count = piece.offset // SECTOR, piece.length // SECTOR
    if piece.data is not None:
        evidence = partial(InFiles, files, start)
        compare_data(Verdict.CONTENT, where, piece.data, t0, start, evidence, *more)
        return
    # Where the model has nothing there are zeroes, too.
    for first, some in t0.stored(start, count):
        evidence = partial(InFiles, files, first)
        compare_data(Verdict.CONTENT, where, bytes(some * SECTOR), t0, first, evidence)
