"""A stream socket driven by asyncio's readiness, with file descriptors and bounded memory."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

READ_SIZE = 1 << 16
_MAX_FDS = 16  # what QEMU takes with one message (io/channel-socket.c)
_SPACE = socket.CMSG_SPACE(_MAX_FDS * 4)


class Receiver(Protocol):
    """The callbacks of a link."""

    def received(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Bytes came in, and with their first byte *fds*, which now belong to the receiver."""

    def ended(self, gone: bool) -> None:
        """No more bytes will come; *gone*: nor will any that are sent arrive."""

    def drained(self) -> None:
        """After :meth:`Link.when_drained`: the kernel has all that was written."""


class _NoReceiver:
    """Takes the receiver's place when it has no more interest: a link in a cycle lives too long."""

    def received(self, data: bytes, fds: tuple[int, ...]) -> None:
        for fd in fds:
            os.close(fd)

    def ended(self, gone: bool) -> None:
        pass

    def drained(self) -> None:
        pass


#: Ignores what comes.
NO_RECEIVER = _NoReceiver()


class Batch:
    """Holds writes back while one packet is being digested, so that each link gets one send."""

    def __init__(self) -> None:
        self._depth = 0
        self._dirty: dict[Link, None] = {}
        self._last: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        if self._depth == 1:
            while self._dirty or self._last:
                last, self._last = self._last, []
                for do in last:
                    do()
                dirty, self._dirty = self._dirty, {}
                for link in dirty:
                    link.flush()
        self._depth -= 1

    def at_end(self, do: Callable[[], None]) -> None:
        """Call *do* when the batch ends, before the links are flushed; soon, if there is none."""
        if self._depth:
            self._last.append(do)
        else:
            asyncio.get_running_loop().call_soon(self._alone, do)

    def _alone(self, do: Callable[[], None]) -> None:
        with self:
            do()

    def add(self, link: Link) -> None:
        """Flush *link* when the batch ends, or now when there is none."""
        if self._depth:
            self._dirty[link] = None
        else:
            link.flush()


class Link:
    """One connected, non-blocking stream socket.

    :param limit: bytes that may wait to be sent before the peer counts as stuck and is cut off;
        None for no limit. One message of any size may always wait.
    """

    def __init__(
        self, sock: socket.socket, receiver: Receiver, batch: Batch, limit: int | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._receiver: Receiver = receiver
        self._batch = batch
        self._limit = limit
        self._unix = sock.family == socket.AF_UNIX
        self._out: deque[bytes] = deque()
        self._fds: deque[tuple[int, int]] = deque()  # (items before it, descriptor to go along)
        self._sent = 0  # items sent so far, for _fds
        self._queued = 0
        self._blocked = False
        self._reading = False
        self._report_drained = False
        self.backlog = 0  # bytes
        self.closed = False
        sock.setblocking(False)
        if not self._unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def passes_fds(self) -> bool:
        """Whether file descriptors can go over this link."""
        return self._unix

    def read(self, wanted: bool = True) -> None:
        """Begin to read, or stop for a while."""
        if wanted == self._reading or self.closed:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._sock, self._readable)
        else:
            self._loop.remove_reader(self._sock)

    def _readable(self) -> None:
        try:
            if self._unix:
                data, ancillary, _flags, _ = self._sock.recvmsg(READ_SIZE, _SPACE)
                fds = _fds_of(ancillary) if ancillary else ()
            else:
                data, fds = self._sock.recv(READ_SIZE), ()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            log.debug("read failed: %s", error)
            self._end(True)
            return
        if not data:
            self._end(self._peer_gone())
            return
        with self._batch:
            self._receiver.received(data, fds)

    def _peer_gone(self) -> bool:
        """At the end of input: whether the peer closed altogether, not its sending side only."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return bool(poll.poll(0))

    def _end(self, gone: bool) -> None:
        self.read(False)
        with self._batch:
            self._receiver.ended(gone)

    def write(self, data: bytes, fd: int | None = None) -> None:
        """Send *data*, and with it *fd*, which must stay open until it has left."""
        if self.closed:
            return
        if self._limit is not None and self.backlog > self._limit:
            log.warning("a client does not read: %d bytes wait for it; cut off", self.backlog)
            self.abort()
            return
        if fd is not None:
            self._fds.append((self._queued, os.dup(fd)))
        self._queued += 1
        self._out.append(data)
        self.backlog += len(data)
        if not self._blocked:
            self._batch.add(self)

    def flush(self) -> None:
        """Send what can be sent now."""
        while self._out and not self.closed:
            fd: int | None = None
            if self._fds:
                before, first = self._fds[0]
                if before == self._sent:
                    fd = first
                    data = self._out[0]
                    count = 1
                else:
                    count = before - self._sent
                    data = b"".join(list(self._out)[:count])
            else:
                count = len(self._out)
                data = b"".join(self._out) if count > 1 else self._out[0]
            try:
                if fd is None:
                    sent = self._sock.send(data)
                else:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
                    sent = self._sock.sendmsg([data], [rights])
                    self._fds.popleft()
                    os.close(fd)
            except (BlockingIOError, InterruptedError):
                self._block()
                return
            except OSError as error:
                log.debug("write failed: %s", error)
                self._lost()
                return
            self.backlog -= sent
            if sent == len(data):
                for _ in range(count):
                    self._out.popleft()
                self._sent += count
                continue
            self._keep_rest(data, sent, count)
            self._block()
            return
        if self._blocked and not self.closed:
            self._blocked = False
            self._loop.remove_writer(self._sock)
        if self._report_drained and not self.closed:
            self._report_drained = False
            self._receiver.drained()

    def when_drained(self) -> None:
        """Call the receiver, once, when nothing waits to be sent any more."""
        self._report_drained = True

    def _keep_rest(self, data: bytes, sent: int, count: int) -> None:
        """Of the first *count* items, joined in *data*, only *sent* bytes have left."""
        for _ in range(count - 1):
            self._out.popleft()
        self._sent += count - 1
        self._out[0] = data[sent:]

    def _block(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        with self._batch:
            self.flush()

    def _lost(self) -> None:
        self.close()
        self._receiver.ended(True)

    def abort(self) -> None:
        """Disconnect the peer; the receiver is called from the event loop."""
        if not self.closed:
            self.close()
            self._loop.call_soon(self._receiver.ended, True)

    def release(self) -> None:
        """Close; the receiver is not called any more."""
        self.close()
        self._receiver = NO_RECEIVER

    def close(self) -> None:
        """Close the socket; what waits to be sent is lost."""
        if self.closed:
            return
        self.read(False)
        self.closed = True
        if self._blocked:
            self._loop.remove_writer(self._sock)
        for _, fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._out.clear()
        self.backlog = 0
        self._sock.close()


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return tuple(fds)
