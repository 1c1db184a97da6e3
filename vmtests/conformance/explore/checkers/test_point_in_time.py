"""Point in time: each way in which a target can be wrong is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.harness.footprints import Footprints
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem, faithfully
from qmpshim.conformance.explore.outcome import BackupLeft
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import is_name, point_named, scenario_of
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.system import Footprint
from qmpshim.model.explore.walk import Budget
from qmpshim.model.pointintime.jobs import Ending
from vmtests.support.backup_left import left_as
from vmtests.support.gate import drop, of

Release = Callable[[GatedMachine, NamedIo], None]


def explored(
    pool: QemuPool,
    name: str,
    release: Release = faithfully,
    mode: Mode = Mode.STATEFUL,
    errnos: tuple[int, ...] = (),
    most: int = 400,
) -> RealSystem:
    (scenario,) = scenarios.named(name)
    system = RealSystem(pool, scenario, release=release, errnos=errnos)
    explore(system, mode, Budget(schedules=most, seconds=20), stop=False)
    assert system.finished and not system.derailed
    return system


def kinds(system: RealSystem) -> set[tuple[Verdict, CauseKind, str]]:
    return {(verdict, cause.kind, cause.subject) for verdict, cause in system.found}


@pytest.mark.parametrize("name", ["push-Vi", "push-Dn", "push-Zt", "push-Sa"])
def test_a_faithful_storage_shows_nothing(pool: QemuPool, name: str) -> None:
    assert not explored(pool, name).found


class Recording(RealSystem):
    """Keeps how each execution ended."""

    ends: set[object]

    def finish(self) -> object:  # type: ignore[override]
        found = super().finish()
        self.ends.add(self.now.outcome)
        return found


def ends(pool: QemuPool, scenario: RealScenario, mode: Mode) -> tuple[set[object], int]:
    """The ways in which the executions of a scenario end, and how many were taken."""
    system = Recording(pool, scenario)
    system.ends = set()
    done = explore(system, mode, Budget(schedules=400), stop=False)
    assert done.exhaustive and not system.derailed
    return system.ends, done.statistics.schedules


_DIRTY = "form=push,history=dirty"


@pytest.mark.parametrize(
    "name",
    [
        *("push-Sa", "push-ci", "push-Wi"),
        f"primary_discard+backup_incremental,{_DIRTY}",
        pytest.param(
            f"primary_discard+backup_incremental,{_DIRTY},third=with_bitmap_clear",
            marks=pytest.mark.full,
        ),
    ],
)
def test_the_reduction_hides_no_outcome(pool: QemuPool, name: str) -> None:
    """All schedules, one by one, end in the same ways."""
    (scenario,) = [scenario_of(point_named(name))] if is_name(name) else scenarios.named(name)
    reduced, fewer = ends(pool, scenario, Mode.STATEFUL)
    every, all_of_them = ends(pool, scenario, Mode.NAIVE)
    assert reduced == every and len(every) > 1
    assert fewer <= all_of_them  # copies one after another leave little to reduce (5.2)


def test_a_reduction_that_takes_too_little_for_touched_hides_outcomes(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no step touches anything."""
    scenario = scenario_of(point_named(f"primary_discard+backup_incremental,{_DIRTY}"))
    every, _ = ends(pool, scenario, Mode.STATEFUL)
    monkeypatch.setattr(RealSystem, "_copying", lambda system: False)
    monkeypatch.setattr(Footprints, "step", lambda *args: Footprint(0, 0))
    fewer, _ = ends(pool, scenario, Mode.STATEFUL)
    assert fewer < every


@of("secondary", "read")
def _after_t0(machine: GatedMachine, named: NamedIo) -> None:
    """A read for a copy returns what comes later."""
    machine.gate.corrupt(named.io, bytes(pattern.data_of(4, named.start, named.count)))


@pytest.mark.parametrize("name", ["push-Wf", "push-Wi"])
def test_a_copy_taken_after_t0_is_found_out(pool: QemuPool, name: str) -> None:
    assert (Verdict.CONTENT, CauseKind.WRONG_DATA, "target") in kinds(
        explored(pool, name, _after_t0)
    )


@pytest.mark.parametrize("name", ["push-Wf", "push-Wi"])
def test_a_cluster_that_is_left_out_is_found_out(pool: QemuPool, name: str) -> None:
    found = kinds(explored(pool, name, drop("hidden")))
    assert (Verdict.CONTENT, CauseKind.WRONG_DATA, "target") in found


def test_a_target_of_two_points_in_time_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write spans two clusters; the target has it in one, and what was before in the other."""

    (scenario,) = scenarios.named("push-Vf")

    def torn(left: BackupLeft) -> BackupLeft:
        target = list(left.target)
        target[scenario.ops[0].start] = scenario.number(0)
        target[scenario.ops[0].start + scenario.ops[0].count - 1] = scenarios.BASE
        return replace(left, target=tuple(target))

    left_as(monkeypatch, torn)
    found = explored(pool, "push-Vf").found
    assert (Verdict.CONTENT, Cause(CauseKind.NO_POINT_IN_TIME, "target")) in found


def test_a_job_that_ends_by_itself_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_as(monkeypatch, lambda left: replace(left, ending=Ending.CANCELLED))
    found = kinds(explored(pool, "push-Wf"))
    assert found == {(Verdict.ERROR_CONTRACT, CauseKind.JOB_ENDS, "backup job")}


def test_a_failed_copy_that_is_not_reported_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_as(monkeypatch, lambda left: replace(left, ending=left.ending and Ending.COMPLETED))
    found = kinds(explored(pool, "push-fd", errnos=(5,), most=40))
    assert (Verdict.ERROR_CONTRACT, CauseKind.ERROR_MASKED, "backup job") in found
