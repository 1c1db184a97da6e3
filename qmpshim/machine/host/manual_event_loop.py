"""A manual event loop: an asyncio loop that runs only while it is polled.

The explorer takes one step, polls until QEMU is quiescent, and takes the next step. The loop runs
only inside :meth:`ManualEventLoop.poll`; code built on asyncio (the gate) works in it unchanged.

A poll calls what asyncio registered for a socket that is ready by itself, and lets the loop run
only where a callback or a timer waits in it: a turn of the loop costs several times what most
callbacks do, and a schedule has some 70 of them.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qmpshim.model.explore.walk import OutOfBudget

T = TypeVar("T")
_GLANCE = 0.05  # seconds between two looks at a condition


class _Loop(asyncio.SelectorEventLoop):
    """An asyncio loop that records whether a callback is scheduled and has not run yet.

    :ivar timed: a timer was ever set
    """

    pending = False
    timed = False

    def call_soon(  # type: ignore[override]
        self, *words: Any, **named: Any
    ) -> asyncio.Handle:
        self.pending = True
        return super().call_soon(*words, **named)

    def call_soon_threadsafe(  # type: ignore[override]
        self, *words: Any, **named: Any
    ) -> asyncio.Handle:
        self.pending = True
        return super().call_soon_threadsafe(*words, **named)

    def call_at(  # type: ignore[override]
        self, *words: Any, **named: Any
    ) -> asyncio.TimerHandle:
        self.timed = True
        return super().call_at(*words, **named)

    def handle(self, key: selectors.SelectorKey, events: int) -> None:
        """Call what is registered for a socket that is ready (BaseSelectorEventLoop's
        ``_process_events``, without the queue)."""
        reader, writer = key.data
        if events & selectors.EVENT_READ and reader is not None and not reader.cancelled():
            reader._run()
        if events & selectors.EVENT_WRITE and writer is not None and not writer.cancelled():
            writer._run()


class ManualEventLoop:
    """Owns an asyncio loop.

    :ivar deadline: of everything that is waited for here, by time.monotonic(); None: there is none
    :ivar hopeless: whether nothing will come within so many seconds, so that waiting is of no use;
        called only when nothing came for a while
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.loop = _Loop(self._selector)
        self.polls = 0
        self.deadline: float | None = None
        self.hopeless: Callable[[float], bool] = lambda seconds: False

    def poll(self, seconds: float = 0.0) -> bool:
        """Handle what the sockets have, waiting up to *seconds* for something.

        :returns: whether any socket had something
        :raises OutOfBudget: the deadline is over
        """
        self.polls += 1
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfBudget
        loop = self.loop
        ready = self._selector.select(seconds)
        for key, events in ready:
            loop.handle(key, events)
        # "If stop() is called before run_forever() is called, the loop will poll the I/O selector
        # once with a timeout of zero, run all callbacks scheduled in response to I/O events (and
        # those that were already scheduled), and then exit." (asyncio's reference)
        due = loop.timed
        while loop.pending or due:
            loop.pending = due = False
            loop.stop()
            loop.run_forever()
        return bool(ready)

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
            if not came and self.hopeless(left):
                return condition()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        """Close the loop; its sockets belong to their makers."""
        self.poll()
        self.loop.close()
