"""A build's programs for whatever starts QEMU by name: `qmpshim builds run`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.known.tracker import script_of
from qmpshim.machine.builds.build import EMULATOR, Build, read_version


def test_a_command_has_the_builds_programs(
    each_build: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    version = ".".join(map(str, read_version(each_build)[0]))
    for words in (f"{EMULATOR} --version", "$QEMU --version", "qemu-img -V", "$QEMU_IMG -V"):
        assert main(["builds", "run", each_build.name, "--", "sh", "-c", words]) == 0
        output = capfd.readouterr().out
        assert version in output, output


def test_a_script_runs_with_a_build(each_build: Build, tmp_path: Path) -> None:
    """A defect that one version has and another has not."""
    one = write_up("verify/refused-transaction-marks-everything")
    script = tmp_path / "reproducer.py"
    script.write_text(script_of(one))
    status = main(["builds", "run", each_build.name, "--", sys.executable, "-I", str(script)])
    assert status == int(one.concerns(read_version(each_build)[0]))


def test_its_exit_status_is_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    run = ["builds", "run", "system", "--"]
    assert main([*run, "sh", "-c", "exit 125"]) == 125
    assert main([*run, "sh", "-c", "kill -9 $$"]) == 128 + signal.SIGKILL
    assert main([*run, "sh", "-c", 'printf "%s." "$@"', "--", "--a", "b c"]) == 0
    assert capfd.readouterr().out == "--a.b c."
    assert main([*run, "/no/such/program"]) == 2
    assert main(run) == main(run[:-1]) == 2
    assert main(["builds", "run", "no-such-build", "--", "true"]) == 2
