"""Traceable data: what each operation writes, and what is reported when something else is there."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.conformance.workload.pattern import (
    MAX_OPERATIONS,
    Comparer,
    Mismatch,
    data_of,
    describe_bytes,
    describe_owner,
    expected,
    mismatches,
)
from qmpshim.model.disks.image import Contents, Owners, owned
from qmpshim.model.units import SECTOR

LAST = (1 << 36) - 1  # the last sector that has data of its own: 32 TiB


def owners_of(*numbers: int) -> Owners:
    return array("q", numbers)


def test_data_names_its_writer_and_its_place() -> None:
    data = data_of(3, 100, 2)
    assert len(data) == 2 * SECTOR
    assert data[:SECTOR] != data[SECTOR:]
    assert describe_bytes(data[:SECTOR], 100) == "the data of operation 3"
    assert describe_bytes(data[SECTOR:], 101) == "the data of operation 3"
    assert describe_bytes(data[SECTOR:], 100) == "the data of operation 3 for sector 101"
    assert int.from_bytes(data[:8], "little") == 3 << 36 | 100  # readable in a hex dump


@given(st.integers(1, MAX_OPERATIONS - 1), st.integers(0, LAST - 4000), st.integers(1, 4000))
def test_what_is_written_is_what_is_expected(operation: int, start: int, count: int) -> None:
    data = data_of(operation, start, count)
    assert data == expected(owned(operation, count), start).tobytes()
    assert mismatches(data, owned(operation, count), start) == []


def test_one_operation_may_write_a_whole_disk() -> None:
    count = 70_000
    data = data_of(3, 0, count)
    assert len(data) == count * SECTOR
    assert data == expected(owned(3, count), 0).tobytes()


@given(st.integers(1, MAX_OPERATIONS - 2), st.integers(0, LAST - 1))
def test_no_two_operations_and_no_two_sectors_look_alike(operation: int, sector: int) -> None:
    data = bytes(data_of(operation, sector, 1))
    other = bytes(data_of(operation + 1, sector, 1))
    moved = bytes(data_of(operation, sector + 1, 1))
    words = [{d[at : at + 8] for at in range(0, SECTOR, 8)} for d in (data, other, moved)]
    assert all(len(found) == SECTOR // 8 for found in words)
    for at in range(0, SECTOR, 8):
        assert len({data[at : at + 8], other[at : at + 8], moved[at : at + 8]}) == 3


def test_zeroes_are_zero_bytes_by_whatever_operation() -> None:
    found = expected(owners_of(0, -7, 7), 40).tobytes()
    assert found == bytes(2 * SECTOR) + bytes(data_of(7, 42, 1))
    assert mismatches(found, owners_of(-9, 0, 7), 40) == []


def test_words_for_owners() -> None:
    assert describe_owner(4) == "the data of operation 4"
    assert describe_owner(-4) == "zeroes made by operation 4"
    assert describe_owner(0) == "zeroes nobody ever wrote"


def test_words_for_bytes() -> None:
    assert describe_bytes(bytes(SECTOR), 9) == "zeroes"
    damaged = bytearray(data_of(6, 9, 1))
    damaged[17] ^= 4
    damaged[500] ^= 1
    assert describe_bytes(damaged, 9) == "the data of operation 6, 2 of its 64 words damaged"
    noise = random.Random(1).randbytes(SECTOR)
    assert describe_bytes(noise, 9) == f"bytes no operation wrote ({noise[:8].hex()}...)"
    assert describe_bytes(b"\xa5" * SECTOR, 9).startswith("bytes no operation wrote (a5a5")


def test_runs_that_are_wrong_in_the_same_way_are_one_mismatch() -> None:
    found = bytes(data_of(1, 10, 4)) + bytes(data_of(2, 14, 2)) + bytes(2 * SECTOR)
    differences = mismatches(found, owners_of(1, 3, 3, 4, 2, 2, 0, 5), 10)
    assert differences == [
        Mismatch(11, 2, 3, "the data of operation 1"),
        Mismatch(13, 1, 4, "the data of operation 1"),
        Mismatch(17, 1, 5, "zeroes"),
    ]
    assert str(differences[0]) == (
        "sectors 11..12 (byte 5632): predicted the data of operation 3, "
        "found the data of operation 1"
    )


# -- long stretches ------------------------------------------------------------------------------


def random_disk(seed: int, size: int) -> tuple[Contents, bytearray]:
    """Owners of *size* sectors and the bytes that go with them."""
    dice, contents = random.Random(seed), Contents()
    for operation in range(1, 60):
        start = dice.randrange(size)
        count = min(size - start, dice.choice([1, 8, 128, 700]))
        contents.write(start, owned(dice.choice([operation, operation, -operation]), count))
    return contents, bytearray(expected(contents.read(0, size), 0).tobytes())


@pytest.mark.parametrize("start", [0, 1, 127, 2047, 2048, 2049])
def test_a_comparer_finds_nothing_where_nothing_is_wrong(start: int) -> None:
    contents, data = random_disk(1, 9000)
    comparer = Comparer()
    assert comparer.compare(data[start * SECTOR :], contents, start) == []
    assert comparer.sectors == 9000 - start


@given(st.integers(0, 9000 * SECTOR - 1), st.integers(1, 255), st.integers(0, 5000))
def test_a_comparer_finds_any_flipped_bit(at: int, bits: int, start: int) -> None:
    contents, data = random_disk(2, 9000)
    data[at] ^= bits
    comparer = Comparer()
    found = comparer.compare(memoryview(data)[start * SECTOR :], contents, start)
    sector = at // SECTOR
    if sector < start:
        assert found == []
        return
    owner = contents.read(sector, 1)[0]
    assert [(wrong.start, wrong.count, wrong.predicted) for wrong in found] == [(sector, 1, owner)]


@pytest.mark.parametrize("count", [1, 2047, 2048, 2049, 4096, 4097])
def test_a_comparer_looks_at_the_last_sector(count: int) -> None:
    """Also where it is alone in its batch, as at the end of a disk of odd size."""
    contents, data = random_disk(4, count)
    data[-1] ^= 1
    comparer = Comparer()
    assert [wrong.start for wrong in comparer.compare(data, contents, 0)] == [count - 1]
    owners = contents.read(0, count)
    assert not comparer.same(data, owners, 0)
    data[-1] ^= 1
    assert comparer.same(data, owners, 0)
    assert not comparer.same(data[:-SECTOR], owners, 0)


@given(st.integers(0, 3), st.integers(0, 1 << 30))
def test_a_comparer_that_keeps_what_is_predicted_follows_the_model(keep: int, seed: int) -> None:
    """Whatever changed since: the data, whose it is, which zeroes; and beside a part that is not
    kept.
    """
    dice = random.Random(seed)
    contents, data = random_disk(5, 4100)
    comparer = Comparer(keep=keep)
    for operation in range(100, 106):
        assert comparer.compare(data, contents, 0) == []
        start, count = dice.randrange(4000), dice.choice([1, 8, 100])
        before = bytes(data[start * SECTOR : (start + count) * SECTOR])
        contents.write(start, owned(dice.choice([operation, -operation]), count))
        after = expected(contents.read(start, count), start).tobytes()
        differ = [
            start + n
            for n in range(count)
            if before[n * SECTOR : (n + 1) * SECTOR] != after[n * SECTOR : (n + 1) * SECTOR]
        ]
        found = comparer.compare(data, contents, 0)
        assert [n for one in found for n in range(one.start, one.start + one.count)] == differ
        data[start * SECTOR : (start + count) * SECTOR] = after
    data[at := dice.randrange(len(data))] ^= 1
    assert [one.start for one in comparer.compare(data, contents, 0)] == [at // SECTOR]


def test_a_comparer_finds_a_model_that_lags_behind() -> None:
    """The buffers are used again from batch to batch: what was there before must not count."""
    contents, data = random_disk(3, 9000)
    before = Contents()
    before.write(0, contents.read(0, 9000))
    contents.write(6000, owned(99, 100))
    comparer = Comparer()
    assert comparer.compare(data, before, 0) == []
    found = comparer.compare(data, contents, 0)
    assert (found[0].start, found[0].predicted) == (6000, 99)
    assert sum(wrong.count for wrong in found) == 100
