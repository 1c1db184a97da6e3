"""The checker of failed I/Os finds what is wrong: each thing it looks at is spoilt once.

QEMU and the failing storage are real; between them and the checker one thing is falsified. The same
schedules without that are found to be as they should.
"""

from __future__ import annotations

from dataclasses import replace
from errno import EIO, ENOSPC

import pytest

from qmpshim.conformance.explore import scenario_sets, scenarios
from qmpshim.conformance.explore.checkers.failures import FailureChecker
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.choices import Cut, io_id
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.report.report import ExploreReport, ScenarioResult, render
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.answers import (
    DISCONNECTED,
    NO_JOB,
    OK,
    UNANSWERED,
    Answer,
    IoError,
    ReportedError,
    io_error,
)
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.chain.secondary import Chain
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import Operation, operation
from qmpshim.model.runtime.coroutines import Co
from vmtests.support.failing import (
    MOST,
    Misbehaving,
    Swallowing,
    answering,
    causes,
    explored,
    one,
    seeing,
    verdicts,
)

C = scenarios.C


@pytest.mark.kills("failures")
@pytest.mark.parametrize(
    ("image", "cause"),
    [
        ("hidden", "primary_write answers ok, after a failed hidden write"),
        ("secondary", "primary_write says success after a refused secondary write"),
    ],
)
def test_an_error_that_is_swallowed_is_found_out(pool: QemuPool, image: str, cause: str) -> None:
    """Whether its copy failed or its own data was refused."""
    assert causes(explored(pool, one("WQ"), Swallowing, f"{image} write 0+128")) == {cause}


def test_a_client_is_gone_only_where_something_cuts_it_off(pool: QemuPool) -> None:
    vanishing = answering(lambda op, answer: DISCONNECTED if op.writes and answer == OK else None)
    assert causes(explored(pool, one("WQ"), vanishing)) == {"primary_write answers gone"}
    assert not explored(pool, one("WK"), vanishing).found
    # The guest's client is gone; the primary has no excuse.
    cut_off = replace(one("WQ"), ops=(*one("WQ").ops[:1], operation("guest_vanish")))
    assert "primary_write answers gone" in causes(explored(pool, cut_off, vanishing))


def test_a_false_error_is_failovers_own_only_while_it_fails_over(pool: QemuPool) -> None:
    error = ReportedError("I/O error occurred")
    crying = answering(lambda op, answer: error if op.queries and answer != UNANSWERED else None)
    known = {"status answers I/O error occurred while failing over"}
    assert causes(explored(pool, one("OQ"))) == known
    assert causes(explored(pool, one("OQ"), crying)) == known | {
        "status answers I/O error occurred"
    }


def test_the_status_may_report_the_end_of_a_commit_late(pool: QemuPool) -> None:
    """The commit's data was there before the primary's, and yet the commit is not over."""
    system = RealSystem(pool, one("VOQ"))
    assert explore(system, Mode.STATEFUL, Budget(schedules=400), stop=False).exhaustive
    assert causes(system) == {"status answers I/O error occurred while failing over"}


@pytest.mark.kills("failures")
@pytest.mark.parametrize("errno", [EIO, Cut.FOR_GOOD])
def test_a_failed_write_that_happened_nevertheless_is_found_out(pool: QemuPool, errno: int) -> None:
    """Whether the disk is there afterwards or gone for good."""
    write = "secondary write 0+128"
    misbehaving = explored(pool, one("WQ"), Misbehaving, write, errno)
    assert verdicts(misbehaving) == {Verdict.LOST_WRITE}
    reference = explored(pool, one("WQ"), fails=write, errno=errno)
    assert causes(reference) == {"case 4. I/O error on the secondary disk: not in the status"}


def test_zeroes_that_were_there_before_are_no_news(pool: QemuPool) -> None:
    scenario = scenarios.RealScenario(
        "N",
        (operation("primary_zero_no_hole", 0, 2 * C), operation("guest_read", 0, 2 * C)),
        (operation("primary_zero", 0, C), operation("checkpoint")),
    )
    assert not {
        verdict
        for verdict, _ in explored(pool, scenario, fails="secondary read 128+128").found
        if verdict is Verdict.ISOLATION
    }


def test_a_view_that_cannot_be_read_is_an_error(pool: QemuPool) -> None:
    class Unplugged(RealSystem):
        def run_checkers(self) -> RealViolation | None:
            self.machine.gate.refuse("secondary")
            self.machine.gate.cut("secondary")
            return super().run_checkers()

    assert "the view cannot be read" in causes(explored(pool, one("WR"), Unplugged))


@pytest.mark.parametrize(
    ("letters", "fails", "cause"),
    [
        ("FP", "active flush", "guest_write not on disk after guest_flush"),
        ("HW", "secondary flush", "primary_write not on disk after primary_flush"),
    ],
)
def test_a_flush_that_hides_its_failure_is_found_out(
    pool: QemuPool, letters: str, fails: str, cause: str
) -> None:
    """It says success, and what had been written before is lost in some cache."""
    flush, write = one(letters).ops
    scenario = replace(one(letters), ops=(replace(flush, after=1), write))

    class Forgetting(Swallowing):
        def observe(self) -> None:
            if any(hit.verb == "flush" for _, hit in self.now.failed) and 0 not in self.now.over:
                image = fails.split()[0]
                empty = self.pool.base[0] if image == "secondary" else self.machine.blank(image)
                self.machine.stores[image].restore(empty)
            super().observe()

        def take_answer(self, index: int) -> None:
            super().take_answer(index)
            if index == 0 and 0 in self.now.over:
                self.violation = self.watch.made_durable(self.now, 0)

    reference = explored(pool, scenario, fails=fails)
    assert verdicts(reference) <= {Verdict.ERROR_CONTRACT}, reference.found
    assert cause in causes(explored(pool, scenario, Forgetting, fails))


SECOND = operation("primary_write", 64, 128)  # half of either cluster


@pytest.mark.kills("failures")
@pytest.mark.parametrize(
    ("form", "ops", "hit", "answers", "cause"),
    [
        (  # what reports success in the same cluster must have written
            "backup", (operation("primary_write", 0, 128), SECOND), "hidden",
            (io_error(EIO), OK), "secondary: ",
        ),
        (
            "replication", (scenario_sets.LETTERS["P"], operation("guest_write", 64, 8)), "active",
            (io_error(EIO), OK), "view: ",
        ),
        (  # a status that reports an error excuses no disk
            "backup", (*one("W").ops, *one("SQ").ops), "hidden",
            (OK, OK, NO_JOB), "secondary: ",
        ),
        (  # nor does the active disk excuse the primary's write
            "replication", one("WC").ops, "active",
            (io_error(EIO), ReportedError("an error")), "primary_write answers errno 5",
        ),
    ],
)  # fmt: skip
def test_one_failure_excuses_no_other(
    form: str, ops: tuple[Operation, ...], hit: str, answers: tuple[Answer, ...], cause: str
) -> None:
    """Ends that were made up: nothing at all was done."""
    scenario = scenarios.RealScenario("made", ops, form=form)
    judge = LinearizabilityChecker(scenario, behaviour_of((7, 2, 22)))
    old, none = (scenarios.BASE,) * scenario.size, (None,) * scenario.size
    data = (None,) * len(ops)
    seen = Outcome(answers, data, old, none, none, old, ((0, 0), (0, 0)), None)
    io = HeldIO(0, hit, Nbd.WRITE, 0, 512, b"", False, False, 0)
    named = NamedIo(io_id(0, f"{hit} write meta 0+512"), io, 0, 1)
    failed = [(named, InjectedFault(hit, "metadata", 0, 0, EIO))]
    wrong = FailureChecker(judge).judge(seen, (frozenset(),) * len(ops), failed)
    assert wrong is not None and str(wrong.cause).startswith(cause), wrong


def test_an_ejected_disk_excuses_errors_and_nothing_else(pool: QemuPool) -> None:
    """A checkpoint that cannot empty a disk reports it; the guest's write may fail, not be lost."""
    ops = operation("checkpoint"), operation("guest_write", 16, 8, after=0)
    scenario = replace(one("CP"), ops=ops, contract=True)
    fails = "hidden zero meta 196608+65536"  # the refcounts are gone, so qcow2 ejects the disk

    silent = answering(lambda op, answer: OK if isinstance(answer, IoError) else None)
    reference = explored(pool, scenario, fails=fails, all_io=True)
    assert reference.in_part and not reference.found
    cause = "active cluster unallocated instead of data, beside a failed hidden metadata"
    assert causes(explored(pool, scenario, silent, fails, all_io=True)) == {cause}


def test_what_was_judged_in_part_is_in_the_report() -> None:
    result = ScenarioResult("WR", contract=True, exhaustive=True, schedules=5, in_part=2)
    report = ExploreReport("a build", (7, 2), "stateful", 0, True, [result], [], 1.0, 1)
    assert "2 schedules judged in part" in render(report)
    assert report.to_json()["scenarios"][0]["judged_in_part"] == 2
    result.in_part = 0
    assert "in part" not in render(report)


def flush_the_top_first(chain: Chain) -> Co[None]:
    for image in chain.top:
        yield from image.flush()


@pytest.mark.kills("failures")
def test_of_two_flushes_that_fail_the_backing_files_error_is_answered(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are flushed first (``bdrv_co_flush``); up to 5.2 the active disk alone is."""
    plan = {io_id(0, "secondary flush"): Cut.FOR_GOOD, io_id(0, "hidden flush"): ENOSPC}

    def answers() -> set[Cause]:
        system = RealSystem(pool, one("F"), injection=Injection(plan=plan))
        explore(system, Mode.STATEFUL, Budget(schedules=1), stop=False)
        if io_id(0, "hidden flush") not in system.ios:
            pytest.skip("this QEMU flushes the active disk alone")
        return {cause for _, cause in system.found if cause.kind is CauseKind.WRONG_ANSWER}

    assert not answers()
    monkeypatch.setattr(Chain, "guest_flush", flush_the_top_first)
    (cause,) = answers()
    assert cause.subject == "guest_flush"


def test_a_copy_that_another_operation_has_failed_to_make_is_missing(pool: QemuPool) -> None:
    """An operation whose own copy fails does not make those that it has waited for."""
    plan = {io_id(0, "hidden write 0+128"): ENOSPC, io_id(1, "hidden write 128+128"): EIO}

    def written(seen: Outcome) -> Outcome:
        """New data is where the old was not copied."""
        new = (scenario.number(1),) * C
        return replace(
            seen, secondary=seen.secondary[: C // 2] + new + seen.secondary[3 * C // 2 :]
        )

    scenario = one("backup-WV")
    for kind in (RealSystem, seeing(written)):
        system = kind(pool, scenario, injection=Injection(plan=plan))
        explore(system, Mode.STATEFUL, Budget(schedules=MOST), stop=False)
        assert system.ios >= plan.keys()
        assert bool(causes(system)) is (kind is not RealSystem)
