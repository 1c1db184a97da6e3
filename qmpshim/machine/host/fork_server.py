"""Processes that need not import what they run: a Python that has imported it forks for each.

That takes a tenth of starting one that imports everything by itself. ``multiprocessing`` has such a
server, too, but its processes all have one environment, one session and the same streams, and
import the owner's main module.

The server is a process of :func:`~qmpshim.machine.host.safe_path.our_python`. When its owner ends,
however it does, its socket ends, and the server kills what runs and ends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module

from qmpshim.errors import HostError
from qmpshim.machine.host.safe_path import import_path, our_python

_ORDER = 1 << 20  # bytes at most
_STREAMS = 3  # stdin, stdout, stderr


@dataclass(frozen=True, slots=True)
class _Order:
    """What a process is to be.

    :ivar modules: what the server imports before it forks, beside the function's
    :ivar path: where it looks for them
    """

    function: str
    arguments: Sequence[str]
    modules: Sequence[str]
    directory: str
    environment: Mapping[str, str]
    path: Sequence[str]


class ForkedProcess:
    """A process that the server has made: it runs a function in a session of its own."""

    def __init__(self, status: socket.socket, pid: int) -> None:
        self._status, self.pid = status, pid
        self.returncode: int | None = None

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit status (negative: by that signal); None: it still runs after so many seconds."""
        if self.returncode is None:
            self._status.settimeout(seconds)
            try:
                answer = self._status.recv(_ORDER)
            except (TimeoutError, BlockingIOError):
                return None
            if not answer:  # the server was killed, and this process goes on without it
                self._kill()
            self.returncode = int(answer) if answer else -signal.SIGKILL
            self._status.close()
        return self.returncode

    def kill(self) -> None:
        """End it now."""
        if self.returncode is None:
            self._kill()
            self.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """The server, started when it is needed first, and again when it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        atexit.register(self.close)

    def start(
        self,
        function: str,
        arguments: Sequence[str],
        streams: Sequence[int],
        environment: Mapping[str, str],
        directory: str | os.PathLike[str],
        modules: Sequence[str] = (),
    ) -> ForkedProcess:
        """Start a process.

        :param function: ``module:function``, which finds the *arguments* in ``sys.argv`` as a
            program does, and returns the exit status
        :param streams: descriptors of its stdin, stdout and stderr
        :param directory: where it works
        :param modules: what the server imports before it forks, beside the function's
        :raises HostError: the server cannot be started, or is killed as it starts the process
        """
        where = os.path.abspath(directory)
        order = _Order(function, arguments, modules, where, dict(environment), import_path())
        message = json.dumps(asdict(order)).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._send(message, [*streams, theirs.fileno()])
        pid = ours.recv(_ORDER)
        if not pid:
            ours.close()
            raise HostError("the process that starts others was killed")
        return ForkedProcess(ours, int(pid))

    def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        with self._lock:
            if self._server is not None and self._server[0].poll() is not None:
                self._close()
            if self._server is None:
                self._server = _server()
            try:
                socket.send_fds(self._server[1], [message], descriptors)
            except OSError as error:
                raise HostError(f"no process can be started: {error.strerror}") from error

    def close(self) -> None:
        """End the server and what it has started."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._server is not None:
            process, orders = self._server
            orders.close()
            process.wait()
            self._server = None


def _server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        words = our_python(__name__, str(theirs.fileno()))
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the owner's
            )
        except OSError as error:
            raise HostError(f"cannot start {words[0]}: {error.strerror}") from error
    return process, ours


# -- the server ----------------------------------------------------------------------------------


class _Serving:
    """The server's side of the sockets."""

    def __init__(self, descriptor: int) -> None:
        self._orders = socket.socket(fileno=descriptor)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._orders, selectors.EVENT_READ)
        self._running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: pid, status

    def until_forked(self) -> tuple[_Order, list[int]] | None:
        """Carry out orders until there are no more.

        :returns: in a process that was forked what it is to do, and its streams
        """
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._orders:
                    self._ended(key.fd)
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._orders, _ORDER, _STREAMS + 1)
                if not message:
                    self._end()
                    return None
                order = _Order(**json.loads(message))
                _import(order)
                gc.freeze()  # what is shared stays shared
                pid = os.fork()
                if not pid:
                    self._close_inherited()
                    os.close(descriptors.pop())
                    return order, descriptors
                self._started(pid, descriptors)

    def _started(self, pid: int, descriptors: list[int]) -> None:
        status = socket.socket(fileno=descriptors.pop())
        for stream in descriptors:
            os.close(stream)
        pidfd = os.pidfd_open(pid)
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._running[pidfd] = pid, status
        self._answer(status, pid)

    def _ended(self, pidfd: int) -> None:
        pid, status = self._running.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        with status:
            self._answer(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _answer(self, status: socket.socket, number: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            status.send(str(number).encode())

    def _end(self) -> None:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _close_inherited(self) -> None:
        """Close what is the server's: an end that another process keeps open is never seen."""
        self._selector.close()
        self._orders.close()
        for pidfd, (_, status) in self._running.items():
            os.close(pidfd)
            status.close()


def _import(order: _Order) -> None:
    sys.path[:] = order.path
    for module in (order.function.partition(":")[0], *order.modules):
        with contextlib.suppress(Exception):  # it comes again in the process whose error it is
            import_module(module)


def _run(order: _Order, streams: Sequence[int]) -> int:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.chdir(order.directory)
    os.environ.clear()
    os.environ.update(order.environment)
    tempfile.tempdir = None  # it is where the environment has it
    sys.argv[:] = [order.function, *order.arguments]
    return int(pkgutil.resolve_name(order.function)())


def main() -> int:
    """Serve, or be a process that was ordered."""
    forked = _Serving(int(sys.argv[1])).until_forked()
    return 0 if forked is None else _run(*forked)


if __name__ == "__main__":
    sys.exit(main())
