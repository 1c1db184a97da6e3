"""Load for a QMP endpoint: many short-lived clients, malformed input, a client that never reads."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.errors import HostError, InputError, MachineError, MachineHung, os_errors
from qmpshim.shim.endpoint.listener import Address

LIMIT = 30.0  # seconds for any one answer
_GREETING = 10.0  # seconds for the first answers, when nothing else is going on
LEAK = 16 << 20  # bytes that may stay: an allocator gives back what it likes
_WAVE = 200  # clients that are there at once
_MOST_REQUESTS = 4000  # of a client that does not read
_WARM = 100  # clients before memory is looked at: what stays after them stays once
_CREDENTIALS = struct.Struct("3i")
_NONSENSE = (
    b"{]\n", b"\xff\n", b"nope\n", b"{'execute': 1}\n", b"[1,2]\n", b"'\\ud800'\n", b"%p\n",
    b"{'execute': 'no-such-command'}\n", b"{'a': {'b': [}]}}\n", b"{'execute': 'x', 'extra': 1}\n",
    b"[" * 1025 + b"\xff\n", b"1e\n", b"{'execute': 'query-name', 'arguments': 5}\n",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """What the endpoint's process holds now: resident bytes, open descriptors."""

    memory: int
    descriptors: int

    def to_json(self) -> dict[str, int]:
        """For a document."""
        return {"memory_bytes": self.memory, "descriptors": self.descriptors}


@dataclass(frozen=True, slots=True)
class Figures:
    """How it went.

    :ivar clients: that connected, sent requests and disconnected
    :ivar malformed: messages that are none; each was answered, and the connection lived on
    :ivar cut_off: whether the client that never reads was cut off, or no longer read from
    :ivar before: the endpoint's process once it was warm; None where it cannot be looked at
    :ivar after: at the end
    """

    clients: int
    clients_seconds: float
    malformed: int
    malformed_seconds: float
    cut_off: bool
    before: ProcessFigures | None
    after: ProcessFigures | None

    @property
    def leaks(self) -> str:
        """What is left behind, in words; "" for nothing."""
        if self.before is None or self.after is None:
            return ""
        left = []
        if self.after.descriptors > self.before.descriptors:
            left.append(f"{self.after.descriptors - self.before.descriptors} descriptors")
        if self.after.memory - self.before.memory > LEAK:
            left.append(f"{(self.after.memory - self.before.memory) >> 20} MiB")
        return " and ".join(left)

    @property
    def left(self) -> str:
        """What is left behind of clients too, in words; "" for nothing."""
        return self.leaks or ("" if self.cut_off else "a stuck client")

    def to_json(self) -> dict[str, Any]:
        """For a document."""
        return {
            "clients": self.clients,
            "clients_seconds": round(self.clients_seconds, 3),
            "malformed": self.malformed,
            "malformed_seconds": round(self.malformed_seconds, 3),
            "cut_off": self.cut_off,
            "before": self.before.to_json() if self.before else None,
            "after": self.after.to_json() if self.after else None,
            "left": self.left,
        }


def connect(address: Address, limit: float = LIMIT) -> socket.socket:
    """A plain client that has negotiated.

    :param limit: seconds for any one answer
    :raises InputError: nothing listens there
    :raises MachineError: it does not answer as QMP does
    """
    if address.path is not None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        place: object = str(address.path)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        place = (address.host, address.port)
    sock.settimeout(limit)
    try:
        sock.connect(place)  # type: ignore[arg-type]
    except OSError as error:
        sock.close()
        raise InputError(f"cannot connect to {address}: {error.strerror or error}") from error
    try:
        for sent, wanted in ((b"", b'"QMP"'), (b"{'execute': 'qmp_capabilities'}", b"return")):
            sock.sendall(sent)
            if wanted not in _line(sock):
                raise MachineError(f"{address} does not speak QMP")
    except MachineError:
        sock.close()
        raise
    return sock


def _line(sock: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        try:
            data = sock.recv(1 << 16)
        except TimeoutError as error:
            raise MachineHung(
                f"no answer in {sock.gettimeout():g} s (a plain QEMU talks to one client at a time)"
            ) from error
        except OSError as error:
            raise MachineError(f"the connection broke: {error.strerror}") from error
        if not data:
            raise MachineError("the endpoint hung up")
        line += data
    return bytes(line)


def check_shim(address: Address) -> None:
    """See that a shim answers: a plain QEMU serves one client at a time, and would only hang.

    :raises InputError: nothing listens there, or no shim does
    :raises MachineError: it does not answer as QMP does
    """
    with closing(connect(address, _GREETING)) as sock:
        sock.sendall(b"{'execute': 'x-shim-status', 'id': 'who'}")
        text = b""
        while b'"id": "who"' not in text:
            text = _line(sock)
        if b'"error"' in text:
            raise InputError(
                f"{address} is a QEMU and no shim: it serves one client at a time. Put a shim "
                f"before it: qmpshim serve --qmp {address}"
            )


def process_of(address: Address) -> int | None:
    """The process that listens at a unix socket; None for others, and for those of other users."""
    if address.path is None:
        return None
    with closing(connect(address)) as sock:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid = int(_CREDENTIALS.unpack(credentials)[0])
    return pid if os.access(f"/proc/{pid}/fd", os.R_OK) else None


def standing(pid: int) -> ProcessFigures:
    """What a process holds.

    :raises HostError: it cannot be looked at
    """
    with os_errors(HostError, f"cannot look at process {pid}"):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return ProcessFigures(pages * os.sysconf("SC_PAGE_SIZE"), descriptors)


def crowd(address: Address, clients: int, progress: Callable[[str], None]) -> float:
    """Clients connect, send and disconnect, every other one amid a request; returns seconds."""
    begin = time.monotonic()
    done = 0
    while done < clients:
        here = []
        for number in range(done, min(done + _WAVE, clients)):
            sock = connect(address)
            sock.sendall(b"{'execute': 'query-name', 'id': %d}" % number)
            here.append((number, sock))
        for number, sock in here:
            reply = json.loads(_line(sock).splitlines()[0])
            if "event" not in reply and reply.get("id") != number:
                raise MachineError(f"client {number} got the answer to {reply.get('id')}")
        for number, sock in here:
            if number % 2:
                sock.sendall(b"{'execute': 'query-block'}{'half")
            sock.close()
        done += len(here)
        progress(f"{done}/{clients} clients came and went")
    return time.monotonic() - begin


def nonsense(address: Address, messages: int, seed: int, progress: Callable[[str], None]) -> float:
    """Malformed messages, many in a packet; gives seconds.

    :raises MachineError: not each was answered with an error
    """
    chance = random.Random(seed)
    begin = time.monotonic()
    complaints = sent = 0
    with closing(connect(address)) as sock:
        while sent < messages:
            batch = [chance.choice(_NONSENSE) for _ in range(min(100, messages - sent))]
            mark = b'\xff{"execute": "query-name", "id": "mark"}'
            sock.sendall(b"".join(batch) + mark)
            # One message may deserve several complaints; all come before the mark's answer.
            text = b""
            while b'"id": "mark"' not in text:
                text = _line(sock)
                complaints += text.count(b'"error": {')
            sent += len(batch)
            if complaints < sent:
                raise MachineError(f"{sent - complaints} malformed messages were passed over")
            progress(f"{sent}/{messages} malformed messages")
    return time.monotonic() - begin


def glutton(address: Address, progress: Callable[[str], None]) -> bool:
    """A client that sends and never reads: whether it was stopped, and the others served."""
    with closing(connect(address)) as sock, closing(connect(address)) as other:
        sock.settimeout(0.5)
        stopped = False
        for number in range(_MOST_REQUESTS):
            try:
                sock.sendall(b"{'execute': 'query-qmp-schema'}")
            except OSError:  # cut off, or no longer read from
                stopped = True
                break
            if number % 500 == 0:
                progress(f"{number} requests of a client that does not read")
                other.sendall(b"{'execute': 'query-name'}")
                _line(other)
        other.sendall(b"{'execute': 'query-name'}")
        _line(other)
    return stopped


def giant(address: Address) -> None:
    """A message larger than QEMU takes, then one that is none."""
    with closing(connect(address)) as sock:
        chunk = b"a" * (1 << 20)
        sock.sendall(b"'")
        for _ in range(65):
            sock.sendall(chunk)
        sock.sendall(b"'\xff{'execute': 'query-name', 'id': 'mark'}")
        text = b""
        while b'"id": "mark"' not in text:
            text = _line(sock)


def stress(
    address: Address,
    clients: int,
    messages: int,
    seed: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Figures:
    """Do all of it to the endpoint at *address*.

    :raises InputError: nothing listens there
    :raises MachineError: it did not stand it: hung up, did not answer, mixed up its clients
    """
    pid = process_of(address)
    crowd(address, _WARM, progress)
    nonsense(address, 500, seed, progress)
    with closing(connect(address)) as sock:  # what follows chains is there from now on
        sock.sendall(b"{'execute': 'query-commands'}")
        _line(sock)
    before = None if pid is None else standing(pid)
    took = crowd(address, clients, progress)
    talked = nonsense(address, messages, seed, progress)
    progress("a message of 65 MiB")
    giant(address)
    stopped = glutton(address, progress)
    with closing(connect(address)):
        pass
    after = None
    if pid is not None:
        for after in _settling(pid):
            if before is None or after.descriptors <= before.descriptors:
                break
    return Figures(clients, took, messages, talked, stopped, before, after)


def _settling(pid: int) -> Iterator[ProcessFigures]:
    """What it holds, for as long as it may take to notice that everybody left."""
    for _ in range(100):
        time.sleep(0.05)
        yield standing(pid)
