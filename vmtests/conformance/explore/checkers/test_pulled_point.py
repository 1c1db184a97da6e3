"""Pulls that an operation starts: a T0 that is not where the transaction is is found out."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from errno import EIO, ENOSPC
from typing import cast

import pytest

from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.checkers.pulled_point import possible_points
from qmpshim.conformance.explore.harness.push import bitmaps_left
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import BitmapLeft
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.model.answers import OK, Answer, io_error
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from vmtests.support.backups import Kinds, explored, kinds, point_of
from vmtests.support.gate import Early
from vmtests.support.pulls import WITHOUT_JOB, counted_late, stale, started_late, unwatched

#: About granules 1 and 2; granules 0 and 2 were changed before, in part.
BESIDE = "primary_write+start,history=dirty"
#: The same about granule 1 alone.
NOTHING_BEFORE = "primary_write+start"
THEN_WRITE = "primary_write+start,third=start_then_primary_write,history=dirty"
JOB_GONE = (Verdict.ERROR_CONTRACT, CauseKind.JOB_GONE, "")
NEW_VIEW = (Verdict.ISOLATION, CauseKind.WRONG_DATA, "view")
#: A command that starts a pull waits for the read; a write that begins beside it is free.
WAITS = "guest_read+start,third=with_primary_write"


def found(pool: QemuPool, name: str, release: Release = faithfully) -> Kinds:
    """What is found with these operations."""
    return kinds(explored(pool, point_of("pull", name), release=release, most=80))


def commands() -> MutableMapping[str, QmpCommand]:
    """The commands of the chain, to be changed."""
    return cast(MutableMapping[str, QmpCommand], TOPOLOGIES["pull"].commands)


def misses(name: str) -> tuple[Verdict, CauseKind, str]:
    """A bitmap misses a granule."""
    return Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES, name


@pytest.mark.parametrize(
    "name",
    [
        BESIDE,
        THEN_WRITE,
        WAITS,
        "primary_zero+start,third=start_then_dirty_bitmap,place=ragged,disk=odd,secondary=qcow2",
        "primary_discard+start,third=start_then_guest_read,history=zeroed",
        "primary_write+primary_discard,third=with_start,relation=overlaps,history=discarded",
        "primary_write+primary_write,third=with_start,relation=before,history=copied-part",
    ],
)
def test_nothing_is_wrong_with_a_faithful_storage(pool: QemuPool, name: str) -> None:
    assert found(pool, name) == set()


@pytest.mark.kills("linearizability")
def test_a_t0_that_is_too_early_is_found_out(pool: QemuPool) -> None:
    """A write that was done, or under way, when the command came is not in the snapshot."""
    wrong = found(pool, "primary_write+start,third=start_then_primary_write", stale)
    assert wrong == {(Verdict.LOST_WRITE, CauseKind.WRONG_DATA, "view")}


@pytest.mark.kills("linearizability")
def test_a_t0_that_is_too_late_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that came when the transaction was over is in the snapshot."""
    monkeypatch.setitem(commands(), "start", WITHOUT_JOB)
    unwatched(monkeypatch)
    assert found(pool, BESIDE) == {JOB_GONE}
    assert found(pool, BESIDE, started_late) == {JOB_GONE, NEW_VIEW}


def seen_in_snapshot(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Judge by a QEMU whose snapshot has the first sectors of the write of :data:`WAITS`, and of
    the others what was there before.
    """

    def read(machine: GatedMachine, scenario: RealScenario) -> tuple[int | None, ...] | None:
        view, write = read_view(machine, scenario), scenario.ops[2]
        new = [scenario.number(2)] * count + [BASE] * (write.count - count)
        end = write.start + write.count
        return view and (*view[: write.start], *new, *view[end:])

    read_view = final_state.read_view
    monkeypatch.setattr(final_state, "read_view", read)


@pytest.mark.kills("pulled_point")
def test_a_write_that_is_in_the_snapshot_in_part_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began beside the command may be before T0 or after: as a whole."""
    write = point_of("pull", WAITS).ops[2]
    in_first_granule = 128 - write.start % 128
    assert in_first_granule < write.count
    seen_in_snapshot(monkeypatch, in_first_granule)
    assert (Verdict.CONTENT, CauseKind.NO_POINT_IN_TIME, "view") in found(pool, WAITS)


@pytest.mark.kills("pulled_bitmaps")
def test_a_write_under_way_that_is_counted_late_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that came after T0; what is under way when the command comes is before."""
    assert found(pool, NOTHING_BEFORE, counted_late) == {misses("b0")}
    monkeypatch.setattr(
        RealScenario, "preceding", lambda scenario, index, over, started: frozenset(over)
    )
    assert found(pool, NOTHING_BEFORE, counted_late) == set()


@pytest.mark.kills("pulled_bitmaps")
def test_a_change_that_neither_bitmap_names_is_missed(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it began beside the command, and is in the snapshot."""

    def emptied(machine: GatedMachine, scenario: RealScenario) -> tuple[BitmapLeft, ...]:
        *others, since = bitmaps_left(machine, scenario)
        return (*others, replace(since, granules=frozenset()))

    monkeypatch.setattr(final_state, "bitmaps_left", emptied)
    # Where it is in the snapshot (5.2), either bitmap could have it.
    wrong = found(pool, WAITS)
    assert misses("b1") in wrong and wrong <= {misses("b1"), misses("b0 or b1")}
    seen_in_snapshot(monkeypatch, point_of("pull", WAITS).ops[2].count)
    assert misses("b0 or b1") in found(pool, WAITS)


@pytest.mark.kills("pulled_bitmaps")
def test_bitmaps_that_are_exchanged_are_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchanged(machine: GatedMachine, scenario: RealScenario) -> tuple[BitmapLeft, ...]:
        *jobs, first, since = bitmaps_left(machine, scenario)
        exchanged = first.granules, since.granules
        return (
            *jobs,
            replace(first, granules=exchanged[1]),
            replace(since, granules=exchanged[0]),
        )

    monkeypatch.setattr(final_state, "bitmaps_left", exchanged)
    assert found(pool, BESIDE) == {misses("b0")}


@pytest.mark.kills("pulled_bitmaps")
def test_a_bitmap_is_frozen_by_the_transaction(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that records on cannot be offered by an export that does not write."""
    added, job = WITHOUT_JOB.arguments["actions"][1:], TOPOLOGIES["backup"].begins
    assert job is not None
    actions = [*added, {"type": job.name, "data": job.arguments}]
    monkeypatch.setitem(commands(), "start", QmpCommand("transaction", {"actions": actions}))
    assert found(pool, BESIDE) == {(Verdict.PROTOCOL, CauseKind.BITMAP_STATE, "b0")}


@pytest.mark.kills("online")
def test_new_data_before_the_old_is_saved_is_order(pool: QemuPool) -> None:
    """Once the pull has begun: in the end everything is where it belongs."""
    order = (Verdict.ORDER, CauseKind.NEW_BEFORE_OLD, "")
    assert found(pool, "guest_read+start,third=start_then_primary_write", Early()) == {order}
    assert found(pool, "guest_read+start,third=then_primary_write", Early()) == {order}


def test_a_model_that_freezes_nothing_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chain, "record", lambda chain, start, count: None)
    name = "primary_write+start,third=start_then_dirty_bitmap"
    wrong = (Verdict.ISOLATION, CauseKind.WRONG_DATA, "guest_dirty_bitmap")
    assert found(pool, name) == {wrong}


def test_a_write_that_fails_in_part_before_t0_is_in_the_snapshot_in_part(pool: QemuPool) -> None:
    """qcow2 writes in parts: where one fails, another may be done."""
    name = "primary_write+start,third=start_then_guest_read,place=ragged,cluster=4k"
    scenario = point_of("pull", f"{name},secondary=qcow2,history=zeroed")
    assert kinds(explored(pool, scenario, errnos=(ENOSPC,), most=60)) == set()


def test_points_are_where_the_order_leaves_them() -> None:
    scenario = point_of("pull", WAITS)
    write, old = scenario.number(2), {1}

    def points(*before: set[int], answers: tuple[Answer, ...] = (OK, OK, OK)) -> list[set[int]]:
        precedence = tuple(map(frozenset, before))
        failing = answers != (OK, OK, OK)
        found = possible_points(scenario, Behaviour(), answers, precedence, failing)
        return [one.owners[scenario.ops[2].start] for one in found]

    assert sorted(map(max, points(set(), {0}, set()))) == [1, write]
    assert points(set(), {0}, {0, 1}) == [old]
    assert points(set(), {0, 2}, set()) == [{write}]
    failed = (OK, OK, io_error(EIO))
    assert points(set(), {0, 2}, set(), answers=failed) == [{1, write}]
