"""Gated storage: an NBD server whose caller holds, releases or fails each request.

Its images and clients are those of :class:`.image_server.ImageServer`.

QEMU opens its images with ``driver=nbd`` on a :class:`Gate`; each request it makes becomes a
:class:`HeldIO` that stays in :attr:`Gate.held` until the caller decides how it ends. A policy
(:meth:`Gate.hold`) selects the requests that wait; the others pass at once (an *open* gate).

* The effect happens at release, not at arrival: a held write has not reached the image, a held
  read sees what is there when it is released. Effects happen in the order of the calls.
  :meth:`Gate.apply` and :meth:`Gate.reply` do the two halves apart.
* Effects are in the image at once: :meth:`Gate.snapshot` is what a crash of QEMU now would leave.
  What a loss of power would leave is in :meth:`Gate.journal`, once :meth:`Gate.keep_journals` was
  called. A FLUSH is an ordinary request (of length 0) that may be held too.
* Arrival order is exact within a connection. Between connections it is the order in which the
  event loop read the sockets; only a request that QEMU sent *because of* a reply surely follows.
* The calls are plain functions for the thread of the event loop. The client must be another
  process, or a thread that lets this one run: a client that blocks the loop waits for ever.
* Replies are handed to the socket in the order of the calls; :meth:`Gate.cut` discards what the
  socket had not taken yet, as a broken network would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qmpshim.errors import InputError, MachineError
from qmpshim.machine.nbd.gate.connection import (
    OPS,
    REQUEST_WEIGHT,
    Connection,
    ExportedImage,
    Pending,
)
from qmpshim.machine.nbd.gate.events import Event, EventKind, HeldIO
from qmpshim.machine.nbd.gate.image_server import ImageServer
from qmpshim.machine.nbd.protocol.transmission import CMD_FUA, CMD_NO_HOLE, NbdCommand, Request


class Gate(ImageServer):
    """A server of images whose requests can be held.

    :param tracing: whether :attr:`trace` grows; a plain attribute, to be changed at any time

    Held requests end by :meth:`release`, :meth:`fail`, :meth:`reply` after :meth:`apply`, otherwise
    by :meth:`end` of what :meth:`take` gives, or with their connection; each of these raises
    :class:`MachineError` when the request is not held (any more).
    """

    def __init__(self, tracing: bool = True) -> None:
        super().__init__()
        self.tracing = tracing
        self.trace: list[Event] = []  # clear it at will
        self.clock = 0  # the seq of the latest request or event
        self._policy: Callable[[HeldIO], bool] | None = None
        self._pending: dict[int, Pending] = {}
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[bool]]] = []

    # Policy and waiting

    def hold(self, *what: str | Callable[[HeldIO], bool]) -> None:
        """From now on hold the requests for these images or of these predicates; pass others.

        Without arguments every request is held. Replaces the former policy.

        :raises InputError: no such image
        """
        names = frozenset(self._image(name).name for name in what if isinstance(name, str))
        tests = [test for test in what if not isinstance(test, str)]
        if tests:
            self._policy = lambda io: io.image in names or any(test(io) for test in tests)
        else:
            self._policy = lambda io: not what or io.image in names

    def open(self) -> None:
        """From now on pass every request; what is held stays held."""
        self._policy = None

    @property
    def held(self) -> list[HeldIO]:
        """The requests that wait, in order of arrival (applied ones included)."""
        return [pending.io for pending in self._pending.values()]

    def holds(self, io: HeldIO) -> bool:
        """Whether a request still waits."""
        return io.seq in self._pending

    async def until(
        self,
        condition: Callable[[], bool],
        timeout: float,  # noqa: ASYNC109 - running out of time is an answer here, not an error
    ) -> bool:
        """Wait until ``condition()`` is true; it is tried now and after each event.

        :param timeout: seconds
        :returns: False when the time ran out
        """
        if condition():
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        entry = (condition, waiter)
        self._waiters.append(entry)
        timer = loop.call_later(timeout, _settle, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiters.remove(entry)

    # How a held request ends

    def release(self, io: HeldIO) -> None:
        """Perform the request on the image (unless applied before) and reply."""
        pending = self.take(io, whole=False)
        self.end(pending, EventKind.RELEASE, pending.performed())

    def release_all(self) -> None:
        """Release everything that is held, in order of arrival."""
        for io in self.held:
            self.release(io)

    def fail(self, io: HeldIO, errno: int) -> None:
        """Reply with an error, without effect (or after it, if the request was applied).

        :param errno: a system errno; those NBD has no word for reach the client as EINVAL
        :raises InputError: ``errno`` is not an error
        """
        if errno <= 0:
            raise InputError(f"{errno} is no errno")
        pending = self.take(io)
        self.end(pending, EventKind.FAIL, pending.connection.error(pending.request, errno), errno)

    def apply(self, io: HeldIO) -> None:
        """Perform the request on the image and go on holding the reply.

        A read takes its data now. Applying twice has no further effect.
        """
        pending = self.take(io, keep=True, whole=False)
        if pending.answer is None:
            pending.performed()
            self._note(EventKind.APPLY, io)

    def begin_reply(self, io: HeldIO, count: int) -> None:
        """Send the first *count* bytes of an applied request's reply and go on holding the rest.

        The rest follows by :meth:`reply` (or :meth:`release`); until then no other way to end the
        request is open but :meth:`cut`, and replies to others wait on this connection: an NBD reply
        is one piece of the stream.

        :raises InputError: the request was not applied, or this connection has a reply begun
        """
        pending = self._applied(io)
        if pending.connection.reply_begun:
            raise InputError(f"{io}: its connection is in the middle of a reply")
        answer = pending.performed()
        pending.connection.begin_reply(answer[:count])
        pending.answer, pending.reply_begun = answer[count:], True

    def reply(self, io: HeldIO) -> None:
        """Send the reply of an applied request, or the rest of it.

        :raises InputError: the request was not applied
        """
        self._applied(io)
        pending = self.take(io, whole=False)
        self.end(pending, EventKind.REPLY, pending.performed())

    def take(self, io: HeldIO, keep: bool = False, whole: bool = True) -> Pending:
        """What is held of a request, which is held no longer.

        It is for :meth:`end`.

        :param keep: it is held still
        :param whole: another reply takes the place of its own, so none of that may be sent yet
        """
        pending = self._pending.get(io.seq)
        if pending is None or pending.io != io:
            raise MachineError(f"{io} is not held (any more)")
        if whole and pending.reply_begun:
            raise InputError(f"{io}: its reply was begun, and only the rest of it can follow")
        if not keep:
            del self._pending[io.seq]
        return pending

    def end(self, pending: Pending, kind: EventKind, answer: bytes, errno: int = 0) -> None:
        """End a request that was taken.

        :param answer: all that is still sent of its reply
        """
        io, connection = pending.io, pending.connection
        connection.weight -= REQUEST_WEIGHT + len(io.data)
        if pending.reply_begun:
            connection.end_reply(answer)
        else:
            connection.send(answer)
        self._note(kind, io, errno)
        connection.settled()

    def cut(self, what: HeldIO | int | str) -> None:
        """Drop the connection of a request, a connection by number, or all those of an image.

        What these connections had waiting is gone, without effect unless it was applied.

        :raises InputError: no such image
        :raises MachineError: no such connection (any more)
        """
        if isinstance(what, HeldIO):
            what = what.connection
        for number in self.connections(what) if isinstance(what, str) else [what]:
            connection = self._connections.get(number)
            if connection is None:
                raise MachineError(f"connection {number} has ended")
            connection.cut()

    # Callbacks of the connections

    def opened(self, connection: Connection, name: str) -> ExportedImage:
        """A connection begins its transmission phase."""
        self._note_connection(EventKind.CONNECT, connection.number, name)
        return self._images[name]

    def closed(self, connection: Connection) -> None:
        """A connection ended; may be called twice."""
        if self._connections.pop(connection.number, None) is None or connection.image is None:
            return
        for pending in [p for p in self._pending.values() if p.connection is connection]:
            del self._pending[pending.io.seq]
            self._note(EventKind.LOST, pending.io)
        self._note_connection(EventKind.DISCONNECT, connection.number, connection.image.name)

    def arrived(self, connection: Connection, image: ExportedImage, request: Request) -> None:
        """A sound request came in: pass or hold it."""
        flags, kind, _, offset, length, data = request
        self.clock = seq = self.clock + 1
        op = OPS[kind]
        image.counts[op] += 1
        if op is NbdCommand.FLUSH and image.journal is not None:
            image.journal.flush_begins((connection.number, request.cookie))
        policy = self._policy
        if policy is not None:
            fua, no_hole = flags & CMD_FUA != 0, flags & CMD_NO_HOLE != 0
            number = connection.number
            io = HeldIO(seq, image.name, op, offset, length, data, fua, no_hole, number)
            if policy(io):
                self._pending[seq] = Pending(io, connection, request)
                connection.weight += REQUEST_WEIGHT + len(data)
                self._record(
                    Event(seq, EventKind.ARRIVE, seq, image.name, op, offset, length, number)
                )
                return
        connection.send(connection.perform(request))
        if self.tracing or self._waiters:
            self._record(
                Event(seq, EventKind.PASS, seq, image.name, op, offset, length, connection.number)
            )

    # Below the surface

    def _applied(self, io: HeldIO) -> Pending:
        pending = self.take(io, keep=True, whole=False)
        if pending.answer is None:
            raise InputError(f"{io}: apply it before the reply")
        return pending

    def _note(self, kind: EventKind, io: HeldIO, errno: int = 0) -> None:
        self.clock += 1
        place = (io.seq, io.image, io.op, io.offset, io.length, io.connection)
        self._record(Event(self.clock, kind, *place, errno))

    def _note_connection(self, kind: EventKind, number: int, image_name: str) -> None:
        self.clock += 1
        self._record(Event(self.clock, kind, 0, image_name, None, 0, 0, number))

    def _record(self, event: Event) -> None:
        if self.tracing:
            self.trace.append(event)
        for condition, waiter in self._waiters:
            if condition():
                _settle(waiter, True)


def _settle(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)
