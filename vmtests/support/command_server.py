"""Runs commands in processes that need not import them first, which takes half a second each.

A Python that has imported the commands forks for each of them. What differs from a start by hand:
all commands of a session have one hash seed, and modules that they import were imported elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_SERVE = "import sys; from vmtests.support.command_server import serve; serve(int(sys.argv[1]))"
_ORDER = 1 << 20  # bytes at most


class CommandServer:
    """The process that forks, and the socket through which it gets its orders."""

    def __init__(self, root: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [sys.executable, "-c", _SERVE, str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": str(root)}
            self._process = subprocess.Popen(
                words, cwd=root, env=environment, pass_fds=[theirs.fileno()]
            )

    def run(
        self, words: Sequence[str], cwd: Path, env: Mapping[str, str], limit: float
    ) -> subprocess.CompletedProcess[str]:
        """As :func:`subprocess.run` of ``qmpshim`` with stdin empty and the output captured.

        :param limit: seconds
        """
        with (
            open(os.devnull, "rb") as nothing,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            order = json.dumps({"words": [*words], "cwd": str(cwd), "env": {**env}}).encode()
            streams = [nothing.fileno(), out.fileno(), err.fileno()]
            assert len(order) <= _ORDER
            self._socket.settimeout(limit)
            socket.send_fds(self._socket, [order], streams)
            pid = int(self._socket.recv(_ORDER))
            try:
                status = int(self._socket.recv(_ORDER))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._socket.recv(_ORDER)
                raise subprocess.TimeoutExpired(["qmpshim", *words], limit) from None
            texts = [_text(stream.fileno()) for stream in (out, err)]
        return subprocess.CompletedProcess(["qmpshim", *words], status, *texts)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()


def _text(descriptor: int) -> str:
    with open(os.dup(descriptor)) as stream:
        stream.seek(0)
        return stream.read()


@cache
def command_server(root: Path) -> CommandServer:
    """The server of this process; it ends with it.

    :param root: of the checkout
    """
    made = CommandServer(root)
    atexit.register(made.close)
    return made


def serve(descriptor: int) -> None:
    """Carry out orders until there are no more."""
    from qmpshim.cli import build_parser
    from qmpshim.machine.host.safe_path import leave_out_working_directory

    leave_out_working_directory()
    build_parser()  # imports all commands
    gc.freeze()
    with socket.socket(fileno=descriptor) as orders:
        while True:
            order, streams, _, _ = socket.recv_fds(orders, _ORDER, 3)
            if not order:
                return
            pid = os.fork()
            if pid == 0:
                break
            for stream in streams:
                os.close(stream)
            with contextlib.suppress(BrokenPipeError):
                orders.send(str(pid).encode())
                orders.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    sys.exit(_command(order, streams))


def _command(order: bytes, streams: Sequence[int]) -> int:
    from qmpshim import __main__ as program

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    wanted = json.loads(order)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = [program.__file__, *wanted["words"]]
    return program.main()
