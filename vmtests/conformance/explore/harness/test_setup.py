"""What goes wrong before a scenario begins is a finding, not a reason to leave the scenario out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qmpshim.conformance.check.report.cluster_maps import maps_of_schedule
from qmpshim.conformance.explore import scenarios
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.report.finding_files import save_finding
from qmpshim.conformance.explore.search.exploration import explore_real, render
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain import gated
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict

WR = scenarios.named("WR")


@pytest.mark.parametrize(
    ("number", "verdict"), [(signal.SIGSEGV, Verdict.CRASH), (signal.SIGSTOP, Verdict.HANG)]
)
def test_a_qemu_that_ends_or_stops_when_replication_starts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    number: int,
    verdict: Verdict,
    qemu_build: Build,
) -> None:
    before = QemuPool._start

    def start(self: QemuPool, machine: GatedMachine) -> None:
        os.kill(machine.pid, number)
        with monkeypatch.context() as impatient:
            impatient.setattr(gated, "_LIMIT", 1.0)
            before(self, machine)

    monkeypatch.setattr(QemuPool, "_start", start)
    report = explore_real(qemu_build, WR)
    (finding,) = report.findings
    assert (finding.verdict, finding.contract, finding.known) == (verdict, True, "")
    assert str(finding.cause).startswith("before the scenario begins: ")
    assert not report.exhaustive and not any(one.skipped for one in report.scenarios)
    assert "no divergence" not in render(report)
    assert maps_of_schedule(finding, qemu_build) is None
    save_finding(tmp_path / "bundle", finding, qemu_build)
    assert (tmp_path / "bundle" / "qmp.log").read_text().count("xen-set-replication") == 1


def test_a_qemu_that_refuses_to_start_replication(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    def start(self: QemuPool, machine: GatedMachine) -> None:
        machine.call("xen-set-replication", {"enable": True, "primary": True})

    monkeypatch.setattr(QemuPool, "_start", start)
    (finding,) = explore_real(qemu_build, WR).findings
    assert finding.verdict is Verdict.ERROR_CONTRACT
    assert str(finding.cause).startswith("before the scenario begins: xen-set-replication: ")


def test_a_build_that_cannot_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    def prepare(self: QemuPool, *_: object) -> GatedMachine:
        raise BuildError("this build has no replication driver")

    monkeypatch.setattr(QemuPool, "prepare", prepare)
    with pytest.raises(BuildError, match="no replication driver"):
        explore_real(qemu_build, WR)
