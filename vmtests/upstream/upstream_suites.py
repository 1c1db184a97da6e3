"""Runs one of QEMU's own tests with a QEMU directly, or with the shim standing in for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upstream_programs import Programs
from upstream_source import Tree

from qmpshim.machine.host.marks import Marked

#: An iotest speaks QMP when it starts a QEMU through iotests.py, or from bash with a QMP monitor
#: or through common.qemu (whose tests speak either QMP or HMP).
SPEAKS_QMP = re.compile(
    r"\biotests\.VM\b|\bQMPTestCase\b|\bVM\(|(?<!-)-qmp\b|-qmp-pretty\b|\bcommon\.qemu\b"
    r"|\bqmp_capabilities\b"
)
#: Formats that tests are run with; each with the first that it is written for.
FORMATS = ("qcow2", "raw")
_LOOK = 0.2  # seconds between two looks at whether a running test is to be ended
_ENDING = 10.0  # seconds, at most, that what was killed takes to end
_LIMIT = 900.0  # seconds; QEMU's own are 180 on a machine that does nothing else
PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
AS_A_WHOLE = "(as a whole)"
#: In the environment of all that a test starts: the process of ours that runs it.
_OURS = "QMPSHIM_UPSTREAM"
_stopped = threading.Event()
_TAP = re.compile(r"(?m)^(not ok|ok) (?:\d+ )?(.+?)( +# SKIP.*)?$")
_LEFT_OUT = re.compile(r"(?m)^# *(\[case not run\].*)$")


class Stopped(Exception):
    """A test was ended because the whole run is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended: what is compared.

    :ivar status: of each part of the test, by its name: pass, fail or not run
    :ivar seconds: how long it took
    :ivar log: for people: what was wrong
    """

    status: Mapping[str, str]
    seconds: float = field(compare=False, default=0.0)
    log: str = field(compare=False, default="")

    @property
    def summary(self) -> str:
        """One word for all parts; a test without any has failed."""
        found = set(self.status.values())
        for one in (FAIL, PASS, NOT_RUN):
            if one in found:
                return one
        return FAIL


def lacks(direct: Outcome, shim: Outcome) -> list[str]:
    """What a test says through the shim and not directly, or the reverse; [] where they agree.

    A part that exists only through the shim (QEMU makes a test of each query, and the shim has
    some of its own) must pass.
    """
    found = []
    for part in sorted({*direct.status, *shim.status}):
        with_, without = shim.status.get(part, "missing"), direct.status.get(part, "missing")
        if with_ != without and (with_, without) != (PASS, "missing"):
            found.append(f"{part}: {without} directly, {with_} through the shim")
    return found


def find_iotests(tree: Tree) -> list[str]:
    """The names of all iotests of a tree that speak QMP, and are not disabled, sorted."""
    named = [
        path
        for path in (tree.iotests / "tests").iterdir()
        if path.with_name(f"{path.name}.out").exists()
    ]
    found = []
    for path in [*tree.iotests.glob("[0-9][0-9][0-9]"), *named]:
        text = path.read_text(errors="replace")
        groups = re.search(r"(?m)^# group:(.*)", text)
        disabled = groups is not None and "disabled" in groups[1].split()
        if SPEAKS_QMP.search(text) and not disabled:
            found.append(path.name)
    return sorted(found)


def run_iotest(tree: Tree, programs: Programs, name: str, qemu: Path, place: Path) -> Outcome:
    """Run an iotest, with the first of :data:`FORMATS` that it takes.

    :param qemu: the emulator, or what stands in for it
    :param place: a directory of its own, with a short path
    """
    for image_format in FORMATS:
        env = {
            **programs.tools,
            "QEMU_PROG": str(qemu),
            "TEST_DIR": str(place / "t"),
            "SOCK_DIR": str(place / "s"),
            "MALLOC_PERTURB_": "42",
        }
        # The link in the build tree: it shows `check` where both trees are.
        check = tree.build / "tests/qemu-iotests/check"
        python = tree.directory.parent / "tools/bin/python"
        words = [str(python), str(check), "-tap", f"-{image_format}", name]
        outcome = run_program(words, env, place)
        if outcome.summary != NOT_RUN:
            return outcome
    return outcome


def run_qtest(tree: Tree, programs: Programs, name: str, qemu: Path, place: Path) -> Outcome:
    """Run a qtest; arguments as :func:`run_iotest`'s.

    One that a part has brought down is run part by part.
    """
    env = {
        "QTEST_QEMU_BINARY": str(qemu),
        "QTEST_QEMU_IMG": programs.tools["QEMU_IMG_PROG"],
        "QTEST_QEMU_STORAGE_DAEMON_BINARY": programs.tools["QSD_PROG"],
        "TMPDIR": str(place),
    }
    words = [str(tree.qtest(name)), "--tap", "-k"]
    whole = run_program(words, env, place)
    if AS_A_WHOLE not in whole.status:
        return whole
    listed = subprocess.run(
        [*words, "-l"],
        cwd=place,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    parts = [part for part in re.findall(r"(?m)^/\S+$", listed) if part not in whole.status]
    status = {part: how for part, how in whole.status.items() if part != AS_A_WHOLE}
    seconds, log = whole.seconds, whole.log
    for part in parts:
        alone = run_program([*words, "-p", part], env, place)
        status[part] = alone.summary
        seconds += alone.seconds
        if alone.summary == FAIL:
            log += alone.log
    return Outcome(status or {AS_A_WHOLE: FAIL}, seconds, log)


def run_program(words: Sequence[str], env: Mapping[str, str], place: Path) -> Outcome:
    """Run a test that prints TAP, and whatever it started, to its end."""
    place.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}:{place}"
    before = os.times().elapsed
    with (place / "out").open("w+b") as out, (place / "err").open("w+b") as err:
        process = subprocess.Popen(
            words,
            cwd=place,
            env={**os.environ, **env, _OURS: mark},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            code = _ended(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            Marked(_OURS, mark.__eq__).end(_ENDING)  # some make sessions of their own
        out.seek(0)
        err.seek(0)
        output = out.read().decode(errors="replace")
        complaint = err.read().decode(errors="replace")
    status = parts_of(output)
    if code and FAIL not in status.values():
        status[AS_A_WHOLE] = FAIL
    return Outcome(status, os.times().elapsed - before, f"{output[-2000:]}\n{complaint[-4000:]}")


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a test's end; its exit status, or what stands for the time limit.

    :raises Stopped: :func:`stop` was called
    """
    deadline = os.times().elapsed + _LIMIT
    while os.times().elapsed < deadline:
        if _stopped.is_set():
            raise Stopped
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK)
    return -signal.SIGALRM


def stop() -> None:
    """End the tests that run, in whatever thread, and begin no other."""
    _stopped.set()


def end_leftovers() -> None:
    """End what tests started whose runner was killed."""
    Marked(_OURS, lambda mark: not Path(f"/proc/{mark.partition(':')[0]}").exists()).end(_ENDING)


def parts_of(output: str) -> dict[str, str]:
    """The parts of a test's TAP; an iotest names what it leaves out in a comment."""
    status = {
        name: FAIL if verdict == "not ok" else NOT_RUN if skipped else PASS
        for verdict, name, skipped in _TAP.findall(output)
    }
    return status | dict.fromkeys(_LEFT_OUT.findall(output), NOT_RUN)
