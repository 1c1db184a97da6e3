"""Crash points convict: each of the three readers, of each image that can break."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from gate_lies import REFCOUNTS

from qmpshim.conformance.explore import crash_points, scenarios
from qmpshim.conformance.explore.crash_points import after_a_crash, after_a_crash_thoroughly
from qmpshim.conformance.explore.judge import RealViolation
from qmpshim.conformance.explore.stage import Stage
from qmpshim.conformance.explore.system import RealSystem
from qmpshim.machine import gated_chain
from qmpshim.machine.gated_chain import GatedMachine
from qmpshim.machine.qcow2 import Incompatible
from qmpshim.model.explorer import Mode, explore
from qmpshim.model.verdict import Verdict
from qmpshim.model.walk import Budget

_INCOMPATIBLE = 72  # where a qcow2 header has these flags
Check = Callable[[RealSystem], RealViolation | None]


def looked_at(stage: Stage, name: str, check: Check) -> set[tuple[Verdict, str]]:
    """What looking at the images after each step of one schedule finds."""
    (scenario,) = scenarios.named(name)
    system = RealSystem(stage, scenario, each_step=check)
    explore(system, Mode.DPOR, Budget(schedules=1), stop=False)
    stage.discard()
    return set(system.found)


def spoiling(image: str, offset: int, check: Check) -> Check:
    """Break an image behind everybody's back, then look."""

    def spoil(system: RealSystem) -> RealViolation | None:
        system.machine.stores[image].write(offset, bytes(65536))
        return check(system)

    return spoil


@pytest.mark.parametrize("image", ["secondary", "hidden", "active"])
def test_our_reader_sees_each_image(stage: Stage, image: str) -> None:
    found = looked_at(stage, "qcow2-WP", spoiling(image, REFCOUNTS, after_a_crash))
    assert found == {(Verdict.CORRUPTION, f"{image} broken, says our reader, after a crash")}
    assert looked_at(stage, "qcow2-WP", after_a_crash) == set()


@pytest.mark.parametrize("image", ["secondary", "hidden", "active"])
def test_qemu_img_sees_what_our_reader_does_not(
    stage: Stage, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crash_points, "after_a_crash", lambda system: None)
    found = looked_at(stage, "qcow2-WP", spoiling(image, REFCOUNTS, after_a_crash_thoroughly))
    assert found == {(Verdict.CORRUPTION, f"{image} broken, says qemu-img check, after a crash")}


def test_a_fresh_qemu_sees_what_neither_does(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = SimpleNamespace(corruptions=0)
    monkeypatch.setattr(crash_points, "after_a_crash", lambda system: None)
    monkeypatch.setattr(crash_points, "qemu_img_check", lambda path, tool: clean)
    found = looked_at(stage, "WP", spoiling("active", 0, after_a_crash_thoroughly))
    assert found == {(Verdict.CORRUPTION, "chain broken, says a fresh QEMU, after a crash")}


@pytest.mark.parametrize(
    ("number", "verdict"), [(signal.SIGSTOP, Verdict.HANG), (signal.SIGABRT, Verdict.CRASH)]
)
def test_a_fresh_qemu_that_ends_or_stops(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int, verdict: Verdict
) -> None:
    class Fresh(GatedMachine):
        def tear_down(self) -> None:
            os.kill(self.pid, number)
            with monkeypatch.context() as impatient:
                impatient.setattr(gated_chain, "_LIMIT", 1.0)
                super().tear_down()

    monkeypatch.setattr(crash_points, "GatedMachine", Fresh)
    found = looked_at(stage, "WP", after_a_crash_thoroughly)
    assert found == {(verdict, "reopening after a crash")}


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
def test_a_dirty_image_is_counted_anew(stage: Stage, check: Check) -> None:
    assert looked_at(stage, "WP", half_emptied(check)) == set()


def test_who_does_not_count_anew_is_convicted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy(GatedMachine):
        def build_chain(self) -> None:
            if not self.commands:  # the first time, over empty images
                super().build_chain()

    monkeypatch.setattr(crash_points, "GatedMachine", Lazy)
    found = looked_at(stage, "WP", half_emptied(after_a_crash_thoroughly))
    assert found == {(Verdict.CORRUPTION, "active broken, says a fresh QEMU, after a crash")}


def test_a_checkpoint_empties_its_disks_safely(stage: Stage) -> None:
    """In the middle of it the overlays are dirty."""
    (scenario,) = scenarios.named("HC")
    system = RealSystem(stage, scenario, each_step=after_a_crash)
    assert explore(system, Mode.STATEFUL, stop=False).exhaustive
    stage.discard()
    assert set(system.found) == set()
