"""Crash points kill mutants: of each of the three readers, of each image that can break."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.checkers import crash_points
from qmpshim.conformance.explore.checkers.crash_points import (
    CrashPoints,
    after_a_crash,
    after_a_crash_thoroughly,
)
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, RealSystem
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import InputError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.images.qcow2_header import Incompatible
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from vmtests.support.gate import REFCOUNTS
from vmtests.support.gibberish import gibberish

L1 = 3 * 65536  # where a new image has its L1 table
_INCOMPATIBLE = 72  # where a qcow2 header has these flags
Check = Callable[[RealSystem], RealViolation | None]


def looked_at(pool: QemuPool, name: str, check: Check | None) -> set[tuple[Verdict, Cause]]:
    """What looking at the images after each step of one schedule finds."""
    (scenario,) = scenario_sets.named(name)
    system = RealSystem(pool, scenario, checks=Checks(each_step=check))
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    pool.discard()
    return set(system.found)


def spoiling(image: str, offset: int, check: Check) -> Check:
    """Break an image behind everybody's back, then look."""

    def spoil(system: RealSystem) -> RealViolation | None:
        system.machine.stores[image].write(offset, bytes(65536))
        return check(system)

    return spoil


def broken(image: str, reader: str) -> Cause:
    return Cause(CauseKind.BROKEN_BY_CRASH, image, reader)


@pytest.mark.kills("crash_points")
@pytest.mark.parametrize("image", ["secondary", "hidden", "active"])
def test_our_reader_sees_each_image(pool: QemuPool, image: str) -> None:
    found = looked_at(pool, "qcow2-WP", spoiling(image, REFCOUNTS, after_a_crash))
    assert found == {(Verdict.CORRUPTION, broken(image, "our reader"))}
    assert looked_at(pool, "qcow2-WP", after_a_crash) == set()


@pytest.mark.kills("crash_points")
@pytest.mark.parametrize("image", ["secondary", "hidden", "active"])
def test_qemu_img_sees_what_our_reader_does_not(
    pool: QemuPool, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crash_points, "after_a_crash", lambda system: None)
    found = looked_at(pool, "qcow2-WP", spoiling(image, REFCOUNTS, after_a_crash_thoroughly))
    assert found == {(Verdict.CORRUPTION, broken(image, "qemu-img check"))}


@pytest.mark.kills("crash_points")
def test_a_fresh_qemu_sees_what_neither_does(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = SimpleNamespace(corruptions=0)
    monkeypatch.setattr(crash_points, "after_a_crash", lambda system: None)
    monkeypatch.setattr(crash_points, "qemu_img_check", lambda path, tool: clean)
    found = looked_at(pool, "WP", spoiling("active", 0, after_a_crash_thoroughly))
    assert found == {(Verdict.CORRUPTION, broken("chain", "a fresh QEMU"))}


@pytest.mark.parametrize(
    ("number", "verdict"), [(signal.SIGSTOP, Verdict.HANG), (signal.SIGABRT, Verdict.CRASH)]
)
def test_a_fresh_qemu_that_ends_or_stops(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch, number: int, verdict: Verdict
) -> None:
    class Fresh(GatedMachine):
        def tear_down(self) -> None:
            os.kill(self.pid, number)
            self.limit = 1.0
            super().tear_down()

    monkeypatch.setattr(crash_points, "GatedMachine", Fresh)
    found = looked_at(pool, "WP", after_a_crash_thoroughly)
    assert found == {(verdict, Cause(CauseKind.UNUSABLE_AFTER_CRASH))}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("quick", r".*"),
        ("quick:1", r"1 .*"),
        ("quick:2,4-5", r"[245] .*"),
        ("full:6-", r"[6-9] .*"),
        ("quick:guest write", r"\d start 1: guest write.*"),
        ("full:hidden write", r"\d complete hidden write.*"),
        ("full:write hidden", r"\d complete hidden write.*"),
        ("full:hidden wri", r"-"),
        ("quick:7,start 0", r"7 .*|\d start 0.*"),
        ("quick:checkpoint", r"-"),
    ],
)
def test_the_steps_that_are_chosen_are_looked_at(
    pool: QemuPool, text: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(system: RealSystem) -> None:
        line = [line for line in map(str, system.now.events) if line[0] != " "][-1]
        seen.append(f"{len(system.now.steps)} {line}")

    looked_at(pool, "WP", look)
    steps, seen[:] = seen.copy(), []
    assert len(steps) >= 7
    monkeypatch.setattr(crash_points, "after_a_crash", look)
    monkeypatch.setattr(crash_points, "after_a_crash_thoroughly", look)
    points = CrashPoints.parse(text)
    assert str(points) == text
    assert looked_at(pool, "WP", points.check) == set()
    assert seen == [step for step in steps if re.fullmatch(chosen, step)]
    assert seen or chosen == "-"


@pytest.mark.parametrize("at", ["hidden write", "start 0", "1,guest write"])
def test_no_text_chooses(pool: QemuPool, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps are looked at when every event is rendered as gibberish."""
    seen: list[int] = []
    monkeypatch.setattr(
        crash_points, "after_a_crash", lambda system: seen.append(len(system.now.steps))
    )
    looked_at(pool, "WP", CrashPoints.parse(f"quick:{at}").check)
    plain, seen[:] = seen.copy(), []
    with gibberish(monkeypatch):
        looked_at(pool, "WP", CrashPoints.parse(f"quick:{at}").check)
    assert plain and seen == plain


@pytest.mark.parametrize(
    "text", ["all", "full:", "quick:1,,2", "none of them", "", "full:0", "quick:5-2", "none:3"]
)
def test_crash_points_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="crash points are none, quick, full, power-loss,"):
        CrashPoints.parse(text)


def test_between_the_writes_of_tables_are_crash_points_too(pool: QemuPool) -> None:
    """qcow2 links a table when it has been written; one that links first is found out."""
    (scenario,) = scenario_sets.named("WR")

    def too_early(machine: GatedMachine, named: NamedIo) -> None:
        faithfully(machine, named)
        if named.io.image == "hidden" and named.meta and named.verb == "write":
            machine.gate.store("hidden").write(L1, (8 << 16 | 1 << 63).to_bytes(8))

    for release, found in ((faithfully, 0), (too_early, 1)):
        system = RealSystem(
            pool,
            scenario,
            all_io=True,
            release=release,
            checks=Checks(each_step=CrashPoints.parse("quick:meta").check),
        )
        explore(system, Mode.STATEFUL, Budget(schedules=40), stop=False)
        assert len(system.found) == found, system.found
        pool.discard()


def half_emptied(check: Check) -> Check:
    """As a checkpoint leaves the active disk for a moment: no refcounts, but marked dirty."""

    def spoil(system: RealSystem) -> RealViolation | None:
        store = system.machine.stores["active"]
        store.write(REFCOUNTS, bytes(65536))
        flags = int.from_bytes(store.read(_INCOMPATIBLE, 8)) | Incompatible.DIRTY
        store.write(_INCOMPATIBLE, int(flags).to_bytes(8))
        return check(system)

    return spoil


@pytest.mark.parametrize("check", [after_a_crash, after_a_crash_thoroughly])
def test_a_dirty_image_is_counted_anew(pool: QemuPool, check: Check) -> None:
    assert looked_at(pool, "WP", half_emptied(check)) == set()


def test_an_owner_that_does_not_count_anew_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy(GatedMachine):
        built = False

        def build_chain(self) -> None:
            if not self.built:  # the first time, over empty images
                super().build_chain()
            self.built = True

    monkeypatch.setattr(crash_points, "GatedMachine", Lazy)
    found = looked_at(pool, "WP", half_emptied(after_a_crash_thoroughly))
    assert found == {(Verdict.CORRUPTION, broken("active", "a fresh QEMU"))}


def test_a_checkpoint_empties_its_disks_safely(pool: QemuPool) -> None:
    """In the middle of it the overlays are dirty."""
    (scenario,) = scenario_sets.named("HC")
    system = RealSystem(pool, scenario, checks=Checks(each_step=after_a_crash))
    assert explore(system, Mode.STATEFUL, stop=False).exhaustive
    pool.discard()
    assert set(system.found) == set()
