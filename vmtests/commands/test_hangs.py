"""A QEMU that hangs: it is reported soon, it costs little, and what was found is never lost."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness import run
from qmpshim.conformance.explore.harness.history import RunningOperation
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.report import render
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.minimize import confirm
from qmpshim.conformance.explore.search.settings import Bounds, Settings
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation
from vmtests.support.broken_builds import make
from vmtests.support.command_line import LIMIT, CommandLine
from vmtests.support.waiting import wait_until

STOPS = "./stops/qemu-system-x86_64"


def deaf(machine: GatedMachine, op: Operation, running: RunningOperation) -> Any:
    """The answer to a guest's read is never seen."""
    return None if op.name == "guest_read" else _answer(machine, op, running)


_answer = real_ops.answer


def test_it_is_seen_at_once(qemu_build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is asleep, nothing is held and no timer will fire: there is nothing to be waited for."""
    monkeypatch.setattr(real_ops, "answer", deaf)
    monkeypatch.setattr(run, "PATIENCE", 2 * LIMIT)
    stage = QemuPool(qemu_build)
    system = RealSystem(stage, *scenario_sets.named("R"))
    try:
        system.reset()
        began = time.monotonic()
        while enabled := system.enabled():
            system.take(enabled[0])
        system.finish()
        assert [cause for _, cause in system.found] == [Cause(CauseKind.HANGS, "guest_read")]
        assert time.monotonic() - began < run.PATIENCE
    finally:
        stage.close()


def test_what_there_was_no_time_for_is_reported_as_such(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_ops, "answer", deaf)
    report = explore_real(qemu_build, scenario_sets.named("RH"), settings=Settings(minimise=False))
    (finding,) = report.findings
    assert (finding.verdict, finding.replays) == (Verdict.HANG, (3, 3))
    untried = confirm(replace(finding, replays=(0, 0)), qemu_build, deadline=time.monotonic())
    assert not untried.tried and not untried.confirmed and untried.schedule == finding.schedule
    report.findings, report.unconfirmed = [], [untried]
    assert report.untried == report.unexplained == [untried]
    assert "NOT CONFIRMED" in render(report)
    assert "seen, not confirmed: time was up" in render(report)
    report.interrupted = True
    assert "seen, not confirmed: interrupted" in render(report) and not report.exhaustive


def test_a_limit_ends_it_wherever_qemu_is_waited_for(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is for ever busy, say; without the limit each step takes 20 s."""
    monkeypatch.setattr(GatedMachine, "stalled", lambda self, seconds: False)
    monkeypatch.setattr(run, "PATIENCE", 10 * LIMIT)
    monkeypatch.setattr(real_ops, "answer", deaf)
    every = [*scenario_sets.named("WH"), *scenario_sets.named("R"), *scenario_sets.named("WV")]
    began = time.monotonic()
    report = explore_real(qemu_build, every, bounds=Bounds(limit=4.0))
    assert time.monotonic() - began < LIMIT
    assert not report.exhaustive and [one.name for one in report.scenarios] == ["WH", "R", "WV"]
    assert report.scenarios[0].exhaustive


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("kind", ["stops-now-and-then", "stops-itself"])
def test_a_budget_is_kept(qmpshim: CommandLine, kind: str) -> None:
    make(kind, qmpshim.home / "stops")
    words = ("--scenario", "replication", "--budget", "40s", "--json", "run.json")
    done = qmpshim.run("explore", *words, "--build", STOPS)
    assert done.returncode == 1, done
    document = json.loads((qmpshim.home / "run.json").read_text())
    assert document["seconds"] < 40 + 10
    found = [*document["findings"], *document["unconfirmed"]]
    assert any(one["verdict"] == "hang" for one in found)
    assert "not confirmed yet: hang: " in done.stdout
    bundles = [load_finding(one) for one in (qmpshim.home / "qmpshim-bundles").iterdir()]
    assert Verdict.HANG in {one.verdict for one in bundles}


def test_a_short_budget_is_kept(qmpshim: CommandLine) -> None:
    """What :func:`test_a_budget_is_kept` looks at, in the time that every run has."""
    make("stops-itself", qmpshim.home / "stops")
    words = ("--scenario", "replication", "--budget", "8s", "--jobs", "1", "--json", "run.json")
    done = qmpshim.run("explore", *words, "--build", STOPS)
    assert done.returncode == 1, done
    document = json.loads((qmpshim.home / "run.json").read_text())
    found = [*document["findings"], *document["unconfirmed"]]
    assert any(one["verdict"] == "hang" for one in found)
    assert "not confirmed yet: hang: " in done.stdout
    bundles = [load_finding(one) for one in (qmpshim.home / "qmpshim-bundles").iterdir()]
    assert Verdict.HANG in {one.verdict for one in bundles}
    assert document["seconds"] < LIMIT


def test_a_workload_on_it(qmpshim: CommandLine) -> None:
    """The hang is reported before it is made small, which has a limit; the bundle is kept."""
    make("stops-now-and-then", qmpshim.home / "stops")
    words = ("--workflow", "replication", "--size", "4M", "--ops", "20000", "--shrink", "5s")
    done = qmpshim.run("verify", *words, "--build", STOPS)
    assert done.returncode == 1, done
    at_once, _, rest = done.stdout.partition("  making the case small, for 5 s at most\n")
    assert "\nhang: " in at_once and "no answer in " in at_once
    assert "  verdict: hang" in rest
    assert list((qmpshim.home / "qmpshim-bundles").glob("replication-hang-seed1/case.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_explored_is_not_lost(qmpshim: CommandLine, number: signal.Signals) -> None:
    words = ("--scenario", "fleecing", "--strict", "--jobs", "2", "--json", "run.json")
    process = qmpshim.start("explore", *words)
    assert process.stdout is not None
    output = ""
    while "seen in " not in output:
        line = process.stdout.readline()
        assert line, process.communicate()
        output += line
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (
        128 + number,
        "interrupted; QEMU was ended and its files removed\n",
    )
    document = json.loads((qmpshim.home / "run.json").read_text())
    assert document["interrupted"] and document["unconfirmed"] and document["schedules"]
    assert "seen, not confirmed: interrupted" in out and "replay it: qmpshim replay " in out
    assert list((qmpshim.home / "qmpshim-bundles").glob("explore-*/schedule.json"))


@contextmanager
def _plain_qemu(qmpshim: CommandLine) -> Iterator[str]:
    path = qmpshim.home / "q.sock"
    words = ("-machine", "none", "-nodefaults", "-display", "none", "-no-user-config")
    qemu = subprocess.Popen(["qemu-system-x86_64", *words, "-qmp", f"unix:{path},server,nowait"])
    try:
        wait_until(path.exists)
        yield str(path)
    finally:
        qemu.kill()
        qemu.wait()


def test_stress_says_what_is_missing(qmpshim: CommandLine) -> None:
    """A plain QEMU serves one client at a time: no load for that, and no silence about it."""
    with _plain_qemu(qmpshim) as path:
        done = qmpshim.run("stress", path)
        assert done.returncode == 2, done
        assert done.stdout == f"seeing whether a shim answers at unix:{path}\n"
        assert "is a QEMU and no shim" in done.stderr
        assert f"qmpshim serve --qmp unix:{path}" in done.stderr
        with socket.socket(socket.AF_UNIX) as busy:
            busy.connect(path)
            done = qmpshim.run("stress", path)
    assert done.returncode == 1 and "one client at a time" in done.stdout.splitlines()[-1]
