"""The same bytes to a QEMU directly and to another through the shim, and what differs."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.workspace import dies_with_owner
from qmpshim.shim.endpoint.server import Shim
from vmtests.support.stand_in import ARGS, PROGRAM

T = TypeVar("T")
LIMIT = 60.0
sys.setrecursionlimit(20_000)  # json.loads of what nests 1,024 deep


class Loop:
    """An asyncio loop in a thread of its own, where shims live during a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, what: Coroutine[Any, Any, T], limit: float = LIMIT) -> T:
        """Run a coroutine there and wait for it."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(limit)

    def call(self, what: Callable[[], T]) -> T:
        """Call a function there."""

        async def call() -> T:
            return what()

        return self.run(call())

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT)
        self.loop.close()


class Process:
    """A QEMU whose monitors are socket pairs."""

    def __init__(self, build: Build, args: Sequence[str] = ARGS, monitors: int = 1) -> None:
        pairs = [socket.socketpair() for _ in range(monitors)]
        words: list[str] = []
        for number, (_, theirs) in enumerate(pairs):
            words += ["-chardev", f"socket,id=mon{number},fd={theirs.fileno()}"]
            words += ["-qmp", f"chardev:mon{number}"]
        self.process = subprocess.Popen(
            dies_with_owner([*build.command(), *args, *words]),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=build.environment(),
            pass_fds=[theirs.fileno() for _, theirs in pairs],
        )
        for _, theirs in pairs:
            theirs.close()
        self.monitors = [ours for ours, _ in pairs]

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(LIMIT)
        for monitor in self.monitors:
            monitor.close()


class Died(Exception):
    """QEMU ended its connection."""


class Wire:
    """A blocking client that keeps to itself what a message is."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(True)
        sock.settimeout(LIMIT)
        self._buffer = b""
        self._mark = 0

    def send(self, data: bytes, chunk: int | None = None) -> None:
        """Send bytes, cut into packets of *chunk* bytes."""
        for at in range(0, len(data), chunk or len(data) or 1):
            self.sock.sendall(data[at : at + (chunk or len(data))])

    def send_with_fd(self, data: bytes, *fds: int) -> None:
        """Send bytes and descriptors."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        self.sock.sendmsg([data], [rights])

    def line(self) -> bytes:
        """The next message as text; b"" at the end."""
        while b"\n" not in self._buffer:
            data = self.sock.recv(1 << 16)
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def message(self) -> Any:
        """The next message."""
        line = self.line()
        return json.loads(_readable(line)) if line else None

    def reply(self) -> Any:
        """The next message that is no event."""
        while True:
            message = self.message()
            if message is None or "event" not in message:
                return message

    def ask(self, name: str, arguments: dict[str, Any] | None = None, **more: Any) -> Any:
        """A command and its reply."""
        message: dict[str, Any] = {"execute": name, **more}
        if arguments is not None:
            message["arguments"] = arguments
        self.send(json.dumps(message).encode())
        return self.reply()

    def negotiate(self, oob: bool = False) -> Any:
        """Read the greeting and negotiate."""
        greeting = self.message()
        answer = self.ask("qmp_capabilities", {"enable": ["oob"]} if oob else None)
        assert answer == {"return": {}}, answer
        return greeting

    def until_quiet(self) -> list[Any]:
        """All messages up to the answer to a command that says we are here.

        0xFF brings the parser out of whatever state it is in (docs/interop/qmp-spec).
        """
        self._mark += 1
        mark = f"x-mark-{self._mark}"
        self.send(b'\xff{"execute": "query-name", "id": "%s"}' % mark.encode())
        messages: list[Any] = []
        while True:
            message = self.message()
            if message is None:
                raise Died(f"the connection ended; before: {messages[-3:]}")
            if message.get("id") == mark:
                return messages
            messages.append(message)

    def rest(self) -> list[Any]:
        """All messages up to the end of the connection."""
        messages: list[Any] = []
        while (message := self.message()) is not None:
            messages.append(message)
        return messages

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def _readable(line: bytes) -> bytes:
    """What QEMU prints, as something Python's parser takes: it may print ``inf``."""
    return re.sub(rb'("(?:[^"\\]|\\.)*")|\b(inf|nan)\b', lambda m: m[1] or b'"' + m[2] + b'"', line)


def normal(message: Any) -> Any:
    """A message without what differs from run to run."""
    if isinstance(message, dict):
        message = {k: v for k, v in message.items() if k != "timestamp"}
        return {k: normal(v) for k, v in message.items() if k not in UNSTABLE}
    if isinstance(message, list):
        return [normal(item) for item in message]
    if isinstance(message, str):
        return re.sub(r"#block\d+|/tmp/[^ '\"]*|0x[0-9a-f]{6,}", "X", message)
    return message


#: Members whose values are times, thread numbers, addresses, sizes of free memory.
UNSTABLE = {"thread-id", "pid", "filename", "vaddr"}


@dataclass(repr=False)
class Difference:
    """What the same bytes led to."""

    sent: bytes
    direct: list[Any]
    through: list[Any]

    def __repr__(self) -> str:
        return f"sent {self.sent[:300]!r}\ndirect:  {self.direct}\nthrough: {self.through}"


@dataclass
class Pair:
    """One QEMU reached directly, another through the shim, in the same state."""

    direct: Wire
    through: Wire
    shim: Shim
    closers: list[Callable[[], None]] = field(default_factory=list)

    def compare(
        self, data: bytes, chunk: int | None = None, ordered: bool = True
    ) -> Difference | None:
        """Send the same bytes both ways; what differs, or None."""
        answers = []
        for wire in (self.direct, self.through):
            wire.send(data, chunk)
            try:
                messages = [normal(message) for message in wire.until_quiet()]
            except (Died, ConnectionError) as error:
                if wire is self.direct:
                    raise Died(f"QEMU died of {data!r}") from error
                raise AssertionError(f"the shim hung up after {data!r}") from error
            if not ordered:
                messages.sort(key=lambda message: json.dumps(message, sort_keys=True))
            # Events come from QEMU's other threads: their place among the replies is chance.
            events = [m for m in messages if isinstance(m, dict) and "event" in m]
            answers.append([m for m in messages if m not in events] + events)
        if answers[0] == answers[1]:
            return None
        return Difference(data, answers[0], answers[1])

    def close(self) -> None:
        """End everything."""
        for close in reversed(self.closers):
            close()


@contextlib.contextmanager
def pair(
    loop: Loop,
    build: Build,
    args: Sequence[str] = ARGS,
    make: Callable[[socket.socket], Shim] = Shim,
) -> Iterator[Pair]:
    """Two QEMUs, one behind a shim; neither has negotiated yet."""
    direct, behind = Process(build, args), Process(build, args)
    shim = start_shim(loop, behind, make)
    try:
        yield Pair(Wire(direct.monitors[0]), client_of(loop, shim), shim)
    finally:
        loop.run(shim.close())
        direct.close()
        behind.close()


def start_shim(loop: Loop, process: Process, make: Callable[[socket.socket], Shim] = Shim) -> Shim:
    """A shim in front of a process's first monitor."""

    async def start() -> Shim:
        shim = make(process.monitors[0])
        await shim.start()
        return shim

    return loop.run(start())


def client_of(loop: Loop, shim: Shim) -> Wire:
    """A new client of a shim."""
    ours, theirs = socket.socketpair()
    loop.call(lambda: shim.attach(theirs))
    return Wire(ours)


def stand_in(build: Build) -> tuple[list[str], dict[str, str]]:
    """Command and environment of what stands where *build*'s emulator is expected."""
    return [str(PROGRAM)], {**os.environ, "QMPSHIM_BUILD": build.name}


def open_fds() -> int:
    """Descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def touch(path: Path) -> int:
    """A descriptor of a new file."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
