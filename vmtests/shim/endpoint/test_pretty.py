"""A monitor with ``pretty=on`` prints through the shim what it prints without."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.workspace import dies_with_owner
from qmpshim.shim.emulator.monitors import extract
from qmpshim.shim.json.text import indented
from vmtests.support.shim_harness import LIMIT, Wire, stand_in
from vmtests.support.stand_in import ARGS
from vmtests.support.waiting import wait_until

#: Strings that look like JSON, empty objects and arrays, all depths, errors, an event.
SCRIPT = b"""
{"execute": "qmp_capabilities", "id": {"a": [], "b": {}, "c": ["}, {", "\\", [", 1, 1e3, null]}}
{"execute": "query-version", "id": "[{,}]"}
{"execute": "query-chardev-backends"}
{"execute": "query-block"}
{"execute": "no-such", "id": [[[]], [{}], {"x": {"y": [1, 2, {"z": true}]}}]}
{"execute": 1}
{"execute": "stop", "id": "\\\\"}
{"execute": "query-name"}
{"execute": "quit", "id": "end"}
"""
_CHANGES = re.compile(rb'"(seconds|microseconds)": \d+')


def _received(command: list[str], env: dict[str, str], option: list[str], path: Path) -> bytes:
    """All that a QEMU says over a monitor to the end of the script."""
    process = subprocess.Popen([*command, *ARGS, *option], stdin=subprocess.DEVNULL, env=env)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
            wait_until(lambda: sock.connect_ex(str(path)) == 0)
            wire = Wire(sock)
            received = b""
            while not received.endswith(b"\r\n}\r\n"):  # the greeting
                received += sock.recv(1 << 16)
            wire.send(SCRIPT)
            with contextlib.suppress(ConnectionResetError):  # it ends with our last line unread
                while data := sock.recv(1 << 16):
                    received += data
        process.wait(LIMIT)
        # QEMU, 5.2 at least, may be about to start its machine when we connect, and sends us the
        # event before the monitor is open and greets.
        received = received[received.index(b'{\r\n    "QMP"') :]
        return _CHANGES.sub(rb'"\1": 0', received)
    finally:
        process.kill()
        process.wait(LIMIT)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "option",
    [
        ["-qmp-pretty", "unix:{path},server=on,wait=off"],
        [
            "-chardev",
            "socket,id=c,path={path},server=on,wait=off",
            "-mon",
            "c,mode=control,pretty=on",
        ],
    ],
    ids=["qmp-pretty", "mon"],
)
def test_pretty_is_pretty(each_build: Build, option: list[str], tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    words = [word.format(path=path) for word in option]
    command = dies_with_owner(each_build.command())
    direct = _received(command, each_build.environment(), words, path)
    assert b"\r\n    " in direct
    assert _received(*stand_in(each_build), words, path) == direct


def test_which_monitors_are_pretty() -> None:
    def pretty(*words: str) -> list[bool]:
        return [monitor.pretty for monitor in extract(words)[1]]

    chardev = ("-chardev", "socket,id=c,path=/x,server=on")
    assert pretty("-qmp-pretty", "stdio", "-qmp", "unix:/x") == [True, False]
    assert pretty(*chardev, "-mon", "chardev=c,mode=control,pretty=on") == [True]
    assert pretty(*chardev, "-mon", "chardev=c,mode=control,pretty=off") == [False]
    assert pretty(*chardev, "-mon", "chardev=c,mode=control") == [False]
    assert pretty(*chardev, "--qmp-pretty", "chardev:c") == [True]


def test_several_messages_at_once() -> None:
    assert indented(b'{"a": {}}\r\n{"b": [1, "x, y"]}\r\n') == (
        b'{\r\n    "a": {\r\n    }\r\n}\r\n{\r\n    "b": [\r\n        1,\r\n        "x, y"\r\n'
        b"    ]\r\n}\r\n"
    )
