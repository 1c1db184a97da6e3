"""A manual event loop: sockets are read, written and accepted only while it is polled.

The explorer takes one step, polls until QEMU is quiescent, and takes the next step. asyncio does
the same at a higher cost: a schedule has some 50 messages of a few microseconds each, and 80 polls.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from qmpshim.model.explore.walk import OutOfBudget

Callback = Callable[[], None]
_GLANCE = 0.05  # seconds between two looks at a condition


class ManualEventLoop:
    """Calls back for files (by their descriptors) that are ready.

    What a callback raises passes through :meth:`poll`.

    :ivar deadline: of everything that is waited for here, by time.monotonic(); None: there is none
    :ivar stalled: whether nothing will come within so many seconds, so that waiting is of no use;
        called only when nothing came for a while
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self.deadline: float | None = None
        self.stalled: Callable[[float], bool] = lambda seconds: False

    def on_readable(self, file: int, callback: Callback | None) -> None:
        """Call back whenever *file* has something, its end included; None: no longer.

        A callback may be called where there is nothing (any more): do not block in it.
        """
        self._register(file, self._readers, callback)

    def on_writable(self, file: int, callback: Callback | None) -> None:
        """Call back whenever *file* takes more, or nothing ever again; None: no longer."""
        self._register(file, self._writers, callback)

    def forget(self, file: int) -> None:
        """Never call back for *file*; to be called before it is closed."""
        self.on_readable(file, None)
        self.on_writable(file, None)

    def _register(
        self, file: int, callbacks: dict[int, Callback], callback: Callback | None
    ) -> None:
        before = self._events(file)
        if callback is None:
            callbacks.pop(file, None)
        else:
            callbacks[file] = callback
        after = self._events(file)
        if before and not after:
            self._epoll.unregister(file)
        elif before != after:
            (self._epoll.modify if before else self._epoll.register)(file, after)

    def _events(self, file: int) -> int:
        reads, writes = file in self._readers, file in self._writers
        return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if writes else 0)

    def ready(self, seconds: float) -> list[tuple[int, int]]:
        """The files that have something, each with epoll's events, at the latest in *seconds*."""
        return self._epoll.poll(seconds)

    def poll(self, seconds: float = 0.0) -> bool:
        """Handle what the files have, waiting up to *seconds* for something.

        :returns: whether any file had something
        :raises OutOfBudget: the deadline is over
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfBudget
        found = self.ready(seconds)
        for file, events in found:
            # The end of a connection, or an error, is reported without being requested.
            if events != select.EPOLLOUT and (reader := self._readers.get(file)):
                reader()
            if events != select.EPOLLIN and (writer := self._writers.get(file)):
                writer()
        return bool(found)

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Poll until ``condition()`` holds.

        :returns: False when the time ran out, or nothing can come before that
        :raises OutOfBudget: the deadline is over
        """
        if condition():
            return True
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return condition()
            came = self.poll(min(left, _GLANCE))
            if condition():
                return True
            if not came and self.stalled(left):
                return condition()

    def close(self) -> None:
        """Close the loop; its files belong to their makers."""
        self._epoll.close()
