"""The tool is interrupted or killed: no process, socket or file of it stays."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build
from vmtests.support.command_line import LIMIT, CommandLine
from vmtests.support.waiting import wait_until

OPERATIONS = "60000"  # a minute of work
GONE = 60.0  # seconds within which everything must be gone after a SIGKILL


def running(qmpshim: CommandLine, *words: str, workflow: str = "backup") -> subprocess.Popen[str]:
    """A verification in full swing."""
    usual = ("--ops", OPERATIONS, "--size", "16M", "--workflow", workflow)
    process = qmpshim.start("verify", *usual, *words)
    assert process.stdout is not None
    begun = rf"{workflow}: \d+/{OPERATIONS} operations"
    while not re.match(begun, line := process.stdout.readline()):
        assert line, process.communicate()
    assert qmpshim.emulators()
    assert list(qmpshim.temporary.glob(f"qmpshim-*/{workflow}/nbd.sock"))
    return process


def ended(process: subprocess.Popen[str], limit: float) -> tuple[int, str]:
    """Exit status, and what it wrote to stderr."""
    status, _, errors = _end(process, limit)
    return status, errors


def _end(process: subprocess.Popen[str], limit: float) -> tuple[int, str, str]:
    """Exit status, and what it wrote to stdout and to stderr."""
    try:
        output, errors = process.communicate(timeout=limit)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output, errors


def state_of(pid: int) -> str:
    """``T``: stopped; ``S``: it waits."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(qmpshim: CommandLine, number: signal.Signals) -> None:
    process = running(qmpshim)
    process.send_signal(number)
    status, errors = ended(process, LIMIT)
    assert status == 128 + number
    assert errors == "interrupted; QEMU was ended and its files removed\n"
    assert qmpshim.left() == []
    assert not (qmpshim.home / "qmpshim-bundles").exists()


def test_a_run_on_bitmaps_is_interrupted(qmpshim: CommandLine) -> None:
    """What it did until then is reported, as for every workload."""
    process = running(qmpshim, "--json", "run.json", workflow="bitmaps")
    process.send_signal(signal.SIGINT)
    status, errors = ended(process, LIMIT)
    assert status == 128 + signal.SIGINT, errors
    assert qmpshim.left() == []
    (run,) = json.loads((qmpshim.home / "run.json").read_text())["runs"]
    assert run["interrupted"] and run["divergence"] is None and run["operations"]


def test_killed(qmpshim: CommandLine) -> None:
    process = running(qmpshim)
    process.kill()
    assert ended(process, LIMIT)[0] == -signal.SIGKILL
    assert qmpshim.left(patience=GONE) == []


def test_killed_while_qemu_is_stopped(qmpshim: CommandLine) -> None:
    """A QEMU that does nothing any more goes, too."""
    process = running(qmpshim)
    for pid in qmpshim.emulators():
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    ended(process, LIMIT)
    assert qmpshim.left(patience=GONE) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_qemu_is_stopped(qmpshim: CommandLine, number: signal.Signals) -> None:
    """Ctrl-C where nothing moves any more: that must not take until the limit."""
    process = running(qmpshim)
    emulators = qmpshim.emulators()
    for pid in emulators:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(state_of(pid) == "T" for pid in emulators))
    wait_until(lambda: state_of(process.pid) == "S")  # for an answer
    process.send_signal(number)
    status, _ = ended(process, LIMIT)
    assert status == 128 + number
    assert qmpshim.left() == []


def test_interrupted_at_any_moment(qmpshim: CommandLine) -> None:
    """From the first moment on, wherever it is: something may be printed, nothing may stay.

    What did nothing has no verdict.
    """
    for tenths in (1, 2, 3, 4, 5, 6, 8, 10, 12):
        process = qmpshim.start("verify", "--ops", "2000", "--size", "16M")
        time.sleep(tenths / 10)
        process.terminate()
        status, output, _ = _end(process, LIMIT)
        assert status in (-signal.SIGTERM, 128 + signal.SIGTERM, 0)
        assert not (" 0 operations and " in output and "as predicted" in output), output
        assert qmpshim.left(patience=GONE) == []


def test_interrupted_while_a_case_is_shrunk(qmpshim: CommandLine) -> None:
    """What was found is not lost: the case is kept as small as it is by then."""
    process = running(qmpshim, "--json", "run.json")
    os.kill(qmpshim.emulators()[0], signal.SIGKILL)
    wait_until(lambda: list(qmpshim.temporary.glob("qmpshim-*/shrink/nbd.sock")))
    process.send_signal(signal.SIGINT)
    status, errors = ended(process, LIMIT)
    assert status == 128 + signal.SIGINT, errors
    assert qmpshim.left() == []
    (bundle,) = qmpshim.home.glob("qmpshim-bundles/backup-crash-seed1")
    assert json.loads((bundle / "case.json").read_text())["operations"]
    document = json.loads((qmpshim.home / "run.json").read_text())
    (run,) = document["runs"]
    assert run["interrupted"] and run["divergence"]["verdict"] == "crash"


def test_qemu_is_killed(qmpshim: CommandLine) -> None:
    """A finding, reported as one, and no traceback; it does not come again when replayed."""
    process = qmpshim.start("verify", "--ops", "20000", "--size", "16M", "--workflow", "backup")
    wait_until(lambda: list(qmpshim.temporary.glob("qmpshim-*/backup/nbd.sock")))
    os.kill(qmpshim.emulators()[0], signal.SIGSEGV)
    output, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, errors) == (1, "")
    assert "  verdict: crash at QEMU" in output
    assert "killed by SIGSEGV" in output
    bundle = next(qmpshim.home.glob("qmpshim-bundles/backup-crash-seed1"))
    assert "killed by SIGSEGV" in (bundle / "README").read_text()


# -- exploring, whose processes are many -----------------------------------------------------------


def exploring(qmpshim: CommandLine, *words: str) -> subprocess.Popen[str]:
    """Every interleaving of hundreds of scenarios, in two processes, well begun."""
    process = qmpshim.start("explore", "--scenario", "triples", "--jobs", "2", *words)
    assert process.stdout is not None
    while not re.search(r"/\d+ scenarios, [1-9]\d* schedules", line := process.stdout.readline()):
        assert line, process.communicate()
    wait_until(lambda: len(qmpshim.emulators()) == 2)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to", ["group", "process"])
def test_exploring_is_interrupted(qmpshim: CommandLine, number: signal.Signals, to: str) -> None:
    process = exploring(qmpshim)
    if to == "group" and number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    status, errors = ended(process, LIMIT)
    assert (status, errors) == (
        128 + number,
        "interrupted; QEMU was ended and its files removed\n",
    )
    assert qmpshim.left() == []


@pytest.mark.parametrize("at", [r"trying what is known: [1-9]", r"exploring: \d+/"])
def test_assessing_is_interrupted(qmpshim: CommandLine, at: str, tmp_path: Path) -> None:
    """What there was until then is the answer; from what was not come to nothing follows."""
    out, html = tmp_path / "it.json", tmp_path / "it.html"
    words = ("--use", "fleecing", "--use", "sync-none-backup", "--json", str(out))
    process = qmpshim.start("assess", *words, "--html", str(html))
    assert process.stdout is not None
    while not re.match(at, line := process.stdout.readline()):
        assert line, process.communicate()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert errors == "interrupted; QEMU was ended and its files removed\n"
    assert qmpshim.left() == []
    (judged,) = json.loads(out.read_text())["assessments"]
    assert judged["interrupted"] and {one["answer"] for one in judged["uses"]} <= {
        "CANNOT TELL",
        "NOT RELIABLE",
    }
    assert any("scenarios were not explored" in doubt for doubt in judged["uses"][1]["doubts"])
    assert any(one["seen"] not in ("not tried", "not possible here") for one in judged["trials"])
    assert "interrupted: nothing follows from what was not come to" in output
    assert "Interrupted: nothing follows" in html.read_text()


def test_the_build_vanishes_while_it_is_assessed(
    qmpshim: CommandLine, qemu_build: Build, tmp_path: Path
) -> None:
    """What was seen of it until then is not lost."""
    wrapper, out = tmp_path / "qemu-system-x86_64", tmp_path / "it.json"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(qemu_build.command())} "$@"\n')
    wrapper.chmod(0o755)
    process = qmpshim.start(
        "assess", "--build", wrapper, "--use", "sync-none-backup", "--json", out
    )
    assert process.stdout is not None
    while not re.match(r"trying what is known: [1-9]", line := process.stdout.readline()):
        assert line, process.communicate()
    wrapper.unlink()
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 2 and errors.startswith(f"qmpshim: {wrapper} "), errors
    assert errors.count("\n") == 1 and qmpshim.left() == []
    (judged,) = json.loads(out.read_text())["assessments"]
    assert judged["interrupted"] and judged["trials"]
    assert "interrupted: nothing follows from what was not come to" in output


def test_exploring_is_killed(qmpshim: CommandLine) -> None:
    process = exploring(qmpshim)
    process.kill()
    ended(process, LIMIT)
    assert qmpshim.left(patience=GONE) == []


def test_interrupted_before_anything_is_read(qmpshim: CommandLine) -> None:
    """Once Python itself is up: while modules are loaded, and any time after."""
    for hundredths in (8, 15, 25, 40, 60):
        process = qmpshim.start("explore", "--model")
        time.sleep(hundredths / 100)
        process.send_signal(signal.SIGINT)
        status, errors = ended(process, LIMIT)
        assert status == 130 or "/qmpshim/" not in errors, errors
        assert status != 130 or re.fullmatch(
            r"interrupted(; nothing was running but the model)?\n", errors
        )


_LOST = """
import os, signal, time
from qmpshim.commands.interrupted import keep_interruptions
from qmpshim.commands.cancellation import Interrupted, interruptible

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        time.sleep(0)  # here it is raised

keep_interruptions()
try:
    with {context}:
        for _ in range(2):
            Finalized()
            time.sleep(30)
except KeyboardInterrupt as error:
    print("interrupted", getattr(error, "number", 2))
"""


@pytest.mark.parametrize(
    ("name", "context", "number"),
    [
        ("SIGINT", "open(os.devnull)", 2),
        ("SIGINT", "interruptible()", 2),
        ("SIGTERM", "interruptible()", 15),
    ],
)
def test_what_comes_while_an_object_is_finalized_is_heeded(
    name: str, context: str, number: int
) -> None:
    """Python drops an exception that is raised there: the work would go on."""
    script = _LOST.format(signal=name, context=context)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT
    )
    assert (done.stdout, done.stderr) == (f"interrupted {number}\n", "")
