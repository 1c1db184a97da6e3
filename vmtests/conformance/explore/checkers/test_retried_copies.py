"""Copies that a backup job makes again: where its errors are ignored its target is complete."""

from __future__ import annotations

from dataclasses import replace
from errno import EIO

import pytest

from qmpshim.conformance.explore.checkers import point_in_time
from qmpshim.conformance.explore.harness.choices import Cut, IoId
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.outcome import BackupLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.search import errnos_of
from qmpshim.machine.chain.variants import JOB
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.pointintime.jobs import Ending
from vmtests.support.backup_left import left_as
from vmtests.support.backups import Kinds, Recording, endings, explored, kinds, point_of
from vmtests.support.failing import Swallowing

pytestmark = pytest.mark.usefixtures("fresh_predictions")

_JOB = "primary_write+backup_incremental,history=dirty"
RETRIES = point_of("push", f"{_JOB},options=retries")
READ = IoId(1, "secondary", "read", "0+128")
WRITE = IoId(1, "hidden", "write", "0+128")
MASKED = {(Verdict.ERROR_CONTRACT, CauseKind.ERROR_MASKED, "backup job")}
ENDS = {(Verdict.ERROR_CONTRACT, CauseKind.JOB_ENDS, "backup job")}


def ignoring(*disks: str) -> RealScenario:
    """The scenario with a job that ignores the errors of these disks alone."""
    options = tuple((JOB, f"on-{disk}-error", "ignore") for disk in disks)
    return replace(point_of("push", _JOB), options=options)


def found(pool: QemuPool, io: IoId, scenario: RealScenario = RETRIES) -> Kinds:
    """What is wrong where this I/O fails, once."""
    return kinds(explored(pool, scenario, plan={io: EIO}, mode=Mode.RANDOM, most=12, seed=3))


@pytest.mark.kills("point_in_time")
@pytest.mark.parametrize("io", [READ, WRITE], ids=str)
def test_a_copy_that_failed_is_made_again(
    pool: QemuPool, io: IoId, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(pool, io) == set()

    def gives_up(left: BackupLeft) -> BackupLeft:
        assert pool.machine is not None
        events = pool.machine.qmp.events
        errors = any(event["event"] == "BLOCK_JOB_ERROR" for event in events)
        return replace(left, ending=Ending.FAILED) if errors else left

    left_as(monkeypatch, gives_up)
    assert found(pool, io) == ENDS


@pytest.mark.parametrize("io", [READ, WRITE], ids=str)
@pytest.mark.parametrize("disk", ["source", "target"])
def test_a_job_fails_by_the_disk_whose_errors_it_does_not_ignore(
    pool: QemuPool, disk: str, io: IoId
) -> None:
    """A copy that a guest's write needs fails that, and not the job."""
    plan = {io: EIO}
    system = explored(pool, ignoring(disk), Recording, plan=plan, mode=Mode.RANDOM, most=12, seed=3)
    assert kinds(system) == set()
    ignored = (disk == "source") is (io is READ)
    assert (Ending.FAILED in endings(system)) is not ignored
    assert Ending.COMPLETED in endings(system)


def test_no_disk_is_cut_off_for_good_beside_a_job_that_ignores_its_errors() -> None:
    """It would copy again without end."""
    faults = (EIO, Cut.FOR_GOOD, Cut.RECONNECT)
    for disk in ("source", "target"):
        assert errnos_of(ignoring(disk), faults) == (EIO, Cut.RECONNECT)
    assert errnos_of(ignoring(), faults) == faults


@pytest.mark.kills("point_in_time")
def test_an_error_that_no_event_reports_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_in_time, "errors_of_job", lambda machine: [])
    assert found(pool, WRITE) == MASKED


@pytest.mark.kills("point_in_time")
def test_what_is_not_copied_again_is_missing(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_out(left: BackupLeft) -> BackupLeft:
        return replace(left, target=(*(None,) * 128, *left.target[128:]))

    left_as(monkeypatch, left_out)
    assert found(pool, WRITE) == {(Verdict.CONTENT, CauseKind.WRONG_DATA, "target")}


@pytest.mark.kills("point_in_time")
def test_what_a_job_reports_excuses_no_request(pool: QemuPool) -> None:
    """A guest's write and a copy fail; the event is about the copy, and the write says success."""
    write, backup = RETRIES.ops
    scenario = replace(RETRIES, ops=(backup, replace(write, after=0)))
    copy, own = IoId(0, "hidden", "write", "0+128"), IoId(1, "secondary", "write", "128+256")
    wrong = explored(pool, scenario, Swallowing, plan={copy: EIO, own: EIO}, most=12)
    assert kinds(wrong) == {(Verdict.ERROR_CONTRACT, CauseKind.ERROR_MASKED, "primary_write")}


class SwallowingFirst(Swallowing):
    """It ignores them for the first operation alone."""

    def take_answer(self, index: int) -> None:
        if index == 0:
            super().take_answer(index)
        else:
            RealSystem.take_answer(self, index)


def test_what_a_request_reports_excuses_no_other(pool: QemuPool) -> None:
    """Two writes fail side by side, and one of them says success."""
    write, backup = point_of("push", "primary_write+backup_full").ops
    first, second = (replace(write, start=start, count=128) for start in (0, 128))
    scenario = replace(RETRIES, ops=(first, second, backup))
    plan = {IoId(index, "secondary", "write", f"{128 * index}+128"): EIO for index in range(2)}
    right = explored(pool, scenario, RealSystem, plan=plan, mode=Mode.RANDOM, most=12, seed=3)
    assert kinds(right) == set()
    wrong = explored(pool, scenario, SwallowingFirst, plan=plan, mode=Mode.RANDOM, most=12, seed=3)
    assert kinds(wrong) == {(Verdict.ERROR_CONTRACT, CauseKind.ERROR_MASKED, "primary_write")}
