"""What is collected for a bundle, where the finding does not show itself once more."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.report import evidence
from qmpshim.conformance.explore.report.evidence import collect
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.machine.builds.build import Build


@pytest.mark.skipif(shutil.which("gdb") is None, reason="there is no gdb")
def test_a_crash_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """The debugger is asked for what it has to say when QEMU has ended, not before."""
    case = load_finding(DIRECTORY / "checkpoint-then-overlapping-write-aborts.json")
    happened: list[str] = []

    class Gdb(evidence.Gdb):
        def end(self) -> None:
            happened.append("gdb asked")
            super().end()

    class Ended(QemuPool):
        def close(self) -> None:
            happened.append("QEMU ended")
            super().close()

    monkeypatch.setattr(evidence, "Gdb", Gdb)
    monkeypatch.setattr(evidence, "QemuPool", Ended)
    (reference,) = scenario_sets.named("WP")
    collect(replace(case, scenario=reference, schedule=(), events=()), qemu_build, tmp_path)
    assert happened == ["QEMU ended", "gdb asked"]
    assert (tmp_path / "stderr.txt").read_text() == ""
    assert "SIGABRT" not in (tmp_path / "backtrace.txt").read_text()
