"""Copies that a backup job makes again: with on-target-error=ignore its target is complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from errno import EIO

import pytest

from qmpshim.conformance.explore.checkers import final_state, point_in_time
from qmpshim.conformance.explore.harness.choices import IoId
from qmpshim.conformance.explore.harness.push import left_by_backup
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.outcome import BackupLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import point_named, scenario_of
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.pointintime.jobs import Ending
from vmtests.support.backup_left import left_as

_NAME = "primary_write+backup_incremental,form=push,history=dirty,options=retries"
READ = IoId(1, "secondary", "read", "0+128")
WRITE = IoId(1, "hidden", "write", "0+128")


@pytest.fixture(autouse=True)
def fresh_predictions() -> Iterator[None]:
    point_in_time.possible.cache_clear()
    yield
    point_in_time.possible.cache_clear()


def found(pool: QemuPool, io: IoId) -> set[tuple[CauseKind, str]]:
    """What is wrong where this I/O fails, once."""
    system = RealSystem(pool, scenario_of(point_named(_NAME)), plan={io: EIO})
    explore(system, Mode.RANDOM, Budget(schedules=12), stop=False, seed=3)
    assert system.finished
    return {(cause.kind, cause.subject) for _, cause in system.found}


@pytest.mark.parametrize("io", [READ, WRITE], ids=str)
def test_a_copy_that_failed_is_made_again(
    pool: QemuPool, io: IoId, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(pool, io) == set()

    def gives_up(machine: GatedMachine, scenario: RealScenario) -> BackupLeft:
        left = left_by_backup(machine, scenario)
        errors = any(event["event"] == "BLOCK_JOB_ERROR" for event in machine.qmp.events)
        return replace(left, ending=Ending.FAILED) if errors else left

    monkeypatch.setattr(final_state, "left_by_backup", gives_up)
    assert found(pool, io) == {(CauseKind.JOB_ENDS, "backup job")}


def test_an_error_that_no_event_reports_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_in_time, "ignored_errors", lambda machine: False)
    assert found(pool, WRITE) == {(CauseKind.ERROR_MASKED, "backup job")}


def test_what_is_not_copied_again_is_missing(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_out(left: BackupLeft) -> BackupLeft:
        return replace(left, target=(*(None,) * 128, *left.target[128:]))

    left_as(monkeypatch, left_out)
    assert (CauseKind.WRONG_DATA, "target") in found(pool, WRITE)
