"""Gated storage: an NBD server whose caller holds, releases, fails or corrupts each request.

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

The advertised block sizes are minimum 1, preferred 4096, maximum 32 MiB: ``nbd_refresh_limits``
(QEMU 7.2 block/nbd.c) makes the minimum its ``request_alignment``, so 1 lets every request through
as the layer above made it, neither rounded nor read-modify-written, and 32 MiB is the most that
driver sends anyhow. QEMU keeps at most 16 requests in flight on a connection (MAX_NBD_REQUESTS).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from qmpshim.errors import HostError, InputError, MachineError
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.nbd import protocol as nbd
from qmpshim.machine.nbd.gate.connection import (
    OPS,
    REQUEST_WEIGHT,
    Connection,
    ExportedImage,
    Pending,
)
from qmpshim.machine.nbd.gate.events import Event, EventKind, HeldIO
from qmpshim.machine.nbd.gate.journal import Journal
from qmpshim.machine.nbd.gate.polled import PolledServer
from qmpshim.machine.nbd.gate.store import Store
from qmpshim.machine.nbd.protocol import NbdCommand, Request
from qmpshim.machine.nbd.uri import nbd_uri

__all__ = ["Event", "EventKind", "Gate", "HeldIO"]


class Gate:
    """An NBD server on a unix socket with several images, whose requests can be held.

    :param tracing: whether :attr:`trace` grows; a plain attribute, to be changed at any time

    Held requests end by :meth:`release`, :meth:`fail`, :meth:`drop`, :meth:`corrupt`,
    :meth:`reply_twice`, :meth:`reply` after :meth:`apply`, or with their connection; each of
    these raises :class:`MachineError` when the request is not held (any more).
    """

    def __init__(self, tracing: bool = True) -> None:
        self.tracing = tracing
        self.trace: list[Event] = []  # clear it at will
        self.clock = 0  # the seq of the latest request or event
        self._last_arrival = 0
        self._images: dict[str, ExportedImage] = {}
        self._policy: Callable[[HeldIO], bool] | None = None
        self._pending: dict[int, Pending] = {}
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[bool]]] = []
        self._connections: dict[int, Connection] = {}
        self._connection_count = 0
        self._server: asyncio.Server | PolledServer | None = None
        self._path: Path | None = None

    # Images and the server

    def add(
        self,
        name: str,
        store: Store,
        *,
        read_only: bool = False,
        without: Iterable[NbdCommand] = (),
    ) -> None:
        """Export ``store`` as ``name``.

        :param without: commands not to offer (FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS)
        :raises InputError: the name is taken
        """
        if name in self._images:
            raise InputError(f"the gate has an image {name!r} already")
        self._images[name] = ExportedImage(name, store, read_only, frozenset(without))

    def store(self, name: str) -> Store:
        """The store behind an image.

        :raises InputError: no such image
        """
        return self._image(name).store

    def snapshot(self, name: str) -> bytes:
        """The image's exact bytes at this instant.

        :raises InputError: no such image
        """
        return self.store(name).snapshot()

    def keep_journals(self) -> None:
        """Note from now on what a loss of power may undo; all that is there is durable."""
        for image in self._images.values():
            if image.journal is None:
                image.journal = Journal(image.store)
            image.journal.restart()

    def journal(self, name: str) -> Journal:
        """What a loss of power may undo of an image.

        :raises InputError: no such image, or no journals are kept
        """
        journal = self._image(name).journal
        if journal is None:
            raise InputError("the gate keeps no journals")
        return journal

    def counts(self, name: str) -> dict[NbdCommand, int]:
        """How many requests of each kind arrived for an image, held or passed.

        :raises InputError: no such image
        """
        return dict(self._image(name).counts)

    def connections(self, name: str) -> list[int]:
        """The connections that are using an image now.

        :raises InputError: no such image
        """
        image = self._image(name)
        return [number for number, conn in self._connections.items() if conn.image is image]

    async def start(self, path: Path) -> None:
        """Listen on the unix socket ``path``.

        :raises HostError: the socket cannot be made (a path of 108 bytes or more, for example)
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), str(path))
        except OSError as error:
            raise HostError(f"cannot listen on {path}: {error}") from error
        self._path = path

    def serve(self, event_loop: ManualEventLoop, path: Path) -> None:
        """As :meth:`start`; clients are served while a loop of this kind is polled."""
        try:
            self._server = PolledServer(event_loop, path, lambda: Connection(self))
        except OSError as error:
            raise HostError(f"cannot listen on {path}: {error}") from error
        self._path = path

    def close(self) -> None:
        """Drop every connection and stop listening; the stores stay open."""
        for connection in list(self._connections.values()):
            connection.cut()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def stop(self) -> None:
        """As :meth:`close`, after :meth:`start`; returns when asyncio's server is closed."""
        server = self._server
        self.close()
        if isinstance(server, asyncio.Server):
            await server.wait_closed()

    def uri(self, name: str) -> str:
        """The image's NBD URI (``nbd+unix:``), for qemu-img, libnbd and the like.

        :raises InputError: no such image, or the gate was not started
        """
        return nbd_uri(self._image(name).name, self._socket)

    def blockdev(self, name: str) -> dict[str, object]:
        """The image as QEMU's ``BlockdevOptionsNbd``.

        :raises InputError: no such image, or the gate was not started
        """
        server = {"type": "unix", "path": self._socket}
        return {"driver": "nbd", "server": server, "export": self._image(name).name}

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

    async def arrival(self, since: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until a request later than ``since`` (a seq, e.g. :attr:`clock`) has arrived.

        :param timeout: seconds
        :returns: False when the time ran out
        """
        return await self.until(lambda: self._last_arrival > since, timeout)

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
        pending = self._take(io, whole=False)
        self._end(pending, EventKind.RELEASE, pending.performed())

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
        pending = self._take(io)
        self._end(pending, EventKind.FAIL, pending.connection.error(pending.request, errno), errno)

    def apply(self, io: HeldIO) -> None:
        """Perform the request on the image and go on holding the reply.

        A read takes its data now. Applying twice has no further effect.
        """
        pending = self._take(io, keep=True, whole=False)
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

        :raises InputError: the request was not applied; :meth:`drop` replies without effect
        """
        self._applied(io)
        pending = self._take(io, whole=False)
        self._end(pending, EventKind.REPLY, pending.performed())

    def drop(self, io: HeldIO) -> None:
        """Reply success to a WRITE, WRITE_ZEROES, TRIM or FLUSH without performing it.

        :raises InputError: the request wants data, which only the image or :meth:`corrupt` has
        """
        if io.op in (NbdCommand.READ, NbdCommand.BLOCK_STATUS):
            raise InputError(f"{io}: only a request without data in the reply can be dropped")
        pending = self._take(io)
        self._end(pending, EventKind.DROP, nbd.simple_reply(pending.request.cookie))

    def lose_reply(self, io: HeldIO) -> None:
        """Perform the request and never reply."""
        pending = self._take(io)
        pending.performed()
        pending.connection.weight -= REQUEST_WEIGHT + len(io.data)
        self._note(EventKind.APPLY, io)

    def corrupt(self, io: HeldIO, data: bytes) -> None:
        """Reply ``data`` to a READ, or put ``data`` into the image for a WRITE and reply success.

        :raises InputError: another request, or data of another length
        """
        if io.op not in (NbdCommand.READ, NbdCommand.WRITE) or len(data) != io.length:
            raise InputError(f"{io}: cannot be corrupted with {len(data)} bytes")
        pending = self._take(io)
        connection, request = pending.connection, pending.request._replace(data=data)
        if io.op is NbdCommand.READ:
            self._end(pending, EventKind.CORRUPT, connection.content(request, data))
        else:
            self._end(pending, EventKind.CORRUPT, connection.perform(request))

    def reply_twice(self, io: HeldIO) -> None:
        """Release the request, and send its reply a second time."""
        pending = self._take(io)
        self._end(pending, EventKind.RELEASE, pending.performed() * 2)
        self._note(EventKind.REPLY, io)

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

    def refuse(self, name: str, refused: bool = True) -> None:
        """Make the image unknown to clients that connect from now on, or known again.

        :raises InputError: no such image
        """
        self._image(name).refused = refused

    # Callbacks of the connections

    def lookup(self, name: str) -> nbd.Export | None:
        """What a new client may know of an image; None when there is none or it is refused."""
        image = self._images.get(name)
        return None if image is None or image.refused else image.export

    def names(self) -> list[str]:
        """The images that LIST names."""
        return [image.name for image in self._images.values() if not image.refused]

    def accepted(self, connection: Connection) -> int:
        """A client connected; the connection's number."""
        self._connection_count += 1
        self._connections[self._connection_count] = connection
        return self._connection_count

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
        self.clock = self._last_arrival = seq = self.clock + 1
        op = OPS[kind]
        image.counts[op] += 1
        if op is NbdCommand.FLUSH and image.journal is not None:
            image.journal.flush_begins((connection.number, request.cookie))
        policy = self._policy
        if policy is not None:
            fua, no_hole = flags & nbd.CMD_FUA != 0, flags & nbd.CMD_NO_HOLE != 0
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

    @property
    def _socket(self) -> str:
        if self._path is None:
            raise InputError("the gate was not started")
        return str(self._path)

    def _image(self, name: str) -> ExportedImage:
        try:
            return self._images[name]
        except KeyError:
            raise InputError(f"the gate has no image {name!r}") from None

    def _applied(self, io: HeldIO) -> Pending:
        pending = self._take(io, keep=True, whole=False)
        if pending.answer is None:
            raise InputError(f"{io}: apply it before the reply, or drop it")
        return pending

    def _take(self, io: HeldIO, keep: bool = False, whole: bool = True) -> Pending:
        """What is held of a request, which is held no longer.

        :param keep: it still is
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

    def _end(self, pending: Pending, kind: EventKind, answer: bytes, errno: int = 0) -> None:
        io, connection = pending.io, pending.connection
        connection.weight -= REQUEST_WEIGHT + len(io.data)
        if pending.reply_begun:
            connection.end_reply(answer)
        else:
            connection.send(answer)
        self._note(kind, io, errno)
        connection.settled()

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
