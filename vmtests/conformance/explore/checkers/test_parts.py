"""Operations that fail in part: what may be done of them, and what may not."""

from __future__ import annotations

from dataclasses import replace
from errno import EIO

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.checkers.orders import Do
from qmpshim.conformance.explore.checkers.parts import Before, done_in_part
from qmpshim.conformance.explore.checkers.placements import BrokenSnapshot, FaultPlacement
from qmpshim.conformance.explore.checkers.sequential import run_in_order
from qmpshim.conformance.explore.faults import InjectedFault
from qmpshim.conformance.explore.harness.choices import Complete, Cut, Fail, Start
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.outcome import UNREADABLE
from qmpshim.conformance.workload import pattern
from qmpshim.machine.builds.build import read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK, io_error
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from qmpshim.model.runtime.coroutines import Io
from vmtests.support import misbehaving_gate
from vmtests.support.failing import (
    FAILOVER,
    Misbehaving,
    causes,
    explored,
    filtering,
    spoilt,
    verdicts,
)

C = scenarios.C


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
            misbehaving_gate.corrupt(machine.gate, named.io, data)
            return
        faithfully(machine, named)

    failing = "hidden write 0+128"
    reference = explored(pool, scenario, fails=failing)
    assert causes(reference) == {"case 3. backup failed: not in the status"}
    assert not reference.in_part
    wrong = explored(pool, scenario, fails=failing, release=spoil)
    assert verdicts(wrong) == {Verdict.LOST_WRITE}


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
    wrong = explored(pool, alone, spoilt("active", 30), "active write 0+16")
    assert verdicts(wrong) == {Verdict.LOST_WRITE}
    misbehaving = explored(pool, alone, Misbehaving, "active write 16+8")  # no new cluster
    assert verdicts(misbehaving) == {Verdict.LOST_WRITE}


def test_beside_a_cluster_that_cannot_be_filled_the_write_is_done(pool: QemuPool) -> None:
    """The middle cluster is there already; what the first is filled up with cannot be read."""
    ops = (operation("guest_write", 42, 2 * C),)
    scenario = scenarios.RealScenario("G", ops, (operation("guest_write", C, 8),), size=3 * C)
    for errno in (EIO, Cut.FOR_GOOD):
        system = explored(pool, scenario, fails="secondary read 0+42", errno=errno)
        assert causes(system) == {"case 4. I/O error on the secondary disk: not in the status"}
        wrong = explored(pool, scenario, spoilt("active", C + 10), "secondary read 0+42", errno)
        assert verdicts(wrong) == {Verdict.LOST_WRITE}


def test_a_copy_of_several_requests_that_fails_is_done_in_part(pool: QemuPool) -> None:
    """On a target with clusters of 512 bytes an L2 table, and so a part, is of 64 sectors."""
    ops = (operation("primary_write", 16, 8),)
    scenario = scenarios.RealScenario("W", ops, form="backup", cluster=1)
    assert not explored(pool, scenario, fails="hidden write 64+64").found
    wrong = explored(pool, scenario, spoilt("hidden", 30), "hidden write 64+64")
    assert verdicts(wrong) == {Verdict.ALLOCATION}


@pytest.mark.parametrize(
    ("fails", "errno"),
    [
        ("hidden write 1536+512", EIO),
        ("secondary discard 682+342", EIO),
        ("secondary read 1024+512", Cut.FOR_GOOD),
    ],
)
def test_a_discard_of_several_pieces_that_fails_is_done_in_part(
    pool: QemuPool, fails: str, errno: int
) -> None:
    """It is cut to the clusters of the copy: pieces before the failed one are done, later ones not
    begun. (That the snapshot shows the new data then, up to 7.2, is written up.)"""
    filtering(pool)
    ops = (operation("primary_discard", 682, 855),)
    scenario = scenarios.RealScenario(
        "D", ops, form="fleecing", size=1537, cluster=512,
        options=(("filter", "discard", "unmap"),),
    )  # fmt: skip
    system = explored(pool, scenario, fails=fails, errno=errno)
    assert not verdicts(system) - {Verdict.ISOLATION}, system.found
    wrong = explored(pool, scenario, spoilt("secondary", 700), fails=fails, errno=errno)
    assert verdicts(wrong) == {Verdict.LOST_WRITE}

    behaviour = behaviour_of(read_version(pool.build)[0])
    hit = InjectedFault("secondary", "discard", 682, 342, EIO)
    end = run_in_order(scenario, behaviour, (Do(0),), [FaultPlacement(hit, 0)])
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


def test_what_a_failed_write_has_done_is_committed(pool: QemuPool) -> None:
    """The middle of it lies in a cluster that is there already, and is written at the same time."""
    ops = operation("guest_write", 0, 64), operation("failover", after=0)
    scenario = replace(FAILOVER, ops=ops, setup=(operation("guest_write", 16, 8),), cluster=8)
    fails = "active write 0+16"
    assert not explored(pool, scenario, fails=fails).found
    misbehaving = explored(pool, scenario, Misbehaving, "active write 16+8")  # no new cluster
    assert verdicts(misbehaving) == {Verdict.LOST_WRITE}


def test_what_a_failed_write_has_done_is_seen_after_a_failover(pool: QemuPool) -> None:
    """The guest's end reads the secondary disk then: what is done on that is in its view.

    With clusters of a sector a table of qcow2 has 64, and a request has a part for each table.
    """
    ops = operation("primary_write", 48, 32, after=1), operation("failover")
    scenario = replace(FAILOVER, ops=ops, setup=(), secondary="qcow2", cluster=1)
    assert causes(explored(pool, scenario, fails="secondary write 64+16")) == set()


@pytest.mark.parametrize(
    ("do", "gone", "fails"),
    [
        ("guest_write", "active", True),
        ("guest_write", "hidden", False),
        ("primary_write", "hidden", True),
        ("primary_write", "active", False),
    ],
)
def test_a_read_fails_where_the_gone_overlay_may_have_got_a_part(
    do: str, gone: str, fails: bool
) -> None:
    ops = operation(do, 0, 64), operation("guest_read", 0, C)
    scenario = scenarios.RealScenario("R", ops)
    end = run_in_order(scenario, behaviour_of((7, 2, 0)), (Do(0), Do(1)))
    refused = io_error(EIO)
    end = replace(end, answers=(refused, OK))
    seen = replace(end, answers=(refused, refused), data=(None, None))
    hit = InjectedFault(gone, "write", 0, 64, EIO, gone=True)
    before = Before(frozenset(), (scenarios.BASE,) * scenario.size)
    assert done_in_part(scenario, end, seen, [hit], before).answers[1] == (refused if fails else OK)


def test_a_broken_snapshot_holds_no_copy_of_what_its_bitmap_does_not_name() -> None:
    """The bitmap names the first cluster; a copy of the second is of nothing that is wanted."""
    breaks = ("filter", "on-cbw-error", "break-snapshot"), ("filter", "bitmap.written", ((0, 512),))
    ops = (operation("primary_write", 64, C),)
    scenario = scenarios.RealScenario("B", ops, form="fleecing", options=breaks)
    hit = InjectedFault("secondary", "read", 0, 8, EIO)
    behaviour = behaviour_of((7, 2, 0))
    end = run_in_order(scenario, behaviour, (Do(0),), [BrokenSnapshot(hit, 0, [0])])
    assert end.view is None
    old = (scenarios.BASE,) * scenario.size
    before = Before(frozenset(), old)
    one = replace(hit, start=C, count=8)  # the other copy failed
    first = replace(end, hidden=(*old[:C], *end.hidden[C:]), alloc=((2, 0), end.alloc[1]))
    second = replace(end, hidden=(*end.hidden[:C], *old[C:]), alloc=((0, 2), end.alloc[1]))
    assert done_in_part(scenario, end, first, [one], before).hidden == first.hidden
    assert done_in_part(scenario, end, second, [hit], before).hidden == end.hidden


def test_what_is_done_of_a_write_is_not_seen_where_the_snapshot_has_nothing() -> None:
    """Its bitmap names the first cluster only; the write to the second one fails in part."""
    names = (("filter", "bitmap.written", ((0, 512),)),)
    ops = (operation("primary_write", C, C),)
    scenario = scenarios.RealScenario("W", ops, form="fleecing", options=names)
    hit = InjectedFault("secondary", "write", C + 64, 64, EIO)
    end = run_in_order(scenario, behaviour_of((7, 2, 0)), (Do(0),), [FaultPlacement(hit, 0)])
    assert end.view is not None and set(end.view[C:]) == {UNREADABLE}
    number = scenario.number(0)
    done = (*end.secondary[:C], *(number,) * 64, *end.secondary[C + 64 :])
    seen = replace(end, secondary=done)
    part = done_in_part(scenario, end, seen, [hit], Before(frozenset(), ()))
    assert part.secondary == done and part.view == end.view


def test_what_is_done_of_a_write_is_not_seen_in_a_snapshot_that_is_discarded_from() -> None:
    """Nothing is predicted of the overlay there; the reader is gone before it can discard."""
    ops = (
        operation("guest_vanish"),
        operation("guest_discard", C, C),
        operation("primary_write", C, C),
    )
    scenario = scenarios.RealScenario("LUW", ops, form="fleecing")
    hit = InjectedFault("secondary", "write", C + 64, 64, EIO)
    order = Do(0), Do(1), Do(2)
    end = run_in_order(scenario, behaviour_of((10, 0, 0)), order, [FaultPlacement(hit, 2)])
    assert end.view is not None and set(end.view) == {scenarios.BASE}
    assert set(end.hidden[C:]) == {None}
    done = (*end.secondary[:C], *(scenario.number(2),) * 64, *end.secondary[C + 64 :])
    seen = replace(end, secondary=done)
    part = done_in_part(scenario, end, seen, [hit], Before(frozenset(), ()))
    assert part.secondary == done and part.view == end.view


def test_a_flush_that_a_new_cluster_needs_may_be_of_a_secondary_in_qcow2() -> None:
    hit = InjectedFault("secondary", "flush", 0, 0, EIO)
    write = Io("write", "secondary", 0, 8, lambda: None)
    assert not hit.fits(write)
    assert replace(hit, tables=True).fits(write)


def test_a_failed_commit_leaves_what_it_had_read(pool: QemuPool) -> None:
    """It has committed what the setup wrote when the guest writes there twice, and loses its disk
    with the second write: what was written since is not copied any more.
    """
    ops = operation("failover"), operation("guest_write", 16, 8), operation("guest_write", 16, 8)
    scenario = replace(FAILOVER, ops=ops, setup=(operation("guest_write", 16, 8),), cluster=8)
    system = RealSystem(pool, scenario, injection=Injection(errnos=(Cut.FOR_GOOD,)))

    def done(kind: str) -> None:
        system.take(next(c for c in _completing(system) if c.io.kind == kind))

    system.reset()
    system.take(Start(0))
    while not any(c.io.kind == "secondary write" for c in _completing(system)):
        system.take(_completing(system)[0])
    done("secondary write")
    system.take(Start(1))
    done("active write")
    system.take(Start(2))
    (write,) = (c.io for c in _completing(system) if (c.io.op, c.io.kind) == (2, "active write"))
    system.take(Fail(write, Cut.FOR_GOOD))
    while system.enabled():
        system.take(system.enabled()[0])
    system.finish()
    assert not system.derailed
    assert system.disks().secondary[16:24] == (scenarios.BASE + 1,) * 8
    assert system.violation is None or system.violation.kind is not Verdict.LOST_WRITE


def _completing(system: RealSystem) -> list[Complete]:
    return [choice for choice in system.enabled() if isinstance(choice, Complete)]
