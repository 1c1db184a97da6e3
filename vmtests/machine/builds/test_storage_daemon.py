"""The storage daemon in the place of QEMU: whatever needs no virtual machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Settings, WrittenUp
from qmpshim.conformance.known.folder import known_findings
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import STORAGE_DAEMON, Build, read_version, resolve
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict


@pytest.fixture
def daemon(qemu_build: Build) -> Build:
    return resolve(qemu_build.tool(STORAGE_DAEMON)[-1])


def test_it_is_a_build(daemon: Build, qemu_build: Build) -> None:
    assert daemon.is_daemon and not qemu_build.is_daemon
    assert read_version(daemon) == read_version(qemu_build)
    with pytest.raises(BuildError, match="no virtual machine"):
        daemon.emulator_command()


@pytest.mark.parametrize("workflow", ["backup", "fleecing", "push", "bitmaps", "pull"])
def test_workloads(
    workflow: str, daemon: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "it.json"
    words = ("--workflow", workflow, "--ops", "120", "--build", str(daemon.binary))
    assert main(["verify", *words, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["verdict"] == "as predicted"


def test_it_has_the_findings_of_its_emulator(daemon: Build, qemu_build: Build) -> None:
    scenarios = [*named("backup-WR"), *named("fleecing-WR"), *named("fleecing-WU")]
    seen = []
    for build in (daemon, qemu_build):
        report = explore_real(build, scenarios, known=WrittenUp(known_findings()))
        assert report.exhaustive and not report.new and not report.unconfirmed
        counts = [(one.name, one.schedules, one.distinct) for one in report.scenarios]
        seen.append((counts, {(one.known, one.verdict) for one in report.findings}))
    assert seen[0] == seen[1] and seen[0][1]


def test_a_flush_that_is_not_sent_is_found_out(
    daemon: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export that stands for the monitor's command does what that does."""
    monkeypatch.setattr(GatedMachine, "flush", lambda machine, node: None)
    report = explore_real(daemon, named("backup-WR"), settings=Settings(minimise=False))
    assert Verdict.ALLOCATION in {one.verdict for one in report.findings}


@pytest.mark.parametrize(
    ("words", "why", "status"),
    [
        ("explore --scenario WR --build {}", "no xen-set-replication", 125),
        ("explore --scenario directed/start-fails --build {}", "no xen-set-replication", 125),
        ("verify --workflow replication --build {}", "no replication driver", 2),
        ("pair --build {}", "no virtual machine", 125),
        ("guest check --build {}", "no virtual machine", 125),
        ("builds probe {}", "no virtual machine", 125),
        ("builds run {} -- true", "no virtual machine", 125),
    ],
)
def test_what_it_lacks_is_named(
    words: str,
    why: str,
    status: int,
    daemon: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.format(daemon.binary).split()) == status
    assert why in capsys.readouterr().err
