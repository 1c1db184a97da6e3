"""Disks that vote: what of them is read, and when a request of their quorum fails."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO, ENOSPC

import pytest

from qmpshim.model.chain.votes import VotingDisks
from qmpshim.model.disks.image import owned
from qmpshim.model.runtime.coroutines import Io, ModelIOError, run_sequentially

NAMES = "one", "two", "three"


def failing(verb: str, **errnos: int) -> Callable[[Io], int]:
    """These disks fail such an I/O."""
    return lambda io: errnos.get(io.disk, 0) if io.op == verb else 0


def written() -> VotingDisks:
    """Three disks that hold operation 1's data, of which two have to agree."""
    disks = VotingDisks(NAMES, 256, 2)
    run_sequentially(disks.guest_write(0, 256, 1))
    return disks


def read(disks: VotingDisks, start: int = 0, count: int = 128) -> set[int]:
    return set(run_sequentially(disks.guest_read(start, count)))


def on(disks: VotingDisks) -> list[set[int]]:
    """Whose the first sectors of each disk are."""
    return [set(disk.contents.read(0, 128)) for disk in disks.disks]


def test_all_disks_have_what_the_guest_changes() -> None:
    disks = written()
    run_sequentially(disks.guest_write(0, 128, 2))
    assert on(disks) == [{2}] * 3 and read(disks) == {2}
    run_sequentially(disks.guest_discard(0, 128, 3))
    assert on(disks) == [{2}] * 3
    run_sequentially(disks.guest_zero(0, 128, 4))
    assert on(disks) == [{-4}] * 3 and read(disks) == {0}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["read", "write", "zero", "flush"])
def test_a_disk_that_fails_has_no_vote(name: str, verb: str) -> None:
    disks = written()
    fate = failing(verb, **{name: EIO})
    do = {
        "read": disks.guest_read(0, 128),
        "write": disks.guest_write(0, 128, 2),
        "zero": disks.guest_zero(0, 128, 2),
        "flush": disks.guest_flush(),
    }[verb]
    run_sequentially(do, fate)
    own = {"write": {2}, "zero": {-2}}.get(verb, {1})
    assert on(disks) == [{1} if one == name else own for one in NAMES]
    assert read(disks) == {max(0, owner) for owner in own}


@pytest.mark.parametrize(
    ("errnos", "error"),
    [
        ({"one": EIO, "two": EIO}, EIO),
        ({"one": EIO, "two": ENOSPC, "three": EIO}, EIO),
        ({"one": EIO, "three": ENOSPC}, ENOSPC),  # of as many the last that came up
    ],
)
def test_where_too_few_are_left_the_error_is_that_of_most(
    errnos: dict[str, int], error: int
) -> None:
    disks = written()
    with pytest.raises(ModelIOError) as failed:
        run_sequentially(disks.guest_write(0, 128, 2), failing("write", **errnos))
    assert failed.value.errno == error
    assert on(disks) == [{1} if name in errnos else {2} for name in NAMES]


def test_a_read_compares_what_it_reads_as_a_whole() -> None:
    """In each sector two of the disks agree, in all of them none do."""
    disks = written()
    for number, disk in enumerate(disks.disks):
        disk.contents.write(number, owned(2 + number, 1))
    for sector in range(3):
        assert read(disks, sector, 1) == {1}
    with pytest.raises(ModelIOError) as failed:
        read(disks)
    assert failed.value.errno == EIO


def test_zeroes_are_equal_whichever_operation_wrote_them() -> None:
    disks = written()
    for number, disk in enumerate(disks.disks):
        disk.contents.write(0, owned(-number, 128))
    assert read(disks) == {0}
