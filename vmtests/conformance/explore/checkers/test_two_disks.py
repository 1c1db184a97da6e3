"""Two disks on which one transaction begins: two T0s, and jobs that do not belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.push import bitmaps_left
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import BitmapLeft
from qmpshim.conformance.explore.scenarios import RealScenario, check_scenario
from qmpshim.errors import InputError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.qmp_commands import BACKS_UP
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from qmpshim.model.units import SECTOR
from vmtests.support.backups import Kinds, explored, kinds, point_of
from vmtests.support.pulls import (
    Actions,
    copied_too,
    reading_second,
    started_by,
    unwatched,
    without_last_job,
)

WRITES = "primary_write+start,third=start_then_primary_write,history=dirty,disks=two"
ODD = "primary_write+start,third=start_then_primary_write,place=end,disk=odd,disks=two"
AT_BEGINNING = "primary_write+start,third=start_then_primary_write,place=small,disk=odd,disks=two"
QCOW2 = (
    "primary_write+start,third=start_then_primary_write,disk=half,cluster=4k,secondary=qcow2,"
    "history=dirty,disks=two"
)
GROUPED = "primary_write+start,third=start_then_primary_write,disks=two-grouped"
STOPPED = "guest_read+start,third=start_then_stop,disks=two-grouped"
JOB_GONE = (Verdict.ERROR_CONTRACT, CauseKind.JOB_GONE, "")
NEW_VIEW = (Verdict.ISOLATION, CauseKind.WRONG_DATA, "view")
LATE_JOB = {"job-id": "other-backup", "device": "other-secondary", "target": "other-hidden"}


def found(pool: QemuPool, scenario: RealScenario, release: Release = faithfully) -> Kinds:
    """What is found in the first schedules."""
    return kinds(explored(pool, scenario, release=release, most=80))


@pytest.mark.parametrize(
    "name",
    [
        WRITES,
        ODD,
        QCOW2,
        GROUPED,
        STOPPED,
        f"{GROUPED},disk=half,secondary=qcow2,subclusters=all",
        "guest_read+start,third=with_primary_write,disks=two",
        "primary_write+start,third=start_then_dirty_bitmap,disks=two,cluster=4k",
        "primary_zero+primary_discard,third=with_start,place=ragged,history=copied,disks=two",
        "primary_zero+primary_discard,third=with_start,place=end,disk=odd,cluster=4k,"
        "secondary=qcow2,history=copied-part,disks=two",
    ],
)
def test_nothing_is_wrong_with_a_faithful_storage(pool: QemuPool, name: str) -> None:
    assert found(pool, point_of("pull", name)) == set()


def test_writes_of_both_disks_and_a_reader_beside_the_start(pool: QemuPool) -> None:
    assert found(pool, reading_second()) == set()


@pytest.mark.kills("linearizability")
@pytest.mark.parametrize("name", [WRITES, ODD, QCOW2])
def test_two_t0s_are_found_out(pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = point_of("pull", name)
    started_by(monkeypatch, scenario, without_last_job)

    def late(machine: GatedMachine, named: NamedIo) -> None:
        """The second disk's job starts after a write of it that came when the start was over."""
        faithfully(machine, named)
        if named.io.image == "other-secondary" and named.verb == "write":
            machine.settle()
            machine.qmp.send(BACKS_UP, {**LATE_JOB, "sync": "none"})  # it waits for what is held

    unwatched(monkeypatch)
    assert found(pool, scenario, late) == {NEW_VIEW}


@pytest.mark.kills("linearizability")
@pytest.mark.parametrize("name", [WRITES, AT_BEGINNING, QCOW2])
def test_a_cluster_too_many_of_the_second_target_is_found_out(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scenario = point_of("pull", name)
    last = (scenario.disk_size - 1) // scenario.granule * scenario.granule
    first = last if name == AT_BEGINNING else 0  # what no operation is about
    there = copied_too(monkeypatch, tmp_path / "old", scenario, 1, first)
    system: RealSystem = explored(pool, scenario, most=80)
    assert kinds(system) == {(Verdict.ALLOCATION, CauseKind.ALLOCATION, "hidden")}
    (sighting,) = system.found.values()
    assert sighting.violation.evidence == there


@pytest.mark.kills("linearizability")
@pytest.mark.parametrize("name", [ODD, QCOW2])
def test_a_copy_of_the_second_disk_that_lacks_its_end_is_found_out(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's last sector is zeroes in the target."""
    scenario = point_of("pull", name)
    last = scenario.size - 1

    def without_end(machine: GatedMachine, named: NamedIo) -> None:
        faithfully(machine, named)
        at = last - named.start
        if named.io.image == "other-hidden" and named.verb == "write" and 0 <= at < named.count:
            store = machine.gate.store(named.io.image)
            store.write(named.io.offset + at * SECTOR, bytes(SECTOR))

    unwatched(monkeypatch)
    lost = (Verdict.LOST_WRITE, CauseKind.WRONG_DATA, "view")
    assert found(pool, scenario, without_end) == {lost}


@pytest.mark.kills("liveness")
@pytest.mark.parametrize("name", [WRITES, GROUPED])
def test_a_disk_without_a_job_is_found_out(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = point_of("pull", name)
    started_by(monkeypatch, scenario, without_last_job)
    assert found(pool, scenario) == {(Verdict.ORDER, CauseKind.NEW_BEFORE_OLD, "")}
    unwatched(monkeypatch)
    assert found(pool, scenario) == {JOB_GONE}


@pytest.mark.kills("liveness")
def test_a_grouped_job_that_is_not_cancelled_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = point_of("pull", STOPPED)
    started_by(monkeypatch, scenario, lambda actions: actions)  # each job for itself
    assert found(pool, scenario) == {(Verdict.HANG, CauseKind.STAYS, "the backup job")}


@pytest.mark.kills("pulled_bitmaps")
def test_a_bitmap_of_one_disk_that_is_not_frozen_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = point_of("pull", WRITES)
    node = "other-secondary"

    def not_frozen(actions: Actions) -> Actions:
        frozen = "block-dirty-bitmap-disable"
        left = [one for one in actions if (one["type"], one["data"].get("node")) != (frozen, node)]
        assert len(left) == len(actions) - 1
        return left

    started_by(monkeypatch, scenario, not_frozen)
    assert found(pool, scenario) == {(Verdict.PROTOCOL, CauseKind.BITMAP_STATE, "list")}


@pytest.mark.kills("pulled_bitmaps")
def test_changes_that_are_marked_on_the_other_disk_are_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchanged(machine: GatedMachine, scenario: RealScenario) -> tuple[BitmapLeft, ...]:
        granules = scenario.disk_size // 128
        return tuple(
            replace(
                one, granules=frozenset((n + granules) % (2 * granules) for n in one.granules or ())
            )
            for one in bitmaps_left(machine, scenario)
        )

    monkeypatch.setattr(final_state, "bitmaps_left", exchanged)
    misses = (Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES)
    assert found(pool, point_of("pull", WRITES)) == {(*misses, "b0")}
    since = "guest_read+start,third=start_then_primary_write,disks=two"
    exceeds = (Verdict.ALLOCATION, CauseKind.BITMAP_EXCEEDS, "b1")
    assert found(pool, point_of("pull", since)) == {exceeds}


def test_what_two_disks_cannot_be() -> None:
    pair = reading_second()
    check_scenario(pair)
    across = replace(pair.ops[0], start=pair.disk_size - 8, count=16)
    for wrong in (
        replace(pair, ops=(across, *pair.ops[1:])),
        replace(pair, size=pair.granule),
        replace(pair, ops=(*pair.ops[:3], operation("stop", after=2))),
    ):
        with pytest.raises(InputError):
            check_scenario(wrong)


@pytest.mark.parametrize("disk", ["whole", "half", "odd"])
def test_a_second_disk_begins_with_a_granule(disk: str) -> None:
    one = point_of("pull", f"guest_read+start,third=with_primary_write,disk={disk}")
    two = point_of("pull", f"guest_read+start,third=with_primary_write,disk={disk},disks=two")
    assert (one.disk_size, one.apart) == (one.size, one.size)
    assert two.disk_size == one.size and two.apart == 4 * two.granule
    assert two.size == two.apart + two.disk_size and two.end_of(two.apart) == two.size
    check_scenario(two)
    for start in (two.disk_size, two.size):  # behind the end of a disk
        with pytest.raises(InputError):
            check_scenario(replace(two, ops=(replace(two.ops[0], start=start, count=1),)))
