"""A start through the stand-in imports and runs no more than it needs; bench_start.py times it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.stand_in import ARGS, PROGRAM, StandIn

#: All that a start may import of this project and of others: nothing that follows a chain.
ALLOWED = (
    *("qmpshim.errors", "qmpshim.commands.stand_in"),
    *("qmpshim.machine.builds.", "qmpshim.machine.host.", "qmpshim.machine.chain.quiescence"),
    "qmpshim.machine.qmp.client",
    *("qmpshim.shim.emulator.", "qmpshim.shim.endpoint.", "qmpshim.shim.json."),
    "qemu.qmp.",
)
#: What of Python's own costs milliseconds, and is not needed.
HEAVY = {"argparse", "platform", "multiprocessing", "concurrent.futures.process", "datetime"}
PLAIN = "import sys; print('imported:', *sorted(sys.modules), file=sys.stderr)"
IMPORTS = """
import atexit, sys
def report():
    print("imported:", *sorted(sys.modules), file=sys.stderr)
atexit.register(report)
from qmpshim.commands.stand_in import main
sys.exit(main())
"""


def _imported(build: Build, *words: str) -> set[str]:
    """What a start imports beyond what Python itself does here."""
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS, *ARGS, *words],
        input=b"{'execute': 'qmp_capabilities'} {'execute': 'query-name'} {'execute': 'quit'}",
        env={**os.environ, "QMPSHIM_BUILD": build.name},
        capture_output=True,
        check=True,
    )
    assert ended.stdout.count(b'"return"') == 3
    plain = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, check=True)
    return _named(ended.stderr) - _named(plain.stderr)


def _named(stderr: bytes) -> set[str]:
    text = stderr.decode()
    return set(text[text.index("imported:") :].split())


def test_a_start_imports_little(qemu_build: Build) -> None:
    imported = _imported(qemu_build, "-qmp", "stdio")
    assert "qmpshim.shim.endpoint.server" in imported
    assert not imported & HEAVY
    packages = {f"{name.rpartition('.')[0]}" for name in imported}
    modules = {
        name
        for name in imported - packages
        if name.partition(".")[0] not in sys.stdlib_module_names and "." in name
    }
    assert sorted(name for name in modules if not name.startswith(ALLOWED)) == []
    others = {name for name in imported if "." not in name} - sys.stdlib_module_names
    assert others - {"imported:"} <= {"qmpshim", "qemu"}


def test_a_start_runs_qemu_once(qemu_build: Build, tmp_path: object) -> None:
    """No `--version` first: the greeting has it."""
    script = f"{tmp_path}/qemu-system-x86_64"
    runs = f"{tmp_path}/runs"
    command = " ".join(qemu_build.command())
    with open(script, "w") as file:
        env = " ".join(f"{name}={value}" for name, value in qemu_build.env.items())
        file.write(f'#!/bin/sh\necho run >> {runs}\nexec env {env} {command} "$@"\n')
    os.chmod(script, 0o755)
    with StandIn(Build(script, "installed", qemu_build.binary)) as shim:
        assert shim.ask("query-version")["return"]["qemu"]
    with open(runs) as file:
        assert file.read() == "run\n"


def test_its_stderr_is_qemus(qemu_build: Build) -> None:
    """Whatever Python's own variables ask for, as QEMU's test suites set them."""
    ended = subprocess.run(
        [str(PROGRAM), *ARGS, "-qmp", "stdio"],
        input=b"{'execute': 'qmp_capabilities'} {'execute': 'quit'}",
        env={**os.environ, "QMPSHIM_BUILD": qemu_build.name, "PYTHONWARNINGS": "default"},
        capture_output=True,
        check=True,
    )
    assert ended.stderr == b""


def test_a_prompt_comes_on_stdio(qemu_build: Build) -> None:
    """HMP on standard input and output is QEMU's alone: there is nothing for the shim to do."""
    ended = subprocess.run(
        [str(PROGRAM), *ARGS, "-monitor", "stdio"],
        input=b"quit\n",
        env={**os.environ, "QMPSHIM_BUILD": qemu_build.name},
        capture_output=True,
        check=True,
    )
    assert b"(qemu) " in ended.stdout


def test_what_is_no_qemu_is_reported() -> None:
    ended = subprocess.run(
        [str(PROGRAM), *ARGS, "-qmp", "stdio"],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "QMPSHIM_BUILD": "/bin/true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "is not a QEMU system emulator" in ended.stderr


@pytest.mark.parametrize("words", [["-qmp", "stdio"], ["-version"]])
def test_a_stand_in_of_qemus_name_does_not_find_itself(tmp_path: Path, words: list[str]) -> None:
    script = tmp_path / "qemu-system-x86_64"
    script.write_text(f'#!/bin/sh\nexec {PROGRAM} "$@"\n')
    script.chmod(0o755)
    variables = {name: text for name, text in os.environ.items() if name != "QMPSHIM_BUILD"}
    ended = subprocess.run(
        [script, *words],
        stdin=subprocess.DEVNULL,
        env={**variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "this program again: name another in QMPSHIM_BUILD" in ended.stderr


def test_the_end_is_silent_as_qemus(qemu_build: Build) -> None:
    """A client of a QEMU that dies gets no more than the end of the connection."""
    with StandIn(qemu_build) as shim:
        children = Path(f"/proc/{shim.process.pid}/task/{shim.process.pid}/children")
        for child in children.read_text().split():
            if "qemu-system" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        assert shim.rest() == b""
