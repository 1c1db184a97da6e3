"""Random workloads of an assessment, on real QEMUs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.assess import workloads
from qmpshim.conformance.assess.workloads import (
    WORKLOADS,
    UseWorkload,
    carry_out_workload,
    run_workloads,
)
from qmpshim.conformance.check.case import Status
from qmpshim.conformance.check.run.case_process import Delivery, Order, carry_out
from qmpshim.conformance.check.run.identity import identify
from qmpshim.conformance.uses import Use
from qmpshim.machine.builds.build import Build, resolve
from vmtests.support.broken_builds import make


def test_each_use_without_a_quorum_has_one() -> None:
    without = {Use.COLO_PRIMARY, Use.QUORUM}
    assert set(Use) - {use for one in WORKLOADS for use in one.uses} == without


def test_a_sound_build_does_them(each_build: Build) -> None:
    for one in run_workloads(each_build, list(Use), 2):
        assert one.outcome.status is Status.OK and one.operations == one.workload.operations
        assert all(found.known for found in one.outcome.findings)


def words_of(one: UseWorkload, build: Build) -> list[str]:
    """The command that does it again, without the program's name."""
    program, *words = shlex.split(one.command(build))
    assert program == "qmpshim"
    return words


def test_a_build_that_loses_something_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time, and where its command is typed, too."""
    monkeypatch.chdir(tmp_path)
    build = resolve(str(make("checkpoint-swallowed", tmp_path / "broken")))
    (run,) = run_workloads(build, [Use.COLO_SECONDARY], 1)
    assert run.outcome.status is Status.DIVERGED
    assert any(found.confirmed and not found.known for found in run.outcome.findings)
    assert main([*words_of(run.workload, build), "--shrink", "1s"]) == 1


def test_what_is_not_shown_again_is_not_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """By a build that is mended before the second run."""
    build = resolve(str(make("checkpoint-swallowed", tmp_path / "broken")))
    orders: list[Order] = []

    def mended(order: Order, cancelled: Callable[[], bool]) -> Delivery:
        orders.append(order)
        sound = replace(order, build=qemu_build, identity=identify(qemu_build))
        return carry_out(order if len(orders) == 1 else sound, cancelled)

    monkeypatch.setattr(workloads, "carry_out", mended)
    (run,) = run_workloads(build, [Use.COLO_SECONDARY], 1)
    assert len(orders) == 2 and run.outcome.status is Status.DIVERGED
    assert [found.known or found.confirmed for found in run.outcome.findings].count(False) == 1


def test_its_command_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu_on_path: None, qemu_build: Build
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "it.json"
    for one in (WORKLOADS[0], WORKLOADS[-1]):
        ran = carry_out_workload(qemu_build, identify(qemu_build), one)
        assert main([*words_of(one, qemu_build), "--json", str(out)]) == 0
        (same,) = json.loads(out.read_text())["runs"]
        figures = ran.outcome.figures
        assert sum(same["operations"].values()) == figures["operations"] == one.operations
        assert same["clusters_compared"] == figures["clusters"]
        assert same["checks"] == figures["cross-checks"]
