"""An image that is gone for good: what fails then, and what needs nothing of it."""

from __future__ import annotations

from dataclasses import replace
from errno import EIO, ENOTSUP

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.harness.choices import Cut
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.model.answers import OK, Answer, IoError, io_error
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, operation
from vmtests.support.failing import (
    Swallowing,
    answering,
    causes,
    explored,
    filtering,
    one,
    spoilt,
    unmapping,
    verdicts,
)
from vmtests.support.gate import drop_guest

C = scenarios.C
NOT_IN_STATUS = "case 4. I/O error on the secondary disk: not in the status"


def read_nevertheless(op: Operation, answer: Answer) -> Answer | None:
    """What cannot be read is read."""
    return OK if op.reads and answer != OK else None


def test_a_disk_that_goes_away_with_such_a_discard_may_have_got_all_else(pool: QemuPool) -> None:
    """What is to be written lies before and behind a cluster that is freed."""
    unmapping(pool)
    ops = (operation("primary_zero", 192, 256),)
    scenario = scenarios.RealScenario("Z", ops, form="backup", size=448, secondary="qcow2")
    fails = "secondary discard 256+128"
    assert not explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD, all_io=True).found
    silent = explored(
        pool, scenario, Swallowing, "secondary write 192+64", Cut.FOR_GOOD, all_io=True
    )
    assert verdicts(silent) == {Verdict.ERROR_CONTRACT}


def test_a_read_of_what_a_gone_overlay_may_have_got_fails(pool: QemuPool) -> None:
    """A part of the write was linked before the active disk went away, and the read needs it."""
    ops = operation("guest_write", 42, 64), operation("guest_read", 0, C, after=0)
    scenario = scenarios.RealScenario("G", ops, cluster=1)
    fails = "active write 64+42"
    system = explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD)
    assert not system.found, system.found
    elsewhere = replace(scenario, ops=(ops[0], replace(ops[1], start=C)))
    failing = answering(lambda op, answer: io_error(EIO) if op.reads else None)
    wrong = explored(pool, elsewhere, failing, fails, Cut.FOR_GOOD)
    assert verdicts(wrong) == {Verdict.ERROR_CONTRACT}


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
    assert causes(explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD)) <= quiet
    elsewhere = replace(scenario, ops=(ops[0], replace(ops[1], start=C)))
    assert causes(explored(pool, elsewhere, fails=fails, errno=Cut.FOR_GOOD)) <= quiet
    remembering = answering(read_nevertheless, (scenarios.BASE,) * C)
    reported = causes(explored(pool, elsewhere, remembering, fails, Cut.FOR_GOOD)) - quiet
    assert reported == {"guest_read answers ok, after the hidden disk went away"}


def test_zeroes_that_are_data_are_read_from_no_tables(pool: QemuPool) -> None:
    """The replication filter writes the guest's zeroes as data."""
    setup = (operation("guest_zero", 0, C),)
    ops = operation("guest_write", C, C), operation("guest_read", 0, C, after=0)
    scenario = scenarios.RealScenario("Z", ops, setup)
    fails = "active write 128+128"
    assert not explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD).found
    inventing = answering(read_nevertheless, (0,) * C)
    wrong = explored(pool, scenario, inventing, fails, Cut.FOR_GOOD)
    assert verdicts(wrong) == {Verdict.ERROR_CONTRACT}


def test_zeroes_may_be_made_in_the_tables_of_a_disk_that_is_gone(pool: QemuPool) -> None:
    """What is not copied needs nothing of the disk for that; data do, and so does a raw disk."""
    filtering(pool)
    ops = operation("guest_read", 0, C), operation("primary_zero", 2 * C, C, after=0)
    ends = ("filter", "bitmap.written", ((8192, 12288), (196608, 200704)))
    scenario = scenarios.RealScenario(
        "B", ops, form="fleecing", size=4 * C, secondary="qcow2", options=(ends,)
    )
    fails = "secondary read 0+128"
    assert not explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD).found
    silent = answering(
        lambda op, answer: OK if op.changes and isinstance(answer, IoError) else None
    )
    write = replace(scenario, ops=(ops[0], operation("primary_write", 2 * C, C, after=0)))
    for other in (write, replace(scenario, secondary="raw")):
        (cause,) = causes(explored(pool, other, silent, fails, Cut.FOR_GOOD))
        assert cause.startswith(f"{other.ops[1].name} answers ok"), cause


def test_a_disk_may_go_away_when_many_copies_are_done(pool: QemuPool) -> None:
    """The sequential execution reads each of the five granules; then comes the write."""
    scenario = scenarios.RealScenario("W", (operation("primary_write", 0, 5 * C),), size=5 * C)
    fails = "secondary write 0+640"
    system = explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD)
    assert causes(system) == {"case 4. I/O error on the secondary disk: not in the status"}
    wrong = explored(pool, scenario, Swallowing, fails, Cut.FOR_GOOD)
    assert causes(wrong) == {"primary_write says success after a refused secondary write"}


def test_after_a_disk_is_gone_later_writes_are_done_in_part(pool: QemuPool) -> None:
    """One cluster is there already; what another is filled up with can be read no more."""
    ops = operation("guest_write", 42, 40), operation("guest_write", C + 42, C, after=0)
    scenario = scenarios.RealScenario("G", ops, (operation("guest_write", C, 8),), size=3 * C)
    system = explored(pool, scenario, fails="secondary read 0+42", errno=Cut.FOR_GOOD)
    quiet = {"case 4. I/O error on the secondary disk: not in the status"}
    assert causes(system) == quiet
    wrong = explored(pool, scenario, spoilt("active", C + 60), "secondary read 0+42", Cut.FOR_GOOD)
    assert verdicts(wrong) == {Verdict.LOST_WRITE}


def test_a_later_write_may_be_done_where_another_met_the_end_of_a_disk(pool: QemuPool) -> None:
    """The copy that failed is of the cluster that the guest's disk has; the other needs a fill."""
    setup = operation("primary_write", 0, C), operation("guest_write", C, 8)
    ops = operation("primary_write", C, C), operation("guest_write", 64, C, after=0)
    scenario = scenarios.RealScenario("L", ops, setup, size=3 * C)
    system = explored(pool, scenario, fails="hidden write 128+128", errno=Cut.FOR_GOOD)
    assert causes(system) == {"case 3. backup failed: not in the status"}
    wrong = explored(pool, scenario, spoilt("active", C + 40), "hidden write 128+128", Cut.FOR_GOOD)
    assert verdicts(wrong) == {Verdict.LOST_WRITE}


def test_what_a_gone_image_does_not_carry_is_judged(pool: QemuPool) -> None:
    """The secondary disk goes away; the guest's write to the active disk is not excused by it."""
    # The whole cluster: nothing is read from below.
    scenario = one("WG")
    for release, wanted in ((faithfully, False), (drop_guest, True)):
        system = explored(
            pool, scenario, fails="secondary read 0+128", errno=Cut.FOR_GOOD, release=release
        )
        assert (Verdict.LOST_WRITE in verdicts(system)) is wanted, system.found


def test_a_flush_needs_no_disk_that_this_version_does_not_flush(each_build: Build) -> None:
    """Up to 5.2 a flush of the filter reaches the active disk alone."""
    ops = operation("primary_zero", 0, C), operation("guest_flush", after=0)
    pool = QemuPool(each_build)
    scenario = scenarios.RealScenario("ZF", ops)
    system = explored(pool, scenario, fails="secondary read 0+128", errno=Cut.FOR_GOOD)
    pool.close()
    assert causes(system) == {NOT_IN_STATUS}


def test_fast_zeroes_may_be_forgotten_with_their_disk(each_build: Build) -> None:
    """5.2 answers that it has none, which a client has to expect."""
    ops = operation("primary_read", 0, C), operation("primary_zero_fast", 0, C)
    pool, fails = QemuPool(each_build), "secondary read 0+128"
    scenario = scenarios.RealScenario("Z", ops)
    assert causes(explored(pool, scenario, fails=fails, errno=Cut.FOR_GOOD)) == {NOT_IN_STATUS}
    if not behaviour_of(read_version(each_build)[0]).forgets_fast_zeroes:
        refused = answering(lambda op, answer: io_error(ENOTSUP) if op.changes else None)
        wrong = explored(pool, scenario, refused, fails, Cut.FOR_GOOD)
        assert Verdict.ERROR_CONTRACT in verdicts(wrong) and causes(wrong) != {NOT_IN_STATUS}
    pool.close()
