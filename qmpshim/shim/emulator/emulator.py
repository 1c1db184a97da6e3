"""The QEMU behind the shim: started with a monitor of its own, or one that runs at an address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from qmpshim.errors import BuildError, HostError, MachineError
from qmpshim.machine.host.process import COMMAND_LIMIT, Qemu, exit_reason
from qmpshim.machine.host.workspace import dies_with_owner
from qmpshim.shim.endpoint.server import Shim

MONITOR = "x-shim-monitor"


class EndedEarly(BuildError):
    """QEMU ended, or did not answer, before there was anything to serve.

    :ivar status: its exit status (negative: by that signal); None: it was ended by us
    :ivar last_words: the line of its stderr that gives the reason, or ``""``
    """

    def __init__(self, text: str, status: int | None, last_words: str) -> None:
        super().__init__(text)
        self.status = status
        self.last_words = last_words


class _HeldStderr:
    """What QEMU writes to stderr: held back until :meth:`release`, then passed on to ours."""

    def __init__(self) -> None:
        self._read, self.end = os.pipe()
        self._held: bytes | None = b""
        self._lock = threading.Lock()
        self._copying = threading.Thread(target=self._copy, daemon=True)

    def start(self) -> None:
        """Begin to read, now that QEMU has the other end."""
        os.close(self.end)
        self._copying.start()

    def _copy(self) -> None:
        with open(self._read, "rb", buffering=0) as source:
            while piece := source.read(1 << 16):
                with self._lock:
                    if self._held is None:
                        _to_stderr(piece)
                    else:
                        self._held += piece

    def text(self) -> str:
        """What is held, once QEMU has ended."""
        self._copying.join(1.0)
        with self._lock:
            return (self._held or b"").decode(errors="replace")

    def release(self) -> None:
        """Pass on what was held, and from now on all."""
        with self._lock:
            _to_stderr(self._held or b"")
            self._held = None


def _to_stderr(data: bytes) -> None:
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def _one_output() -> bool:
    """Whether our stdout and stderr are the same file, as after ``2>&1``."""
    try:
        return os.path.sameopenfile(1, 2)
    except OSError:  # one is closed
        return False


class Emulator(Qemu):
    """A QEMU that is commanded through a :class:`Shim`.

    :param argv: the whole command line but for the shim's monitor
    :param directory: where its stdout and stderr go, unless *inherit*
    :param env: the whole environment of the process
    :param inherit: leave stdin, stdout and stderr to QEMU, as a stand-in for it must
    :param on_text: but keep stdin for ourselves, and have what QEMU prints on stdout come here,
        in its order with what the monitor sends; stderr, too, where ours is the same file
    :param hold_stderr: with *inherit*, pass QEMU's stderr on only once QEMU answers: it may hold
        why it does not
    """

    def __init__(
        self,
        argv: Sequence[str],
        directory: Path,
        env: Mapping[str, str] | None = None,
        limit: float = COMMAND_LIMIT,
        inherit: bool = False,
        keep_fds: Sequence[int] = (),
        on_text: Callable[[bytes], None] | None = None,
        hold_stderr: bool = False,
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.argv = list(argv)
        self._env = dict(env) if env is not None else {}
        self._inherit = inherit
        self._keep_fds = tuple(keep_fds)
        self._on_text = on_text
        self._held = _HeldStderr() if inherit and hold_stderr else None
        self._process = None
        self._idleness = None  # the shim's watchdog sees to that
        self._log = None
        self.shim: Shim

    async def start(self) -> None:
        """Start QEMU and its shim.

        :raises HostError: the binary cannot be run
        :raises BuildError: it is no QEMU, or ended before it answered
        """
        ours, theirs = socket.socketpair()
        monitor = f"socket,id={MONITOR},fd={theirs.fileno()}"
        argv = [
            *dies_with_owner(self.argv),
            *("-chardev", monitor, "-qmp", f"chardev:{MONITOR}"),
        ]
        try:
            with theirs:
                self._spawn(argv, theirs)
        except OSError as error:
            ours.close()
            raise HostError(f"cannot run {self.argv[0]}: {error.strerror}") from error
        self.shim = Shim(ours, self.how_ended, on_text=self._on_text)
        if self._on_text is not None:
            self._end_with_process(ours)
        try:
            await self.shim.start(self.limit)
        except MachineError as error:
            code = await self.wait_for_exit(1.0)
            self.kill()
            await self.shim.close()
            complaint = self._complaint()
            raise EndedEarly(
                f"{self.argv[0]} did not answer QMP"
                + (f" (exit status {code})" if code is not None else "")
                + (f": {complaint}" if complaint else f": {error}"),
                code,
                complaint,
            ) from error
        except BaseException:  # cancelled: no caller has a reference yet by which to close it
            self.kill()
            self.shim.upstream.close()
            raise
        if self._held is not None:
            self._held.release()

    def _complaint(self) -> str:
        """The line with the reason why QEMU ended: the last with its name; hints follow without."""
        text = self.stderr()
        names = tuple(f"{Path(word).name}: " for word in self.argv)
        own = [line for line in text.splitlines() if line.startswith(names)]
        return own[-1] if own else exit_reason(text)

    def stderr(self) -> str:
        """What QEMU has written to stderr, as far as it was kept."""
        return super().stderr() if self._held is None else self._held.text()

    def _end_with_process(self, sock: socket.socket) -> None:
        """End the stream when QEMU ends: a child of QEMU's may keep its standard output open."""
        assert self._process is not None
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(self._process.pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            with contextlib.suppress(OSError):  # closed by us before
                sock.shutdown(socket.SHUT_RD)  # what is in it can still be read

        loop.add_reader(pidfd, ended)

    def _spawn(self, argv: list[str], monitor: socket.socket) -> None:
        env = self._env or None
        fds = (monitor.fileno(), *self._keep_fds)
        if self._inherit:
            stdin, out_end = (
                (None, None) if self._on_text is None else (subprocess.DEVNULL, monitor.fileno())
            )
            err_end = None if self._held is None else self._held.end
            if out_end is not None and err_end is None and _one_output():
                err_end = out_end  # its order among the rest can be seen
            self._process = subprocess.Popen(
                argv, stdin=stdin, stdout=out_end, stderr=err_end, env=env, pass_fds=fds
            )
            if self._held is not None:
                self._held.start()
            return
        out: IO[bytes]
        err: IO[bytes]
        with (
            (self.directory / "stdout").open("wb") as out,
            (self.directory / "stderr").open("wb") as err,
        ):
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, pass_fds=fds
            )

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command for the shim itself; see :meth:`Shim.execute`."""
        return await self.shim.execute(command, arguments, self.limit)

    def how_ended(self) -> dict[str, object]:
        """How the process ended, for clients."""
        code = self._reap(2.0)
        if code is None:
            return {"reason": "QEMU closed its monitor but still runs"}
        if code < 0:
            return {"reason": f"QEMU was killed by {signal.Signals(-code).name}", "signal": -code}
        return {"reason": f"QEMU exited with status {code}", "status": code}

    @property
    def exited_well(self) -> bool:
        """Whether QEMU ended as after ``quit``."""
        return self._reap(0.0) == 0

    def send_signal(self, number: int) -> None:
        """Pass a signal on to QEMU."""
        if self._process is not None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for QEMU's end; gives its status, negative for a signal."""
        assert self._process is not None
        while (code := self._process.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return code

    async def close(self) -> int | None:
        """Send ``quit``, kill QEMU if it does not end, and return its exit status."""
        if self._process is None:
            return None
        if self.alive() and not self.shim.upstream.gone:
            try:
                await self.shim.execute("quit", limit=5.0)
            except MachineError:
                self.kill()
            with contextlib.suppress(TimeoutError):
                # Not in a wait that stops us: its disks may be ours.
                async with asyncio.timeout(5.0):
                    await self.wait()
        self.kill()
        await self.shim.close()
        return self._process.returncode
