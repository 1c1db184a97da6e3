"""A QEMU that does not live through being taken apart is a finding of what it did before that."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qmpshim.cli import main
from qmpshim.commands.console import DIVERGED
from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import RealRun
from qmpshim.conformance.explore.report.finding_files import load_finding, save_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.report import render
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.search import confirmed
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.minimize import confirm
from qmpshim.conformance.explore.search.settings import Settings
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.model.check.verdict import Verdict


def strike(patch: pytest.MonkeyPatch, command: str, number: int) -> None:
    """QEMU gets this signal in the moment that the pool gives it this command."""
    call, batch = GatedMachine.call, GatedMachine.batch

    def struck(self: GatedMachine, given: str) -> None:
        if given == command:
            patch.setattr(GatedMachine, "limit", 1.0)
            os.kill(self.pid, number)

    def struck_call(
        self: GatedMachine, given: str, arguments: Mapping[str, Any] | None = None
    ) -> Any:
        struck(self, given)
        return call(self, given, arguments)

    def struck_batch(self: GatedMachine, commands: list[QmpCommand]) -> list[Any]:
        struck(self, commands[0].name)
        return batch(self, commands)

    patch.setattr(GatedMachine, "call", struck_call)
    patch.setattr(GatedMachine, "batch", struck_batch)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("backup-WH", "blockdev-del"),
        ("WH", "block-export-del"),  # only after the last execution
        ("WH", "xen-colo-do-checkpoint"),
    ],
)
def test_a_qemu_that_dies_between_two_schedules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qemu_build: Build, name: str, command: str
) -> None:
    with monkeypatch.context() as patch:
        strike(patch, command, signal.SIGSEGV)
        report = explore_real(qemu_build, scenario_sets.named(name))
        (finding,) = report.findings
        assert finding.verdict is Verdict.CRASH and finding.contract and not finding.known
        assert str(finding.cause) == "taken apart: QEMU was killed by SIGSEGV"
        assert finding.lines[-2:] == ("afterwards: taken apart", f"crash: {finding.text}")
        assert len(finding.scenario.ops) == 1
        assert "no divergence" not in render(report)
        bundle = save_finding(tmp_path / "bundle", finding, qemu_build)
        assert "blockdev-add" in (bundle / "qmp.log").read_text()
        assert replay_schedule(load_finding(bundle), qemu_build).shows(finding)
    reference = replay_schedule(finding, qemu_build)
    assert reference.followed and reference.violation is None and not reference.shows(finding)


def test_what_goes_wrong_before_is_reported_by_a_replay(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """On another build the same defect may show itself earlier."""
    with monkeypatch.context() as patch:
        strike(patch, "xen-colo-do-checkpoint", signal.SIGSEGV)
        (finding,) = explore_real(
            qemu_build, scenario_sets.named("WH"), settings=Settings(minimise=False)
        ).findings
    start = RealRun.start_operation

    def struck(self: RealRun, index: int) -> None:
        start(self, index)
        os.kill(self.machine.pid, signal.SIGKILL)

    monkeypatch.setattr(RealRun, "start_operation", struck)
    again = replay_schedule(finding, qemu_build)
    assert again.violation is not None and not again.shows(finding)
    assert str(again.violation.cause) == "QEMU was killed by SIGKILL"


def test_a_qemu_that_hangs_between_two_schedules(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    strike(monkeypatch, "blockdev-del", signal.SIGSTOP)
    (finding,) = explore_real(qemu_build, scenario_sets.named("H")).findings
    assert (finding.verdict, str(finding.cause)) == (
        Verdict.HANG,
        "taken apart: blockdev-del: no answer in N s",
    )


def test_a_node_that_is_still_in_use_is_missed_where_nothing_explains_it(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """Where I/O failed a chain that cannot be taken apart costs a fresh QEMU, and no more."""

    def busy(self: GatedMachine) -> None:
        self.call("blockdev-del", {"node-name": "nothing of this name"})

    monkeypatch.setattr(GatedMachine, "tear_down", busy)
    (finding,) = explore_real(
        qemu_build, scenario_sets.named("backup-WH"), settings=Settings(minimise=False)
    ).findings
    assert (finding.verdict, finding.replays) == (Verdict.ERROR_CONTRACT, (3, 3))
    assert str(finding.cause).startswith("taken apart: blockdev-del: ")
    monkeypatch.setattr(QemuPool, "tainted", property(lambda self: True, lambda *_: None), False)
    report = explore_real(qemu_build, scenario_sets.named("backup-WH"))
    assert not report.findings and not report.unconfirmed and report.exhaustive


def test_a_qemu_that_died_before_does_not_die_again(
    monkeypatch: pytest.MonkeyPatch, qemu_build: Build
) -> None:
    """An execution is left where its end is known; then nothing has looked at the process yet."""
    start = RealRun.start_operation

    def struck(self: RealRun, index: int) -> None:
        start(self, index)
        if self.scenario.ops[index].name == "guest_write":
            os.kill(self.machine.pid, signal.SIGKILL)

    monkeypatch.setattr(RealRun, "start_operation", struck)
    report = explore_real(qemu_build, scenario_sets.named("WG"), settings=Settings(minimise=False))
    (finding,) = report.findings
    assert not report.unconfirmed
    assert (finding.verdict, str(finding.cause)) == (Verdict.CRASH, "QEMU was killed by SIGKILL")


def test_what_does_not_show_itself_again_is_no_calm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QEMU dies in exploring, and never again: something diverged, and the summary says so."""
    with pytest.MonkeyPatch.context() as patch:

        def healed(finding: Finding, *rest: Any) -> Finding:
            patch.undo()
            return confirm(finding, *rest)

        patch.setattr(confirmed, "confirm", healed)
        strike(patch, "blockdev-del", signal.SIGSEGV)
        words = ["explore", "--scenario", "backup-WH", "--jobs", "1", "--keep", str(tmp_path)]
        status = main(words)
    output = capsys.readouterr().out
    assert status == DIVERGED and "no divergence" not in output
    assert "CRASH (contract, NEW, NOT CONFIRMED): " in output and "killed by SIGSEGV" in output
    assert "replays 0 of 3 on fresh QEMUs" in output
    (bundle,) = tmp_path.iterdir()
    assert f"replay it: qmpshim replay {bundle}\n" in output
    assert "0 new finding(s), 0 known, 1 that did not replay every time (they fail" in output
