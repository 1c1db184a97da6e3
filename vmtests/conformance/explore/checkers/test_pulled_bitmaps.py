"""Pulled bitmaps: each way in which the frozen or the active one can be wrong is found out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from errno import EIO
from typing import Any

import pytest

from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.checkers.pulled_bitmaps import changed, touched
from qmpshim.conformance.explore.harness.choices import Cut
from qmpshim.conformance.explore.harness.push import bitmaps_left
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import BitmapLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain import gated
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.masks import span
from vmtests.support.backups import Kinds, explored, kinds, point_of
from vmtests.support.pulls import SINCE, cleared, not_recorded, recorded, stopped

READ = "primary_write+guest_dirty_bitmap"  # both about granules 1 and 2
AFTER_T0 = (Verdict.ISOLATION, CauseKind.WRONG_DATA, "guest_dirty_bitmap")
BEFORE_T0 = (Verdict.LOST_WRITE, CauseKind.WRONG_DATA, "guest_dirty_bitmap")


class Holding(RealSystem):
    """Holds every request, those for block status among them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, all_io=True, **options)


def found(
    pool: QemuPool,
    name: str,
    bitmap: str = "ends",
    release: Release = faithfully,
    errnos: tuple[int, ...] = (),
    kind: type[RealSystem] = RealSystem,
) -> Kinds:
    """What is found with these operations, where a snapshot is pulled."""
    scenario = point_of("backup", f"{name},bitmap={bitmap}")
    return kinds(explored(pool, scenario, kind, release=release, errnos=errnos, most=60))


def misses(name: str) -> tuple[Verdict, CauseKind, str]:
    """A bitmap misses a granule."""
    return Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES, name


def exceeds(name: str) -> tuple[Verdict, CauseKind, str]:
    """A bitmap names a granule that it must not."""
    return Verdict.ALLOCATION, CauseKind.BITMAP_EXCEEDS, name


def state(name: str) -> tuple[Verdict, CauseKind, str]:
    """A bitmap is in another state; ``list``: other ones are there."""
    return Verdict.PROTOCOL, CauseKind.BITMAP_STATE, name


@pytest.mark.parametrize("bitmap", ["empty", "middle", "ends"])
@pytest.mark.parametrize(
    "name",
    [
        READ,
        "primary_zero+guest_dirty_bitmap,relation=overlaps,place=ragged,disk=odd,history=zeroed",
        "primary_discard+stop,third=with_dirty_bitmap,secondary=qcow2,history=copied-part",
    ],
)
def test_nothing_is_wrong_with_a_faithful_storage(pool: QemuPool, name: str, bitmap: str) -> None:
    assert found(pool, name, bitmap) == set()


@pytest.mark.kills("pulled_bitmaps")
def test_a_granule_that_is_not_marked_is_missed(pool: QemuPool) -> None:
    assert found(pool, READ, release=not_recorded) == {misses("b1")}


@pytest.mark.kills("pulled_bitmaps")
def test_a_bitmap_that_is_cleared_too_early_is_found_out(pool: QemuPool) -> None:
    """Also where it names what was written before the operations that overlap."""
    assert found(pool, READ, release=cleared) == {misses("b1")}
    name = "primary_discard+primary_write,relation=before,history=copied"
    assert found(pool, name, release=cleared) == {misses("b1")}


@pytest.mark.kills("linearizability", "pulled_bitmaps")
def test_a_frozen_bitmap_that_records_is_found_out(pool: QemuPool) -> None:
    """By a client that reads it afterwards, and in the end."""
    assert found(pool, READ, release=recorded) == {AFTER_T0, exceeds("b0")}
    assert found(pool, "primary_write+status", release=recorded) == {exceeds("b0")}


@pytest.mark.kills("linearizability", "pulled_bitmaps")
def test_what_was_changed_before_t0_must_not_be_missing(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a QEMU whose frozen bitmap names nothing."""
    monkeypatch.setattr(gated, "marking", lambda bitmap, size: ())
    assert found(pool, READ, "empty") == set()
    assert found(pool, READ, "middle") == {BEFORE_T0}
    assert found(pool, "primary_write+guest_read", "middle") == {misses("b0")}


def test_a_client_that_is_gone_does_not_take_another_one_along(pool: QemuPool) -> None:
    """The bitmap is read by another connection."""
    assert found(pool, "guest_read+guest_vanish,third=with_dirty_bitmap") == set()


OVERRUN = (Verdict.PROTOCOL, CauseKind.REPLY_OVERRUN, "")


@pytest.mark.parametrize("read", ["guest_dirty_bitmap", "guest_block_status"])
def test_a_block_status_may_be_known_of_what_cannot_be_read(pool: QemuPool, read: str) -> None:
    """A disk that is gone, or of which another I/O failed: QEMU may have it in memory."""
    wrong = found(pool, f"primary_zero+{read},relation=during", errnos=(EIO, Cut.FOR_GOOD))
    assert wrong <= {OVERRUN}
    wrong = found(pool, f"primary_write+{read}", release=recorded, errnos=(EIO,))
    assert exceeds("b0") in wrong


def test_a_reply_that_goes_on_is_found_out(pool: QemuPool) -> None:
    """What is written up as failed-block-status-is-answered-twice."""
    name = "guest_read+guest_dirty_bitmap,history=zeroed"
    assert found(pool, name, errnos=(EIO,), kind=Holding) == {OVERRUN}


def test_a_model_whose_frozen_bitmap_records_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Chain.primary_write

    def recorded(chain: Chain, start: int, count: int, op: int) -> object:
        chain.frozen |= span(start, count)
        return write(chain, start, count, op)

    monkeypatch.setattr(Chain, "primary_write", recorded)
    assert found(pool, READ, "empty") == {BEFORE_T0}


def left_as(
    monkeypatch: pytest.MonkeyPatch, name: str, granules: Callable[[Collection[int]], set[int]]
) -> None:
    """Judge by a QEMU in which one bitmap names other granules in the end."""

    def left(machine: GatedMachine, scenario: RealScenario) -> tuple[BitmapLeft, ...]:
        return tuple(
            replace(one, granules=frozenset(granules(one.granules or ())))
            if one.name == name
            else one
            for one in bitmaps_left(machine, scenario)
        )

    monkeypatch.setattr(final_state, "bitmaps_left", left)


@pytest.mark.kills("pulled_bitmaps")
@pytest.mark.parametrize("name", ["b0", "b1"])
def test_a_bitmap_that_names_too_much_is_found_out(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_as(monkeypatch, name, lambda granules: {*granules, 0})
    assert found(pool, READ, "middle") == {exceeds(name)}


@pytest.mark.kills("pulled_bitmaps")
def test_a_bitmap_that_does_not_record_any_more_is_found_out(pool: QemuPool) -> None:
    assert found(pool, READ, release=stopped) == {state("b1")}


@pytest.mark.kills("pulled_bitmaps")
def test_a_bitmap_that_is_not_there_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a QEMU whose transaction does not add the active one."""
    start = GatedMachine.start

    def started(machine: GatedMachine) -> None:
        start(machine)
        machine.call("block-dirty-bitmap-remove", SINCE)

    monkeypatch.setattr(GatedMachine, "start", started)
    assert found(pool, READ) == {state("list")}


def test_what_was_changed_and_what_may_have_been() -> None:
    """A change that was not done is no change; one of the setup is."""
    scenario = point_of("backup", "primary_write+guest_read,bitmap=empty,history=copied")
    assert touched(scenario) == span(128, 256)
    disk = (1,) * 100 + (0, 2) + (1,) * 50
    assert changed(disk, [(1,)] * len(disk)) == span(100, 2)
    assert changed(disk, [(1,)] * 100 + [(1, 0), (1, 0)] + [(1,)] * 50) == span(101, 1)
