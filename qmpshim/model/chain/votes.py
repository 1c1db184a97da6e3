"""Disks that vote: what the guest's I/O does to the children of a quorum, and what it reads.

Restates block/quorum.c with ``read-pattern=quorum``, which does the same in 5.2, 7.2 and 10.0. A
read is sent to all children (``read_quorum_children``); what most of them return is what is read,
as a whole, if they are enough for ``vote-threshold`` (``quorum_vote``). A write is sent to all
(``quorum_co_pwritev``), so are zeroes, up to 5.2 as data, and a flush to one after the other
(``quorum_co_flush``); they succeed where enough children do. A child that fails has no vote, and
where too few are left the error is that of most children (``quorum_vote_error``).

All children hold what the guest's disk does, but for what they refused: one that holds something
else is "a corruption of a Quorum file" (``QUORUM_REPORT_BAD``, qapi/block-core.json).

Coroutines as in :mod:`~qmpshim.model.chain.secondary`. Positions and lengths are sectors.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from errno import EIO
from typing import TypeVar

from qmpshim.model.disks.image import Owners, RawImage, owned, whose
from qmpshim.model.runtime.coroutines import AioTaskPool, Co, ModelIOError

T = TypeVar("T", bound=Hashable)


class VotingDisks:
    """The disks below a quorum.

    :param names: of the disks, in the order in which QEMU goes through them
    :param size: virtual size in sectors
    :param threshold: how many have to agree, or to succeed
    """

    def __init__(self, names: Sequence[str], size: int, threshold: int) -> None:
        self.size = size
        self.threshold = threshold
        self.disks = tuple(RawImage(name, size) for name in names)

    def guest_read(self, start: int, count: int) -> Co[Owners]:
        """What most disks hold.

        :raises ModelIOError: too few of them can be read, or agree
        """
        found: dict[int, tuple[int, ...]] = {}

        def read(index: int) -> Co[None]:
            owners = yield from self.disks[index].read(start, count)
            found[index] = whose(owners)

        yield from self._vote(read)
        winner, many = _most(found)
        if many < self.threshold:
            raise ModelIOError(EIO)
        return array("q", winner)

    def guest_write(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes its data.

        :raises ModelIOError: too few disks take it
        """
        data = owned(op, count)
        yield from self._vote(lambda index: self.disks[index].write(start, data))

    def guest_zero(self, start: int, count: int, op: int) -> Co[None]:
        """Operation *op* writes zeroes.

        :raises ModelIOError: too few disks take them
        """
        yield from self._vote(lambda index: self.disks[index].zero(start, count, -op, False))

    def guest_discard(self, start: int, count: int, op: int) -> Co[None]:
        """The quorum has no ``bdrv_co_pdiscard``: nothing happens, and that is not an error."""
        return
        yield

    def guest_flush(self) -> Co[None]:
        """A flush of all disks, whatever becomes of each.

        :raises ModelIOError: too few can be flushed
        """
        yield from self._vote(lambda index: self.disks[index].flush())

    def _vote(self, do: Callable[[int], Co[None]]) -> Co[None]:
        """Do something with each disk, side by side.

        :raises ModelIOError: it fails on so many that too few are left
        """
        errors: dict[int, int] = {}

        def one(index: int) -> Co[None]:
            try:
                yield from do(index)
            except ModelIOError as error:
                errors[index] = error.errno

        pool = AioTaskPool()
        for index in range(len(self.disks)):
            yield from pool.start(one(index))
        yield from pool.wait_all()
        if len(self.disks) - len(errors) < self.threshold:
            raise ModelIOError(_most(errors)[0])


def _most(votes: Mapping[int, T]) -> tuple[T, int]:
    """What most vote for, and how many; of several such that of the last child to bring one up."""
    counts: dict[T, int] = {}
    for index in sorted(votes):
        counts[votes[index]] = counts.get(votes[index], 0) + 1
    most = max(counts.values())
    return next(one for one in reversed(counts) if counts[one] == most), most
