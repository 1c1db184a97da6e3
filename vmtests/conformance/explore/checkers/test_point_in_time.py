"""Point in time: each way in which a target can be wrong is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EIO

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.harness.footprints import Footprints
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.outcome import BackupLeft, Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.naming import point_named, scenario_of, scenarios_called
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK, ReportedError
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.explore.system import Footprint
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import operation
from qmpshim.model.pointintime.jobs import Ending
from vmtests.support import misbehaving_gate
from vmtests.support.backup_left import left_as
from vmtests.support.backups import Recording, explored, kinds
from vmtests.support.failing import answering, one
from vmtests.support.followed import followed
from vmtests.support.gate import drop, of

pytestmark = pytest.mark.usefixtures("fresh_predictions")

JOB_ENDS = {(Verdict.ERROR_CONTRACT, CauseKind.JOB_ENDS, "backup job")}
MASKED = {(Verdict.ERROR_CONTRACT, CauseKind.ERROR_MASKED, "backup job")}
WRONG_DATA = {(Verdict.CONTENT, CauseKind.WRONG_DATA, "target")}
#: There is no second bitmap that the first one could be merged into.
REFUSED = replace(
    one("push-fd"), name="refused", ops=(operation("backup_full"), operation("bitmap_merge"))
)


@pytest.mark.parametrize("name", ["push-Vi", "push-Dn", "push-Zt", "push-Sa"])
def test_a_faithful_storage_shows_nothing(pool: QemuPool, name: str) -> None:
    assert not explored(pool, one(name)).found


def ends(pool: QemuPool, scenario: RealScenario, mode: Mode) -> tuple[set[Outcome | None], int]:
    """The ways in which the executions of a scenario end, and how many were taken."""
    system, done = followed(lambda: Recording(pool, scenario), mode, Budget(schedules=400))
    assert done.exhaustive
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
    (scenario,) = scenarios_called(name)
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
    monkeypatch.setattr(RealSystem, "job_runs", lambda system: False)
    monkeypatch.setattr(Footprints, "step", lambda *args: Footprint(0, 0))
    fewer, _ = ends(pool, scenario, Mode.STATEFUL)
    assert fewer < every


@pytest.mark.parametrize(
    ("method", "mutant", "more"),
    [
        ("is_copy", lambda *args: False, True),  # no I/O counts as the job's: all touch everything
        ("of_copy", lambda *args: Footprint(0, 0), False),  # copies touch nothing
    ],
)
def test_what_copies_touch_decides_which_schedules_are_taken(
    pool: QemuPool,
    method: str,
    mutant: Callable[..., object],
    more: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, schedules = ends(pool, one("push-Wi"), Mode.STATEFUL)
    monkeypatch.setattr(Footprints, method, mutant)
    _, others = ends(pool, one("push-Wi"), Mode.STATEFUL)
    assert others > schedules if more else others < schedules


@of("secondary", "read")
def _after_t0(machine: GatedMachine, named: NamedIo) -> None:
    """A read for a copy returns what comes later."""
    misbehaving_gate.corrupt(
        machine.gate, named.io, bytes(pattern.data_of(4, named.start, named.count))
    )


@pytest.mark.kills("point_in_time")
@pytest.mark.parametrize("name", ["push-Wf", "push-Wi"])
def test_a_copy_taken_after_t0_is_found_out(pool: QemuPool, name: str) -> None:
    assert kinds(explored(pool, one(name), release=_after_t0)) == WRONG_DATA


@pytest.mark.kills("point_in_time")
@pytest.mark.parametrize("name", ["push-Wf", "push-Wi"])
def test_a_cluster_that_is_left_out_is_found_out(pool: QemuPool, name: str) -> None:
    assert kinds(explored(pool, one(name), release=drop("hidden"))) == WRONG_DATA


@pytest.mark.kills("point_in_time")
def test_a_target_of_two_points_in_time_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write spans two clusters; the target has it in one, and what was before in the other.

    It is free to be before T0 or after where it begins while the command waits for a read.
    """

    scenario = one("push-rfV")
    write = scenario.ops[2]

    def torn(left: BackupLeft) -> BackupLeft:
        target = list(left.target)
        target[write.start] = scenario.number(2)
        target[write.start + write.count - 1] = scenarios.BASE
        return replace(left, target=tuple(target))

    left_as(monkeypatch, torn)
    # Where the write began after T0 the target has its data, too.
    torn_target = {(Verdict.CONTENT, CauseKind.NO_POINT_IN_TIME, "target")}
    assert kinds(explored(pool, scenario)) == torn_target | WRONG_DATA


@pytest.mark.kills("point_in_time")
def test_a_job_that_ends_by_itself_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_as(monkeypatch, lambda left: replace(left, ending=Ending.CANCELLED))
    assert kinds(explored(pool, one("push-Wf"))) == JOB_ENDS


@pytest.mark.kills("point_in_time")
def test_a_failed_copy_that_is_not_reported_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that ends as if nothing had failed; a command that is refused is no report."""
    left_as(
        monkeypatch,
        lambda left: replace(left, ending=left.ending and Ending.COMPLETED),
    )
    for scenario in (one("push-fd"), REFUSED):
        assert kinds(explored(pool, scenario, errnos=(EIO,), most=40)) == MASKED


#: A QEMU that says success where it refuses a command.
Obeying = answering(lambda op, answer: OK if isinstance(answer, ReportedError) else None)


@pytest.mark.kills("point_in_time")
def test_answers_that_fit_no_order_are_found_out_whatever_failed(pool: QemuPool) -> None:
    wrong = kinds(explored(pool, REFUSED, Obeying, errnos=(EIO,), most=40))
    assert wrong == {
        (Verdict.ERROR_CONTRACT, CauseKind.WRONG_ANSWER, "bitmap_merge"),  # if nothing did
        (Verdict.PROTOCOL, CauseKind.ANSWERS_FIT_NO_ORDER, ""),
    }
