"""What goes wrong before a scenario begins is a finding, not a reason to leave the scenario out."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.check.report.cluster_maps import maps_of_schedule
from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.report.finding_files import save_finding
from qmpshim.conformance.explore.report.report import render
from qmpshim.conformance.explore.reproducer.symptoms import symptom_of
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.search import ScenarioTask, explore_scenario
from qmpshim.conformance.explore.search.settings import Settings
from qmpshim.errors import (
    BuildError,
    CommandFailed,
    IOFailed,
    MachineDied,
    MachineError,
    MachineHung,
)
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind, Phase
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.operations import operation
from vmtests.support.gibberish import gibberish

WR = scenario_sets.named("WR")


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
    before = QemuPool.start_scenario

    def start(self: QemuPool, machine: GatedMachine) -> None:
        os.kill(machine.pid, number)
        with monkeypatch.context() as impatient:
            impatient.setattr(GatedMachine, "limit", 1.0)
            before(self, machine)

    monkeypatch.setattr(QemuPool, "start_scenario", start)
    report = explore_real(qemu_build, WR)
    (finding,) = report.findings
    assert (finding.verdict, finding.contract, finding.known) == (verdict, True, "")
    assert str(finding.cause).startswith("before the scenario begins: ")
    assert not report.exhaustive and not any(one.skipped for one in report.scenarios)
    assert "no divergence" not in render(report)
    assert maps_of_schedule(finding, qemu_build) is None
    save_finding(tmp_path / "bundle", finding, qemu_build)
    assert (tmp_path / "bundle" / "qmp.log").read_text().count("xen-set-replication") == 1


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGKILL, MachineDied), (signal.SIGSTOP, MachineHung)]
)
def test_a_qemu_that_was_used_before_ends_or_stops(
    number: int, error: type[MachineError], qemu_build: Build
) -> None:
    """The scenario before has ended well, so this is of the next one's beginning."""
    (scenario,) = WR
    with closing(QemuPool(qemu_build)) as pool:
        machine = pool.prepare(scenario)
        pool.back(apart=True)
        os.kill(machine.pid, number)
        with pytest.raises(error):
            pool.prepare(scenario)


def test_a_qemu_that_stops_when_a_client_connects(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """It did not refuse the client."""
    before = GatedMachine.connect

    def connect(self: GatedMachine, name: str) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        before(self, name)

    monkeypatch.setattr(GatedMachine, "connect", connect)
    (finding,) = explore_real(qemu_build, WR, settings=Settings(minimise=False)).findings
    assert finding.verdict is Verdict.HANG
    assert str(finding.cause).startswith("before the scenario begins: NBD connection to ")


@pytest.mark.parametrize("mode", [Mode.RANDOM, Mode.STATEFUL])
def test_what_went_wrong_once_is_seen_though_the_next_beginning_goes_well(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """A walk goes back to the beginning before its first execution."""
    start, left = QemuPool.start_scenario, 1

    def once(self: QemuPool, machine: GatedMachine) -> None:
        nonlocal left
        if left:
            left -= 1
            raise MachineHung("no answer in 1 s")
        start(self, machine)

    monkeypatch.setattr(QemuPool, "start_scenario", once)
    task = ScenarioTask(qemu_build, read_version(qemu_build)[0], mode, (), 2.0, 0)
    with closing(QemuPool(qemu_build)) as pool:
        found = explore_scenario(pool, WR[0], task, 2.0).sightings
    assert [(one.violation.kind, one.violation.cause.phase) for one in found] == [
        (Verdict.HANG, Phase.SETUP)
    ]


def test_a_qemu_that_refuses_to_start_replication(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    def start(self: QemuPool, machine: GatedMachine) -> None:
        machine.call("xen-set-replication", {"enable": True, "primary": True})

    monkeypatch.setattr(QemuPool, "start_scenario", start)
    (finding,) = explore_real(qemu_build, WR).findings
    assert finding.verdict is Verdict.ERROR_CONTRACT
    assert str(finding.cause).startswith("before the scenario begins: xen-set-replication: ")


@pytest.mark.parametrize(
    ("error", "verdict", "answer"),
    [
        (IOFailed("gibberish", 5), Verdict.ERROR_CONTRACT, "errno N"),
        (CommandFailed("gibberish", "GenericError", "no 5"), Verdict.ERROR_CONTRACT, "no N"),
        (MachineHung("gibberish"), Verdict.HANG, "no answer"),
    ],
)
def test_an_operation_of_the_setup_fails(
    error: MachineError,
    verdict: Verdict,
    answer: str,
    monkeypatch: pytest.MonkeyPatch,
    qemu_build: Build,
) -> None:
    """The cause names it and its answer, as data, whatever the error's text."""

    def fails(*_: object) -> None:
        raise error

    (scenario,) = WR
    (op,) = setup = (operation("primary_write", 0, 8),)
    monkeypatch.setattr(real_ops, "do_alone", fails)
    with gibberish(monkeypatch):
        (finding,) = explore_real(qemu_build, [replace(scenario, setup=setup)]).findings
        expected = Cause(CauseKind.SETUP_FAILS, op.name, answer, phase=Phase.SETUP)
        assert (finding.verdict, finding.cause) == (verdict, expected)
        sign = {"kind": "setup", "operation": "primary_write", "answer": answer}
        assert symptom_of(finding) == sign


def test_a_build_that_cannot_is_no_finding(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    def prepare(self: QemuPool, *_: object) -> GatedMachine:
        raise BuildError("this build has no replication driver")

    monkeypatch.setattr(QemuPool, "prepare", prepare)
    with pytest.raises(BuildError, match="no replication driver"):
        explore_real(qemu_build, WR)


@pytest.mark.parametrize(
    ("option", "lacks"),
    [
        (("hidden", "no-such-option", True), True),
        (("hidden", "driver", "no-such-driver"), True),
        (("hidden", "l2-cache-size", -1), False),
        (("secondary", "detect-zeroes", "unmap"), False),
    ],
)
def test_what_the_schema_has_not_is_distinguished_from_what_qemu_refuses(
    qemu_build: Build, option: tuple[str, str, object], lacks: bool
) -> None:
    options = (("secondary", "discard", "ignore"), option)
    (scenario,) = scenario_sets.named("backup-WR")
    with pytest.raises(BuildError, match="this QEMU has no" if lacks else "cannot build the chain"):
        explore_real(qemu_build, [replace(scenario, options=options)])
    pool = QemuPool(qemu_build)
    task = ScenarioTask(qemu_build, read_version(qemu_build)[0], Mode.DPOR, (), None, 0)
    try:
        result = explore_scenario(pool, replace(scenario, options=options), task, None)
    finally:
        pool.close()
    assert result.skipped
    assert result.lacks is lacks, result.skipped
