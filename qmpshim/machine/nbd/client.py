"""An NBD client for one export: requests are submitted, then waited for, so work can overlap."""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from qmpshim.errors import HostError, IOFailed, MachineDied, MachineHung

_PIECE = 8 << 20  # bytes of data in one request
_LOOK = 0.25  # seconds between two looks at a server that owes an answer


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

    def submit_write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
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
    :raises MachineDied: the server does not answer or does not know the export
    """

    def __init__(
        self,
        uri: str,
        limit: float = 30.0,
        plain: bool = False,
        is_silent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._nbd = _libnbd()
        self._limit = limit
        self._is_silent = is_silent
        self._handle: Any = self._nbd.NBD()
        if plain:
            self._handle.set_request_structured_replies(False)
        else:
            self._handle.add_meta_context(self._nbd.CONTEXT_BASE_ALLOCATION)
        try:
            self._handle.connect_uri(uri)
        except self._nbd.Error as error:
            raise MachineDied(f"NBD connection to {uri}: {error.string}") from error

    @property
    def size(self) -> int:
        """The export's size in bytes."""
        return int(self._handle.get_size())

    def submit_read(self, buffer: bytearray, offset: int) -> int:
        """Read ``len(buffer)`` bytes at *offset* into *buffer*."""
        return self._submit("read", lambda: self._handle.aio_pread(buffer, offset))

    def submit_write(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Write *data* at *offset*; it must stay unchanged until the cookie was waited for."""
        return self._submit("write", lambda: self._handle.aio_pwrite(data, offset))

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
        handle = self._handle
        deadline = look = 0.0
        try:
            while not handle.aio_command_completed(cookie):
                now = time.monotonic()
                if not deadline:
                    deadline, look = now + self._limit, now + _LOOK
                elif now > deadline:
                    raise MachineHung(f"an NBD request was not answered in {self._limit:g} s")
                elif now > look:
                    look = now + _LOOK
                    if self._is_silent():
                        waited = min(self._limit, math.ceil(now - deadline + self._limit))
                        raise MachineHung(f"an NBD request was not answered in {waited:g} s")
                handle.poll(int(min(_LOOK, deadline - now) * 1000) + 1)
        except self._nbd.Error as error:
            raise self._failure("request", error) from error

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

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
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
        """(offset, length) of what ``base:allocation`` does not report as reading zeroes."""
        extents: list[tuple[int, int]] = []
        offset, size = 0, self.size
        zero = 2  # NBD_STATE_ZERO

        def note(context: str, at: int, entries: list[int], error: Any) -> int:
            nonlocal offset
            if context == self._nbd.CONTEXT_BASE_ALLOCATION and at == offset:
                for length, flags in zip(entries[::2], entries[1::2], strict=True):
                    if not flags & zero:
                        extents.append((offset, length))
                    offset += length
            return 0

        if not self._handle.can_meta_context(self._nbd.CONTEXT_BASE_ALLOCATION):
            return [(0, size)]
        while offset < size:
            before = offset
            try:
                self._handle.block_status(min(size - offset, 1 << 31), offset, note)
            except self._nbd.Error as error:
                raise self._failure("block status", error) from error
            if offset == before:
                return [*extents, (offset, size - offset)]
        return extents

    def close(self) -> None:
        """Send a disconnect request without waiting: a server that hangs would never read it."""
        if self._handle is None:
            return
        with contextlib.suppress(self._nbd.Error):  # the server has gone already
            self._handle.aio_disconnect()
        self._handle = None  # the binding closes the socket when the handle goes
