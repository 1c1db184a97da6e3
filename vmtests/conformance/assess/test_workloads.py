"""Random workloads of an assessment, on real QEMUs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.assess.workloads import WORKLOADS, run_workloads
from qmpshim.conformance.check.case import Status
from qmpshim.conformance.known.meaning import Use
from qmpshim.machine.builds.build import Build, resolve
from vmtests.support.broken_builds import make


def test_each_use_but_the_primary_has_one() -> None:
    assert set(Use) - {use for one in WORKLOADS for use in one.uses} == {Use.COLO_PRIMARY}


def test_a_sound_build_does_them(each_build: Build) -> None:
    for one in run_workloads(each_build, list(Use), 2):
        assert one.outcome.status is Status.OK and one.operations == one.workload.operations
        assert all(found.known for found in one.outcome.findings)


def test_a_build_that_loses_something_does_not(tmp_path: Path) -> None:
    build = resolve(str(make("checkpoint-swallowed", tmp_path / "broken")))
    (run,) = run_workloads(build, [Use.COLO_SECONDARY], 1)
    assert run.outcome.status is Status.DIVERGED
    assert [found for found in run.outcome.findings if not found.known]


def test_its_command_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu_on_path: None, qemu_build: Build
) -> None:
    monkeypatch.chdir(tmp_path)
    for one in (WORKLOADS[0], WORKLOADS[-1]):
        words = shlex.split(one.command(qemu_build))
        assert words.pop(0) == "qmpshim" and main(words) == 0
