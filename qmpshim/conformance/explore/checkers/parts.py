"""Requests done in part: qcow2 splits one wherever its clusters do not lie side by side.

The parts are written at the same time (``aio_task_pool``, since 4.2, ``qcow2_co_pwritev_part``,
block/qcow2.c). When one of them fails, no more are begun and the request fails, but those beside it
are done, or not. A discard or a write of zeroes is also cut to a node's alignment, one piece after
another (``bdrv_co_pdiscard``, ``bdrv_co_do_pwrite_zeroes``, block/io.c). The sequential execution
knows one I/O for the whole request.

The tasks of one copy go on side by side, too (``block_copy_dirty_clusters``, block/block-copy.c,
7.2). With ``on-cbw-error=break-snapshot`` the write happens although one of them fails, and what
the others have copied is what the disk held before (:meth:`_Parts.copied_of_broken`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.model.answers import OK, IoError, io_error
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import outwards

_HIDDEN, _ACTIVE = 0, 1  # places in an outcome's allocation


@dataclass(frozen=True, slots=True)
class Before:
    """What the operations begin with.

    :ivar copied: clusters of the hidden disk that are there
    :ivar snapshot: owners of all sectors, as they are read through the hidden disk
    """

    copied: frozenset[int]
    snapshot: tuple[int, ...]


def done_in_part(
    scenario: RealScenario,
    end: Outcome,
    seen: Outcome,
    faults: Sequence[InjectedFault],
    before: Before,
) -> Outcome:
    """A sequential end in which requests that failed have done more, where *seen* has it so.

    What failed itself is not done: only sectors beside it are either old or new.
    """
    parts = _Parts(scenario, end, seen)
    for fault in faults:
        parts.status_unknown(fault)
    if scenario.breaks_snapshot and end.view is None:
        for fault in faults:
            parts.copied_of_broken(fault, before.snapshot)
    for index, op in enumerate(scenario.ops):
        if not isinstance(end.answers[index], IoError):
            continue
        number = scenario.number(index) if op.writes else 0
        for fault in faults:
            if index in fault.over or (index in fault.unstarted and not fault.gone):
                continue
            if not scenario.is_about(op, fault.disk):
                continue
            if index in fault.unstarted:  # nothing of its own has failed yet
                fault = replace(fault, start=0, count=0)
            parts.unreadable(op, fault)
            if op.is_guest and scenario.replicates and (op.writes or op.zeroes):
                parts.active_written(op, number, fault)
            elif not op.is_primary:
                continue
            elif op.zeroes:
                parts.copied(op, fault)
                parts.secondary_written(op, number, fault)
                parts.not_copied(op, number, before.copied)
            elif fault.gone or fault.verb == "read":
                continue
            elif fault.image == "hidden" and op.changes:
                parts.copied(op, fault)
                if len(faults) > 1:  # a copy that it waited for may have failed, too
                    parts.not_copied(op, number, before.copied)
            elif fault.image == "secondary" and op.writes:
                parts.secondary_written(op, number, fault)
    return parts.outcome()


class _Parts:
    """An end that is brought closer to the one that was seen."""

    def __init__(self, scenario: RealScenario, end: Outcome, seen: Outcome) -> None:
        self._end, self._seen = end, seen
        self._end_of, self._granule = scenario.end_of, scenario.granule
        self._commits, self._replicates = scenario.commits, scenario.replicates
        self._accessible = scenario.accessible
        self._pulls = scenario.topology.begins_late
        self._is_snapshot = scenario.has("snapshot-access")
        self._clusters = scenario.unit_of("hidden"), scenario.unit_of("active")
        self._secondary, self._hidden = list(end.secondary), list(end.hidden)
        self._active = list(end.active)
        self._view = None if end.view is None else list(end.view)
        self._ops = scenario.ops
        self._numbers = [
            scenario.number(index) if op.writes else 0 for index, op in enumerate(scenario.ops)
        ]
        self._answers = list(end.answers)
        self._data = [None if data is None else list(data) for data in end.data]
        self._alloc = [list(kinds) for kinds in end.alloc]

    def outcome(self) -> Outcome:
        """The end as it is now."""
        return replace(
            self._end,
            answers=tuple(self._answers),
            data=tuple(None if data is None else tuple(data) for data in self._data),
            secondary=tuple(self._secondary),
            hidden=tuple(self._hidden),
            active=tuple(self._active),
            view=None if self._view is None else tuple(self._view),
            alloc=tuple(map(tuple, self._alloc)),
        )

    def unreadable(self, op: Operation, fault: InjectedFault) -> None:
        """Reads above an overlay that is gone fail where it may have got a part of *op*.

        Into the active disk goes what the guest changes, into the hidden disk the copies of what
        the primary changes, and what a reader of the snapshot discards.
        """
        if not fault.gone or not op.changes:
            return
        if fault.image != ("active" if op.is_guest and self._replicates else "hidden"):
            return
        unit = self._clusters[_ACTIVE] if fault.image == "active" else self._granule
        first, last = outwards(op.start, op.count, unit)
        for index, read in enumerate(self._ops):
            if (
                read.is_guest
                and read.reads
                and read.overlaps(first, last)
                and index not in fault.over
                and self._answers[index] == OK
                and self._seen.answers[index] == io_error(fault.errno)
            ):
                self._answers[index] = self._seen.answers[index]
                self._data[index] = None

    def status_unknown(self, fault: InjectedFault) -> None:
        """The block status of a disk that is gone, or of which an I/O failed, need not be known.

        It may be: what QEMU keeps in memory (``bdrv_bsc_is_data``), or adds where it can
        (BDRV_BLOCK_RECURSE), has no part in that (``bdrv_co_do_block_status``, block/io.c, 10.0).
        """
        for index, op in enumerate(self._ops):
            if (
                (fault.gone or fault.reader == index)
                and op.queries_status
                and index not in fault.over
                and self._seen.answers[index] == io_error(fault.errno)
            ):
                self._answers[index], self._data[index] = self._seen.answers[index], None

    def secondary_written(self, op: Operation, number: int, fault: InjectedFault) -> None:
        """Sectors of the secondary disk have the new data."""
        self._read(op, number, fault)
        for sector in _beside(range(op.start, op.start + op.count), fault):
            if self._seen.secondary[sector] == number:
                self._secondary[sector] = number
                if self._before_pull(fault) and self._seen.hidden[sector] == number:
                    self._hidden[sector] = number  # a later change has copied it
                if self._view is not None and self._is_seen_through(sector):
                    self._view[sector] = number

    def _is_seen_through(self, sector: int) -> bool:
        """Whether the guest's end reads there what the secondary disk has, as after a failover.

        Through ``snapshot-access`` never: it has a copy, or what a reader discarded.
        """
        hidden = self._hidden[sector]
        if self._is_snapshot or self._active[sector] is not None:
            return False
        return hidden in (None, self._secondary[sector])

    def _before_pull(self, fault: InjectedFault) -> bool:
        """Whether what failed may be before T0 of a pull that an operation starts."""
        starts = [index for index, op in enumerate(self._ops) if op.verb is Verb.START]
        return self._pulls and fault.over.isdisjoint(starts)

    def active_written(self, op: Operation, number: int, fault: InjectedFault) -> None:
        """Sectors of the active disk have the new data, their clusters' rest what was below."""
        if fault.verb == "read":  # of what a new cluster is filled up with
            cluster = self._clusters[_ACTIVE]
            start, end = outwards(fault.start, fault.count, cluster)
            fault = replace(fault, start=start, count=end - start)
        self._read(op, number, fault)
        written = [
            sector
            for sector in _beside(range(op.start, op.start + op.count), fault)
            if self._seen.active[sector] == number
        ]
        for sector in written:
            self._active[sector] = number
            if self._view is not None:
                self._view[sector] = number
        if self._commits:
            self.secondary_written(op, number, fault)
        for cluster in {sector // self._clusters[_ACTIVE] for sector in written}:
            self._allocate(_ACTIVE, cluster)
            for sector in self._sectors(_ACTIVE, cluster):
                below = None if self._end.view is None else self._end.view[sector]
                if self._active[sector] is None and self._seen.active[sector] == below:
                    self._active[sector] = below

    def copied(self, op: Operation, fault: InjectedFault) -> None:
        """Clusters of the hidden disk have the old data, of all that one copy is about."""
        first, last = outwards(op.start, op.count, self._granule)
        size = self._clusters[_HIDDEN]
        for cluster in range(first // size, last // size):
            sectors = self._sectors(_HIDDEN, cluster)
            old = self._end.secondary
            if len(_beside(sectors, fault)) == len(sectors) and all(
                self._end.hidden[one] is None and self._seen.hidden[one] == old[one]
                for one in sectors
            ):
                self._hidden[sectors.start : sectors.stop] = old[sectors.start : sectors.stop]
                self._allocate(_HIDDEN, cluster)

    def copied_of_broken(self, fault: InjectedFault, snapshot: Sequence[int]) -> None:
        """Clusters of the hidden disk have the old data, though the snapshot is broken.

        What failed has not, unless a write that waited for the copy has made it again
        (``block_copy_common``): by then the write whose copy it was may have happened.
        """
        ops = [
            (op, self._numbers[index])
            for index, op in enumerate(self._ops)
            if op.is_primary and op.changes and index not in fault.over | fault.unstarted
        ]
        for cluster in range(len(self._alloc[_HIDDEN])):
            sectors = self._sectors(_HIDDEN, cluster)
            granule = sectors.start // self._granule
            if self._accessible is not None and granule not in self._accessible:
                continue  # it is not copied at all
            first = granule * self._granule
            beside = [n for op, n in ops if op.overlaps(first, first + self._granule)]
            again = set(beside) if len(beside) > 1 else set()
            if not beside or (not again and len(_beside(sectors, fault)) < len(sectors)):
                continue
            if all(
                self._end.hidden[one] is None
                and (self._seen.hidden[one] == snapshot[one] or self._seen.hidden[one] in again)
                for one in sectors
            ):
                self._hidden[sectors.start : sectors.stop] = self._seen.hidden[
                    sectors.start : sectors.stop
                ]
                self._allocate(_HIDDEN, cluster)

    def not_copied(self, op: Operation, number: int, before: Collection[int]) -> None:
        """Clusters of the hidden disk are not there: of pieces that were not begun, or that were
        left to the copy of another operation (``block_copy_common``).
        """
        size = self._clusters[_HIDDEN]
        first, last = outwards(op.start, op.count, self._granule)
        for cluster in set(range(first // size, last // size)).difference(before):
            sectors = self._sectors(_HIDDEN, cluster)
            own = range(max(op.start, sectors.start), min(op.start + op.count, sectors.stop))
            old = self._end.secondary
            if all(self._seen.hidden[one] is None for one in sectors) and all(
                old[one] != number and self._seen.secondary[one] == old[one] for one in own
            ):
                self._hidden[sectors.start : sectors.stop] = [None] * len(sectors)
                self._allocate(_HIDDEN, cluster)

    def _read(self, op: Operation, number: int, fault: InjectedFault) -> None:
        """Reads by the same export have the new data of sectors that may be done.

        So have those of a snapshot that begins later.
        """
        may = set(_beside(range(op.start, op.start + op.count), fault))
        for index, read in enumerate(self._ops):
            data, seen = self._data[index], self._seen.data[index]
            reads = read.side is op.side or self._before_pull(fault)
            if reads and data is not None and seen is not None:
                for place, owner in enumerate(seen):
                    if owner == number and read.start + place in may:
                        data[place] = number

    def _allocate(self, overlay: int, cluster: int) -> None:
        if cluster < len(self._alloc[overlay]):
            self._alloc[overlay][cluster] = self._seen.alloc[overlay][cluster]

    def _sectors(self, overlay: int, cluster: int) -> range:
        size = self._clusters[overlay]
        start = cluster * size
        return range(start, min(start + size, self._end_of(start)))


def _beside(sectors: range, fault: InjectedFault) -> list[int]:
    """Those of them that what failed was not about."""
    return [one for one in sectors if not fault.start <= one < fault.start + fault.count]
