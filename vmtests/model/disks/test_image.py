"""Symbolic disks against a brute-force oracle that knows only sectors."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from qmpshim.model.disks.image import (
    PAGE,
    Alloc,
    Contents,
    Fill,
    Owners,
    Qcow2Image,
    RawImage,
    is_zero,
    owned,
)
from qmpshim.model.runtime.coroutines import Co, Io, run_sequentially

SIZE, CLUSTER = 44, 8  # the last cluster is short
BELOW = 77  # what the backing file holds everywhere


class Backing(Fill):
    """A backing file of one owner."""

    def read(self, start: int, count: int) -> Co[Owners]:
        owners: Owners = yield Io("read", "backing", start, count, lambda: owned(BELOW, count))
        return owners


@dataclass
class Oracle:
    """A qcow2 image, sector by sector, written as simply as possible."""

    backed: bool
    kind: list[Alloc] = field(default_factory=lambda: [Alloc.UNALLOCATED] * 6)
    sectors: list[int] = field(default_factory=lambda: [0] * SIZE)

    def rest(self, sector: int) -> int:
        """What a reader sees in a sector."""
        if self.kind[sector // CLUSTER] is Alloc.UNALLOCATED:
            return BELOW if self.backed else 0
        return self.sectors[sector]

    def write(self, start: int, count: int, owner: int) -> None:
        view = [self.rest(sector) for sector in range(SIZE)]
        for sector in range(start, start + count):
            view[sector] = owner
        for index in {sector // CLUSTER for sector in range(start, start + count)}:
            self.kind[index] = Alloc.DATA
            low = index * CLUSTER
            self.sectors[low : low + CLUSTER] = view[low : low + CLUSTER]

    def discard(self, start: int, count: int, owner: int) -> None:
        for index in range(6):
            inside = [s for s in range(SIZE) if s // CLUSTER == index]
            touched = all(start <= sector < start + count for sector in inside)
            if touched and (self.backed or self.kind[index] is not Alloc.UNALLOCATED):
                self.kind[index] = Alloc.ZERO
                for sector in inside:
                    self.sectors[sector] = -owner


RANGE = st.integers(0, SIZE - 1).flatmap(
    lambda start: st.tuples(st.just(start), st.integers(1, SIZE - start))
)
ACTS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "discard", "empty", "zero"]), RANGE), max_size=12
)


@given(st.booleans(), ACTS)
def test_qcow2_against_the_oracle(backed: bool, acts: list[tuple[str, tuple[int, int]]]) -> None:
    image, oracle = Qcow2Image("hidden", SIZE, CLUSTER, backed), Oracle(backed)
    for number, (act, (start, count)) in enumerate(acts, 1):
        if act == "write":
            run_sequentially(image.write(start, owned(number, count), Backing()))
            oracle.write(start, count, number)
        elif act == "discard":
            run_sequentially(image.discard(start, count, -number))
            oracle.discard(start, count, number)
        elif act == "zero":  # whole clusters here; a partial one has a test of its own
            low = start // CLUSTER * CLUSTER
            high = min(-(-(start + count) // CLUSTER) * CLUSTER, SIZE)
            run_sequentially(image.zero(low, high - low, -number, unmap=True))
            for sector in range(low, high):
                oracle.kind[sector // CLUSTER] = Alloc.ZERO
                oracle.sectors[sector] = -number
        else:
            run_sequentially(image.make_empty())
            oracle.kind = [Alloc.UNALLOCATED] * 6
            oracle.sectors = [0] * SIZE
        kinds = [image.alloc.get(index, Alloc.UNALLOCATED) for index in range(6)]
        assert kinds == oracle.kind
        for sector in range(SIZE):
            if oracle.kind[sector // CLUSTER] is not Alloc.UNALLOCATED:
                assert image.contents.read(sector, 1)[0] == oracle.sectors[sector]
        assert not image.in_flight


@given(RANGE)
def test_runs_cover_the_range_and_report_the_allocation(where: tuple[int, int]) -> None:
    image = Qcow2Image("hidden", SIZE, CLUSTER, True)
    run_sequentially(image.write(8, owned(1, 8)))
    run_sequentially(image.zero(24, 8, -2, unmap=True))
    start, count = where
    reported: dict[int, Alloc] = {}
    for first, length, kind in image.runs(start, count):
        reported |= dict.fromkeys(range(first, first + length), kind)
    assert list(reported) == list(range(start, start + count))
    for sector, kind in reported.items():
        assert kind is image.alloc.get(sector // CLUSTER, Alloc.UNALLOCATED)


def test_partial_zero_of_data_keeps_the_data_around_it() -> None:
    image = Qcow2Image("hidden", SIZE, CLUSTER, True)
    run_sequentially(image.write(0, owned(1, 8)))
    run_sequentially(image.zero(2, 4, -2, unmap=True))
    assert image.alloc[0] is Alloc.DATA
    assert list(image.contents.read(0, 8)) == [1, 1, -2, -2, -2, -2, 1, 1]


def test_partial_zero_of_zeroes_stays_a_zero_cluster() -> None:
    image = Qcow2Image("secondary", SIZE, CLUSTER, False)
    run_sequentially(image.zero(2, 4, -2, unmap=True))
    assert image.alloc[0] is Alloc.ZERO


def test_write_to_a_cluster_that_is_being_allocated_waits() -> None:
    """Also one of the whole cluster: the other's copy-on-write would undo it."""
    image = Qcow2Image("active", SIZE, CLUSTER, True)
    partial = image.write(2, owned(1, 2), Backing())
    assert isinstance(next(partial), Io)  # the fill is being read
    whole = image.write(0, owned(2, 8), Backing())
    assert "wait" in repr(next(whole))
    other = image.write(8, owned(3, 8), Backing())
    assert isinstance(next(other), Io)


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE), st.integers(1, 2 * PAGE)), max_size=6))
def test_contents_are_an_array_of_owners(writes: list[tuple[int, int]]) -> None:
    contents, plain = Contents(), [0] * (6 * PAGE)
    for number, (start, count) in enumerate(writes, 1):
        contents.write(start, owned(number, count))
        plain[start : start + count] = [number] * count
    assert list(contents.read(0, 6 * PAGE)) == plain
    contents.clear()
    assert is_zero(contents.read(0, 6 * PAGE))


def test_raw_knows_zeroes_only_as_far_as_the_host_reports() -> None:
    image = RawImage("secondary", SIZE)
    assert image.status_zero(0, SIZE) is Alloc.ALLOCATED
    run_sequentially(image.write(0, owned(1, 1)))
    assert image.status_zero(0, SIZE) is Alloc.DATA
    assert Alloc.ALLOCATED.admits(Alloc.ZERO) and Alloc.ALLOCATED.admits(Alloc.DATA)
    assert not Alloc.ALLOCATED.admits(Alloc.UNALLOCATED)
