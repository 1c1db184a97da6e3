"""The primary's chain: where the guest's writes are, and where each failure is reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qmpshim.model.chain.behaviour import Behaviour, KnownDefect
from qmpshim.model.chain.primary import PrimaryChain
from qmpshim.model.chain.secondary import CommandError
from qmpshim.model.runtime.coroutines import Io, ModelIOError, run_sequentially

BROKEN = "I/O error occurred"
Fate = Callable[[Io], int]


def refusing(*disks: str, verb: str = "write", errno: int = 5) -> Fate:
    return lambda io: errno * (io.disk in disks and io.op == verb)


def running(*known: KnownDefect) -> PrimaryChain:
    chain = PrimaryChain(256, Behaviour(known=frozenset(known)))
    run_sequentially(chain.start())
    return chain


def on(chain: PrimaryChain) -> tuple[set[int], set[int]]:
    """Whose the first sectors are, on the primary's and on the secondary disk."""
    primary, secondary = (d.contents.read(0, 128) for d in (chain.primary, chain.secondary))
    return set(primary), set(secondary)


def test_a_write_is_on_both_disks_while_replication_runs() -> None:
    chain = PrimaryChain(256)
    assert chain.status() == "Block replication is not running"
    run_sequentially(chain.guest_write(0, 128, 1))
    assert on(chain) == ({1}, {0})
    run_sequentially(chain.start())
    run_sequentially(chain.guest_write(0, 128, 2))
    assert on(chain) == ({2}, {2}) and chain.status() is None
    run_sequentially(chain.guest_zero(0, 128, 3))
    run_sequentially(chain.guest_discard(0, 128, 4))
    assert on(chain) == ({-3}, {-3})
    run_sequentially(chain.checkpoint())
    run_sequentially(chain.stop())
    run_sequentially(chain.guest_write(0, 128, 5))
    assert on(chain) == ({5}, {-3}) and chain.status() is None
    assert set(run_sequentially(chain.guest_read(0, 128))) == {5}


@pytest.mark.parametrize("write", ["guest_write", "guest_zero"])
def test_an_error_of_the_primary_disk_is_reported_to_its_client(write: str) -> None:
    """Case 1. The other side has the data all the same, and nothing went wrong there."""
    chain = running()
    verb = "zero" if write == "guest_zero" else "write"
    with pytest.raises(ModelIOError) as raised:
        run_sequentially(getattr(chain, write)(0, 128, 1), refusing("primary", verb=verb, errno=28))
    assert raised.value.errno == 28
    assert on(chain) == ({0}, {-1 if verb == "zero" else 1}) and chain.status() is None


def test_what_cannot_be_forwarded_is_in_the_status() -> None:
    """Case 2, until replication is stopped; a checkpoint forgets nothing."""
    chain = running()
    run_sequentially(chain.guest_write(0, 128, 1), refusing("secondary"))
    assert on(chain) == ({1}, {0}) and chain.status() == BROKEN
    run_sequentially(chain.checkpoint())
    run_sequentially(chain.guest_write(0, 128, 2))
    assert chain.status() == BROKEN
    run_sequentially(chain.failover())
    assert chain.status() is None


def test_a_flush_needs_the_primary_disk_alone() -> None:
    chain = running()
    run_sequentially(chain.guest_flush(), refusing("secondary", verb="flush"))
    assert chain.status() is None
    with pytest.raises(ModelIOError):
        run_sequentially(chain.guest_flush(), refusing("primary", verb="flush"))


def test_it_is_started_once() -> None:
    chain = PrimaryChain(256)
    with pytest.raises(CommandError):
        run_sequentially(chain.stop())
    run_sequentially(chain.failover())
    run_sequentially(chain.start())
    for again in (chain.start, chain.stop, chain.start):
        if again == chain.stop:
            run_sequentially(again())
            continue
        with pytest.raises(CommandError, match="running or done"):
            run_sequentially(again())
    run_sequentially(chain.stop())


def test_a_quorum_masks_what_only_it_can() -> None:
    """With the defect: while the filter runs; a flush always, as long as one disk does it."""
    chain = running(KnownDefect.QUORUM_MASKS_PRIMARY, KnownDefect.QUORUM_MASKS_FLUSH)
    run_sequentially(chain.guest_write(0, 128, 1), refusing("primary"))
    assert on(chain) == ({0}, {1}) and chain.status() is None
    run_sequentially(chain.guest_write(0, 128, 2), refusing("primary", "secondary"))
    assert on(chain) == ({0}, {1}) and chain.status() == BROKEN
    with pytest.raises(ModelIOError):
        run_sequentially(chain.guest_flush(), refusing("primary", "secondary", verb="flush"))
    run_sequentially(chain.stop())
    run_sequentially(chain.guest_flush(), refusing("primary", verb="flush"))
    with pytest.raises(ModelIOError):
        run_sequentially(chain.guest_write(0, 128, 3), refusing("primary"))
