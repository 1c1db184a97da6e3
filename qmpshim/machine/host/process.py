"""A real QEMU process and its QMP connection, under a watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import DeserializationError

from qmpshim.errors import (
    CommandFailed,
    Exit,
    HostError,
    IOFailed,
    MachineDied,
    MachineError,
    MachineHung,
    NotStarted,
    ProtocolBroken,
)
from qmpshim.machine.chain.quiescence import Idleness
from qmpshim.machine.host.workspace import dies_with_owner
from qmpshim.machine.qmp.client import Client

log = logging.getLogger(__name__)

COMMAND_LIMIT = 30.0  # seconds a QMP command may take before QEMU counts as hung
_LOOK = 0.25  # seconds between two looks at a QEMU that owes one
_ENDING = 5.0  # seconds that it may take from the end of its connection to its own
_GLANCE = 0.02  # seconds between two looks at the process
_PAUSE = 0.002  # seconds between two questions by QMP


def escaped(path: Path) -> str:
    """A path among ``key=value`` options: a comma in it is doubled (QemuOpts)."""
    return str(path).replace(",", ",,")


_NO_REASON = ("warning: ", "Disconnect client, due to: ")  # lines that do not explain an exit


def exit_reason(stderr: str) -> str:
    """The line of QEMU's stderr that explains its exit: a failed assertion, else the last line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not any(word in line for word in _NO_REASON)]
    reasons = [line for line in lines if "ssert" in line] or lines[-1:]
    return reasons[0] if reasons else ""


def bare(command: Sequence[str], machine: str | None) -> list[str]:
    """The words that start a QEMU without devices.

    :param machine: value of ``-machine``; None: it has none, it is ``qemu-storage-daemon``
    """
    if machine is None:
        return [*command]
    return [*command, "-machine", machine, "-nodefaults", "-display", "none", "-no-user-config"]


def _monitor(socket: int, machine: str | None) -> list[str]:
    """The words that give it a QMP monitor on an open socket."""
    chardev = f"socket,id=qmp,fd={socket}"
    if machine is None:
        return ["--chardev", chardev, "--monitor", "chardev=qmp"]
    return ["-chardev", chardev, "-qmp", "chardev:qmp"]  # 11.1 deprecates -mon


#: What QEMU's memory holds before it is written to and after it is freed (glibc, mallopt(3)), as in
#: QEMU's own tests: what is read of it then is no data of ours, and no pointer.
_SPOILS_MEMORY = {"MALLOC_PERTURB_": "165"}


def launch(
    argv: Sequence[str],
    machine: str | None,
    directory: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a QEMU that ends with this process; its stdout and stderr are files in *directory*.

    :param argv: its words; the monitor's are added
    :param machine: as :func:`bare` was given it
    :param env: its whole environment, but for what spoils its memory where that is not in it
    :param pass_fds: more file descriptors that it inherits
    :returns: the process, and the socket of its QMP monitor
    :raises OSError: it cannot be run, or nothing be written to the directory
    """
    ours, theirs = socket.socketpair()
    try:
        with (
            theirs,
            (directory / "stdout").open("wb") as out,
            (directory / "stderr").open("wb") as err,
        ):
            process = subprocess.Popen(
                dies_with_owner([*argv, *_monitor(theirs.fileno(), machine)]),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**_SPOILS_MEMORY, **env},
                pass_fds=(theirs.fileno(), *pass_fds),
            )
    except OSError:
        ours.close()
        raise
    return process, ours


def stderr_of(directory: Path) -> str:
    """What a QEMU that was launched with *directory* has written to stderr so far."""
    try:
        return (directory / "stderr").read_text(errors="replace")
    except OSError:
        return ""


def died(how: Exit, stderr: str, during: str = "") -> MachineDied:
    """The error that a QEMU has ended; its text has the failed assertion, if any."""
    reason = exit_reason(stderr) if how.explained else ""
    text = f"QEMU {how}" + (f" during {during}" if during else "")
    return MachineDied(text + (f": {reason}" if reason else ""), how, reason)


async def wait_until(
    condition: Callable[[], Awaitable[bool]], failure: str, limit: float, pause: float = _PAUSE
) -> None:
    """Wait until ``condition()`` holds.

    :param failure: what is wrong if it does not hold in time
    :param limit: seconds
    :param pause: seconds between two looks
    :raises MachineHung: it did not hold in time
    """
    deadline = time.monotonic() + limit
    while not await condition():
        if time.monotonic() > deadline:
            raise MachineHung(f"{failure} in {limit:g} s")
        await asyncio.sleep(pause)


class Qemu:
    """One QEMU, started by :meth:`start` and gone for certain after :meth:`close`.

    :param command: how to run the binary, e.g. ``["qemu-system-x86_64"]``
    :param directory: where its stdout, stderr and QMP log go; it must exist
    :param args: arguments after the standard ones
    :param machine: as for :func:`bare`
    :param env: variables to add to the environment
    :param limit: seconds a command may take
    :param pass_fds: descriptors that the arguments speak of
    :param start_limit: seconds it may take from exec to the first answer, if that is more
    :ivar silence: seconds that it may do nothing at all while it owes an answer: to be set where
        nothing but QEMU itself can be what it waits for
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        args: Sequence[str] = (),
        machine: str | None = "none",
        env: Mapping[str, str] | None = None,
        limit: float = COMMAND_LIMIT,
        pass_fds: Sequence[int] = (),
        start_limit: float = COMMAND_LIMIT,
    ) -> None:
        self.directory = directory
        self.start_limit = max(limit, start_limit)
        self.limit = limit
        self.silence = math.inf
        self._idleness: Idleness | None = None
        self.argv = [*bare(command, machine), *args]
        self._machine = machine
        self._env = {**os.environ, **(env or {})}
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._client = Client("qmpshim")
        self._log = (
            None if not directory.is_dir() else (directory / "qmp.log").open("a", buffering=1)
        )

    async def start(self) -> None:
        """Start QEMU and negotiate QMP.

        :raises HostError: nothing can be run, or nothing be written to the directory
        :raises BuildError: the binary cannot be run, is no QEMU or ended before it answered
        """
        try:
            self._process, ours = launch(
                self.argv, self._machine, self.directory, self._env, self._pass_fds
            )
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise HostError(f"cannot start {self.argv[0]}: {where}{error.strerror}") from error
        self._idleness = Idleness(self._process.pid)
        ours.setblocking(False)
        try:
            async with asyncio.timeout(self.start_limit):
                await self._client.connect(ours)
        except (QMPError, TimeoutError, OSError, EOFError) as error:
            code = await self.wait_for_exit(1.0)
            self.kill()
            how = f"within {self.start_limit:g} s" if code is None else f"(exit status {code})"
            reason = self.stderr().strip().splitlines()
            raise NotStarted(
                f"{self.argv[0]} did not answer QMP {how}"
                + (f": {'; '.join(reason)[:400]}" if reason else "")
            ) from error
        except (
            BaseException
        ):  # cancelled: perhaps no caller has a reference yet by which to close it
            self.kill()
            ours.close()
            self._close_log()
            raise

    @property
    def has_machine(self) -> bool:
        """Whether it has a virtual machine; the storage daemon has none."""
        return self._machine is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> QMPClient:
        """The QMP client, e.g. for listening to events."""
        return self._client

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and give its return value.

        :raises CommandFailed: QEMU answered with an error
        :raises MachineDied: QEMU went away
        :raises MachineHung: no answer within the limit
        :raises ProtocolBroken: something else came
        """
        return await self._execute(command, arguments, oob=False)

    async def execute_oob(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """As :meth:`execute`, out of band: QEMU takes it even while its main loop is blocked."""
        return await self._execute(command, arguments, oob=True)

    async def _execute(
        self, command: str, arguments: Mapping[str, Any] | None, *, oob: bool
    ) -> Any:
        message: dict[str, Any] = {"exec-oob" if oob else "execute": command}
        if arguments:
            message["arguments"] = dict(arguments)
        self._note("->", message)
        began = time.monotonic()
        try:
            # Not asyncio.wait_for(): until Python 3.12 it swallows a cancellation that comes in
            # the moment of the answer, and Ctrl-C would have no effect.
            async with asyncio.timeout(self.limit) as timer:
                with self._watched(timer):
                    result = await self._client.execute(command, message.get("arguments"), oob=oob)
        except ExecuteError as error:
            self._note(
                "<-", {"error": {"class": error.error_class, "desc": error.error.error.desc}}
            )
            raise CommandFailed(command, error.error_class, error.error.error.desc) from error
        except TimeoutError as error:
            waited = min(self.limit, math.ceil(time.monotonic() - began))
            self._note("<-", {"qmpshim": f"no answer in {waited:g} s"})
            raise MachineHung(f"{command}: no answer in {waited:g} s") from error
        except (QMPError, EOFError, OSError) as error:
            if (fault := await self._nonsense(error)) is not None:
                what = " ".join(str(fault).split())
                text = f"QEMU's monitor said what is no QMP ({command}): {what}"
                raise ProtocolBroken(text) from error
            await self.wait_for_exit(_ENDING)
            raise self.exit_error(command, 0.0) from error
        self._note("<-", {"return": result})
        return result

    async def until(self, condition: Callable[[], Awaitable[bool]], failure: str) -> None:
        """Wait until ``condition()`` holds, as long as a command may take.

        :param failure: what is wrong if it does not hold in time
        :raises MachineHung: it did not
        """
        await wait_until(condition, failure, self.limit)

    async def start_nbd_server(self, path: Path) -> None:
        """Start its NBD server on a unix socket."""
        address = {"type": "unix", "data": {"path": str(path)}}
        await self.execute("nbd-server-start", {"addr": address})

    def is_silent(self) -> bool:
        """Whether QEMU has been idle for longer than ``silence`` seconds; to be polled while an
        answer is outstanding.
        """
        return self._idleness is not None and self._idleness.seconds() >= self.silence

    @contextlib.contextmanager
    def _watched(self, timer: asyncio.Timeout) -> Iterator[None]:
        """Let *timer* run out when QEMU is silent."""
        loop = asyncio.get_running_loop()
        next_look: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal next_look
            if self.is_silent():
                timer.reschedule(loop.time())
            else:
                next_look = loop.call_later(_LOOK, look)

        next_look = loop.call_later(_LOOK, look)
        try:
            yield
        finally:
            next_look.cancel()

    async def _nonsense(self, error: Exception) -> ProtocolError | None:
        """The protocol error in QEMU's output that ended the connection, if one did."""
        if isinstance(error, ProtocolError):
            return error
        try:
            await self._client.disconnect()  # gives what its reader met
        except ProtocolError as met:
            half = isinstance(met, DeserializationError) and not met.raw.endswith(b"\n")
            return None if half else met  # half a line: it ended while it spoke
        except (QMPError, EOFError, OSError):
            pass
        return None

    async def wait_for_exit(self, patience: float) -> int | None:
        """Wait so many seconds for the process to end: its exit status, None if it still runs."""
        deadline = time.monotonic() + patience
        while (code := self.exit_status) is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_GLANCE)
        return code

    def exit_error(self, during: str, patience: float = _ENDING) -> MachineDied:
        """The exception that describes how QEMU ended during *during*.

        :param patience: seconds that it may still need for that; they are waited for, so where a
            loop runs :meth:`wait_for_exit` comes first
        """
        return died(Exit(self._reap(patience)), self.stderr(), during)

    async def root_error(self, error: MachineError, during: str) -> MachineError:
        """What *error* comes from: a broken connection may be the first sign of QEMU's exit.

        A process that was killed closes its sockets a little before it can be waited for.
        """
        answered = isinstance(error, CommandFailed | IOFailed)
        patience = 1.0 if isinstance(error, MachineDied) else 0.0
        if answered or await self.wait_for_exit(patience) is None:
            return error
        return self.exit_error(during)

    def alive(self, patience: float = 0.0) -> bool:
        """Whether the process still runs, also after so many seconds."""
        return self._process is not None and self._reap(patience) is None

    @property
    def exit_status(self) -> int | None:
        """How the process ended (negative: by that signal); None while it runs."""
        return None if self._process is None else self._process.poll()

    def stderr(self) -> str:
        """What QEMU has written to stderr so far."""
        return stderr_of(self.directory)

    def _reap(self, seconds: float) -> int | None:
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _note(self, direction: str, message: Mapping[str, Any] | Message) -> None:
        if self._log is not None:
            self._log.write(f"{direction} {json.dumps(message)}\n")

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def close(self) -> int | None:
        """Send ``quit``, kill QEMU if it does not end, and return its exit status."""
        try:
            await self._quit(min(_ENDING, self.limit))
        finally:  # cancelled or not
            self.kill()
        try:
            await self._client.disconnect()
        except (QMPError, EOFError, OSError):
            log.debug("QMP connection ended with QEMU")
        self._close_log()
        return self._process.returncode if self._process else None

    async def _quit(self, patience: float) -> None:
        if not self.alive():
            return
        try:
            async with asyncio.timeout(patience):
                await self._client.execute("quit")
        except TimeoutError:
            return  # it does not answer: nothing to wait for
        except (QMPError, EOFError, OSError):
            log.debug("quit was not answered")
        await self.wait_for_exit(patience)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
