"""Job errors: each way in which a backup job can go wrong at an error that pauses it is found."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from errno import EIO, ENOSPC
from typing import Any

import pytest

from qmpshim.conformance.explore.checkers import job_errors, liveness
from qmpshim.conformance.explore.harness.choices import Cut, IoId
from qmpshim.conformance.explore.harness.push import JobError
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.search import errnos_of
from qmpshim.errors import CommandFailed
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.variants import JOB
from qmpshim.model.answers import OK, ReportedError
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.operations import Verb, operation
from qmpshim.model.pointintime.jobs import Ending, OnError
from vmtests.support.backup_left import granules_left_as, left_as
from vmtests.support.backups import AnySystem, Kinds, Recording, endings, explored, kinds, point_of
from vmtests.support.failing import answering

pytestmark = pytest.mark.usefixtures("fresh_predictions")

_JOB = "primary_write+backup_incremental,history=dirty"
PAUSES = point_of("push", f"{_JOB},options=pauses")
FULL = point_of("push", f"{_JOB},options=pauses-when-full")
RESUMED = point_of("push", f"{_JOB},options=pauses,third=then_job_resume")
CANCELLED = point_of("push", f"{_JOB},options=pauses,third=then_job_cancel")
READ = IoId(1, "secondary", "read", "0+128")
WRITE = IoId(1, "hidden", "write", "0+128")
ENDS = (Verdict.ERROR_CONTRACT, CauseKind.JOB_ENDS, "backup job")


def failing(
    pool: QemuPool,
    scenario: RealScenario,
    kind: type[AnySystem] = RealSystem,  # type: ignore[assignment]
    plan: Mapping[IoId, int] = {WRITE: EIO},
) -> AnySystem:
    """Some executions of a scenario in which I/Os fail, each once."""
    return explored(pool, scenario, kind, plan=plan, mode=Mode.RANDOM, most=12, seed=3)


def then(name: str) -> RealScenario:
    """The job is met by an error; then a command comes, whenever."""
    _, backup = PAUSES.ops
    return replace(PAUSES, ops=(backup, operation(name, after=0)))


OF_FIRST = WRITE._replace(op=0)


class Pausing(Recording):
    """Counts the executions that came to their end with a paused job, and what was done then."""

    notes: set[str]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.notes = set()

    def finish(self) -> Any:
        found = super().finish()
        self.notes |= {line for line in map(str, self.now.events) if line.startswith("afterwards")}
        return found


@pytest.mark.parametrize("io", [READ, WRITE], ids=str)
@pytest.mark.parametrize("scenario", [PAUSES, RESUMED], ids=["at the end", "by an operation"])
def test_a_job_that_pauses_at_an_error_completes_once_it_is_resumed(
    pool: QemuPool, scenario: RealScenario, io: IoId
) -> None:
    system = failing(pool, scenario, Pausing, {io: EIO})
    assert kinds(system) == set()
    assert endings(system) == {Ending.COMPLETED}
    assert "afterwards: job resume" in system.notes


def test_a_paused_job_is_cancelled_and_gives_its_bitmap_back(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = failing(pool, CANCELLED, Recording)
    assert kinds(system) == set()
    assert Ending.CANCELLED in endings(system)
    left_as(monkeypatch, granules_left_as(lambda granules: ()))
    assert (Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES, "b0") in kinds(failing(pool, CANCELLED))


def test_a_job_whose_target_is_gone_is_cancelled(pool: QemuPool) -> None:
    assert errnos_of(PAUSES, (EIO, Cut.FOR_GOOD)) == (EIO, Cut.FOR_GOOD)
    system = failing(pool, PAUSES, Pausing, {WRITE: Cut.FOR_GOOD})
    assert kinds(system) == set()
    assert "afterwards: job cancel" in system.notes
    assert Ending.FAILED not in endings(system)


@pytest.mark.parametrize(("errno", "ending"), [(EIO, Ending.FAILED), (ENOSPC, Ending.COMPLETED)])
def test_a_job_that_pauses_when_its_target_is_full_fails_by_other_errors(
    pool: QemuPool, errno: int, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = failing(pool, FULL, Pausing, {WRITE: errno})
    assert kinds(system) == set()
    assert ending in endings(system)
    assert ("afterwards: job resume" in system.notes) is (errno == ENOSPC)

    if errno == ENOSPC:
        left_as(monkeypatch, lambda left: replace(left, ending=Ending.FAILED))
        assert kinds(failing(pool, FULL, plan={WRITE: errno})) == {ENDS}


@pytest.mark.kills("point_in_time")
def test_a_request_that_fails_is_no_reason_for_a_job_to_fail(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = replace(PAUSES, options=())
    own = {IoId(0, "secondary", "write", "128+256"): EIO}
    assert kinds(failing(pool, scenario, plan=own)) == set()
    left_as(monkeypatch, lambda left: replace(left, ending=Ending.FAILED))
    assert kinds(failing(pool, scenario, plan=own)) == {ENDS}


class Hasty(RealSystem):
    """A QEMU whose job goes on by itself."""

    def fail_io(self, name: IoId, errno: int) -> None:
        super().fail_io(name, errno)
        self.machine.settle()
        with contextlib.suppress(CommandFailed):  # it is not paused
            self.machine.call("block-job-resume", {"device": "backup"})


@pytest.mark.kills("job_errors")
def test_a_job_that_goes_on_by_itself_is_found_out(pool: QemuPool) -> None:
    assert kinds(failing(pool, PAUSES, Hasty)) == {ENDS}


@pytest.mark.kills("job_errors")
def test_an_action_of_another_option_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As is an error of a disk that had none."""
    for error in (JobError("target", OnError.IGNORE), JobError("source", OnError.STOP)):
        monkeypatch.setattr(job_errors, "errors_of_job", lambda machine, error=error: [error])
        wrong = (Verdict.ERROR_CONTRACT, CauseKind.JOB_ACTION, error.disk)
        assert wrong in kinds(failing(pool, PAUSES))


@pytest.mark.kills("job_errors")
@pytest.mark.parametrize(
    ("what", "value"), [("status", "running"), ("paused", False), ("io-status", "nospace")]
)
def test_a_paused_job_that_is_shown_as_another_is_found_out(
    pool: QemuPool, what: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = GatedMachine.call

    def shown(machine: GatedMachine, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        found = call(machine, name, arguments)
        return [{**job, what: value} for job in found] if name == "query-block-jobs" else found

    monkeypatch.setattr(GatedMachine, "call", shown)
    found = kinds(failing(pool, then("bitmap_disable"), plan={OF_FIRST: EIO}))
    assert found == {(Verdict.ERROR_CONTRACT, CauseKind.JOB_STATE, what)}


@pytest.mark.kills("job_errors")
def test_a_resume_that_does_nothing_is_a_hang(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_errors, "command", lambda machine, verb: ("query-status", {}))
    monkeypatch.setattr(liveness, "REMOVAL_LIMIT", 0.05)
    found = kinds(explored(pool, then("bitmap_disable"), plan={OF_FIRST: EIO}, most=1))
    assert found == {(Verdict.HANG, CauseKind.HANGS, "backup job")}


@pytest.mark.kills("job_errors")
def test_a_resume_that_is_refused_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = ("block-job-resume", {"device": "another"})
    monkeypatch.setattr(job_errors, "command", lambda machine, verb: refused)
    found = kinds(failing(pool, PAUSES))
    assert found == {(Verdict.ERROR_CONTRACT, CauseKind.WRONG_ANSWER, "job_resume")}


@pytest.mark.kills("point_in_time")
def test_what_a_resumed_job_leaves_out_is_missing(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_as(monkeypatch, lambda left: replace(left, target=(*(None,) * 128, *left.target[128:])))
    for scenario in (PAUSES, RESUMED):
        found = kinds(failing(pool, scenario))
        assert found == {(Verdict.CONTENT, CauseKind.WRONG_DATA, "target")}


@pytest.mark.kills("point_in_time")
def test_a_paused_job_that_is_cancelled_does_not_complete(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not paused when it was cancelled may have been done already."""
    plan = {OF_FIRST: EIO}
    reference = failing(pool, then("job_cancel"), Recording, plan)
    assert kinds(reference) == set()
    assert endings(reference) == {Ending.CANCELLED}
    left_as(monkeypatch, lambda left: replace(left, ending=left.ending and Ending.COMPLETED))
    assert ENDS in kinds(failing(pool, then("job_cancel"), plan=plan))


class Lenient(RealSystem):
    """A QEMU that says success where it refuses a command while the job is paused."""

    def take_answer(self, index: int) -> None:
        super().take_answer(index)
        paused = index in self.now.paused
        if paused and isinstance(self.now.answers[index], ReportedError):
            self.now.answers[index] = OK


def no_order(found: Kinds) -> bool:
    return (Verdict.PROTOCOL, CauseKind.ANSWERS_FIT_NO_ORDER, "") in found


@pytest.mark.kills("point_in_time")
@pytest.mark.parametrize("name", ["bitmap_clear", "bitmap_disable", "bitmap_remove"])
def test_a_bitmap_stays_in_use_while_its_job_is_paused(pool: QemuPool, name: str) -> None:
    """That a command beside the job is done when it has ended is no excuse then."""
    plan = {OF_FIRST: EIO}
    assert kinds(failing(pool, then(name), plan=plan)) == set()
    assert no_order(kinds(failing(pool, then(name), Lenient, plan)))


def test_a_paused_job_is_not_cancelled_without_force(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {OF_FIRST: EIO}
    assert kinds(failing(pool, then("stop"), plan=plan)) == set()
    monkeypatch.setattr(liveness, "REMOVAL_LIMIT", 0.05)
    found = kinds(failing(pool, then("stop"), Lenient, plan))
    assert found == {(Verdict.HANG, CauseKind.HANGS, "backup job")}


def test_a_paused_job_may_be_cancelled(pool: QemuPool) -> None:
    refusal = ReportedError("no")
    strict = answering(
        lambda op, answer: refusal if op.verb is Verb.JOB_CANCEL and answer == OK else None
    )
    assert ENDS in kinds(failing(pool, then("job_cancel"), strict, {OF_FIRST: EIO}))


def test_a_job_that_reports_its_errors_pauses_at_none(pool: QemuPool) -> None:
    """``stop`` of the one disk is not of the other."""
    for disk, paused in (("source", False), ("target", True)):
        options = ((JOB, f"on-{disk}-error", "stop"),)
        scenario = replace(then("bitmap_disable"), options=options)
        system = failing(pool, scenario, Pausing, {OF_FIRST: EIO})
        assert kinds(system) == set()
        assert endings(system) == {Ending.COMPLETED if paused else Ending.FAILED}
        assert bool(system.notes) is paused
