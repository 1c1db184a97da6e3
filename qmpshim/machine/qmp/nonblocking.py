"""A non-blocking QMP client: answers arrive while the manual event loop is polled."""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from qmpshim.errors import CommandFailed, MachineDied, MachineHung, OptionMissing, ProtocolBroken
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.host.polled_connection import PolledConnection, waited

_LOG = 300  # QMP messages


class NonBlockingQmp(PolledConnection):
    """A QMP connection over a connected socket; answers are kept by id until they are taken.

    :ivar wrong: what came is not QMP, and no more is read
    :ivar log: the latest messages of both sides
    :ivar commands: those that there are; None: all that are sent
    """

    def __init__(self, event_loop: ManualEventLoop, sock: socket.socket) -> None:
        super().__init__(event_loop, sock)
        self._buffer = b""
        self._count = 0
        self._unanswered: set[int] = set()
        self.answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.greeting: dict[str, Any] | None = None
        self.log: deque[dict[str, Any]] = deque(maxlen=_LOG)
        self.wrong: ProtocolBroken | None = None
        self.commands: Collection[str] | None = None

    def send(self, command: str, arguments: Mapping[str, Any] | None = None) -> int:
        """Send a command.

        :returns: the key its answer will have in :attr:`answers`
        :raises OptionMissing: there is no such command
        """
        if self.commands is not None and command not in self.commands:
            raise OptionMissing(f"this program has no {command}")
        self._count += 1
        message: dict[str, Any] = {"execute": command, "id": self._count}
        if arguments:
            message["arguments"] = dict(arguments)
        self.log.append(message)
        self._unanswered.add(self._count)
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.lost = True
        return self._count

    def take(self, command: str, number: int) -> Any:
        """The value a command returned; it must have been answered.

        :raises CommandFailed: it was answered with an error
        """
        answer = self.answers.pop(number)
        if "error" in answer:
            raise CommandFailed(command, answer["error"]["class"], answer["error"]["desc"])
        return answer["return"]

    def call(
        self, command: str, arguments: Mapping[str, Any] | None = None, limit: float = 20.0
    ) -> Any:
        """Send a command and wait for what it returns.

        :raises CommandFailed: it was answered with an error
        :raises MachineDied: the connection ended
        :raises MachineHung: no answer within *limit* seconds, or none that can come any more
        :raises ProtocolBroken: something else came
        """
        number = self.send(command, arguments)
        self.wait(command, number, limit)
        return self.take(command, number)

    def wait(self, command: str, number: int, limit: float = 20.0) -> None:
        """Wait for an answer; see :meth:`call`."""
        began = time.monotonic()
        if not self._event_loop.until(lambda: number in self.answers or self.over, limit):
            raise MachineHung(f"{command}: no answer in {waited(began, limit)}")
        if number not in self.answers:
            raise self.wrong or MachineDied(f"QEMU went away during {command}")

    @property
    def over(self) -> bool:
        """Whether nothing more will come: the connection ended, or what came is not QMP."""
        return self.lost or self.wrong is not None

    def _take(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.strip() and (fault := self.take_message(line)):
                text = line.strip().decode(errors="replace")[:200]
                self.wrong = ProtocolBroken(f"QEMU's monitor said {text!r}: {fault}")
                self._event_loop.on_readable(self._sock.fileno(), None)
                return

    def take_message(self, line: bytes) -> str:
        """Keep a message; what is wrong with it, if anything."""
        try:
            message = json.loads(line)
        except ValueError:
            return "that is no JSON"
        if not isinstance(message, dict):
            return "that is no message"
        self.log.append(message)
        if "event" in message:
            self.events.append(message)
        elif "QMP" in message:
            self.greeting = message
        elif "return" not in message and not _is_error(message.get("error")):
            return "neither an event nor an answer"
        elif not isinstance(number := message.get("id"), int) or number not in self._unanswered:
            return "an answer to nothing that was asked"
        else:
            self._unanswered.remove(number)
            self.answers[number] = message
        return ""

    def close(self) -> None:
        """Close the connection."""
        self._event_loop.forget(self._sock.fileno())
        self._sock.close()


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and {"class", "desc"} <= value.keys()
