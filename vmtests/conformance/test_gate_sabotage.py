"""The harness convicts: each way in which the gate can lie to QEMU yields its verdict.

QEMU is honest here; the storage under it is not. What the storage does wrong looks, from above,
just like a QEMU that does it wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from qmpshim.conformance import pattern
from qmpshim.conformance.explore import scenarios as scenarios
from qmpshim.conformance.explore.io import Named
from qmpshim.conformance.explore.stage import Stage
from qmpshim.conformance.explore.system import RealSystem, honestly
from qmpshim.machine.builds import Build
from qmpshim.machine.gated_chain import GatedMachine
from qmpshim.model.explorer import Mode, explore
from qmpshim.model.scenario import Op
from qmpshim.model.verdict import Verdict
from qmpshim.model.walk import Budget

Release = Callable[[GatedMachine, Named], None]


@pytest.fixture(scope="module")
def stage(qemu_build: Build) -> Iterator[Stage]:
    stage = Stage(qemu_build)
    yield stage
    stage.close()


def verdicts(
    stage: Stage, name: str, release: Release, most: int = 400, watching: bool = True
) -> set[Verdict]:
    (scenario,) = scenarios.named(name)
    system = RealSystem(stage, scenario, release=release, watching=watching)
    explore(system, Mode.DPOR, Budget(schedules=most, seconds=20), stop=False)
    assert system.finished
    return {kind for kind, _ in system.found}


def never(machine: GatedMachine, named: Named) -> None:
    """Says that the old data is in the hidden disk, and has lost it."""
    if named.io.image == "hidden" and named.verb == "write":
        machine.gate.corrupt(named.io, bytes(named.io.length))
        return
    machine.gate.release(named.io)


def new_for_old(machine: GatedMachine, named: Named) -> None:
    """A read of the old data returns what is about to be written."""
    if named.io.image == "secondary" and named.verb == "read":
        data = bytes(pattern.data_of(2, named.start, named.count))
        machine.gate.corrupt(named.io, data)
        return
    machine.gate.release(named.io)


def drop_new(machine: GatedMachine, named: Named) -> None:
    """A write to the secondary disk is answered and forgotten."""
    if named.io.image == "secondary" and named.verb == "write":
        machine.gate.drop(named.io)
        return
    machine.gate.release(named.io)


def drop_guest(machine: GatedMachine, named: Named) -> None:
    """A write to the active disk is answered and forgotten."""
    if named.io.image == "active" and named.verb == "write":
        machine.gate.drop(named.io)
        return
    machine.gate.release(named.io)


def twice(machine: GatedMachine, named: Named) -> None:
    """An answer comes twice."""
    if named.verb in ("read", "write"):
        machine.gate.reply_twice(named.io)
        return
    machine.gate.release(named.io)


class Early:
    """The secondary disk has the new data before the hidden disk has the old.

    As a storage does that answers a write before it is done, and does another one first.
    """

    def __init__(self) -> None:
        self.kept: list[Named] = []

    def __call__(self, machine: GatedMachine, named: Named) -> None:
        if named.io.image == "hidden" and named.verb == "write":
            self.kept.append(named)
            machine.gate.drop(named.io)
            return
        machine.gate.release(named.io)
        if named.io.image == "secondary" and named.verb == "write":
            for late in self.kept:
                machine.stores["hidden"].write(late.io.offset, late.io.data)
            self.kept.clear()


class ForgetfulFlush:
    """A cache that answers a flush first and writes what it holds at the next opportunity.

    In the end everything is where it belongs; only a crash in between would lose a write.
    """

    def __init__(self) -> None:
        self.kept: list[Named] = []
        self.flushed = False

    def __call__(self, machine: GatedMachine, named: Named) -> None:
        if self.flushed or named.verb == "read":
            for late in self.kept:
                machine.stores["secondary"].write(late.io.offset, late.io.data)
            self.kept.clear()
        if named.io.image == "secondary" and named.verb == "write":
            self.kept.append(named)
            machine.gate.drop(named.io)  # answered, not done yet
            return
        machine.gate.release(named.io)
        self.flushed = named.verb == "flush"


def test_an_honest_gate_convicts_nobody(stage: Stage) -> None:
    for name in ("WR", "WV", "WP", "WG", "WH"):
        assert verdicts(stage, name, honestly) == set()


def test_new_data_before_the_old_is_saved_is_order(stage: Stage) -> None:
    assert Verdict.ORDER in verdicts(stage, "WR", Early(), most=50)


def test_a_copy_that_never_arrives_is_found_out(stage: Stage) -> None:
    """Seen twice: when the new data arrives, and if nobody looks then, by what is read later."""
    assert verdicts(stage, "WR", never) == {Verdict.ORDER}
    found = verdicts(stage, "WR", never, watching=False)
    assert found & {Verdict.CONTENT, Verdict.LOST_WRITE}


def test_new_data_for_an_old_read_is_content_or_isolation(stage: Stage) -> None:
    found = verdicts(stage, "WR", new_for_old)
    assert found and found <= {Verdict.CONTENT, Verdict.ISOLATION}


@pytest.mark.parametrize(("name", "drop"), [("WR", drop_new), ("GR", drop_guest)])
def test_a_dropped_write_is_lost(stage: Stage, name: str, drop: Release) -> None:
    name = "".join(sorted(name, key="WVDZRPGFHCOSQX".index))
    assert Verdict.LOST_WRITE in verdicts(stage, name, drop)


def test_a_write_behind_its_flush_is_lost(stage: Stage) -> None:
    """The bytes at the moment the flush was answered are what a crash then leaves."""
    letters = scenarios.LETTERS
    ops = (letters["W"], replace(letters["H"], after=0), Op("primary_read", 0, 8, after=1))
    scenario = scenarios.RealScenario("write-flush-read", ops)
    for release, wanted in ((ForgetfulFlush(), {Verdict.LOST_WRITE}), (honestly, set())):
        system = RealSystem(stage, scenario, release=release)
        explore(system, Mode.DPOR, Budget(schedules=50), stop=False)
        assert {kind for kind, _ in system.found} == wanted


def test_an_answer_given_twice_is_noticed(stage: Stage) -> None:
    """QEMU drops the connection (that is right of it), and the operations fail."""
    found = verdicts(stage, "WR", twice, most=30)
    assert found & {Verdict.ERROR_CONTRACT, Verdict.HANG, Verdict.CRASH}
