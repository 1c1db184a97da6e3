"""The reproducers stand alone: no qmpshim, no libraries, and QEMU shows the same to them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.explore.execution import CUT
from qmpshim.conformance.explore.export import blkdebug_steps, export_script
from qmpshim.conformance.explore.findings import finding_from_json
from qmpshim.conformance.explore.known import load_known
from qmpshim.errors import InputError
from qmpshim.machine.builds import Build, read_version

KNOWN = Path(__file__).with_name("known")


def run(name: str, build: Build, directory: Path) -> tuple[str, str]:
    """The script of a known finding, and what it says on a build; skips where it can show nothing.

    A script does one schedule, as some version of QEMU went through it, and only that.
    """
    value = json.loads((KNOWN / f"{name}.json").read_text())
    finding = finding_from_json(value["case"])
    recorded, version = tuple(value["case"]["build"]["version"]), read_version(build)[0]
    (known,) = (one for one in load_known(KNOWN) if one.id == name)
    if not known.since <= version < known.until:
        pytest.skip(f"{build.name}: {name} is known of {value['versions']}, not of {version}")
    script = export_script(finding)
    if "driver=blkdebug" in script and (5, 1) <= version < (6, 1):
        # secondary_do_checkpoint(): blk_unref() of the BlockBackend made to empty the hidden disk
        # is a blk_drain().
        pytest.skip(f"{build.name}: a checkpoint waits for the I/O that the breakpoint holds")
    path = directory / "reproducer.py"
    path.write_text(script)
    command = [sys.executable, "-I", "-S", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    if version[:2] != recorded[:2] and "this build takes another way" in done.stderr:
        pytest.skip(f"{build.name}, for a schedule of {recorded}: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    return script, done.stdout + done.stderr


@pytest.mark.usefixtures("qemu_on_path")
def test_a_crash_with_nothing_but_blkdebug(tmp_path: Path, qemu_build: Build) -> None:
    script, said = run("checkpoint-then-overlapping-write-aborts", qemu_build, tmp_path)
    assert "driver=blkdebug" in script and "block_copy_task_create" in said
    assert "QEMU ended with -6" in said


@pytest.mark.usefixtures("qemu_on_path")
@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("checkpoint-corrupts-overlay", "refcount=0 reference=1"),
        ("failover-reports-io-error", "I/O error occurred"),
        ("snapshot-read-returns-new-data", "returned [0, 128): operation 2"),
        ("snapshot-discard-aborts", "QEMU ended with -6"),
    ],
)
def test_what_was_found_is_seen_without_qmpshim(
    tmp_path: Path, name: str, sign: str, qemu_build: Build
) -> None:
    script, said = run(name, qemu_build, tmp_path)
    assert "qmpshim" not in script.split("import", 1)[1].split("print(")[0]
    assert sign in said


@pytest.mark.parametrize("words", [["--help"], ["/no/such/qemu"]])
def test_a_script_without_its_qemu(tmp_path: Path, words: list[str]) -> None:
    """One line, and nothing left behind."""
    value = json.loads((KNOWN / "failover-reports-io-error.json").read_text())
    script = tmp_path / "script.py"
    script.write_text(export_script(finding_from_json(value["case"])))
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == f"no program {words[0]}; usage: {script} [QEMU-SYSTEM-BINARY]\n"


def test_what_a_script_cannot_do_is_refused() -> None:
    value = json.loads((KNOWN / "failed-flush-leaves-l1-entry.json").read_text())
    finding = finding_from_json(value["case"])
    assert "errno" in export_script(finding)
    cut = tuple((*step[:-1], CUT) if step[0] == "fail" else step for step in finding.schedule)
    with pytest.raises(InputError, match="cut"):
        export_script(replace(finding, schedule=cut))
    with pytest.raises(InputError, match="qcow2"):
        export_script(replace(finding, scenario=replace(finding.scenario, secondary="qcow2")))


def test_breakpoints_are_used_only_where_they_suffice() -> None:
    def steps(name: str) -> object:
        value = json.loads((KNOWN / f"{name}.json").read_text())
        return blkdebug_steps(finding_from_json(value["case"]))

    assert steps("failover-reports-io-error") is None  # a flush is held
    assert steps("snapshot-read-returns-new-data") is None  # no replication
    assert steps("checkpoint-then-overlapping-write-aborts") is not None
