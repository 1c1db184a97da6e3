"""Symbolic disks: which operation owns each sector, and which clusters are allocated.

An *owner* stands for a sector's 512 bytes: ``+n`` is the data operation *n* wrote there, ``-n``
zeroes that operation *n* made, ``0`` zeroes that were never written.  All positions are in sectors.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeAlias

from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.runtime.coroutines import Co, CoQueue, Io
from qmpshim.model.units import SECTOR, touched

PAGE = 128  # sectors of owners kept together; 64 KiB of disk is 1 KiB of model

Owners: TypeAlias = "array[int]"  # one owner a sector, typecode "q"
_BLANK = array("q", bytes(8 * PAGE))


class Alloc(IntEnum):
    """Allocation of one cluster (or subcluster) of an image, as in qcow2's L2 table."""

    UNALLOCATED = 0  # reads fall through to the backing file
    ZERO = 1  # reads as zeroes, whatever the backing file holds
    DATA = 2  # reads the image's own bytes
    ALLOCATED = 3  # in predictions only: ZERO or DATA, something outside the model decides which
    UNKNOWN = 4  # in predictions only: it is known what is read there, and nothing else

    def admits(self, observed: Alloc) -> bool:
        """Whether *observed* is what this prediction allows."""
        if self is Alloc.UNKNOWN:
            return True
        return self is observed or (self is Alloc.ALLOCATED and observed is not Alloc.UNALLOCATED)


class Contents:
    """Owners of a range of sectors, sparse: what was never written costs nothing."""

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: dict[int, Owners] = {}

    @classmethod
    def of(cls, owners: Owners) -> Contents:
        """These owners, from the first sector on."""
        contents = cls()
        contents.write(0, owners)
        return contents

    def copy(self) -> Contents:
        """The same owners, and no others whatever is written to the one or the other."""
        copied = Contents()
        copied.pages = {number: page[:] for number, page in self.pages.items()}
        return copied

    def read(self, start: int, count: int) -> Owners:
        """The owners of *count* sectors from sector *start*, as a copy."""
        page, offset = divmod(start, PAGE)
        if offset + count <= PAGE:
            return self.pages.get(page, _BLANK)[offset : offset + count]
        owners = array("q")
        while count:
            take = min(PAGE - offset, count)
            owners += self.pages.get(page, _BLANK)[offset : offset + take]
            page, offset, count = page + 1, 0, count - take
        return owners

    def write(self, start: int, owners: Owners) -> None:
        """Set the owners of ``len(owners)`` sectors from sector *start*."""
        page, offset = divmod(start, PAGE)
        done, count = 0, len(owners)
        while done < count:
            take = min(PAGE - offset, count - done)
            kept = self.pages.get(page)
            if kept is None:
                kept = self.pages[page] = array("q", _BLANK)
            kept[offset : offset + take] = owners[done : done + take]
            page, offset, done = page + 1, 0, done + take

    def stored(self, start: int, count: int) -> Iterator[tuple[int, int]]:
        """What was ever written in a range, in order and rounded outwards to pages: the rest is
        zeroes.

        :returns: (first sector, sectors), each within one page
        """
        end = start + count
        for page in sorted(self._pages_in(touched(start, count, PAGE))):
            first = max(start, page * PAGE)
            yield first, min(end, (page + 1) * PAGE) - first

    def _pages_in(self, numbers: range) -> Iterable[int]:
        if len(numbers) < len(self.pages):
            return (number for number in numbers if number in self.pages)
        return (number for number in self.pages if number in numbers)

    def clear(self) -> None:
        """Forget everything: all zeroes, never written."""
        self.pages.clear()


def whose(owners: Iterable[int]) -> tuple[int, ...]:
    """By sector the operation whose data it holds, 0 for zeroes: those of all are equal."""
    return tuple(max(0, owner) for owner in owners)


def owned(owner: int, count: int) -> Owners:
    """*count* sectors that all belong to *owner*."""
    return array("q", (owner,)) * count


def is_zero(owners: Owners) -> bool:
    """Whether these sectors read as zeroes."""
    return max(owners, default=0) <= 0


class Image:
    """One image of the chain; the two formats below fill in what differs.

    Coroutines of this class only request I/O (they yield :class:`Io`); what an I/O does to the
    image happens in the ``_do_*`` functions, in one piece, when the driver performs it.

    :param name: ``secondary``, ``hidden`` or ``active``
    :param size: virtual size in sectors
    :param cluster: sectors whose allocation one entry holds: the cluster size, or the size of
        a subcluster (1 where the format has none)
    :ivar info_cluster: the cluster size reported to other parts of QEMU, in sectors
        (``BlockDriverInfo.cluster_size``)
    :param memory: makes the containers that requests share
    :ivar discards: its node has ``discard=unmap``; without that ``bdrv_co_pdiscard`` does nothing
        and ``bdrv_co_do_pwrite_zeroes`` takes BDRV_REQ_MAY_UNMAP away (block/io.c)
    :ivar detects_zeroes: its node has ``detect-zeroes``: a request whose bytes are all zero becomes
        a write of zeroes (``bdrv_aligned_pwritev``, block/io.c)
    """

    def __init__(self, name: str, size: int, cluster: int, memory: StateContainers) -> None:
        self.name = name
        self.size = size
        self.cluster = self.info_cluster = cluster
        self.memory = memory
        self.discards = True
        self.detects_zeroes = False
        self.contents = memory.contents(name, Contents())

    def read(self, start: int, count: int) -> Co[Owners]:
        """Read this image's own sectors; the caller has checked that they are allocated."""
        owners: Owners = yield Io(
            "read", self.name, start, count, lambda: self.contents.read(start, count)
        )
        return owners

    def flush(self) -> Co[None]:
        """Nothing changes in the model, but the I/O is seen."""
        yield Io("flush", self.name, 0, 0, lambda: None)

    def runs(self, start: int, count: int) -> Iterator[tuple[int, int, Alloc]]:
        """Split a range by allocation: (first sector, sectors, allocation), in order."""
        raise NotImplementedError

    def status_zero(self, start: int, count: int) -> Alloc:
        """Whether one ``bdrv_block_status`` answer covers the range and is zero.

        ``ZERO`` when it does, ``DATA`` when it does not, ``ALLOCATED`` when the model cannot know:
        zeroes in a raw file may be a hole or may be data, that is for the host's file system.
        """
        raise NotImplementedError

    def write(self, start: int, owners: Owners, fill: Fill | None = None) -> Co[None]:
        """Write sectors. *fill* reads from the backing chain what a partial cluster needs."""
        raise NotImplementedError

    def zero(self, start: int, count: int, owner: int, unmap: bool) -> Co[None]:
        """Write zeroes; *owner* is the negative owner they get, *unmap* is BDRV_REQ_MAY_UNMAP."""
        raise NotImplementedError

    def discard(self, start: int, count: int, owner: int) -> Co[None]:
        """Discard what the format can discard; whatever reads as zeroes after gets *owner*."""
        raise NotImplementedError


class Fill:
    """How a partial cluster write gets the rest of its cluster (qcow2's copy-on-write)."""

    def read(self, start: int, count: int) -> Co[Owners]:
        """Read *count* sectors from sector *start* of the backing chain."""
        raise NotImplementedError


class RawImage(Image):
    """A raw image: every sector is its own; holes are the host file system's affair.

    Restates block/file-posix.c: ``pwrite_zeroes`` and (with ``discard=unmap``) ``pdiscard`` leave
    zeroes exactly in the requested range.
    """

    def __init__(self, name: str, size: int, memory: StateContainers = PLAIN) -> None:
        super().__init__(name, size, 1, memory)

    def runs(self, start: int, count: int) -> Iterator[tuple[int, int, Alloc]]:
        yield start, count, Alloc.DATA

    def status_zero(self, start: int, count: int) -> Alloc:
        return Alloc.ALLOCATED if is_zero(self.contents.read(start, count)) else Alloc.DATA

    def write(self, start: int, owners: Owners, fill: Fill | None = None) -> Co[None]:
        yield Io("write", self.name, start, len(owners), lambda: self.contents.write(start, owners))

    def zero(self, start: int, count: int, owner: int, unmap: bool) -> Co[None]:
        zeroes = owned(owner, count)
        yield Io("zero", self.name, start, count, lambda: self.contents.write(start, zeroes))

    def discard(self, start: int, count: int, owner: int) -> Co[None]:
        if not self.discards:
            return
        zeroes = owned(owner, count)
        yield Io("discard", self.name, start, count, lambda: self.contents.write(start, zeroes))


class Qcow2Image(Image):
    """A qcow2 (version 3) image, with or without something behind it.

    Restates block/qcow2.c and block/qcow2-cluster.c of QEMU 7.2: which clusters a write, a write
    of zeroes, a discard and ``make_empty`` allocate or free.

    :param backed: whether there is a backing file (then an unallocated cluster is not zero)
    """

    def __init__(
        self, name: str, size: int, cluster: int, backed: bool, memory: StateContainers = PLAIN
    ) -> None:
        super().__init__(name, size, cluster, memory)
        self.backed = backed
        # By cluster index; absent is UNALLOCATED.
        self.alloc: dict[int, Alloc] = memory.table(f"{name} allocation")
        self.preallocated: set[int] = set()  # zero clusters that keep their host cluster
        # The clusters being allocated (s->cluster_allocs).
        self.in_flight: dict[int, CoQueue] = memory.table(f"{name} in flight")

    def runs(self, start: int, count: int) -> Iterator[tuple[int, int, Alloc]]:
        alloc, cluster, end = self.alloc, self.cluster, start + count
        index = start // cluster
        kind = alloc.get(index, Alloc.UNALLOCATED)
        while True:
            index += 1
            edge = index * cluster
            if edge >= end:
                yield start, end - start, kind
                return
            following = alloc.get(index, Alloc.UNALLOCATED)
            if following is not kind:
                yield start, edge - start, kind
                start, kind = edge, following

    def status_zero(self, start: int, count: int) -> Alloc:
        # qcow2_co_block_status() ends a run where the type of cluster changes (an unallocated
        # cluster, a plain zero cluster and a preallocated one are three types of zero), and, among
        # preallocated ones, where the host offsets do not follow each other, which is not modelled.
        # It never goes beyond one slice of an L2 table.
        touched = self.clusters(start, count)
        entries = self.slice_clusters
        if touched[0] // entries != touched[-1] // entries:
            return Alloc.DATA
        types = set()
        for index in touched:
            kind = self.alloc.get(index, Alloc.UNALLOCATED)
            if kind is Alloc.ALLOCATED:
                return Alloc.ALLOCATED
            if kind is Alloc.UNKNOWN:
                whole = self.contents.read(start, count)
                return Alloc.ALLOCATED if is_zero(whole) else Alloc.DATA
            if kind is Alloc.DATA or (kind is Alloc.UNALLOCATED and self.backed):
                return Alloc.DATA
            types.add((kind, self.is_preallocated(index)))
        if len(types) > 1:
            return Alloc.DATA
        return Alloc.ALLOCATED if (Alloc.ZERO, True) in types and len(touched) > 1 else Alloc.ZERO

    @property
    def slice_clusters(self) -> int:
        """How many clusters a slice of an L2 table covers (8-byte entries, 64 KiB at the most)."""
        return min(self.cluster * SECTOR, 1 << 16) // 8

    def is_preallocated(self, index: int) -> bool:
        """Whether a cluster that is not DATA has a host cluster."""
        return index in self.preallocated

    def clusters(self, start: int, count: int) -> range:
        """Indices of the clusters that *count* sectors from *start* touch."""
        return range(start // self.cluster, (start + count - 1) // self.cluster + 1)

    def edges(self, start: int, count: int) -> tuple[int, int]:
        """The range rounded outwards to clusters, clipped to the image's end."""
        low = start - start % self.cluster
        high = min(-(-(start + count) // self.cluster) * self.cluster, self.size)
        return low, high

    def write(self, start: int, owners: Owners, fill: Fill | None = None) -> Co[None]:
        end = start + len(owners)
        low, high = self.edges(start, len(owners))
        clusters = self.clusters(start, len(owners))
        # handle_dependencies(): a write to a cluster that is being allocated waits for it, even
        # when it writes all of it: the other's copy-on-write would undo what was written meanwhile.
        yield from self.memory.aside(self._wait_for_allocations(clusters))
        fresh = [i for i in clusters if self.alloc.get(i) is not Alloc.DATA]
        queue = CoQueue(f"allocation in {self.name}")
        for index in fresh:
            self.in_flight[index] = queue
        try:
            if low < start and low // self.cluster in fresh:
                owners = (yield from self._rest(low, start - low, fill)) + owners
                start = low
            if end < high and (high - 1) // self.cluster in fresh:
                owners = owners + (yield from self._rest(end, high - end, fill))
            first, data = start, owners
            yield Io("write", self.name, first, len(data), lambda: self._do_write(first, data))
        finally:
            for index in fresh:
                del self.in_flight[index]
            queue.restart_all()

    def _wait_for_allocations(self, clusters: range) -> Co[None]:
        retry = True
        while retry:
            retry = False
            for index in clusters:
                queue = self.in_flight.get(index)
                if queue is not None:
                    yield from queue.wait()
                    retry = True
                    break

    def _rest(self, start: int, count: int, fill: Fill | None) -> Co[Owners]:
        """What a newly allocated cluster holds where the write does not reach."""
        if self.alloc.get(start // self.cluster) is None and self.backed and fill is not None:
            return (yield from fill.read(start, count))
        return self.contents.read(start, count)

    def needs_tables_only(self, io: Io) -> bool:
        """Whether an I/O may be done in tables that are in memory, without the image's file.

        Zeroes are read from zero clusters, and not from what is known to be data
        (``qcow2_co_preadv_part``, block/qcow2.c); whole clusters are made such, or free
        (``zero_in_l2_slice``, ``discard_in_l2_slice``, block/qcow2-cluster.c).
        """
        clusters = self.clusters(io.start, io.count)
        if io.op == "read":
            is_data = any(self.alloc.get(index) is Alloc.DATA for index in clusters)
            is_data = is_data and not self.detects_zeroes
            return not is_data and is_zero(self.contents.read(io.start, io.count))
        whole = (io.start, io.start + io.count) == self.edges(io.start, io.count)
        return io.op in ("zero", "discard") and whole

    def put(self, start: int, owners: Owners, kinds: dict[int, Alloc] | Alloc) -> Co[None]:
        """Write whole clusters whose bytes come from another image.

        :param kinds: what each cluster (by index), or all of them, becomes
        """
        op = "zero" if kinds is Alloc.ZERO else "write"
        yield Io(op, self.name, start, len(owners), lambda: self._do_put(start, owners, kinds))

    def _do_put(self, start: int, owners: Owners, kinds: dict[int, Alloc] | Alloc) -> None:
        self.contents.write(start, owners)
        for index in self.clusters(start, len(owners)):
            kind = kinds if isinstance(kinds, Alloc) else kinds[index]
            if kind is Alloc.DATA and self.detects_zeroes and self._reads_zero(index):
                kind = Alloc.ALLOCATED  # whether all of the request was zero is not known here
            self._become(index, kind)

    def _reads_zero(self, index: int) -> bool:
        low = index * self.cluster
        return is_zero(self.contents.read(low, min(self.cluster, self.size - low)))

    def _become(self, index: int, kind: Alloc, unmap: bool = False) -> None:
        # zero_in_l2_slice(): without BDRV_REQ_MAY_UNMAP a cluster keeps its place in the file
        if kind is Alloc.ZERO and not unmap and self.alloc.get(index) is Alloc.UNKNOWN:
            return  # if it has one
        if kind is not Alloc.ZERO or unmap:
            self.preallocated.discard(index)
        elif self.alloc.get(index) is Alloc.DATA:
            self.preallocated.add(index)
        self.alloc[index] = kind

    def _do_write(self, start: int, owners: Owners) -> None:
        self.contents.write(start, owners)
        for index in self.clusters(start, len(owners)):
            self._become(index, Alloc.DATA)

    def zero(self, start: int, count: int, owner: int, unmap: bool) -> Co[None]:
        unmap = unmap and self.discards
        yield Io(
            "zero", self.name, start, count, lambda: self.apply_zero(start, count, owner, unmap)
        )

    def apply_zero(self, start: int, count: int, owner: int, unmap: bool) -> None:
        """The effect of :meth:`zero`."""
        # bdrv_co_do_pwrite_zeroes() cuts the request at cluster boundaries, and
        # qcow2_co_pwrite_zeroes() turns a partial cluster into a zero cluster only if the rest of
        # it is known to be zero.
        for index in self.clusters(start, count):
            low, high = index * self.cluster, min((index + 1) * self.cluster, self.size)
            first, last = max(low, start), min(high, start + count)
            whole = first == low and last == high
            kind = self.alloc.get(index, Alloc.UNALLOCATED)
            if whole:
                self._become(index, Alloc.ZERO, unmap)
            elif kind in (Alloc.ALLOCATED, Alloc.UNKNOWN):
                pass  # an allocated cluster stays so, and its kind unknown
            elif self.status_zero(low, high - low) is Alloc.ZERO:
                self._become(index, Alloc.ZERO, unmap)
            else:
                self._become(index, Alloc.DATA)
            self.contents.write(first, owned(owner, last - first))

    def discard(self, start: int, count: int, owner: int) -> Co[None]:
        if not self.discards:
            return
        yield Io(
            "discard", self.name, start, count, lambda: self.apply_discard(start, count, owner)
        )

    def apply_discard(self, start: int, count: int, owner: int) -> None:
        """The effect of :meth:`discard`."""
        # qcow2_co_pdiscard() ignores partial clusters; discard_in_l2_slice() leaves a zero cluster
        # where there was an allocation or something behind it.
        for index in self.clusters(start, count):
            low, high = index * self.cluster, min((index + 1) * self.cluster, self.size)
            if start <= low and high <= start + count and (self.backed or index in self.alloc):
                if self.alloc.get(index) is not Alloc.UNKNOWN:
                    self._become(index, Alloc.ZERO, unmap=True)
                self.contents.write(low, owned(owner, high - low))

    def make_empty(self) -> Co[None]:
        """``bdrv_make_empty``: every cluster becomes unallocated."""
        yield Io("empty", self.name, 0, self.size, self._do_empty)

    def _do_empty(self) -> None:
        self.alloc.clear()
        self.preallocated.clear()
        self.contents.clear()
