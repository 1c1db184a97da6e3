"""The stress command on an endpoint that stands it, and on one that does not."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qmpshim.errors import InputError, MachineError
from qmpshim.shim.endpoint.client import Client
from qmpshim.shim.endpoint.listener import Address, Listener
from qmpshim.shim.endpoint.server import Shim
from qmpshim.shim.endpoint.session import Answer, Command
from qmpshim.shim.stress import Figures, connect, crowd, stress
from vmtests.support.shim_harness import LIMIT, Loop, Process, start_shim
from vmtests.support.waiting import wait_until


def _stressed(loop: Loop, process: Process, path: Path, make: type[Shim]) -> Figures:
    shim = start_shim(loop, process, make)
    listener = loop.call(lambda: Listener(Address(path=path), shim.attach))
    try:
        return stress(Address(path=path), 150, 500)
    finally:
        loop.run(listener.close())
        loop.run(shim.close())


@pytest.mark.usefixtures("qemu_on_path")
def test_what_stands_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qmpshim", "stress", "--clients", "100", "--messages", "1000"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    assert done.stdout.endswith("stood it\n") and done.stderr == ""
    for words in ("clients served       100", "malformed messages   1000", "memory  ", "stopped"):
        assert words in done.stdout


class _Leaky(Shim):
    """Forgets to hang up when a client has gone."""

    def leave(self, client: Client) -> None:
        client.session.close()


def test_what_leaks_is_found_out(loop: Loop, process: Process, tmp_path: Path) -> None:
    figures = _stressed(loop, process, tmp_path / "s", _Leaky)
    assert "descriptors" in figures.leaks


class _Mixed(Shim):
    """Hands out other people's answers."""

    def take(self, client: Client, work: object) -> None:
        number = getattr(work, "id", None)
        if number is not None and number.isdigit() and int(number) == 7:
            object.__setattr__(work, "id", b"8")
        super().take(client, work)  # type: ignore[arg-type]


def test_mixed_up_answers_are_found_out(loop: Loop, process: Process, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="client 7 got the answer to 8"):
        _stressed(loop, process, tmp_path / "s", _Mixed)


class _Silent(Shim):
    """Passes over what it does not understand."""

    def take(self, client: Client, work: Answer | Command) -> None:
        if isinstance(work, Answer):
            client.answered(b"", work.oob)
        else:
            super().take(client, work)


def test_a_silent_one_is_found_out(loop: Loop, process: Process, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="malformed messages were passed over"):
        _stressed(loop, process, tmp_path / "s", _Silent)


@pytest.mark.usefixtures("qemu_on_path")
def test_killed_it_takes_the_endpoint_along() -> None:
    words = ["-m", "qmpshim", "stress", "--clients", "100000"]
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE) as stressing:
        assert stressing.stdout is not None
        assert b"clients came and went" in stressing.stdout.readline()
        mark = f"serve\0--listen\0unix:{tempfile.gettempdir()}".encode()
        assert _running(mark)
        stressing.kill()
    wait_until(lambda: not _running(mark))
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob("qmpshim-*")))


def _running(words: bytes) -> bool:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in place.read_bytes():
                return True
    return False


def test_what_is_no_endpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot connect"):
        connect(Address(path=tmp_path / "missing"))
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        mute.settimeout(LIMIT)
        client = subprocess.Popen(
            [sys.executable, "-m", "qmpshim", "stress", str(tmp_path / "mute")],
            stdout=subprocess.PIPE,
        )
        peer, _ = mute.accept()
        peer.sendall(b"SSH-2.0\r\n")
        out, _ = client.communicate(timeout=LIMIT)
        peer.close()
    assert client.returncode == 1 and b"does not speak QMP" in out


def test_a_crowd_reports(loop: Loop, process: Process, tmp_path: Path) -> None:
    shim = start_shim(loop, process)
    listener = loop.call(lambda: Listener(Address(path=tmp_path / "s"), shim.attach))
    lines: list[str] = []
    crowd(Address(path=tmp_path / "s"), 3, lines.append)
    assert lines == ["3/3 clients came and went"]
    loop.run(listener.close())
    loop.run(shim.close())
