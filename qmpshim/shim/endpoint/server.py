"""Many QMP clients over one QEMU: each with its own negotiation, ids and order of replies."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from qmpshim.errors import CommandFailed, MachineDied, MachineHung, QmpshimError
from qmpshim.shim.endpoint.client import Client
from qmpshim.shim.endpoint.descriptors import WITH_FD, Descriptors
from qmpshim.shim.endpoint.link import Batch
from qmpshim.shim.endpoint.session import (
    GENERIC,
    NOT_FOUND,
    Answer,
    Command,
    error_reply,
    return_reply,
)
from qmpshim.shim.endpoint.upstream import Overdue, Reply, Upstream
from qmpshim.shim.endpoint.watchdog import HUNG, Watchdog
from qmpshim.shim.endpoint.window import Window
from qmpshim.shim.json.text import Value

log = logging.getLogger(__name__)

BACKLOG_LIMIT = 16 << 20  # bytes that may wait for a client that does not read
_LIMIT = 30.0  # seconds that QEMU may take to answer, by default
#: Arguments of qmp_capabilities that a QEMU which offers out-of-band execution accepts.
_GOOD: tuple[dict[str, Value] | None, ...] = (None, {}, {"enable": []}, {"enable": ["oob"]})
#: Commands whose reply is the same as long as QEMU lives.
_CONSTANT = frozenset({"query-qmp-schema", "query-commands"})
_FAREWELL = 5.0  # seconds a client has to read the last words
#: The id of exports that the shim makes for itself; their end is not reported to clients.
OWN_EXPORT = "x-shim-view"
_OWN_EXPORT_EVENT = f'"id": "{OWN_EXPORT}"'.encode()

#: Whose command the current task passes on with :meth:`Shim.forward`.
_ASKER: ContextVar[Client | None] = ContextVar("asker", default=None)

#: Answers a command of the shim's own; may raise a QmpshimError, whose text the client gets.
Handler = Callable[[dict[str, Value]], Awaitable[object]]
#: Called with a command of QEMU's and its reply.
Watcher = Callable[[Command, Reply], None]
#: Called with a command before it is sent to QEMU; returns QEMU's reply, see :meth:`Shim.forward`.
Intercept = Callable[[Command], Awaitable[Reply | None]]


@dataclass(slots=True)
class Counters:
    """What happened so far."""

    clients: int = 0
    commands: int = 0
    malformed: int = 0
    events: int = 0


class Shim:
    """The endpoint: one QEMU above, clients below.

    :param sock: a socket connected to QEMU's monitor
    :param how_ended: how QEMU ended, for the data of ``X_SHIM_QEMU_GONE``
    :param on_text: see :class:`~qmpshim.shim.endpoint.upstream.Upstream`
    """

    def __init__(
        self,
        sock: socket.socket,
        how_ended: Callable[[], dict[str, object]] = lambda: {"reason": "QEMU closed its monitor"},
        backlog_limit: int = BACKLOG_LIMIT,
        on_text: Callable[[bytes], None] | None = None,
    ) -> None:
        self.batch = Batch()
        self.backlog_limit = backlog_limit
        self.counters = Counters()
        self.clients: set[Client] = set()
        self.gone = asyncio.Event()
        #: Called with the name of each command before anything is looked up for it.
        self.before: Callable[[str], None] | None = None
        self.handlers: dict[str, Handler] = {}
        self.oob: set[str] = set()  # of the handlers, those that may run out of band
        self.patches: dict[str, Callable[[Reply], Reply]] = {}
        self.watchers: dict[str, Watcher] = {}
        self.intercepts: dict[str, Intercept] = {}
        self._listeners: dict[Client, None] = {}  # the clients that get events
        self._unspread: list[bytes] = []  # events they have not got yet
        self._how_ended = how_ended
        self._shut_down = False  # QEMU sent SHUTDOWN
        self.silent_end = False  # send clients no more than QEMU does when it ends: nothing
        self._tasks: set[asyncio.Task[None]] = set()
        self._event_waiters: list[Callable[[bytes], None]] = []
        self.upstream = Upstream(sock, self.batch, self.take_event, self._on_gone, on_text)
        self.window = Window(self.batch, lambda: self.upstream.gone)
        self._descriptors = Descriptors(self.upstream, self._finish)
        self.watchdog = Watchdog(self.upstream, self.emit)
        self._constant: dict[str, Reply] = {}  # the latest replies to _CONSTANT

    async def start(self, limit: float = 30.0) -> None:
        """Negotiate with QEMU, and watch it from then on.

        :param limit: seconds that it may take to answer anything
        :raises MachineDied: QEMU went away
        :raises MachineHung: no greeting, or no answer, within *limit* seconds
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def negotiated(error: QmpshimError | None) -> None:
            if ready.done():
                return
            if error is None:
                ready.set_result(None)
            else:
                ready.set_exception(error)

        self.upstream.start(negotiated)
        try:
            async with asyncio.timeout(limit):
                await ready
        except TimeoutError as error:
            raise MachineHung(
                f"QEMU's monitor did not greet within {limit:g} s: is another client on it?"
            ) from error
        greeting = {"QMP": self.upstream.greeting["QMP"]}
        self._greeting = json.dumps(greeting).encode() + b"\r\n"
        self.watchdog.start(limit)

    # -- clients ------------------------------------------------------------

    def attach(self, sock: socket.socket, pretty: bool = False) -> Client:
        """Serve a connected client from now on.

        :param pretty: print JSON as a monitor with ``pretty=on`` does
        """
        client = Client(self, sock, pretty)
        self.clients.add(client)
        self.counters.clients += 1
        client.write(self._greeting)
        client.link.read()
        return client

    def leave(self, client: Client) -> None:
        """The client is gone: what it still wanted and QEMU has not begun is dropped."""
        if client not in self.clients:
            return
        self.clients.discard(client)
        self._listeners.pop(client, None)
        client.link.release()
        client.session.close()

    def take(self, client: Client, work: Answer | Command) -> None:
        """Do one piece of work for *client*."""
        if isinstance(work, Answer):
            self.counters.malformed += 1
            client.answered(work.reply, work.oob)
            return
        self.counters.commands += 1
        if not work.oob:
            self.window.begin()
        if not client.session.negotiated:
            self._negotiate(client, work)
            return
        if self.before is not None:
            self.before(work.name)
        if work.name in self.handlers:
            self._own(client, work)
        elif self.watchdog.is_hung and not work.oob:
            self._answer_without_qemu(client, work)
        elif work.name in self.intercepts and not work.oob:
            self._later(self._intercept(client, work))
        elif work.name in WITH_FD:
            self._descriptors.pass_on(client, work)
        else:
            self._forward(client, work)

    def _forward(self, client: Client, command: Command) -> None:
        def answered(reply: Reply | None) -> None:
            self._finish(client, command, reply)

        def late(reply: Reply) -> None:
            self._watched(command, reply)

        self.upstream.send(command.name, command.arguments, answered, command.oob, late=late)

    def _answer_without_qemu(self, client: Client, command: Command) -> None:
        """While QEMU does not answer: status queries are answered, all else with an error."""
        reply = None if command.arguments else self._constant.get(command.name)
        patch = self.patches.get(command.name)
        if reply is None:
            reply = self.watchdog.refusal
        elif patch is not None:
            reply = patch(reply)
        self._answer(client, command, reply.with_id(command.id))

    def _answer(self, client: Client, command: Command, text: bytes) -> None:
        """Answer a command while its client is being served, which will go on with the next."""
        client.answered(text, command.oob)
        if not command.oob:
            self.window.end()

    def _watched(self, command: Command, reply: Reply) -> None:
        """Record QEMU's reply to a command."""
        watcher = self.watchers.get(command.name)
        if watcher is not None:
            watcher(command, reply)
        if command.name in _CONSTANT and not reply.failed:
            self._constant[command.name] = reply

    def _finish(self, client: Client, command: Command, reply: Reply | None) -> None:
        if reply is None:
            desc = "QEMU went away before it answered"
            text = (
                b""
                if self._shut_down or self.silent_end
                else error_reply(GENERIC, desc, command.id)
            )
        elif isinstance(reply, Overdue):
            text = reply.with_id(command.id)
        else:
            self._watched(command, reply)
            patch = self.patches.get(command.name)
            if patch is not None and not reply.failed:
                reply = patch(reply)
            text = reply.with_id(command.id)
        self._finish_with(client, command, text)

    def _finish_with(self, client: Client, command: Command, text: bytes) -> None:
        client.answered(text, command.oob)
        if not command.oob:
            self.window.end()
            self.window.next_turns()
        client.pump()

    def _negotiate(self, client: Client, command: Command) -> None:
        """QEMU has negotiated with the shim: it checks the arguments, the shim does the rest."""

        def judged(reply: Reply | None) -> None:
            if reply is None or reply.value().get("error", {}).get("class") != NOT_FOUND:
                self._finish(client, command, reply)
                return
            self._finish_with(client, command, self._negotiated(client, command))

        if command.arguments in _GOOD:
            self._answer(client, command, self._negotiated(client, command))
            if self.watchdog.is_hung:
                client.write(self._event(HUNG, self.watchdog.event))
        elif self.watchdog.is_hung:
            self._answer(client, command, self.watchdog.refusal.with_id(command.id))
        else:
            self.upstream.send(command.name, command.arguments, judged)

    def _negotiated(self, client: Client, command: Command) -> bytes:
        """Let a client in, or not; the reply to it."""
        enable = (command.arguments or {}).get("enable", [])
        assert isinstance(enable, list)
        if "oob" in enable and not self.upstream.oob:
            return error_reply(GENERIC, "Capability oob not available", command.id)
        client.session.oob = "oob" in enable
        client.session.negotiated = True
        self.spread()  # not to the newcomer
        if client in self.clients:
            self._listeners[client] = None
        return return_reply({}, command.id)

    # -- the shim's own commands ------------------------------------------------------------

    def _own(self, client: Client, command: Command) -> None:
        if command.oob and command.name not in self.oob:
            desc = f"The command {command.name} does not support OOB"
            self._finish_with(client, command, error_reply(GENERIC, desc, command.id))
            return
        self._later(self._run_own(client, command))

    def _later(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _intercept(self, client: Client, command: Command) -> None:
        _ASKER.set(client)  # seen by this task alone
        try:
            reply = await self.intercepts[command.name](command)
        except QmpshimError as error:
            log.warning("%s: %s", command.name, error)
            reply = await self.forward(command)
        except Exception as error:
            text = _defect(command, error)
            with self.batch:
                self._finish_with(client, command, text)
            return
        with self.batch:
            self._finish(client, command, reply)

    async def forward(self, command: Command) -> Reply | None:
        """Send a client's command to QEMU; None when QEMU goes away first.

        The reply keeps its place among what QEMU sends the client, however long an intercept
        works on after it.
        """
        if self.watchdog.is_hung:
            return self.watchdog.refusal
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        asker = _ASKER.get()

        def answered(reply: Reply | None) -> None:
            if asker is not None and reply is not None:
                asker.expects(oob=False)
            if not future.done():
                future.set_result(reply)

        self.upstream.send(command.name, command.arguments, answered)
        return await future

    async def _run_own(self, client: Client, command: Command) -> None:
        try:
            value = await self.handlers[command.name](command.arguments or {})
            text = return_reply(value, command.id)
        except QmpshimError as error:
            text = error_reply(GENERIC, str(error), command.id)
        except OSError as error:
            text = error_reply(GENERIC, f"{error.filename}: {error.strerror}", command.id)
        except Exception as error:
            text = _defect(command, error)
        with self.batch:
            self._finish_with(client, command, text)

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, limit: float | None = None
    ) -> Any:
        """Run a command for the shim itself.

        :param limit: seconds that it may take, if not as long as any other
        :raises CommandFailed: QEMU answered with an error
        :raises MachineDied: QEMU went away
        :raises MachineHung: no answer within *limit* seconds
        """
        if self.watchdog.is_hung:
            silent = self.upstream.silent_for
            raise MachineHung(f"{command}: QEMU has not answered for {silent:.0f} s")
        if limit is None:
            limit = self.watchdog.limit or _LIMIT
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def answered(reply: Reply | None) -> None:
            if not future.done():
                future.set_result(reply)

        self.upstream.send(command, None if arguments is None else dict(arguments), answered)
        try:
            async with asyncio.timeout(limit):
                reply = await future
        except TimeoutError as error:
            raise MachineHung(f"{command}: no answer in {limit:g} s") from error
        return _returned(command, reply)

    async def perform(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a command as if a client had sent it: what intercepts those does so here, too.

        :raises CommandFailed: QEMU answered with an error
        :raises MachineDied: QEMU went away
        :raises MachineHung: it does not answer
        """
        command = Command(name, None if arguments is None else dict(arguments), None, False)
        return _returned(name, await self.intercepts.get(name, self.forward)(command))

    # -- events and the end ------------------------------------------------------------

    def take_event(self, line: bytes) -> None:
        """Pass an event on to all clients, and to those that wait for it in the shim."""
        if _OWN_EXPORT_EVENT in line:
            return
        self.counters.events += 1
        if b'"event": "SHUTDOWN"' in line:
            self._shut_down = True
        if not self._unspread:
            self.batch.at_end(self.spread)
        self._unspread.append(line)
        for waiter in self._event_waiters:
            waiter(line)

    def spread(self) -> None:
        """Send the events that came in this packet, all at once: there may be many listeners."""
        if not self._unspread:
            return
        data = b"".join(self._unspread)
        self._unspread.clear()
        for listener in list(self._listeners):
            listener.happened(data)

    def on_event(self, waiter: Callable[[bytes], None]) -> None:
        """Call *waiter* with each event, as the text QEMU sent."""
        self._event_waiters.append(waiter)

    def emit(self, event: str, data: Mapping[str, object]) -> None:
        """Send an event of the shim's own to every client."""
        with self.batch:
            self.take_event(self._event(event, data))

    @staticmethod
    def _event(event: str, data: Mapping[str, object]) -> bytes:
        micros = time.time_ns() // 1000
        message = {
            "timestamp": {"seconds": micros // 1_000_000, "microseconds": micros % 1_000_000},
            "event": event,
            "data": data,
        }
        return json.dumps(message).encode() + b"\r\n"

    def _on_gone(self) -> None:
        with self.batch:
            for client in list(self.clients):
                client.pump()
            if not (self._shut_down or self.silent_end):
                self.emit("X_SHIM_QEMU_GONE", self._how_ended())
        self.gone.set()
        self._farewell = asyncio.get_running_loop().create_task(self.close())

    async def close(self) -> None:
        """Let clients read the last words, and hang up."""
        deadline = time.monotonic() + _FAREWELL
        while self.gone.is_set() and self._tasks and (left := deadline - time.monotonic()) > 0:
            # Commands that need QEMU fail now; their clients must still get that reply.
            await asyncio.wait(tuple(self._tasks), timeout=left)
        self.watchdog.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while (  # noqa: ASYNC110 (many may have to be drained)
            any(client.link.backlog for client in self.clients) and time.monotonic() < deadline
        ):
            await asyncio.sleep(0.01)
        for client in list(self.clients):
            self.leave(client)
        self.upstream.close()


def _returned(command: str, reply: Reply | None) -> Any:
    """What a reply returns.

    :raises CommandFailed: it is an error
    :raises MachineDied: there is none
    :raises MachineHung: none came in time
    """
    if reply is None:
        raise MachineDied(f"QEMU went away during {command}")
    if isinstance(reply, Overdue):
        raise MachineHung(f"{command}: {reply.desc}")
    value = reply.value()
    if "error" in value:
        raise CommandFailed(command, value["error"]["class"], value["error"]["desc"])
    return value["return"]


def _defect(command: Command, error: Exception) -> bytes:
    """The reply to a command that failed in the shim: its client must not wait for ever."""
    log.error("%s", command.name, exc_info=error)
    return error_reply(GENERIC, f"defect in the shim: {error!r}", command.id)
