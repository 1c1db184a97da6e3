"""The private directory and its janitor: nothing outlives the owner, however it ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpshim.errors import HostError
from qmpshim.machine.host.workspace import Workspace, dies_with_owner
from vmtests.support.processes import lives
from vmtests.support.waiting import becomes_true

OWNER = """\
import signal, subprocess, sys, time
from qmpshim.machine.host.workspace import Workspace, dies_with_owner
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in the background
made = Workspace()
(made.path / "image").write_bytes(bytes(100000))
(made.subdirectory("deep") / "file").touch()
child = subprocess.Popen(dies_with_owner(["sleep", "60"]))
print(made.path, child.pid, flush=True)
{end}
"""


def start(end: str) -> tuple[subprocess.Popen[str], Path, int]:
    """A process with a workspace and a child; gives both."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(end=end)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    path, pid = owner.stdout.readline().split()
    return owner, Path(path), int(pid)


def gone(path: Path, pid: int) -> bool:
    """Whether directory and process are gone, or go in time."""
    return becomes_true(lambda: not path.exists() and not lives(pid), 30.0)


def test_a_directory_of_ones_own() -> None:
    with Workspace() as made:
        assert made.path.is_dir()
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
        (made.path / "file").write_text("x")
        (made.subdirectory("a") / "file").write_text("x")
    assert not made.path.exists()


def test_subdirectories_do_not_collide() -> None:
    with Workspace() as made:
        names = [made.subdirectory(name).name for name in ("a", "a", "b", "a")]
    assert names == ["a", "a-1", "b", "a-2"]


def test_what_happens_inside_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), Workspace() as made:
        1 / 0  # noqa: B018
    assert not made.path.exists()


@pytest.mark.parametrize(
    "end", ["", "sys.exit(3)", "raise RuntimeError", "import os; os._exit(1)", "os.abort()"]
)
def test_owners_that_end_without_closing(end: str) -> None:
    owner, path, pid = start("import os, resource\n"
                             "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
                             "sys.stderr.close()\n" + end)  # fmt: skip
    owner.communicate(timeout=60)
    assert gone(path, pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_owners_that_are_killed(number: signal.Signals) -> None:
    owner, path, pid = start("time.sleep(60)")
    assert path.exists()
    assert lives(pid)
    owner.send_signal(number)
    owner.communicate(timeout=60)
    assert gone(path, pid)


def test_a_signal_to_the_whole_group_spares_the_janitor() -> None:
    """Ctrl-C goes to every process of the terminal's group."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(end="time.sleep(60)")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    path, pid = owner.stdout.readline().split()
    os.killpg(owner.pid, signal.SIGINT)
    owner.communicate(timeout=60)
    assert gone(Path(path), int(pid))


def test_a_child_of_the_owner_does_not_keep_the_janitor_waiting() -> None:
    """Only the owner holds the pipe: a process that outlives it must not inherit it."""
    owner, path, pid = start(
        "left = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, close_fds=False)\n"
        "print(left.pid, flush=True)\ntime.sleep(60)"
    )
    assert owner.stdout is not None
    left = int(owner.stdout.readline())
    owner.kill()
    owner.communicate(timeout=60)
    try:
        assert gone(path, pid)
    finally:
        os.kill(left, signal.SIGKILL)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory to put the temporary directory in."""
    with tempfile.TemporaryDirectory(prefix="w-") as made:
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


KILLED = """\
import os, signal, sys, tempfile
from qmpshim.machine.host.workspace import Workspace
tempfile.tempdir, make = sys.argv[1], os.mkdir

def killed(*words):
    make(*words)
    os.kill(os.getpid(), signal.SIGKILL)

os.mkdir = killed
Workspace()
"""


def test_an_owner_that_is_killed_as_it_makes_its_directory_leaves_none(temporary: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(temporary)])
    assert done.returncode == -signal.SIGKILL
    assert becomes_true(lambda: not any(temporary.iterdir()), 30.0)


def test_no_place_for_it(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    with pytest.raises(HostError, match=r"no temporary directory: No such file .*; set TMPDIR"):
        Workspace()
    (temporary / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "file"))
    with pytest.raises(HostError, match=r"no temporary directory: Not a directory; set TMPDIR"):
        Workspace()


def test_another_place_is_not_taken_silently(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary / "missing"))
    with pytest.raises(
        HostError,
        match=r"TMPDIR=.*missing is no directory to write to \(No such file or directory\): set it",
    ):
        Workspace()


def test_a_place_too_deep_for_sockets(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = temporary / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(HostError, match="too long a path for UNIX sockets in it: set TMPDIR to"):
        Workspace()
    assert list(deep.iterdir()) == []


def test_without_a_process_to_clean_up(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", exhausted)
    with pytest.raises(HostError, match="no process can be started: Resource temporarily"):
        Workspace()
    assert list(temporary.iterdir()) == []


def test_a_child_that_starts_when_the_owner_is_gone_already(tmp_path: Path) -> None:
    """It is the moment between fork and prctl that nothing else covers."""
    mark = tmp_path / "ran"
    command = dies_with_owner(["touch", str(mark)])
    orphan = [sys.executable, "-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"]
    done = subprocess.run([*orphan, *command], timeout=60)
    assert done.returncode == 0
    assert mark.exists()  # that was run by the owner itself
    mark.unlink()
    between = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    done = subprocess.run([sys.executable, "-c", between, *command], timeout=60)
    assert done.returncode == 1
    assert not mark.exists()


def test_without_setpriv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_named: None)
    with pytest.raises(HostError, match="setpriv is missing: apt-get install util-linux"):
        dies_with_owner(["true"])
