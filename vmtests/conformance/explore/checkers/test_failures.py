"""The judge of failed I/Os convicts: each thing it looks at is spoilt once, and it says so.

QEMU and the failing storage are real; between them and the judge one thing is falsified. The honest
run of the same schedules is judged to be as it should.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EINVAL
from typing import Any

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.checkers import durability, final_state
from qmpshim.conformance.explore.checkers.failures import FailureChecker
from qmpshim.conformance.explore.checkers.linearizability import (
    LinearizabilityChecker,
    RealViolation,
)
from qmpshim.conformance.explore.checkers.parts import Before, done_in_part
from qmpshim.conformance.explore.checkers.sequential import (
    FaultPlacement,
    InjectedFault,
    Outcome,
    run_in_order,
)
from qmpshim.conformance.explore.harness.choices import CUT, IoId, io_id
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem, faithfully
from qmpshim.conformance.explore.report.report import ExploreReport, ScenarioResult, render
from qmpshim.conformance.workload import pattern
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.gate import HeldIO
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
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
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import Operation, operation

EIO = 5
C = scenarios.C
# Two clusters that are not neighbours: the commit writes each on its own.
FAILOVER = scenarios.RealScenario(
    "O",
    (operation("failover"),),
    (operation("guest_write", 16, 8), operation("guest_write", 2 * C + 16, 8)),
    size=3 * C,
)


def one(name: str) -> scenarios.RealScenario:
    (scenario,) = scenarios.named(name)
    return scenario


def explored(
    pool: QemuPool,
    scenario: scenarios.RealScenario,
    kind: type[RealSystem] = RealSystem,
    fails: str | None = None,
    errno: int = EIO,
    release: Callable[[GatedMachine, NamedIo], None] = faithfully,
    all_io: bool = False,
    nth: int = 0,
) -> RealSystem:
    """All schedules of *scenario* (or the first of many) in which the *nth* I/O *fails* does so."""
    plan = {io_id(0, fails, nth): errno} if fails else {}
    system = kind(pool, scenario, plan=plan, release=release, all_io=all_io, watching=False)
    explore(system, Mode.STATEFUL, Budget(schedules=60), stop=False)
    assert system.finished and not system.derailed
    assert not plan or plan.keys() <= system.ios, system.ios
    return system


def causes(system: RealSystem) -> set[str]:
    return {str(cause) for _, cause in system.found}


class Swallowing(RealSystem):
    """A filter that ignores its job's errors: the write says success."""

    def _take_answer(self, index: int) -> None:
        super()._take_answer(index)
        if isinstance(self.now.answers[index], IoError):
            self.now.answers[index] = OK


class Lying(RealSystem):
    """A disk that does what it says has failed."""

    def _fail(self, name: IoId, errno: int) -> None:
        self.machine.gate.apply(self.now.held[name].io)
        super()._fail(name, errno)


# -- who says what ---------------------------------------------------------------------------------


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
    class Vanishing(RealSystem):
        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if self.scenario.ops[index].writes and self.now.answers[index] == OK:
                self.now.answers[index] = DISCONNECTED

    assert causes(explored(pool, one("WQ"), Vanishing)) == {"primary_write answers gone"}
    assert not explored(pool, one("WK"), Vanishing).found
    # The guest's client is gone; the primary has no excuse.
    cut_off = replace(one("WQ"), ops=(*one("WQ").ops[:1], operation("guest_vanish")))
    assert "primary_write answers gone" in causes(explored(pool, cut_off, Vanishing))


def test_a_false_error_is_failovers_own_only_while_it_fails_over(pool: QemuPool) -> None:
    class Crying(RealSystem):
        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if self.scenario.ops[index].queries and self.now.answers[index] != UNANSWERED:
                self.now.answers[index] = ReportedError("I/O error occurred")

    known = {"status answers I/O error occurred while failing over"}
    assert causes(explored(pool, one("OQ"))) == known
    assert causes(explored(pool, one("OQ"), Crying)) == known | {
        "status answers I/O error occurred"
    }


def test_the_status_may_tell_the_end_of_a_commit_late(pool: QemuPool) -> None:
    """The commit's data was there before the primary's, and yet the commit is not over."""
    system = RealSystem(pool, one("VOQ"))
    assert explore(system, Mode.STATEFUL, Budget(schedules=400), stop=False).exhaustive
    assert causes(system) == {"status answers I/O error occurred while failing over"}


# -- what the disks hold ---------------------------------------------------------------------------


@pytest.mark.parametrize("errno", [EIO, CUT])
def test_a_failed_write_that_happened_nevertheless_is_found_out(pool: QemuPool, errno: int) -> None:
    """Whether the disk is there afterwards or gone for good."""
    write = "secondary write 0+128"
    lying = explored(pool, one("WQ"), Lying, write, errno)
    assert {verdict for verdict, _ in lying.found} == {Verdict.LOST_WRITE}
    honest = explored(pool, one("WQ"), fails=write, errno=errno)
    assert causes(honest) == {"case 4. I/O error on the secondary disk: not in the status"}


def test_a_copy_beside_the_failed_one_holds_what_the_setup_left(pool: QemuPool) -> None:
    """Two copies side by side, since the cluster between has its own: one fails, one does not."""
    setup = (
        operation("primary_write", 2 * C, C),
        operation("checkpoint"),
        operation("primary_write", C + 8, 8),
    )
    ops = (operation("primary_write", 64, 2 * C), operation("status"))
    scenario = scenarios.RealScenario("V", ops, setup, size=3 * C)

    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        """The copy that arrives is of what the disk held at the very beginning."""
        if named.io.image == "hidden" and named.verb == "write" and named.start == 2 * C:
            data = bytes(pattern.data_of(scenarios.BASE, named.start, named.count))
            machine.gate.corrupt(named.io, data)
            return
        faithfully(machine, named)

    failing = "hidden write 0+128"
    honest = explored(pool, scenario, fails=failing)
    assert causes(honest) == {"case 3. backup failed: not in the status"}
    assert not honest.in_part
    spoilt = explored(pool, scenario, fails=failing, release=spoil)
    assert {verdict for verdict, _ in spoilt.found} & {Verdict.CONTENT, Verdict.LOST_WRITE}


class _Spoilt(RealSystem):
    """Beside what failed there are data that nothing wrote."""

    def _verdict(self, seen: Outcome) -> RealViolation | None:
        active = tuple(99 if sector == 30 else owner for sector, owner in enumerate(seen.active))
        return super()._verdict(replace(seen, active=active))


def test_a_write_of_several_requests_that_fails_is_done_in_part(pool: QemuPool) -> None:
    """Its middle has a cluster of its own already, so that qcow2 writes three parts at once."""
    scenario = scenarios.RealScenario(
        "M",
        (operation("guest_write", 0, 64), operation("guest_read", 0, C)),
        (operation("guest_write", 16, 8),),
        cluster=8,
    )
    system = explored(pool, scenario, fails="active write 0+16")
    assert not system.found and not system.in_part, system.found
    alone = replace(scenario, ops=scenario.ops[:1])
    assert explored(pool, alone, _Spoilt, "active write 0+16").found
    lying = explored(pool, alone, Lying, "active write 16+8").found  # no new cluster
    assert {verdict for verdict, _ in lying} == {Verdict.LOST_WRITE}


def test_beside_a_cluster_that_cannot_be_filled_the_write_is_done(pool: QemuPool) -> None:
    """The middle cluster is there already; what the first is filled up with cannot be read."""
    ops = (operation("guest_write", 42, 2 * C),)
    scenario = scenarios.RealScenario("G", ops, (operation("guest_write", C, 8),), size=3 * C)
    for errno in (EIO, CUT):
        system = explored(pool, scenario, fails="secondary read 0+42", errno=errno)
        wrong = {verdict for verdict, _ in system.found} - {Verdict.ERROR_CONTRACT}
        assert not wrong, system.found


def test_a_copy_of_several_requests_that_fails_is_done_in_part(pool: QemuPool) -> None:
    """On a target with clusters of 512 bytes an L2 table, and so a part, is of 64 sectors."""
    ops = (operation("primary_write", 16, 8),)
    scenario = scenarios.RealScenario("W", ops, form="backup", cluster=1)
    assert not explored(pool, scenario, fails="hidden write 64+64").found

    class Spoilt(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            hidden = tuple(99 if n == 30 else owner for n, owner in enumerate(seen.hidden))
            return super()._verdict(replace(seen, hidden=hidden))

    assert explored(pool, scenario, Spoilt, "hidden write 64+64").found


@pytest.mark.parametrize(
    ("fails", "errno"),
    [
        ("hidden write 1536+512", EIO),
        ("secondary discard 682+342", EIO),
        ("secondary read 1024+512", CUT),
    ],
)
def test_a_discard_of_several_pieces_that_fails_is_done_in_part(
    pool: QemuPool, fails: str, errno: int
) -> None:
    """It is cut to the clusters of the copy: pieces before the failed one are done, later ones not
    begun. (That the snapshot shows the new data then, up to 7.2, is written up.)"""
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("there is no filter to fleece with")
    ops = (operation("primary_discard", 682, 855),)
    scenario = scenarios.RealScenario(
        "D", ops, form="fleecing", size=1537, cluster=512,
        options=(("filter", "discard", "unmap"),),
    )  # fmt: skip
    found = explored(pool, scenario, fails=fails, errno=errno).found
    assert not {verdict for verdict, _ in found} - {Verdict.ISOLATION}, found

    behaviour = behaviour_of(read_version(pool.build)[0])
    hit = InjectedFault("secondary", "discard", 682, 342, EIO)
    end = run_in_order(scenario, behaviour, (0,), [FaultPlacement(hit, 0)])
    kinds, active = end.alloc
    seen = replace(
        end,
        hidden=(*end.hidden[:512], *(None,) * 512, *end.hidden[1024:]),
        alloc=((kinds[0], 0, *kinds[2:]), active),
    )
    assert end.hidden[600] is not None
    assert done_in_part(scenario, end, seen, [hit], Before(frozenset(), ())) == seen
    lost = Before(frozenset({1}), ())
    assert done_in_part(scenario, end, seen, [hit], lost) == end


def unmapping(pool: QemuPool) -> None:
    """Skip the test where a write of zeroes does not unmap while a backup runs."""
    if not behaviour_of(read_version(pool.build)[0]).unmap_passes_job:
        pytest.skip("a write of zeroes frees no clusters under a backup")


def test_a_discard_of_free_clusters_may_fail(pool: QemuPool) -> None:
    """qcow2 ignores that; what asks for a discard of a raw disk gets the error."""
    unmapping(pool)
    ops = (operation("primary_zero", C, 2 * C),)
    scenario = scenarios.RealScenario("Z", ops, form="backup", size=4 * C, secondary="qcow2")
    failing = explored(pool, scenario, fails="secondary discard 128+256", all_io=True)
    assert not failing.found and not failing.in_part
    refusing = explored(pool, scenario, _Refusing, "secondary discard 128+256", all_io=True)
    assert {verdict for verdict, _ in refusing.found} == {Verdict.ERROR_CONTRACT}


def test_a_disk_that_goes_away_with_such_a_discard_may_have_got_all_else(pool: QemuPool) -> None:
    """What is to be written lies before and behind a cluster that is freed."""
    unmapping(pool)
    ops = (operation("primary_zero", 192, 256),)
    scenario = scenarios.RealScenario("Z", ops, form="backup", size=448, secondary="qcow2")
    fails = "secondary discard 256+128"
    assert not explored(pool, scenario, fails=fails, errno=CUT, all_io=True).found
    silent = explored(pool, scenario, Swallowing, "secondary write 192+64", CUT, all_io=True)
    assert {verdict for verdict, _ in silent.found} == {Verdict.ERROR_CONTRACT}


def test_a_read_of_what_a_gone_overlay_may_have_got_fails(pool: QemuPool) -> None:
    """A part of the write was linked before the active disk went away, and the read needs it."""
    ops = operation("guest_write", 42, 64), operation("guest_read", 0, C, after=0)
    scenario = scenarios.RealScenario("G", ops, cluster=1)
    fails = "active write 64+42"
    system = explored(pool, scenario, fails=fails, errno=CUT)
    assert not system.found, system.found
    elsewhere = replace(scenario, ops=(ops[0], replace(ops[1], start=C)))

    class Failing(RealSystem):
        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if self.scenario.ops[index].reads:
                self.now.answers[index] = io_error(EIO)

    assert explored(pool, elsewhere, Failing, fails, CUT).found


def test_zeroes_of_a_gone_overlay_may_be_read_from_its_tables(pool: QemuPool) -> None:
    """They were copied from zeroes, as zero clusters; data there are read no more."""
    setup = (
        operation("primary_zero", 0, C),
        operation("checkpoint"),
        operation("primary_write", 0, 2 * C),
    )
    ops = operation("primary_write", 2 * C, C), operation("guest_read", 0, C, after=0)
    scenario = scenarios.RealScenario(
        "Z", ops, setup, size=3 * C, options=(("hidden", "detect-zeroes", "unmap"),)
    )
    fails = "hidden write 256+128"
    quiet = {"case 3. backup failed: not in the status"}
    assert causes(explored(pool, scenario, fails=fails, errno=CUT)) <= quiet
    elsewhere = replace(scenario, ops=(ops[0], replace(ops[1], start=C)))
    assert causes(explored(pool, elsewhere, fails=fails, errno=CUT)) <= quiet

    class Remembering(RealSystem):
        """A QEMU that returns what can be read no more."""

        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if self.scenario.ops[index].reads and self.now.answers[index] != OK:
                self.now.answers[index], self.now.data[index] = OK, (scenarios.BASE,) * C

    assert causes(explored(pool, elsewhere, Remembering, fails, CUT)) - quiet


def test_zeroes_may_be_made_in_the_tables_of_a_disk_that_is_gone(pool: QemuPool) -> None:
    """What is not copied needs nothing of the disk for that; data do, and so does a raw disk."""
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("copy-before-write has no bitmap")
    ops = operation("guest_read", 0, C), operation("primary_zero", 2 * C, C, after=0)
    ends = ("filter", "bitmap.written", ((8192, 12288), (196608, 200704)))
    scenario = scenarios.RealScenario(
        "B", ops, form="fleecing", size=4 * C, secondary="qcow2", options=(ends,)
    )
    fails = "secondary read 0+128"
    assert not explored(pool, scenario, fails=fails, errno=CUT).found

    class Silent(Swallowing):
        """A QEMU that reports no error of what the primary sends."""

        def _take_answer(self, index: int) -> None:
            answers = self.now.answers
            RealSystem._take_answer(self, index)
            if self.scenario.ops[index].changes and isinstance(answers[index], IoError):
                answers[index] = OK

    write = replace(scenario, ops=(ops[0], operation("primary_write", 2 * C, C, after=0)))
    for other in (write, replace(scenario, secondary="raw")):
        (cause,) = causes(explored(pool, other, Silent, fails, CUT))
        assert cause.startswith(f"{other.ops[1].name} answers ok"), cause


def test_a_disk_may_go_away_when_many_copies_are_done(pool: QemuPool) -> None:
    """The sequential execution reads each of the five granules; then comes the write."""
    scenario = scenarios.RealScenario("W", (operation("primary_write", 0, 5 * C),), size=5 * C)
    fails = "secondary write 0+640"
    system = explored(pool, scenario, fails=fails, errno=CUT)
    assert causes(system) == {"case 4. I/O error on the secondary disk: not in the status"}
    assert explored(pool, scenario, Swallowing, fails, CUT).found


def test_what_a_failed_write_has_done_is_committed(pool: QemuPool) -> None:
    """The middle of it lies in a cluster that is there already, and is written at the same time."""
    ops = operation("guest_write", 0, 64), operation("failover", after=0)
    scenario = replace(FAILOVER, ops=ops, setup=(operation("guest_write", 16, 8),), cluster=8)
    fails = "active write 0+16"
    assert not explored(pool, scenario, fails=fails).found
    lying = explored(pool, scenario, Lying, "active write 16+8").found  # no new cluster
    assert {verdict for verdict, _ in lying} == {Verdict.LOST_WRITE}


def test_after_a_disk_is_gone_later_writes_are_done_in_part(pool: QemuPool) -> None:
    """One cluster is there already; what another is filled up with can be read no more."""
    ops = operation("guest_write", 42, 40), operation("guest_write", C + 42, C, after=0)
    scenario = scenarios.RealScenario("G", ops, (operation("guest_write", C, 8),), size=3 * C)
    system = explored(pool, scenario, fails="secondary read 0+42", errno=CUT)
    assert not {verdict for verdict, _ in system.found} - {Verdict.ERROR_CONTRACT}, system.found

    class Spoilt(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            active = tuple(99 if n == C + 60 else owner for n, owner in enumerate(seen.active))
            return super()._verdict(replace(seen, active=active))

    spoilt = explored(pool, scenario, Spoilt, "secondary read 0+42", CUT)
    assert {verdict for verdict, _ in spoilt.found} - {Verdict.ERROR_CONTRACT}


def test_a_later_write_may_be_done_where_another_met_the_end_of_a_disk(pool: QemuPool) -> None:
    """The copy that failed is of the cluster that the guest's disk has; the other needs a fill."""
    setup = operation("primary_write", 0, C), operation("guest_write", C, 8)
    ops = operation("primary_write", C, C), operation("guest_write", 64, C, after=0)
    scenario = scenarios.RealScenario("L", ops, setup, size=3 * C)
    system = explored(pool, scenario, fails="hidden write 128+128", errno=CUT)
    assert causes(system) == {"case 3. backup failed: not in the status"}


class _Refusing(RealSystem):
    """A QEMU that reports what it should ignore."""

    def _take_answer(self, index: int) -> None:
        super()._take_answer(index)
        self.now.answers[index] = io_error(EIO)


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


def test_a_failed_commit_leaves_old_or_new_and_nothing_else(pool: QemuPool) -> None:
    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "secondary" and named.verb == "write":
            machine.gate.corrupt(named.io, bytes(named.io.length))
            return
        faithfully(machine, named)

    failing = "secondary write 256+128"
    assert not explored(pool, FAILOVER, fails=failing).found
    spoilt = explored(pool, FAILOVER, fails=failing, release=spoil)
    assert {verdict for verdict, _ in spoilt.found} == {Verdict.LOST_WRITE}


def test_a_commit_that_is_never_flushed_is_lost(pool: QemuPool) -> None:
    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        if named.verb == "flush":
            machine.gate.drop(named.io)
            return
        faithfully(machine, named)

    assert not explored(pool, FAILOVER).found
    assert causes(explored(pool, FAILOVER, release=spoil)) == {"commit not flushed"}


def test_a_commit_that_fails_is_told(pool: QemuPool) -> None:
    """In its first write or in the flush behind it.

    Since 10.0 the cancelled job flushes, too: nobody is told if it cannot, and nothing is lost.
    """
    cancelled = 1 if read_version(pool.build)[0] >= (10, 0, 0) else 0
    told = set()

    class Telling(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            told.add(seen.status)
            return super()._verdict(seen)

    class Silent(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            return super()._verdict(replace(seen, status=None))

    for fails, nth, said in (
        ("secondary write 0+128", 0, "I/O error occurred"),
        ("secondary flush", cancelled, "I/O error occurred"),
        *(("secondary flush", nth, None) for nth in range(cancelled)),
    ):
        told.clear()
        honest = explored(pool, FAILOVER, Telling, fails, nth=nth)
        assert not honest.found and not honest.in_part
        assert told == {said}
    assert explored(pool, FAILOVER, Silent, "secondary write 0+128").found


def test_a_disk_that_goes_away_when_all_is_committed_is_told_or_not(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit has more writes and its own flush behind it when nodes and jobs are closed."""
    commit = replace(FAILOVER, setup=(operation("guest_write", 0, 5 * C),), size=5 * C)
    flushes = [name for name in explored(pool, commit).ios if name.kind == "secondary flush"]
    assert flushes
    left: list[bool] = []

    class Telling(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            left.append(durability.unflushed(self.machine, self.scenario, self.now))
            return super()._verdict(seen)

    def silent(*given: Any) -> tuple[Outcome, RealViolation | None]:
        outcome, broken = looked(*given)
        return replace(outcome, status=None), broken

    looked = final_state.look
    for nth in range(len(flushes)):
        honest = explored(pool, commit, Telling, "secondary flush", CUT, nth=nth)
        assert not honest.found, honest.found
        if left[-1]:
            with monkeypatch.context() as patched:
                patched.setattr(final_state, "look", silent)
                lying = explored(pool, commit, fails="secondary flush", errno=CUT, nth=nth)
            assert causes(lying) == {"commit not flushed"}
    assert set(left) == {False, True}


def test_a_write_whose_flush_fails_may_be_committed(pool: QemuPool) -> None:
    """It is done, and reports that it is not durable; the failover finds it in the active disk."""
    ops = operation("guest_write_fua", 0, 8), operation("failover", after=0)
    scenario = replace(FAILOVER, ops=ops, setup=(operation("guest_write", 0, 8),))
    fails = "active flush"
    assert not explored(pool, scenario, fails=fails).found
    assert explored(pool, scenario, Swallowing, fails).found

    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "secondary" and named.verb == "write":
            machine.gate.corrupt(named.io, bytes(named.io.length))
            return
        faithfully(machine, named)

    assert explored(pool, scenario, fails=fails, release=spoil).found


def test_what_a_gone_image_does_not_carry_is_judged(pool: QemuPool) -> None:
    """The secondary disk goes away; the guest's write to the active disk is not excused by it."""

    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "active" and named.verb == "write":
            machine.gate.drop(named.io)
            return
        faithfully(machine, named)

    # The whole cluster: nothing is read from below.
    scenario = one("WG")
    for release, wanted in ((faithfully, False), (spoil, True)):
        system = explored(pool, scenario, fails="secondary read 0+128", errno=CUT, release=release)
        found = {verdict for verdict, _ in system.found}
        assert (Verdict.LOST_WRITE in found) is wanted, system.found


def test_a_view_that_cannot_be_read_is_an_error(pool: QemuPool) -> None:
    class Unplugged(RealSystem):
        def _end(self) -> RealViolation | None:
            self.machine.gate.refuse("secondary")
            self.machine.gate.cut("secondary")
            return super()._end()

    assert "the view cannot be read" in causes(explored(pool, one("WR"), Unplugged))


# -- what the model does not do --------------------------------------------------------------------


def meta_write(pool: QemuPool, scenario: scenarios.RealScenario) -> str:
    """The first write of the hidden disk's tables in a scenario."""
    system = RealSystem(pool, scenario, all_io=True)
    system.reset()
    while left := system.enabled():
        system.take(left[-1])
    names = sorted(
        io.name for io in system.ios if io.op == 0 and io.kind == "hidden write" and io.meta
    )
    assert names
    return names[0]


def test_beside_a_failed_write_of_tables_the_others_are_judged(pool: QemuPool) -> None:
    """And the rest is counted as not judged."""
    scenario = one("WR")
    fails = meta_write(pool, scenario)

    def new_for_old(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "secondary" and named.verb == "read" and named.op == 1:
            data = bytes(pattern.data_of(scenario.number(0), named.start, named.count))
            machine.gate.corrupt(named.io, data)
            return
        faithfully(machine, named)

    honest = explored(pool, scenario, fails=fails, all_io=True)
    assert honest.in_part and not causes(honest) - {"case 3. backup failed: not in the status"}
    spoilt = explored(pool, scenario, fails=fails, all_io=True, release=new_for_old)
    assert {verdict for verdict, _ in spoilt.found} >= {Verdict.ISOLATION}


def test_after_a_failed_write_of_tables_success_is_taken_at_its_word(pool: QemuPool) -> None:
    """Who says it is done must have done it, whatever of qcow2's own failed."""
    fails = meta_write(pool, one("WR"))
    found = explored(pool, one("WR"), Swallowing, fails, all_io=True).found
    assert {verdict for verdict, _ in found} == {Verdict.LOST_WRITE}


def test_a_failed_write_of_tables_is_told_with_its_own_error(pool: QemuPool) -> None:
    class Mixing(RealSystem):
        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if self.now.answers[index] == io_error(EIO):
                self.now.answers[index] = io_error(EINVAL)

    fails = meta_write(pool, one("WR"))
    cause = "primary_write answers errno 22, after a failed hidden metadata"
    assert causes(explored(pool, one("WR"), Mixing, fails, all_io=True)) == {cause}


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
        def _observe(self) -> None:
            if any(hit.verb == "flush" for _, hit in self.now.failed) and 0 not in self.now.over:
                image = fails.split()[0]
                empty = self.pool._base if image == "secondary" else self.machine.blank(image)
                self.machine.stores[image].restore(empty)
            super()._observe()

        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if index == 0 and 0 in self.now.over:
                self.violation = self.watch.made_durable(self.now, 0)

    honest = explored(pool, scenario, fails=fails)
    assert {verdict for verdict, _ in honest.found} <= {Verdict.ERROR_CONTRACT}, honest.found
    assert cause in causes(explored(pool, scenario, Forgetting, fails))


SECOND = operation("primary_write", 64, 128)  # half of either cluster


@pytest.mark.parametrize(
    ("form", "ops", "hit", "answers", "cause"),
    [
        (  # who says success in the same cluster must have written
            "backup", (operation("primary_write", 0, 128), SECOND), "hidden",
            (io_error(EIO), OK), "secondary: ",
        ),
        (
            "replication", (scenarios.LETTERS["P"], operation("guest_write", 64, 8)), "active",
            (io_error(EIO), OK), "view: ",
        ),
        (  # a status that tells of an error excuses no disk
            "backup", (*one("W").ops, *one("SQ").ops), "hidden",
            (OK, OK, NO_JOB), "secondary: ",
        ),
        (  # nor does the active disk excuse the primary's write
            "replication", one("WC").ops, "active",
            (io_error(EIO), ReportedError("an error")), "primary_write answers errno 5",
        ),
    ],
)  # fmt: skip
def test_one_failure_excuses_nobody_else(
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
    """A checkpoint that cannot empty a disk says so; then the guest's write may fail, not lie."""
    ops = operation("checkpoint"), operation("guest_write", 16, 8, after=0)
    scenario = replace(one("CP"), ops=ops, contract=True)
    fails = "hidden zero meta 196608+65536"  # the refcounts are gone, so qcow2 ejects the disk

    class Lying(RealSystem):
        def _take_answer(self, index: int) -> None:
            super()._take_answer(index)
            if index == 1 and isinstance(self.now.answers[1], IoError):
                self.now.answers[1] = OK

    honest = explored(pool, scenario, fails=fails, all_io=True)
    assert honest.in_part and not honest.found
    cause = "active cluster unallocated instead of data, beside a failed hidden metadata"
    assert causes(explored(pool, scenario, Lying, fails, all_io=True)) == {cause}


def test_what_was_judged_in_part_is_in_the_report() -> None:
    result = ScenarioResult("WR", contract=True, exhaustive=True, schedules=5, in_part=2)
    report = ExploreReport("a build", (7, 2), "stateful", 0, True, [result], [], 1.0, 1)
    assert "2 schedules judged in part" in render(report)
    assert report.to_json()["scenarios"][0]["judged_in_part"] == 2
    result.in_part = 0
    assert "in part" not in render(report)


# -- on-cbw-error=break-snapshot -------------------------------------------------------------------

# The reader looks at the other cluster: what it meets is never a failed read of its own (7.2 takes
# what was copied from the source, which is written up).
BREAKS = scenarios.RealScenario(
    "breaks",
    (operation("primary_write", 0, C), operation("guest_read", C, C)),
    form="fleecing",
    options=(("filter", "on-cbw-error", "break-snapshot"),),
)


PLAIN = replace(BREAKS, options=())
COPIES = pytest.mark.parametrize("fails", ["secondary read 0+128", "hidden write 0+128"])


def breaks(
    pool: QemuPool,
    fails: str,
    scenario: scenarios.RealScenario = BREAKS,
    model: scenarios.RealScenario = BREAKS,
    kind: type[RealSystem] = RealSystem,
) -> RealSystem:
    """All schedules in which an I/O of the copy *fails*, judged by what *model* predicts."""
    version = read_version(pool.build)[0]
    if version < (7, 1):
        pytest.skip("copy-before-write has no on-cbw-error")
    judge = LinearizabilityChecker(model, behaviour_of(version))
    system = kind(
        pool, scenario, plan={io_id(0, fails): EIO}, checker=judge, watching=scenario is model
    )
    explored = explore(system, Mode.STATEFUL, Budget(schedules=60), stop=False)
    assert explored.exhaustive and not system.derailed
    return system


@COPIES
def test_a_failed_copy_breaks_the_snapshot_and_not_the_write(pool: QemuPool, fails: str) -> None:
    seen: set[tuple[object, ...]] = set()

    class Noted(RealSystem):
        def _verdict(self, seen_now: Outcome) -> RealViolation | None:
            assert seen_now.view is None and self.now.failed
            seen.add(seen_now.answers)
            return super()._verdict(seen_now)

    assert not breaks(pool, fails, kind=Noted).found
    assert seen == {(OK, OK), (OK, io_error(EINVAL))}


@COPIES
def test_a_snapshot_that_should_not_have_broken_is_told(pool: QemuPool, fails: str) -> None:
    """The write may not say success here."""
    assert breaks(pool, fails, model=PLAIN).found


@COPIES
def test_a_write_that_should_not_have_failed_is_told(pool: QemuPool, fails: str) -> None:
    found = breaks(pool, fails, scenario=PLAIN).found
    assert {kind for kind, _ in found} == {Verdict.ERROR_CONTRACT}


def test_a_copy_that_fails_on_tables_breaks_the_snapshot(pool: QemuPool) -> None:
    """The write succeeds, and there is nothing to read: but a view that is there must be right."""
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("no copy-before-write with that option")
    breaking = (("filter", "on-cbw-error", "break-snapshot"),)
    ops = (operation("primary_write", 0, C), operation("primary_flush"))
    scenario = scenarios.RealScenario("W", ops, form="fleecing", options=breaking)
    names = explored(pool, scenario, all_io=True).ios
    tables = sorted(one.name for one in names if one.image == "hidden" and one.meta and not one.op)
    assert tables
    assert not explored(pool, scenario, fails=tables[0], all_io=True).found

    class Shown(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            return super()._verdict(replace(seen, view=(self.scenario.number(0),) * 2 * C))

    assert explored(pool, scenario, Shown, tables[0], all_io=True).found


# A copy in two tasks, since the cluster between them has its own already; one in two parts, since
# an L2 table of a target with clusters of 512 bytes is of 64 sectors.
IN_TASKS = replace(
    BREAKS,
    ops=(operation("primary_write", 64, 2 * C),),
    setup=(operation("primary_write", C, C),),
    size=3 * C,
)
IN_PARTS = replace(BREAKS, ops=(operation("primary_write", 16, 8),), cluster=1)


@pytest.mark.parametrize(
    ("scenario", "fails", "landed"),
    [
        (IN_TASKS, "hidden write 0+128", 2 * C),
        (IN_TASKS, "secondary read 0+128", 2 * C),
        (IN_PARTS, "hidden write 64+64", 0),
    ],
)
def test_beside_a_failed_copy_that_breaks_the_snapshot_others_are_done(
    pool: QemuPool, scenario: scenarios.RealScenario, fails: str, landed: int
) -> None:
    """They hold the old data, or are not there; the write has happened by then."""

    class Noted(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            there.add(seen.hidden[landed])
            return super()._verdict(seen)

    there: set[int | None] = set()
    system = breaks(pool, fails, scenario, scenario, Noted)
    assert not system.found, system.found
    assert there == {scenarios.BASE, None} or there == {scenarios.BASE}

    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        """The copy beside the failed one is of the new data."""
        if named.io.image == "hidden" and named.verb == "write" and named.start == landed:
            data = bytes(pattern.data_of(scenario.number(0), named.start, named.count))
            machine.gate.corrupt(named.io, data)
            return
        faithfully(machine, named)

    spoilt = explored(pool, scenario, fails=fails, release=spoil)
    assert spoilt.found


def test_a_copy_that_is_made_again_for_a_broken_snapshot_may_be_of_new_data(
    pool: QemuPool,
) -> None:
    """A write that waits for the copy makes it again when that of the failed copy has happened."""
    ops = operation("primary_write", 0, C), operation("primary_write", 64, C)
    scenario = replace(BREAKS, ops=ops)

    class Noted(RealSystem):
        def _verdict(self, seen: Outcome) -> RealViolation | None:
            copied.add(seen.hidden[0])
            return super()._verdict(seen)

    copied: set[int | None] = set()
    system = breaks(pool, "hidden write 0+128", scenario, scenario, Noted)
    assert not system.found, system.found
    assert copied == {None, scenarios.BASE, scenario.number(0)}


def test_without_a_failure_the_old_data_still_come_first(pool: QemuPool) -> None:
    """The option excuses a write without its copy only after a copy failed."""
    if read_version(pool.build)[0] < (7, 1):
        pytest.skip("copy-before-write has no on-cbw-error")

    def dropping(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "hidden":
            machine.gate.drop(named.io)
        else:
            faithfully(machine, named)

    system = RealSystem(pool, BREAKS, release=dropping)
    explore(system, Mode.STATEFUL, Budget(schedules=20), stop=False)
    assert Verdict.ORDER in {kind for kind, _ in system.found}
