"""Each mutant of the gate is killed: each way in which it can misbehave yields its verdict.

QEMU is not changed here; the storage under it is. What the storage does wrong looks, from above,
just like a QEMU that does it wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qmpshim.conformance.explore import scenario_sets, scenarios
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, RealSystem
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.scenarios import C, RealScenario
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import operation
from vmtests.support import misbehaving_gate
from vmtests.support.gate import (
    Early,
    ForgetfulFlush,
    drop_guest,
    drop_new,
    never,
    new_for_old,
    twice,
)

Release = Callable[[GatedMachine, NamedIo], None]


def causes(
    pool: QemuPool, name: str, release: Release, most: int = 400, online: bool = True
) -> set[tuple[Verdict, str]]:
    (scenario,) = scenario_sets.named(name)
    system = RealSystem(pool, scenario, release=release, checks=Checks(online=online))
    try:
        done = explore(system, Mode.DPOR, Budget(schedules=most, seconds=20), stop=False)
    except BuildError as error:
        pytest.skip(str(error))
    assert done.outcomes - {"lost"}
    return {(kind, str(cause)) for kind, cause in system.found}


def verdicts(
    pool: QemuPool, name: str, release: Release, most: int = 400, online: bool = True
) -> set[Verdict]:
    return {kind for kind, _ in causes(pool, name, release, most, online)}


def test_a_reference_gate_yields_no_finding(pool: QemuPool) -> None:
    for name in ("WR", "WV", "WP", "WG", "WH", "backup-WV", "backup-ZR"):
        assert verdicts(pool, name, faithfully) == set()
    # What 7.2 gives the reader of a snapshot is another matter (known), the order is not.
    for name in ("fleecing-WV", "fleecing-WT", "fleecing-VU", "fleecing-DR"):
        assert verdicts(pool, name, faithfully) <= {Verdict.ISOLATION, Verdict.CRASH}


@pytest.mark.kills("online")
@pytest.mark.parametrize("form", ["", "backup-", "fleecing-"])
def test_new_data_before_the_old_is_saved_is_order(pool: QemuPool, form: str) -> None:
    found = causes(pool, f"{form}WR", Early(), most=50)
    assert (Verdict.ORDER, "new data before old is saved") in found


@pytest.mark.parametrize(("start", "count", "saved"), [(32, 64, True), (0, C, False)])
def test_what_a_reader_gives_up_in_part_is_saved_as_a_whole(
    each_build: Build, start: int, count: int, saved: bool
) -> None:
    """A discard of half a cluster leaves the snapshot the cluster (9.1; before, QEMU aborts)."""
    if read_version(each_build)[0] < (9, 1):
        pytest.skip("older builds abort (snapshot-discard-aborts)")
    ops = operation("primary_write", 0, 8), operation("guest_discard", start, count)
    scenario = RealScenario("given-up", ops, form="fleecing")
    pool = QemuPool(each_build)
    try:
        for release, wanted in ((faithfully, False), (Early(), saved)):
            system = RealSystem(pool, scenario, release=release)
            explore(system, Mode.DPOR, Budget(schedules=50), stop=False)
            assert (Verdict.ORDER in {kind for kind, _ in system.found}) is wanted
    finally:
        pool.close()


@pytest.mark.parametrize("name", ["fleecing-WX", "backup-WX"])
def test_a_command_besides_hides_nothing_of_it(pool: QemuPool, name: str) -> None:
    assert verdicts(pool, name, faithfully) == set()
    assert (Verdict.ORDER, "new data before old is saved") in causes(pool, name, Early(), most=50)
    # Where there is a setup it is seen in that already.
    assert verdicts(pool, name, new_for_old) & {Verdict.CONTENT, Verdict.LOST_WRITE}


def test_a_copy_that_never_arrives_is_found_out(pool: QemuPool) -> None:
    """Seen twice: when the new data arrives, and if nothing looks then, by what is read later."""
    assert verdicts(pool, "WR", never) == {Verdict.ORDER}
    found = verdicts(pool, "WR", never, online=False)
    assert found & {Verdict.CONTENT, Verdict.LOST_WRITE}


@pytest.mark.kills("online")
@pytest.mark.parametrize("form", ["", "backup-", "fleecing-"])
def test_new_data_for_an_old_read_is_seen_in_the_copy(pool: QemuPool, form: str) -> None:
    """At once, where the copy comes to the hidden disk; what reads that later is no witness."""
    found = causes(pool, f"{form}WH", new_for_old)
    assert found == {(Verdict.CONTENT, "the copy holds new data")}


@pytest.mark.kills("linearizability")
def test_new_data_for_an_old_read_is_content_or_isolation(pool: QemuPool) -> None:
    """Without that, by what the guest reads and by what the disks hold in the end."""
    found = verdicts(pool, "WR", new_for_old, online=False)
    assert found and found <= {Verdict.CONTENT, Verdict.ISOLATION}


@pytest.mark.kills("linearizability")
@pytest.mark.parametrize(("name", "drop"), [("WR", drop_new), ("GR", drop_guest)])
def test_a_dropped_write_is_lost(pool: QemuPool, name: str, drop: Release) -> None:
    name = "".join(sorted(name, key="WVDZRPGFHCOSQX".index))
    assert Verdict.LOST_WRITE in verdicts(pool, name, drop)


def test_a_write_behind_its_flush_is_lost(pool: QemuPool) -> None:
    """The bytes at the moment the flush was answered are what a crash then leaves."""
    letters = scenario_sets.LETTERS
    ops = (letters["W"], replace(letters["H"], after=0), operation("primary_read", 0, 8, after=1))
    scenario = scenarios.RealScenario("write-flush-read", ops)
    for release, wanted in ((ForgetfulFlush(), {Verdict.LOST_WRITE}), (faithfully, set())):
        system = RealSystem(pool, scenario, release=release)
        explore(system, Mode.DPOR, Budget(schedules=50), stop=False)
        assert {kind for kind, _ in system.found} == wanted


@pytest.mark.kills("online")
@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
@pytest.mark.parametrize("side", ["guest", "primary"])
def test_a_dropped_write_is_missed_by_the_flush_after_it(
    pool: QemuPool, side: str, secondary: str
) -> None:
    """Nothing may be there but what was written since; an earlier write's data are not."""
    image = {"guest": "active", "primary": "secondary"}[side]
    writes = (operation(f"{side}_write", 0, C), operation(f"{side}_write", 0, C, after=0))
    ops = (*writes, operation(f"{side}_flush", after=1))
    scenario = scenarios.RealScenario("write-write-flush", ops, secondary=secondary)
    written: list[NamedIo] = []

    def drop_second(machine: GatedMachine, named: NamedIo) -> None:
        if named.io.image == image and named.verb == "write" and named.op == 1:
            misbehaving_gate.drop(machine.gate, named.io)
            written.append(named)
            return
        machine.gate.release(named.io)

    cause = Cause(CauseKind.NOT_ON_DISK, f"{side}_write", f"{side}_flush")
    wanted = {(Verdict.LOST_WRITE, cause)}
    for release, expected in ((drop_second, wanted), (faithfully, set())):
        system = RealSystem(pool, scenario, release=release)
        explore(system, Mode.DPOR, Budget(schedules=50), stop=False)
        assert set(system.found) == expected
    assert written


def test_an_answer_given_twice_is_noticed(pool: QemuPool) -> None:
    """QEMU drops the connection (that is right of it), and the operations fail."""
    found = verdicts(pool, "WR", twice, most=30)
    assert found & {Verdict.ERROR_CONTRACT, Verdict.HANG, Verdict.CRASH}
