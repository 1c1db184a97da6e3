"""on-cbw-error=break-snapshot: a copy that fails breaks the snapshot, and the write goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EINVAL

import pytest

from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.answers import OK, io_error
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from vmtests.support import misbehaving_gate
from vmtests.support.failing import explored, filtering, seeing, verdicts

C = scenarios.C


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
    kind: type[RealSystem] = RealSystem,
    release: Callable[[GatedMachine, NamedIo], None] = faithfully,
    model: scenarios.RealScenario | None = None,
) -> RealSystem:
    """All schedules in which an I/O of the copy *fails*, judged by what *model* predicts.

    :param model: None: the scenario
    """
    filtering(pool)
    return explored(
        pool, scenario, kind, fails, release=release, model=model, online=model is None, whole=True
    )


# A copy in two tasks, since the cluster between them has its own already; one in two parts, since
# an L2 table of a target with clusters of 512 bytes is of 64 sectors.
IN_TASKS = replace(
    BREAKS,
    ops=(operation("primary_write", 64, 2 * C),),
    setup=(operation("primary_write", C, C),),
    size=3 * C,
)


IN_PARTS = replace(BREAKS, ops=(operation("primary_write", 16, 8),), cluster=1)


@COPIES
def test_a_failed_copy_breaks_the_snapshot_and_not_the_write(pool: QemuPool, fails: str) -> None:
    seen: set[tuple[object, ...]] = set()
    assert not breaks(
        pool, fails, kind=seeing(lambda end: seen.add((end.view, *end.answers)))
    ).found
    assert seen == {(None, OK, OK), (None, OK, io_error(EINVAL))}


@COPIES
def test_a_snapshot_that_should_not_have_broken_is_reported(pool: QemuPool, fails: str) -> None:
    """The write may not say success here."""
    assert verdicts(breaks(pool, fails, model=PLAIN)) == {Verdict.ERROR_CONTRACT}


@COPIES
def test_a_write_that_should_not_have_failed_is_reported(pool: QemuPool, fails: str) -> None:
    found = verdicts(breaks(pool, fails, scenario=PLAIN, model=BREAKS))
    assert found == {Verdict.ERROR_CONTRACT}


def test_a_copy_that_fails_on_tables_breaks_the_snapshot(pool: QemuPool) -> None:
    """The write succeeds, and there is nothing to read: but a view that is there must be right."""
    filtering(pool)
    breaking = (("filter", "on-cbw-error", "break-snapshot"),)
    ops = (operation("primary_write", 0, C), operation("primary_flush"))
    scenario = scenarios.RealScenario("W", ops, form="fleecing", options=breaking)
    names = explored(pool, scenario, all_io=True).ios
    tables = sorted(one.name for one in names if one.image == "hidden" and one.meta and not one.op)
    assert tables
    assert not explored(pool, scenario, fails=tables[0], all_io=True).found
    new = (scenario.number(0),) * 2 * C
    kind = seeing(lambda seen: replace(seen, view=new))
    shown = explored(pool, scenario, kind, tables[0], all_io=True)
    assert verdicts(shown) == {Verdict.ISOLATION}


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
    """They hold the old data; the write has happened by then."""
    there: set[int | None] = set()
    system = breaks(pool, fails, scenario, seeing(lambda seen: there.add(seen.hidden[landed])))
    assert not system.found, system.found
    assert there == {scenarios.BASE}

    def spoil(machine: GatedMachine, named: NamedIo) -> None:
        """The copy beside the failed one is of the new data."""
        if named.io.image == "hidden" and named.verb == "write" and named.start == landed:
            data = bytes(pattern.data_of(scenario.number(0), named.start, named.count))
            misbehaving_gate.corrupt(machine.gate, named.io, data)
            return
        faithfully(machine, named)

    wrong = explored(pool, scenario, fails=fails, release=spoil)
    assert verdicts(wrong) == {Verdict.ALLOCATION}  # as if it was no part of the copy


def test_a_copy_that_is_made_again_for_a_broken_snapshot_may_be_of_new_data(
    pool: QemuPool,
) -> None:
    """A write that waits for the copy makes it again when that of the failed copy has happened."""
    ops = operation("primary_write", 0, C), operation("primary_write", 64, C)
    scenario = replace(BREAKS, ops=ops)
    copied: set[int | None] = set()
    noted = seeing(lambda seen: copied.add(seen.hidden[0]))
    system = breaks(pool, "hidden write 0+128", scenario, noted)
    assert not system.found, system.found
    assert copied == {None, scenarios.BASE, scenario.number(0)}


def test_without_a_failure_the_old_data_still_come_first(pool: QemuPool) -> None:
    """The option excuses a write without its copy only after a copy failed."""
    filtering(pool)

    def dropping(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "hidden":
            misbehaving_gate.drop(machine.gate, named.io)
        else:
            faithfully(machine, named)

    wrong = explored(pool, BREAKS, release=dropping, most=20, online=True)
    assert verdicts(wrong) == {Verdict.ORDER}


def test_a_write_that_fails_itself_excuses_no_write_without_its_copy(pool: QemuPool) -> None:
    """Only a copy that fails breaks the snapshot."""
    ops = operation("primary_write", 0, C), operation("primary_write", C, C, after=0)
    scenario = replace(BREAKS, ops=ops)

    def dropping(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == "hidden" and named.start == C:
            misbehaving_gate.drop(machine.gate, named.io)
        else:
            faithfully(machine, named)

    for release, found in ((faithfully, set()), (dropping, {Verdict.ORDER})):
        system = breaks(pool, "secondary write 0+128", scenario, release=release)
        assert verdicts(system) == found, system.found


def test_a_failed_copy_is_noticed_beside_a_query(pool: QemuPool) -> None:
    """A QEMU that takes a copy that failed for one that is done, and keeps the snapshot."""
    ops = operation("primary_write", 0, C), operation("status", after=0)
    scenario = replace(BREAKS, ops=ops)
    assert not breaks(pool, "hidden write 0+128", scenario).found
    (whole,) = set(LinearizabilityChecker(scenario, behaviour_of((7, 2, 0))).outcomes.values())
    kind = seeing(lambda seen: replace(whole, answers=seen.answers))
    unbroken = breaks(pool, "hidden write 0+128", scenario, kind)
    assert verdicts(unbroken) == {Verdict.ISOLATION}


@COPIES
def test_a_broken_snapshot_cannot_be_read(pool: QemuPool, fails: str) -> None:
    """Nor if it is right."""
    generous = seeing(lambda seen: replace(seen, view=(scenarios.BASE,) * 2 * C))
    found = breaks(pool, fails, kind=generous).found
    assert {kind for kind, _ in found} == {Verdict.ISOLATION}
