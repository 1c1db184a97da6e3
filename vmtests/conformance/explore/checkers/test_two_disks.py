"""Two disks on which one transaction begins: two T0s, and jobs that do not belong together."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any, cast

import pytest

from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.push import bitmaps_left
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.outcome import BitmapLeft
from qmpshim.conformance.explore.scenarios import RealScenario, check_scenario
from qmpshim.errors import InputError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.qmp_commands import BACKS_UP, TRANSACTION, QmpCommand
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from vmtests.support.backups import Kinds, explored, kinds, point_of
from vmtests.support.pulls import unwatched

WRITES = "primary_write+start,third=start_then_primary_write,history=dirty,disks=two"
GROUPED = "primary_write+start,third=start_then_primary_write,disks=two-grouped"
STOPPED = "guest_read+start,third=start_then_stop,disks=two-grouped"
JOB_GONE = (Verdict.ERROR_CONTRACT, CauseKind.JOB_GONE, "")
NEW_VIEW = (Verdict.ISOLATION, CauseKind.WRONG_DATA, "view")
LATE_JOB = {"job-id": "other-backup", "device": "other-secondary", "target": "other-hidden"}

Actions = list[dict[str, Any]]


def found(pool: QemuPool, scenario: RealScenario, release: Release = faithfully) -> Kinds:
    """What is found in the first schedules."""
    return kinds(explored(pool, scenario, release=release, most=80))


def started_by(
    monkeypatch: pytest.MonkeyPatch, scenario: RealScenario, change: Callable[[Actions], Actions]
) -> None:
    """The transaction has other actions; and no properties."""
    commands = cast(MutableMapping[str, QmpCommand], scenario.topology.commands)
    actions = change(list(commands["start"].arguments["actions"]))
    monkeypatch.setitem(commands, "start", QmpCommand(TRANSACTION, {"actions": actions}))


def without_last_job(actions: Actions) -> Actions:
    """Without the job of the second disk."""
    assert actions[-1]["type"] == BACKS_UP and actions[-1]["data"]["device"] == "other-secondary"
    return actions[:-1]


def everything_beside() -> RealScenario:
    """A write of each disk, the start, and a read of the second one's snapshot."""
    pair = point_of("pull", "primary_write+primary_write,third=with_start,disks=two")
    size = pair.disk_size
    return replace(pair, ops=(*pair.ops, operation("guest_read", size, size, after=2)))


@pytest.mark.parametrize(
    "name",
    [
        WRITES,
        GROUPED,
        STOPPED,
        "guest_read+start,third=with_primary_write,disks=two",
        "primary_write+start,third=start_then_dirty_bitmap,disks=two,cluster=4k",
        "primary_zero+primary_discard,third=with_start,place=ragged,history=copied,disks=two",
    ],
)
def test_nothing_is_wrong_with_a_faithful_storage(pool: QemuPool, name: str) -> None:
    assert found(pool, point_of("pull", name)) == set()


def test_writes_of_both_disks_and_a_reader_beside_the_start(pool: QemuPool) -> None:
    assert found(pool, everything_beside()) == set()


@pytest.mark.kills("linearizability")
def test_two_t0s_are_found_out(pool: QemuPool, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = point_of("pull", WRITES)
    started_by(monkeypatch, scenario, without_last_job)

    def late(machine: GatedMachine, named: NamedIo) -> None:
        """The second disk's job starts after a write of it that came when the start was over."""
        faithfully(machine, named)
        if named.io.image == "other-secondary" and named.verb == "write":
            machine.settle()
            machine.qmp.send(BACKS_UP, {**LATE_JOB, "sync": "none"})  # it waits for what is held

    unwatched(monkeypatch)
    assert found(pool, scenario, late) == {NEW_VIEW}


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
    pair = everything_beside()
    check_scenario(pair)
    across = replace(pair.ops[0], start=pair.disk_size - 8, count=16)
    for wrong in (
        replace(pair, ops=(across, *pair.ops[1:])),
        replace(pair, size=pair.size - 2),
        replace(pair, secondary="qcow2"),
        replace(pair, ops=(*pair.ops[:3], operation("stop", after=2))),
    ):
        with pytest.raises(InputError):
            check_scenario(wrong)
