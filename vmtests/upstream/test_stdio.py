"""QMP and what QEMU prints share standard output: in QEMU's own order, as iotest 060 reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.shim.endpoint.interleaved import Interleaved
from vmtests.support.stand_in import ARGS, PROGRAM

_TIMES = 30
_DISK = ("-blockdev", "null-co,node-name=d,size=1048576")


def _requests() -> bytes:
    """Commands that print, one after the other, in one packet; an event comes with the last."""
    prints = [  # on stdout, and on stderr
        {"execute": "human-monitor-command", "arguments": {"command-line": f"qemu-io d {what}"}}
        for what in ("length", "nonsense")
    ]
    names = [{"execute": "qmp_capabilities"}, *prints * _TIMES, {"execute": "quit"}]
    return b"".join(json.dumps(one).encode() + b"\n" for one in names)


def _output(command: list[str], env: dict[str, str], monitor: str) -> str:
    ended = subprocess.run(
        [*command, *ARGS, *_DISK, monitor, "stdio"],
        input=_requests(),
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    text = ended.stdout.decode()
    # With its input at an end, a client of the shim may have left before the event of the end.
    return text[: text.rindex('"return": ""')]


@pytest.mark.parametrize("monitor", ["-qmp", "-qmp-pretty"])
def test_text_and_messages_keep_their_order(each_build: Build, monitor: str) -> None:
    through = _output([str(PROGRAM)], {"QMPSHIM_BUILD": each_build.name}, monitor)
    direct = _output(each_build.command(), each_build.environment(), monitor)
    assert direct.count("1 MiB") == direct.count('"nonsense" not found') == _TIMES
    assert direct.count('"return": ""') == 2 * _TIMES - 1  # the last is cut off
    assert through.splitlines() == direct.splitlines()


def test_what_is_printed_by_a_qemu_that_only_answers(qemu_build: Build) -> None:
    """There is text, and never a monitor."""
    words = [*ARGS, "-qmp", "stdio", "-device", "virtio-blk,help"]
    ended = subprocess.run(
        [str(PROGRAM), *words],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "QMPSHIM_BUILD": qemu_build.name},
        capture_output=True,
        check=True,
    )
    direct = subprocess.run(
        [*qemu_build.command(), *words],
        stdin=subprocess.DEVNULL,
        env=qemu_build.environment(),
        capture_output=True,
        check=True,
    )
    assert ended.stdout == direct.stdout
    assert b"options" in ended.stdout


def test_another_process_with_its_output_does_not_keep_the_stand_in(
    qemu_build: Build, tmp_path: Path
) -> None:
    """A child that lives on: QEMU's end is the end all the same."""
    script, pid = tmp_path / "qemu-system-x86_64", tmp_path / "pid"
    env = " ".join(f"{name}={value}" for name, value in qemu_build.env.items())
    command = " ".join(qemu_build.command())
    script.write_text(f'#!/bin/sh\nsleep 120 & echo $! > {pid}\nexec env {env} {command} "$@"\n')
    script.chmod(0o755)
    process = subprocess.Popen(
        [str(PROGRAM), *ARGS, "-qmp", "stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "QMPSHIM_BUILD": str(script)},
    )
    try:
        output, _ = process.communicate(
            b"{'execute': 'qmp_capabilities'} {'execute': 'query-name', 'id': 'x'}"
            b"{'execute': 'quit', 'id': 'last'}",
            60.0,
        )
        assert b'"id": "last"' in output and process.returncode == 0
        os.kill(int(pid.read_text()), 0)  # it does live on
    finally:
        process.kill()
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_stream_is_taken_apart(size: int) -> None:
    """However it is cut: the same messages, the same bytes of text, in the same order."""
    stream = (
        b'early\n{"QMP": {}}\r\nwrite failed: {"return": 1}\n50%\r{"return": {}}\r\n'
        b'{"timestamp": {}, "event": "X"}\r\n{ "error }\n  {"error": {"a": "}\\r\\n"}}\r\nlast'
    )
    splitter = Interleaved()
    order: list[tuple[bool, bytes]] = []
    pieces = [
        piece
        for at in range(0, len(stream), size)
        for piece in splitter.feed(stream[at : at + size])
    ]
    for is_message, piece in [*pieces, (False, splitter.end())]:
        if order and not is_message and not order[-1][0]:
            order[-1] = (False, order[-1][1] + piece)
        else:
            order.append((is_message, piece))
    assert order == [
        (False, b"early\n"),
        (True, b'{"QMP": {}}'),
        (False, b'write failed: {"return": 1}\n50%\r'),
        (True, b'{"return": {}}'),
        (True, b'{"timestamp": {}, "event": "X"}'),
        (False, b'{ "error }\n  '),
        (True, b'{"error": {"a": "}\\r\\n"}}'),
        (False, b"last"),
    ]
