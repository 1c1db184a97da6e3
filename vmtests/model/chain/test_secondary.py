"""The chain's rules that no scenario of the explorer's meets."""

from __future__ import annotations

import pytest

from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.chain.protocols import CopyBeforeWriteProtocol
from qmpshim.model.chain.secondary import Chain, Stage, Workflow
from qmpshim.model.disks.image import Alloc
from qmpshim.model.runtime.coroutines import run_sequentially


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
