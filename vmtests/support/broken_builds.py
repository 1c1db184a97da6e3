"""Builds that misbehave from outside: programs that stand where a good QEMU's binary would.

Each is a directory with a ``qemu-system-x86_64`` (and perhaps a ``qemu-img``) of its own, made by
:func:`make`. What it does wrong is a function below. This file is also the program: the scripts
that :func:`make` writes import it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EMULATOR = "qemu-system-x86_64"
Message = dict[str, Any]


def make(name: str, directory: Path) -> Path:
    """The build called *name*, in a new directory; its binary."""
    directory.mkdir()
    for program in (EMULATOR, "qemu-img"):
        real = shutil.which(program)
        assert real is not None
        script = directory / program
        script.write_text(
            f"#!{sys.executable}\n"
            "import sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            "from vmtests.support import broken_builds\n"
            f"broken_builds.be({name!r}, {program!r}, {real!r}, {str(script)!r})\n"
        )
        script.chmod(0o755)
    return directory / EMULATOR


def be(name: str, program: str, real: str, script: str) -> None:
    """Be that program."""
    arguments = sys.argv[1:]
    does = BROKEN[name]
    if program == "qemu-img":
        if name == "wrong-cluster-size":
            arguments = [re.sub(r"cluster_size=\d+", _half, word) for word in arguments]
        os.execv(real, [real, *arguments])
    if not any(word.startswith("socket,id=qmp,fd=") for word in arguments):
        os.execv(real, [real, *arguments])  # asked for its version
    does(real, arguments, script)


def _half(found: re.Match[str]) -> str:
    return f"cluster_size={int(found[0].rpartition('=')[2]) // 2}"


def _reference(real: str, arguments: list[str], _script: str) -> None:
    os.execv(real, [real, *arguments])


# -- in the middle of QMP ----------------------------------------------------------------------


class Middle:
    """Sits between the client and QEMU's monitor."""

    def __init__(self, real: str, arguments: list[str]) -> None:
        from qmpshim.machine.host.workspace import dies_with_owner

        (at,) = [n for n, word in enumerate(arguments) if word.startswith("socket,id=qmp,fd=")]
        self.client = socket.socket(fileno=int(arguments[at].rpartition("=")[2]))
        self.qemu, theirs = socket.socketpair()
        words = [*arguments]
        words[at] = f"socket,id=qmp,fd={theirs.fileno()}"
        self.process = subprocess.Popen(dies_with_owner([real, *words]), pass_fds=[theirs.fileno()])
        theirs.close()
        self.chance = random.Random(os.getpid())
        self.dropped: set[Any] = set()
        self.asked: dict[Any, str] = {}  # by id, the commands
        self.line: Callable[[bytes], bytes] | None = None
        self.answered: Callable[[str, Message], list[Message]] | None = None

    def run(
        self,
        command: Callable[[Message], list[Message]],
        answered: Callable[[str, Message], list[Message]] | None = None,
    ) -> None:
        """Relay until QEMU ends, and end as it did.

        :param command: gives what is sent in a command's place
        :param answered: gives what comes in the place of an answer to the command of that name
        """
        self.answered = answered
        threading.Thread(target=self._answers, daemon=True).start()
        for message in _messages(self.client):
            for one in command(message):
                self.send(one)
        self.end()

    def relay(self, line: Callable[[bytes], bytes]) -> None:
        """Relay what may be no JSON at all.

        :param line: gives what comes in the place of one line of QEMU's
        """
        self.line = line
        threading.Thread(target=self._answers, daemon=True).start()
        while data := self.client.recv(1 << 16):
            self.qemu.sendall(data)
        self.end()

    def send(self, message: Message) -> None:
        self.asked[message.get("id")] = str(message.get("execute"))
        with contextlib.suppress(OSError):
            self.qemu.sendall(json.dumps(message).encode() + b"\n")

    def answer(self, message: Message) -> None:
        """Answer a command in QEMU's place: it went well."""
        self.client.sendall(json.dumps({"return": {}, "id": message.get("id")}).encode() + b"\r\n")

    def _answers(self) -> None:
        # QEMU resets the connection when it ends with something unread.
        with contextlib.suppress(OSError), self.qemu.makefile("rb") as lines:
            for line in lines:
                if self.line is not None:
                    self.client.sendall(self.line(line))
                    continue
                message = json.loads(line)
                if message.get("id") in self.dropped:
                    continue
                if self.answered is None or "id" not in message:
                    self.client.sendall(line)
                    continue
                for one in self.answered(self.asked[message["id"]], message):
                    self.client.sendall(json.dumps(one).encode() + b"\r\n")
        self.end()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.qemu.shutdown(socket.SHUT_WR)
        status = self.process.wait()
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)
        if status < 0:
            os.kill(os.getpid(), -status)
            signal.pause()  # another thread may be the one that the signal ends us by
        os._exit(status)


def _messages(sock: socket.socket) -> Iterator[Message]:
    decoder, text = json.JSONDecoder(), ""
    while data := sock.recv(1 << 16):
        text += data.decode()
        while text := text.lstrip():
            try:
                message, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield message


Be = Callable[[str, list[str], str], None]  # what a build does: its QEMU, arguments and script


def _asking(command: Callable[[Middle, Message], list[Message]]) -> Be:
    """A build that is given other commands than are sent."""

    def be(real: str, arguments: list[str], _script: str) -> None:
        middle = Middle(real, arguments)
        middle.run(lambda message: command(middle, message))

    return be


def _checkpoint_swallowed(middle: Middle, message: Message) -> list[Message]:
    if message.get("execute") != "xen-colo-do-checkpoint":
        return [message]
    middle.answer(message)
    return []


def _late_start(real: str, arguments: list[str], _script: str) -> None:
    """A job starts only when the next command comes; it is reported as started at once."""
    middle = Middle(real, arguments)
    late: list[Message] = []

    def command(message: Message) -> list[Message]:
        words = message.get("arguments", {})
        starts = message.get("execute") == "blockdev-backup" or (
            message.get("execute") == "xen-set-replication" and words.get("enable")
        )
        before = [*late]
        late.clear()
        if not starts:
            return [*before, message]
        middle.answer(message)
        late.append({**message, "id": "x-late"})
        middle.dropped.add("x-late")
        return before

    middle.run(command)


def _lossy_relay(real: str, arguments: list[str], _script: str) -> None:
    """The hidden disk is behind an NBD server that loses each third write to its clusters."""
    from qmpshim.machine.nbd.gate.events import HeldIO
    from qmpshim.machine.nbd.gate.gate import Gate
    from qmpshim.machine.nbd.protocol.transmission import NbdCommand
    from vmtests.support import misbehaving_gate
    from vmtests.support.file_store import FileStore

    middle = Middle(real, arguments)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    seen = [0]

    def relay(path: str) -> Message:
        gate = Gate(tracing=False)
        size = os.stat(path).st_size + (64 << 20)
        gate.add("hidden", FileStore(Path(path), size))

        def hold(io: HeldIO) -> bool:
            if io.op is not NbdCommand.WRITE or io.length < 4096:
                return False
            seen[0] += 1
            if seen[0] % 3:
                return False
            loop.call_soon(lambda: misbehaving_gate.drop(gate, io))  # answered, not done
            return True

        async def start() -> dict[str, object]:
            await gate.start(Path(f"{path}.relay"))
            gate.hold(hold)
            return gate.blockdev("hidden")

        return asyncio.run_coroutine_threadsafe(start(), loop).result()

    def command(message: Message) -> list[Message]:
        words = message.get("arguments", {})
        hidden = message.get("execute") == "blockdev-add" and words.get("node-name") == "hidden"
        if hidden and words["file"]["driver"] == "file":
            words["file"] = relay(words["file"]["filename"])
        return [message]

    middle.run(command)


# -- in its answers ----------------------------------------------------------------------------

Answered = Callable[[Middle, str, Message], list[Message]]


def _answering(answered: Answered) -> Be:
    """A build that executes commands and answers otherwise."""

    def be(real: str, arguments: list[str], _script: str) -> None:
        middle = Middle(real, arguments)
        middle.run(lambda message: [message], lambda name, one: answered(middle, name, one))

    return be


def _misanswers(_middle: Middle, name: str, message: Message) -> list[Message]:
    """A boolean is reported as a string."""
    if name == "query-status" and "return" in message:
        message["return"]["running"] = str(message["return"]["running"])
    return [message]


def _forgets_a_type(_middle: Middle, name: str, message: Message) -> list[Message]:
    """The schema names a type that it does not have."""
    if name == "query-qmp-schema" and "return" in message:
        gone = next(one for one in message["return"] if one["name"] == "query-status")["ret-type"]
        message["return"] = [one for one in message["return"] if one["name"] != gone]
    return [message]


def _unknown_event(_middle: Middle, name: str, message: Message) -> list[Message]:
    """An event comes that the schema does not have."""
    event = {"event": "NO_SUCH", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}
    return [event, message] if name == "stop" else [message]


def _wrong_class(_middle: Middle, name: str, message: Message) -> list[Message]:
    """A command that is there says that it is not."""
    if name == "query-block" and "error" in message:
        message["error"]["class"] = "CommandNotFound"
    return [message]


def _takes_nonsense(_middle: Middle, name: str, message: Message) -> list[Message]:
    """An argument that is not there is taken without a word."""
    if name == "query-chardev" and "error" in message:
        return [{"return": [], "id": message["id"]}]
    return [message]


def _refuses(_middle: Middle, name: str, message: Message) -> list[Message]:
    """A command that has to work does not."""
    if name == "cont":
        return [{"error": {"class": "GenericError", "desc": "not now"}, "id": message["id"]}]
    return [message]


def _forgets_the_id(_middle: Middle, name: str, message: Message) -> list[Message]:
    """An answer does not say to what."""
    if name == "query-xen-replication-status":
        del message["id"]
    return [message]


def _says_nothing(_middle: Middle, name: str, message: Message) -> list[Message]:
    """One command is never answered."""
    return [] if name == "query-block" else [message]


def _dies_of_a_query(middle: Middle, name: str, message: Message) -> list[Message]:
    """QEMU aborts when one command has wrong arguments."""
    if name == "query-chardev" and "error" in message:
        os.kill(middle.process.pid, signal.SIGABRT)
        return []
    return [message]


def _two_faced(real: str, arguments: list[str], _script: str) -> None:
    """Gives its errors another class, and not where the shim asks: its monitor is called x-shim."""
    Middle(real, arguments).relay(
        lambda line: line.replace(b'"CommandNotFound"', b'"GenericError"')
    )


def _babbles(real: str, arguments: list[str], _script: str) -> None:
    """Somebody left a printf() in."""
    Middle(real, arguments).relay(
        lambda line: b"here we stop\n" + line if b'"event": "STOP"' in line else line
    )


def _writes_fail(_middle: Middle, message: Message) -> list[Message]:
    """Each write to the secondary disk fails, with the errno that blkdebug is given."""
    words = message.get("arguments", {})
    if message.get("execute") == "blockdev-add" and words.get("node-name") == "secondary":
        error = {"event": "none", "iotype": "write", "errno": 28}
        words["file"] = {"driver": "blkdebug", "image": words["file"], "inject-error": [error]}
    return [message]


# -- of the process ----------------------------------------------------------------------------


def _wrong_exit_status(real: str, arguments: list[str], _script: str) -> None:
    """QEMU ends well, and its status says that it did not."""
    middle = Middle(real, arguments)
    wait = middle.process.wait
    middle.process.wait = lambda timeout=None: wait(timeout) or 3  # type: ignore[method-assign]
    middle.run(lambda message: [message])


def _substituted(real: str, arguments: list[str], script: str) -> None:
    """Once started, another program is in its place."""
    other = Path(f"{script}.other")
    with contextlib.suppress(FileExistsError):
        with other.open("x") as file:
            file.write(f'#!/bin/sh\nexec {shlex.quote(real)} "$@" # another build\n')
        other.chmod(0o755)
        os.rename(other, script)
    os.execv(real, [real, *arguments])


def _dies_at(name: str) -> Be:
    """It aborts at the first command of that name, in words that a finding may have."""

    def command(middle: Middle, message: Message) -> list[Message]:
        if message.get("execute") == name:
            os.write(2, b"qemu: checkpoint.c:7: do_checkpoint: Assertion `0' failed.\n")
            os.kill(middle.process.pid, signal.SIGABRT)
        return [message]

    return _asking(command)


def _stops_now_and_then(middle: Middle, message: Message) -> list[Message]:
    """In every second checkpoint or stop, on the average, it stands still for good (SIGSTOP)."""
    does = message.get("execute") in ("xen-colo-do-checkpoint", "xen-set-replication")
    if does and middle.chance.random() < 0.5:
        os.kill(middle.process.pid, signal.SIGSTOP)
    return [message]


def _stops_itself(real: str, arguments: list[str], _script: str) -> None:
    """A second after the start it stands still for good; there is no process between it and us."""
    pid = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:  # a child of init
            time.sleep(1.0)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        os._exit(0)
    os.wait()
    os.execv(real, [real, *arguments])


def _ends_at_once(_real: str, _arguments: list[str], _script: str) -> None:
    sys.exit("qemu: cannot set up guest memory")


def _then(does: Callable[[], None]) -> Be:
    """A build that starts well and goes wrong with the first disk."""

    def command(_middle: Middle, message: Message) -> list[Message]:
        if message.get("execute") == "blockdev-add":
            does()
        return [message]

    return _asking(command)


def _hangs() -> None:
    while True:
        time.sleep(60)


def _eats_memory() -> None:
    eaten = bytearray(1200 << 20)
    for at in range(0, len(eaten), 4096):
        eaten[at] = 1
    _hangs()


def _fills_the_disk() -> None:
    with open(Path(os.environ["TMPDIR"]) / "core", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
            if file.tell() > 256 << 20:
                time.sleep(0.05)


def _kills_its_owner(real: str, arguments: list[str], _script: str) -> None:
    os.kill(os.getppid(), signal.SIGSEGV)
    os.execv(real, [real, *arguments])


BROKEN: dict[str, Be] = {
    "reference": _reference,
    "wrong-cluster-size": _reference,  # its qemu-img is not
    "checkpoint-swallowed": _asking(_checkpoint_swallowed),
    "late-start": _late_start,
    "lossy-relay": _lossy_relay,
    "substituted": _substituted,
    "wrong-exit-status": _wrong_exit_status,
    "dies-at-checkpoint": _dies_at("xen-colo-do-checkpoint"),
    "dies-building": _dies_at("blockdev-add"),
    "misanswers": _answering(_misanswers),
    "forgets-a-type": _answering(_forgets_a_type),
    "unknown-event": _answering(_unknown_event),
    "wrong-class": _answering(_wrong_class),
    "takes-nonsense": _answering(_takes_nonsense),
    "refuses": _answering(_refuses),
    "forgets-the-id": _answering(_forgets_the_id),
    "babbles": _babbles,
    "says-nothing": _answering(_says_nothing),
    "dies-of-a-query": _answering(_dies_of_a_query),
    "writes-fail": _asking(_writes_fail),
    "two-faced": _two_faced,
    "stops-now-and-then": _asking(_stops_now_and_then),
    "stops-itself": _stops_itself,
    "ends-at-once": _ends_at_once,
    "hangs": _then(_hangs),
    "eats-memory": _then(_eats_memory),
    "fills-the-disk": _then(_fills_the_disk),
    "kills-its-owner": _kills_its_owner,
}
