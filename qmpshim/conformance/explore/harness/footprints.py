"""What each step of a real QEMU may touch: so the explorer knows whose order matters.

A place is a backup cluster, on whatever image: that two operations on one cluster keep out of each
other's way is what is to be found out, not assumed. (It has 64 KiB at least, however small qcow2's
clusters are: copies of two of them in one wait for each other.) A step counts as touching all
clusters of its operation, but for two cases: reads that are let go only look, and an I/O that is
let go without anything coming of it yet (another of the same operation is still to come) touched
its own clusters. Commands, flushes and FUA writes touch everything; so do all, where qcow2's own
I/O is held: one table is about the clusters of many.

Of disks that vote each has places of its own. An I/O of one that is let go touches that, and those
on which more I/O comes of it; whether it ends its operation matters to those alone that start
later, and to start one touches all.

While a backup job copies in the background, an I/O of it touches what it is about, and all of the
operations that go on when it is let go. That holds as long as another I/O is held that can only be
the job's: the step after which none is may end the job, or have it look for more to copy anywhere.
So that step touches everything, and so does each one after an I/O has failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qmpshim.conformance.explore.harness.choices import Fail, RealChoice, Start
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.model.explore.system import Footprint
from qmpshim.model.operations import Operation
from qmpshim.model.units import touched

EVERYTHING = Footprint(-1, -1)  # every bit: a disk may have any number of clusters
_STATUS = Footprint(1, 1)  # the place before those of the clusters


class Footprints:
    """The footprints of *scenario*'s steps.

    :param all_io: qcow2's own I/O is held, too
    """

    def __init__(self, scenario: RealScenario, all_io: bool = False) -> None:
        self._all_io = all_io
        self._cluster = scenario.granule
        self._size = scenario.size
        self._clusters = -(-scenario.size // self._cluster)
        self._disks = scenario.topology.voters or ("",)
        self._backs_up = [op.backs_up for op in scenario.ops]
        self._ops = [
            EVERYTHING if scenario.changes_chain(op) else self._works_with(op)
            for op in scenario.ops
        ]
        self._narrow = [
            not (all_io or scenario.backs_up or scenario.changes_chain(op))
            and op.count > 0
            and len(touched(op.start, op.count, scenario.smallest_unit)) == 1
            for op in scenario.ops
        ]

    def _places(self, start: int, count: int, disk: str = "") -> int:
        """The places of a range, on one of the disks that vote or on all."""
        places = sum(2 << n for n in touched(start, count, self._cluster))
        numbers = [self._disks.index(disk)] if disk else range(len(self._disks))
        return sum(places << number * self._clusters for number in numbers)

    def _works_with(self, op: Operation) -> Footprint:
        if op.queries:
            return _STATUS
        if self._all_io or not op.is_request or op.makes_durable:
            return EVERYTHING
        places = self._places(op.start, op.count)
        return Footprint(places, places)

    def step(self, choice: RealChoice, thread: int, named: NamedIo | None, more: bool) -> Footprint:
        """The footprint of a step that was taken.

        :param named: the I/O that was let go; ``None``: an operation was started
        :param more: the operation goes on without anything new to see of it
        """
        whole = self._ops[thread]
        if isinstance(choice, Fail):
            return EVERYTHING
        if isinstance(choice, Start) or named is None or not named.count:
            return whole
        if whole in (EVERYTHING, _STATUS):
            return whole
        if more:
            places = self._places(named.start, named.count)
            return Footprint(places, 0 if named.verb == "read" else places)
        return Footprint(whole.reads, 0) if named.verb == "read" else whole

    def of_copy(self, named: NamedIo, coming: Iterable[NamedIo]) -> Footprint:
        """The footprint of a step that let an I/O of a backup job go; others of it are held.

        :param coming: the I/Os that came of it
        """
        if self._all_io or not named.count:
            return EVERYTHING
        places = self._places(named.start, named.count)
        for other in coming:
            whole = self._ops[other.op]
            own = self._places(other.start, other.count) if whole is EVERYTHING else whole.writes
            places |= own or EVERYTHING.writes
        return Footprint(places, 0 if named.verb == "read" else places)

    def of_voter(self, named: NamedIo, coming: Sequence[NamedIo]) -> Footprint:
        """The footprint of a step that let an I/O of a disk that votes go.

        :param coming: the I/Os that came of it
        """
        places = 0
        for io in (named, *coming):
            start, count = (io.start, io.count) if io.count else (0, self._size)  # a flush
            places |= self._places(start, count, io.io.image)
        return Footprint(places, places if coming or named.verb != "read" else 0)

    def is_copy(self, named: NamedIo, unfinished: Iterable[int]) -> bool:
        """Whether an I/O can only be one of a backup job's copies, and of no request's.

        :param unfinished: the operations that are not over
        """
        places = self._places(named.start, named.count)
        others = (op for op in unfinished if op != named.op)
        return self._backs_up[named.op] and not any(self._ops[op].writes & places for op in others)

    def alone(self, thread: int) -> bool:
        """Whether an operation has at most one I/O at a time: then only that can move it."""
        return self._narrow[thread]
