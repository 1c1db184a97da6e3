"""A start through the stand-in imports and runs no more than it needs; bench_start.py times it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from qmpshim.machine.builds.build import Build
from vmtests.support.stand_in import ARGS, PROGRAM, StandIn

#: What costs tens of milliseconds, or belongs to work that few clients ask for.
HEAVY = {
    "numpy", "prompt_toolkit", "jinja2", "nbd", "pyqcow", "pexpect", "argparse",
    "qmpshim.conformance.workload.session", "qmpshim.conformance.explore",
    "qmpshim.machine.nbd.gate.gate",
    "qmpshim.shim.shell.shell", "qmpshim.commands.console",
}  # fmt: skip
IMPORTS = """
import atexit, sys
def told():
    print("imported:", *sorted(sys.modules), file=sys.stderr)
atexit.register(told)
from qmpshim.commands.stand_in import main
sys.exit(main())
"""


def _imported(build: Build, *words: str) -> set[str]:
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS, *ARGS, *words],
        input=b"{'execute': 'qmp_capabilities'} {'execute': 'query-name'} {'execute': 'quit'}",
        env={**os.environ, "QMPSHIM_BUILD": build.name},
        capture_output=True,
        check=True,
    )
    assert ended.stdout.count(b'"return"') == 3
    said = ended.stderr.decode()
    return set(said[said.index("imported:") :].split())


def test_a_start_imports_little(qemu_build: Build) -> None:
    imported = _imported(qemu_build, "-qmp", "stdio")
    assert "qmpshim.shim.endpoint.server" in imported
    assert not imported & HEAVY


def test_a_start_runs_qemu_once(qemu_build: Build, tmp_path: object) -> None:
    """No `--version` first: the greeting tells."""
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


def test_what_is_no_qemu_is_told() -> None:
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


def test_the_end_is_silent_as_qemus(qemu_build: Build) -> None:
    """Whoever talks to a QEMU that dies gets no more than the end of the connection."""
    with StandIn(qemu_build) as shim:
        children = Path(f"/proc/{shim.process.pid}/task/{shim.process.pid}/children")
        for child in children.read_text().split():
            if "qemu-system" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        assert shim.rest() == b""
