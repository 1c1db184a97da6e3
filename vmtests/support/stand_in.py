"""A QEMU started through `qmpshim-qemu`, as QEMU's own test suites start one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from qmpshim.machine.builds.build import Build

ARGS = ("-machine", "none", "-nodefaults", "-display", "none", "-no-user-config")
PROGRAM = Path(sys.executable).parent / "qmpshim-qemu"
LIMIT = 60.0


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
        """All that is still said."""
        return self._file.read()

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(LIMIT)
        self._file.close()
        self._socket.close()
