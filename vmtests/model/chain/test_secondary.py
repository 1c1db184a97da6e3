"""The chain's rules that no scenario of the explorer's meets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.chain.protocols import CopyBeforeWriteProtocol
from qmpshim.model.chain.secondary import Chain, Stage, Workflow
from qmpshim.model.disks.image import Alloc, Qcow2Image, owned
from qmpshim.model.runtime.coroutines import Co, run_sequentially


@pytest.mark.parametrize("do", ["guest_write", "guest_zero"])
def test_after_a_failed_failover_data_goes_where_its_place_is(do: str) -> None:
    chain = Chain(Workflow.REPLICATION, 512, 128)
    run_sequentially(chain.start())
    run_sequentially(chain.guest_write(0, 128, 1))
    run_sequentially(chain.failover(), lambda io: 5 * (io.disk == "secondary" and io.op == "write"))
    assert chain.stage is Stage.FAILOVER_FAILED
    run_sequentially(getattr(chain, do)(0, 128, 2))
    run_sequentially(getattr(chain, do)(256, 128, 3))
    assert chain.active.alloc == {0: Alloc.DATA}
    owner = {"guest_write": 3, "guest_zero": -3}[do]
    assert chain.secondary.contents.read(256, 128).tolist() == [owner] * 128


@pytest.mark.parametrize(
    ("start", "count", "before", "since"),
    [
        (0, 136, range(17), range(16)),  # and a bit of the next cluster
        (8, 16, range(1, 3), range(0)),  # in the middle of one
        (256, 64, range(32, 40), range(0)),  # the disk's last cluster is a shorter one
    ],
)
def test_since_9_1_a_snapshot_discards_whole_clusters(
    start: int, count: int, before: range, since: range
) -> None:
    for version, clusters in (((7, 2, 0), before), ((9, 1, 0), since)):
        behaviour = behaviour_of(version)
        chain = Chain(Workflow.BACKUP, 320, 8, "raw", CopyBeforeWriteProtocol(), behaviour)
        run_sequentially(chain.start())
        run_sequentially(chain.snapshot_discard(start, count, 1))
        assert chain.hidden.alloc == dict.fromkeys(clusters, Alloc.ZERO)


class _Unmaps(Chain):
    """A mutant: the flag that forbids holes is lost."""

    def primary_zero_no_hole(self, start: int, count: int, op: int) -> Co[None]:
        return self.zero_after_copy(start, count, op, unmap=True)


class _LosesOldData(Chain):
    """A mutant: zeroes come without the copy before them."""

    def primary_zero_no_hole(self, start: int, count: int, op: int) -> Co[None]:
        return self.secondary.zero(start, count, -op, unmap=False)


class _Writes(Chain):
    """A mutant: zeroes are written as data."""

    def primary_zero_no_hole(self, start: int, count: int, op: int) -> Co[None]:
        return self.primary_write(start, count, op)


def _zeroed_without_a_hole(make: Callable[..., Chain], version: tuple[int, int, int]) -> bool:
    """Whether a cluster reads as zeroes, keeps its place, and was copied before."""
    behaviour = behaviour_of(version)
    chain = make(Workflow.BACKUP, 256, 128, "qcow2", CopyBeforeWriteProtocol(), behaviour)
    disk = chain.secondary
    assert isinstance(disk, Qcow2Image)
    disk.alloc.update({0: Alloc.DATA, 1: Alloc.DATA})
    disk.contents.write(0, owned(1, 256))
    run_sequentially(chain.start())
    run_sequentially(chain.primary_zero_no_hole(0, 128, 2))
    return (
        disk.contents.read(0, 256).tolist() == [-2] * 128 + [1] * 128
        and disk.alloc == {0: Alloc.ZERO, 1: Alloc.DATA}
        and disk.preallocated == {0}
        and chain.hidden.alloc == {0: Alloc.DATA}
        and chain.hidden.contents.read(0, 128).tolist() == [1] * 128
    )


@pytest.mark.parametrize("version", [(5, 2, 0), (7, 2, 0), (10, 0, 0)])
def test_zeroes_without_a_hole(version: tuple[int, int, int]) -> None:
    assert _zeroed_without_a_hole(Chain, version)
    for mutant in (_Unmaps, _LosesOldData, _Writes):
        assert not _zeroed_without_a_hole(mutant, version), mutant
