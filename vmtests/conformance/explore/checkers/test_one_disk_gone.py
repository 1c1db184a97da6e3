"""One of two disks on which one transaction begins is gone for good: the other notices nothing."""

from __future__ import annotations

from dataclasses import replace
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.checkers.failed_end import under_way
from qmpshim.conformance.explore.checkers.orders import Do
from qmpshim.conformance.explore.checkers.parts import Before, done_in_part
from qmpshim.conformance.explore.checkers.pulled_bitmaps import unknown
from qmpshim.conformance.explore.checkers.sequential import run_in_order
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.choices import Cut, io_id
from qmpshim.conformance.explore.harness.push import bitmaps_left
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import BitmapLeft
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK, Prediction, io_error
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.masks import span
from vmtests.support.backups import Kinds, explored, kinds, point_of
from vmtests.support.failing import answering
from vmtests.support.pulls import (
    copied_too,
    reading_second,
    started_by,
    unwatched,
    without_last_job,
)

#: A write of the first disk before the pull, and one of the second disk after it.
WRITES = "primary_write+start,third=start_then_primary_write,history=dirty,disks=two"
QCOW2 = f"{WRITES},secondary=qcow2"
#: The write of the second disk comes while the pull is started.
BESIDE = "primary_write+start,third=with_primary_write,disks=two"
GROUPED = "primary_write+start,third=start_then_primary_write,disks=two-grouped"
FIRST, SECOND = "secondary write 128+256", "secondary write 768+256"
COPY_OF_SECOND = "hidden write 768+256"


def cut(
    pool: QemuPool,
    name: str,
    fails: str,
    kind: type[RealSystem] = RealSystem,
    release: Release = faithfully,
) -> RealSystem:
    """The first schedules in which the disk of an I/O is gone from that on."""
    scenario = point_of("pull", name)
    op = next(
        n for n, one in enumerate(scenario.ops) if fails.endswith(f" {one.start}+{one.count}")
    )
    plan = {io_id(op, fails): int(Cut.FOR_GOOD)}
    return explored(pool, scenario, kind, release=release, plan=plan, most=12)


def without_second_disk(machine: GatedMachine, scenario: RealScenario) -> tuple[BitmapLeft, ...]:
    """Bitmaps that name nothing of the second disk."""
    second = scenario.apart // scenario.granule
    return tuple(
        replace(one, granules=frozenset(n for n in one.granules or () if n < second))
        for one in bitmaps_left(machine, scenario)
    )


def found(pool: QemuPool, name: str, fails: str, release: Release = faithfully) -> Kinds:
    return kinds(cut(pool, name, fails, release=release))


@pytest.mark.parametrize("fails", [FIRST, SECOND, COPY_OF_SECOND, "secondary read 768+256"])
@pytest.mark.parametrize("name", [WRITES, GROUPED, QCOW2])
def test_nothing_is_wrong_with_the_disk_that_stays(pool: QemuPool, name: str, fails: str) -> None:
    assert found(pool, name, fails) == set()


@pytest.mark.kills("failures")
@pytest.mark.parametrize(("fails", "other"), [(FIRST, 2), (SECOND, 0)])
def test_an_error_of_the_other_disk_is_found_out(pool: QemuPool, fails: str, other: int) -> None:
    scenario = point_of("pull", WRITES)
    also = answering(lambda op, answer: io_error(EIO) if op == scenario.ops[other] else None)
    answers = (Verdict.ERROR_CONTRACT, CauseKind.WRONG_ANSWER, "primary_write")
    assert kinds(cut(pool, WRITES, fails, also)) == {answers}


@pytest.mark.kills("failures")
def test_a_snapshot_of_the_other_disk_that_cannot_be_read_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_second(machine: GatedMachine, scenario: RealScenario) -> Any:
        view = read_view(machine, scenario)
        return view and (*view[: scenario.apart], *[None] * scenario.disk_size)

    read_view = final_state.read_view
    monkeypatch.setattr(final_state, "read_view", without_second)
    unreadable = (Verdict.ERROR_CONTRACT, CauseKind.VIEW_UNREADABLE, "")
    assert found(pool, WRITES, FIRST) == {unreadable}
    # With a scratch image that is gone what is not copied yet can be read, or not.
    assert found(pool, WRITES, COPY_OF_SECOND) == set()


@pytest.mark.kills("failures")
def test_a_cluster_too_many_of_the_other_target_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scenario = point_of("pull", WRITES)
    first = scenario.disk_size - scenario.granule  # of what no operation is about
    there = copied_too(monkeypatch, tmp_path / "old", scenario, 0, first)
    system = cut(pool, WRITES, COPY_OF_SECOND)
    assert kinds(system) == {(Verdict.ALLOCATION, CauseKind.ALLOCATION, "hidden")}
    (sighting,) = system.found.values()
    assert sighting.violation.evidence == there


@pytest.mark.kills("liveness")
@pytest.mark.parametrize("name", [WRITES, GROUPED])
def test_a_job_of_the_other_disk_that_is_not_there_is_found_out(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_by(monkeypatch, point_of("pull", name), without_last_job)
    unwatched(monkeypatch)
    gone = (Verdict.ERROR_CONTRACT, CauseKind.JOB_GONE, "")
    assert found(pool, name, FIRST) == {gone}


@pytest.mark.kills("pulled_bitmaps")
@pytest.mark.parametrize("name", [WRITES, QCOW2])
def test_a_bitmap_of_the_other_disk_that_lacks_a_change_is_found_out(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final_state, "bitmaps_left", without_second_disk)
    misses = {(Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES, name) for name in ("b0", "b1")}
    assert found(pool, name, FIRST) <= misses
    assert found(pool, name, FIRST)


@pytest.mark.kills("pulled_point")
def test_a_write_of_the_other_disk_that_is_in_its_snapshot_in_part_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began beside the command may be before T0 or after: as a whole."""

    def read(machine: GatedMachine, scenario: RealScenario) -> Any:
        view, write = read_view(machine, scenario), scenario.ops[2]
        half = write.count // 2
        new, end = [scenario.number(2)] * half, write.start + write.count
        return view and (*view[: write.start], *new, *[BASE] * half, *view[end:])

    read_view = final_state.read_view
    monkeypatch.setattr(final_state, "read_view", read)
    assert (Verdict.CONTENT, CauseKind.NO_POINT_IN_TIME, "view") in found(pool, BESIDE, FIRST)


@pytest.mark.kills("pulled_bitmaps")
def test_only_of_a_qcow2_disk_that_is_gone_not_all_changes_are_known() -> None:
    scenario = point_of("pull", QCOW2)
    own = [span(disk * scenario.apart, scenario.disk_size) for disk in range(2)]
    for disk in range(2):
        gone = InjectedFault("secondary", "write", 0, 0, EIO, gone=True, disk=disk)
        assert unknown(scenario, [gone]) == own[disk]
        assert unknown(scenario, [replace(gone, gone=False)]) == 0
        assert unknown(scenario, [gone_scratch(scenario, disk)]) == 0
        assert unknown(point_of("pull", WRITES), [gone]) == 0


def gone_scratch(scenario: RealScenario, disk: int) -> InjectedFault:
    """The scratch image of a disk is gone with the copy of its first granule."""
    return InjectedFault("hidden", "write", 0, scenario.granule, EIO, gone=True, disk=disk)


def test_no_operation_of_the_other_disk_has_met_what_failed() -> None:
    scenario = point_of("pull", WRITES)
    assert under_way(scenario, gone_scratch(scenario, 0)) == [0, 1]
    assert under_way(scenario, gone_scratch(scenario, 1)) == [1, 2]


@pytest.mark.parametrize(("disk", "read"), [(0, OK), (1, io_error(EIO))])
def test_a_gone_scratch_image_prevents_no_read_of_the_other_snapshot(
    disk: int, read: Prediction
) -> None:
    """A write of the second disk fails; if it is its image that is gone, that may have a part."""
    scenario = reading_second()
    end = run_in_order(scenario, behaviour_of((10, 0)), tuple(map(Do, range(4))))
    end = replace(end, answers=(OK, io_error(EIO), OK, OK))
    seen = replace(end, answers=(OK, io_error(EIO), OK, io_error(EIO)))
    before = Before(frozenset(), (BASE,) * scenario.size)
    likely = done_in_part(scenario, end, seen, [gone_scratch(scenario, disk)], before)
    assert likely.answers[3] == read


def test_a_write_that_the_gone_disk_refuses_is_no_success(pool: QemuPool) -> None:
    silent = answering(lambda op, answer: OK if op.changes else None)
    masked = {(Verdict.ERROR_CONTRACT, CauseKind.ERROR_MASKED, "primary_write")}
    assert kinds(cut(pool, WRITES, FIRST, silent)) == masked
