"""Processes of the fork server are as if started by hand, and end with it and with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qmpshim.errors import HostError
from qmpshim.machine.host.fork_server import ForkedProcess, ForkServer
from vmtests.support.waiting import wait_until

MODULE = """
import json, os, sys, time

def look():
    streams = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
    seen = [sys.argv[1:], os.getcwd(), os.environ["COLOUR"], streams, os.getsid(0) == os.getpid()]
    print(json.dumps(seen))
    return 7

def stay():
    time.sleep(600)
    return 0

def fail():
    raise RuntimeError("as it was asked to")
"""
#: Starts a process that stays, and prints its number and the server's.
OWNER = """
import os, pathlib, sys, time
from qmpshim.machine.host.fork_server import ForkServer
sys.path.append(sys.argv[1])
server = ForkServer()
pid = server.start("functions:stay", (), (0, 1, 2), os.environ, "/").pid
children = pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
print(pid, children, flush=True)
time.sleep(600)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the import path with a module of functions."""
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / "functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(directory)
    return directory


@pytest.fixture
def server(functions: Path) -> Iterator[ForkServer]:
    with closing(ForkServer()) as made:
        yield made


def started(
    server: ForkServer, function: str, output: Path, *words: str, **environment: str
) -> ForkedProcess:
    """With stdin empty, and both other streams in *output*."""
    with open(os.devnull, "rb") as nothing, output.open("wb") as stream:
        streams = (nothing.fileno(), stream.fileno(), stream.fileno())
        return server.start(
            f"functions:{function}", words, streams, {**os.environ, **environment}, output.parent
        )


def ended(pid: int) -> bool:
    """Whether a process is gone, or is nothing but a status."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_a_process_has_what_it_was_given(server: ForkServer, tmp_path: Path) -> None:
    """Also where others run beside it."""
    outputs = [tmp_path / name for name in ("a", "b")]
    both = [started(server, "look", output, "x", "y z", COLOUR=output.name) for output in outputs]
    for process, output in zip(both, outputs, strict=True):
        assert process.wait() == process.wait() == 7
        streams = f'["/dev/null", "{output}", "{output}"]'
        assert output.read_text() == (
            f'[["x", "y z"], "{tmp_path}", "{output.name}", {streams}, true]\n'
        )


def test_an_error_is_the_processs(server: ForkServer, tmp_path: Path) -> None:
    for function, last in (
        ("fail", "RuntimeError: as it was asked to"),
        ("none_such", "AttributeError: module 'functions' has no attribute 'none_such'"),
    ):
        assert started(server, function, tmp_path / "output").wait() == 1
        assert (tmp_path / "output").read_text().splitlines()[-1] == last


def test_one_can_be_killed(server: ForkServer, tmp_path: Path) -> None:
    stays, beside = (started(server, "stay", tmp_path / name) for name in ("a", "b"))
    assert stays.wait(0.0) is None
    stays.kill()
    assert stays.wait() == -signal.SIGKILL and ended(stays.pid)
    assert beside.wait(0.0) is None
    server.close()
    assert beside.wait() == -signal.SIGKILL and ended(beside.pid)


def test_it_is_started_again(server: ForkServer, tmp_path: Path) -> None:
    """What an end of the server has left running ends where it is waited for."""
    first = started(server, "stay", tmp_path / "a")
    parent = Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(parent), signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    wait_until(lambda: ended(first.pid))
    wait_until(lambda: ended(int(parent)))
    assert started(server, "look", tmp_path / "b", COLOUR="red").wait() == 7


def test_a_server_that_does_not_start(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HostError):
        started(server, "look", tmp_path / "a")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_all_of_it_ends_with_its_owner(functions: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", OWNER, str(functions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pids = [*map(int, owner.stdout.readline().split())]
        assert len(pids) == 2 and not any(map(ended, pids))
        owner.send_signal(how)
    wait_until(lambda: all(map(ended, pids)))
