"""An NBD client for one export: requests are submitted, then waited for, so work can overlap."""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from qmpshim.errors import HostError, IOFailed, MachineDied, MachineHung
from qmpshim.machine.host.files import Bytes

_PIECE = 8 << 20  # bytes of data in one request
AT_ONCE = 1 << 20  # bytes of one read when several are under way
_AHEAD = 4  # reads under way at once
#: Buffers of reads that are over: a new one costs a fault for each of its pages.
_spare: list[bytearray] = []
_LOOK = 0.25  # seconds between two looks at a server that owes an answer


_ZERO = 2  # NBD_STATE_ZERO
_DIRTY = 1  # bit 0 of a dirty bitmap's context


def dirty_bitmap(name: str) -> str:
    """The metadata context of a dirty bitmap that an export of QEMU's has."""
    return f"qemu:dirty-bitmap:{name}"


def _libnbd() -> Any:
    try:
        return importlib.import_module("nbd")
    except ImportError as error:
        raise HostError(
            "libnbd's Python binding is missing: apt-get install python3-libnbd "
            "(and use a venv with system site packages, as `make` does)"
        ) from error


class BlockClient(Protocol):
    """A client that does I/O at one end of a chain; offsets and lengths are bytes.

    Submitting gives a cookie; the buffer of a read is filled once its cookie was waited for.
    """

    def submit_read(self, buffer: bytearray, offset: int) -> int:
        """Read ``len(buffer)`` bytes at *offset* into *buffer*."""

    def submit_write(self, data: Bytes, offset: int) -> int:
        """Write *data* at *offset*; it must stay unchanged until the cookie was waited for."""

    def submit_zero(self, length: int, offset: int) -> int:
        """Write zeroes; a hole will do."""

    def submit_discard(self, length: int, offset: int) -> int:
        """Discard (trim)."""

    def submit_flush(self) -> int:
        """Flush."""

    def wait(self, cookie: int) -> None:
        """Wait for one request.

        :raises IOFailed: it ended with an error
        :raises MachineDied: the other side went away
        :raises MachineHung: no answer within the limit
        """

    def close(self) -> None:
        """Disconnect."""


class NbdClient:
    """A connection to one NBD export; offsets and lengths are bytes.

    :param uri: e.g. ``nbd+unix:///primary?socket=/path``
    :param limit: seconds a request may take before the server counts as hung
    :param plain: no structured replies. With them QEMU's server answers a read of what block status
        calls zero without reading it (``nbd_co_send_sparse_read``), so that the read never meets
        the filters above the image, as a guest's would
    :param is_silent: polled while an answer is awaited: whether none will come
    :param contexts: metadata contexts to request instead of ``base:allocation``
    :raises MachineDied: there is no server, or it does not know the export
    :raises MachineHung: it did not answer within the limit
    """

    def __init__(
        self,
        uri: str,
        limit: float = 30.0,
        plain: bool = False,
        is_silent: Callable[[], bool] = lambda: False,
        contexts: Sequence[str] = (),
    ) -> None:
        self._nbd = _libnbd()
        self._limit = limit
        self._is_silent = is_silent
        self._handle: Any = self._nbd.NBD()
        if plain:
            self._handle.set_request_structured_replies(False)
        for context in () if plain else contexts or (self._nbd.CONTEXT_BASE_ALLOCATION,):
            self._handle.add_meta_context(context)
        try:
            self._handle.aio_connect_uri(uri)
            self._until(self._handle.aio_is_ready, "connection was not accepted")
        except self._nbd.Error as error:
            raise MachineDied(f"NBD connection to {uri}: {error.string}") from error

    @property
    def size(self) -> int:
        """The export's size in bytes."""
        return int(self._handle.get_size())

    def submit_read(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Read ``len(buffer)`` bytes at *offset* into *buffer*."""
        return self._submit("read", lambda: self._handle.aio_pread(buffer, offset))

    def submit_write(self, data: Bytes, offset: int, fua: bool = False) -> int:
        """Write *data* at *offset*; it must stay unchanged until the cookie was waited for.

        :param fua: the data are durable when the write ends
        """
        flags = self._nbd.CMD_FLAG_FUA if fua else 0
        return self._submit("write", lambda: self._handle.aio_pwrite(data, offset, flags=flags))

    def submit_zero(self, length: int, offset: int, no_hole: bool = False) -> int:
        """Write zeroes; the server may punch a hole, unless *no_hole*."""
        flags = self._nbd.CMD_FLAG_NO_HOLE if no_hole else 0
        return self._submit(
            "write zeroes", lambda: self._handle.aio_zero(length, offset, flags=flags)
        )

    def submit_discard(self, length: int, offset: int) -> int:
        """Discard (trim)."""
        return self._submit("discard", lambda: self._handle.aio_trim(length, offset))

    def submit_flush(self) -> int:
        """Flush."""
        return self._submit("flush", self._handle.aio_flush)

    def _submit(self, what: str, call: Any) -> int:
        try:
            return int(call())
        except self._nbd.Error as error:
            raise self._failure(what, error) from error

    def wait(self, cookie: int) -> None:
        """Wait for one request.

        :raises IOFailed: the server answered with an error
        :raises MachineDied: the connection broke
        :raises MachineHung: no answer within the limit
        """
        try:
            self._until(
                lambda: bool(self._handle.aio_command_completed(cookie)),
                "request was not answered",
            )
        except self._nbd.Error as error:
            raise self._failure("request", error) from error

    def _until(self, done: Callable[[], bool], otherwise: str) -> None:
        """Poll the connection until something is done.

        :param otherwise: what did not happen in time, in words
        :raises MachineHung: it did not happen within the limit, or will not
        """
        deadline = look = 0.0
        while not done():
            now = time.monotonic()
            if not deadline:
                deadline, look = now + self._limit, now + _LOOK
            elif now > deadline:
                raise MachineHung(f"an NBD {otherwise} in {self._limit:g} s")
            elif now > look:
                look = now + _LOOK
                if self._is_silent():
                    waited = min(self._limit, math.ceil(now - deadline + self._limit))
                    raise MachineHung(f"an NBD {otherwise} in {waited:g} s")
            self._handle.poll(int(min(_LOOK, deadline - now) * 1000) + 1)

    def _failure(self, what: str, error: Any) -> IOFailed | MachineDied:
        number = error.errnum or errno.EIO
        if self._handle.aio_is_ready() or self._handle.aio_is_processing():
            return IOFailed(f"NBD {what}", number)
        return MachineDied(f"the NBD connection broke during a {what}: {error.string}")

    # Each returns when the server has answered, and raises what :meth:`wait` raises.

    def read(self, length: int, offset: int) -> bytearray:
        """Read *length* bytes at *offset*, in pieces no larger than a server must take."""
        whole = bytearray(length)
        view = memoryview(whole)
        for done in range(0, length, _PIECE):
            piece = bytearray(min(_PIECE, length - done))
            self.wait(self.submit_read(piece, offset + done))
            view[done : done + len(piece)] = piece
        return whole

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """Read ranges (offset, length up to :data:`AT_ONCE`) one by one, as (offset, bytes).

        The server reads the next ones while the caller looks at one. Bytes are there until the next
        are requested.
        """
        left = iter(ranges)
        reading: deque[tuple[int, bytearray, memoryview, int]] = deque()
        while True:
            while len(reading) < _AHEAD and (wanted := next(left, None)) is not None:
                offset, length = wanted
                buffer = _spare.pop() if _spare else bytearray(AT_ONCE)
                part = memoryview(buffer)[:length]
                reading.append((offset, buffer, part, self.submit_read(part, offset)))
            if not reading:
                return
            offset, buffer, part, cookie = reading.popleft()
            self.wait(cookie)
            yield offset, part
            _spare.append(buffer)  # of a reader that gives up none is kept: it may still be filled

    def write(self, data: Bytes, offset: int) -> None:
        """Write *data* at *offset* bytes, in pieces no larger than a server must take."""
        view = memoryview(data).cast("B")
        for done in range(0, len(view), _PIECE):
            self.wait(self.submit_write(view[done : done + _PIECE], offset + done))

    def zero(self, length: int, offset: int) -> None:
        """Write *length* zeroes at *offset* bytes; the server may punch a hole."""
        self.wait(self.submit_zero(length, offset))

    def discard(self, length: int, offset: int) -> None:
        """Discard (trim) *length* bytes at *offset*."""
        self.wait(self.submit_discard(length, offset))

    def flush(self) -> None:
        """Flush."""
        self.wait(self.submit_flush())

    def data_extents(self) -> list[tuple[int, int]]:
        """(offset, length) in bytes of what ``base:allocation`` does not report as zeroes."""
        found = self.extents(self._nbd.CONTEXT_BASE_ALLOCATION)
        data = [(offset, length) for offset, length, flags in found if not flags & _ZERO]
        end = found[-1][0] + found[-1][1] if found else 0
        return data if end == self.size else [*data, (end, self.size - end)]

    def dirty_extents(self, bitmap: str) -> list[tuple[int, int]]:
        """(offset, length) in bytes of what a dirty bitmap marks (docs/interop/nbd.txt).

        :raises MachineDied: the server does not report that bitmap, or not all of it
        """
        found = self.extents(dirty_bitmap(bitmap))
        end = found[-1][0] + found[-1][1] if found else 0
        if end != self.size:
            raise MachineDied(f"the NBD server reports bitmap {bitmap} up to byte {end} only")
        return [(offset, length) for offset, length, flags in found if flags & _DIRTY]

    def extents(self, context: str) -> list[tuple[int, int, int]]:
        """(offset, length, flags) by block status, in bytes; it ends where the server's do.

        :param context: a metadata context that was requested when connecting
        """
        found: list[tuple[int, int, int]] = []
        at, size = 0, self.size

        def note(name: str, offset: int, entries: list[int], error: Any) -> int:
            nonlocal at
            if name == context and offset == at:
                for length, flags in zip(entries[::2], entries[1::2], strict=True):
                    found.append((at, length, flags))
                    at += length
            return 0

        if not self._handle.can_meta_context(context):
            return found
        while at < size:
            before = at
            query = partial(self._handle.aio_block_status, min(size - at, 1 << 31), at, note)
            self.wait(self._submit("block status", query))
            if at == before:
                break
        return found

    def close(self) -> None:
        """Send a disconnect request without waiting: a server that hangs would never read it."""
        if self._handle is None:
            return
        with contextlib.suppress(self._nbd.Error):  # the server has gone already
            self._handle.aio_disconnect()
        self._handle = None  # the binding closes the socket when the handle goes
