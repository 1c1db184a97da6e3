"""Processes: a shim's endpoint, a QEMU started through `qmpshim-qemu`, one with two monitors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.workspace import dies_with_owner
from vmtests.support.waiting import wait_until

ARGS = ("-machine", "none", "-nodefaults", "-display", "none", "-no-user-config")
PROGRAM = Path(sys.executable).parent / "qmpshim-qemu"
LIMIT = 60.0
#: A shim at the first address; in front of the monitor at the second, or of a QEMU of its own.
_CODE = """
import asyncio, sys
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.emulator.serve import Options, serve
qmp = Address.parse(sys.argv[2]) if sys.argv[2:] else None
options = Options(listen=(Address.parse(sys.argv[1]),), qmp=qmp)
def ready(served):
    print(served.emulator.pid if served.emulator else 0, flush=True)
sys.exit(asyncio.run(serve(options, ready)))
"""
SERVE = (sys.executable, "-c", _CODE)


@contextmanager
def started(command: Sequence[str | Path], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed in the end, with a pipe at its stdout; *more* goes to Popen."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, **more) as process:
        try:
            yield process
        finally:
            process.kill()


class StandIn:
    """A running one, with a monitor that has negotiated; a context manager."""

    def __init__(self, build: Build, *words: str) -> None:
        ours, theirs = socket.socketpair()
        monitor = ("-chardev", f"socket,id=m,fd={theirs.fileno()}", "-qmp", "chardev:m")
        self.process = subprocess.Popen(
            [str(PROGRAM), *ARGS, *monitor, *words],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "QMPSHIM_BUILD": build.name},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.settimeout(LIMIT)
        self._socket = ours
        self._file = ours.makefile("rb")

    def __enter__(self) -> Self:
        try:
            assert "QMP" in json.loads(self._file.readline())
            assert self.ask("qmp_capabilities") == {"return": {}}
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """A command and its reply; events that come meanwhile are dropped."""
        message = {"execute": command, "arguments": arguments or {}}
        self._socket.sendall(json.dumps(message).encode())
        while "event" in (reply := json.loads(self._file.readline())):
            pass
        return reply

    def rest(self) -> bytes:
        """All that it still writes."""
        return self._file.read()

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(LIMIT)
        self._file.close()
        self._socket.close()


@contextmanager
def qemu_at(build: Build, directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU with two monitors, ``qmp.sock`` and ``other.sock``, in *directory*."""
    words = [*build.command(), *ARGS, *arguments]
    for name in ("qmp.sock", "other.sock"):
        words += ["-qmp", f"unix:{name},server=on,wait=off"]
    with subprocess.Popen(dies_with_owner(words), cwd=directory, env=build.environment()) as qemu:
        try:
            wait_until(lambda: (directory / "other.sock").exists())
            yield qemu
        finally:
            qemu.kill()
