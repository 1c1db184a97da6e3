"""A manual event loop: an asyncio loop that runs only while it is polled.

The explorer takes one step, polls until QEMU is quiescent, and takes the next step. The loop runs
only inside :meth:`ManualEventLoop.poll`; code built on asyncio (the gate) works in it unchanged.
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


class _Selector(selectors.DefaultSelector):
    """A selector whose :meth:`look` result is what the next ``select`` returns."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[tuple[selectors.SelectorKey, int]] | None = None

    def look(self, seconds: float) -> bool:
        """Wait for the sockets; whether any has something."""
        self._found = super().select(seconds)
        return bool(self._found)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found, self._found = self._found, None
        return super().select(timeout) if found is None else found


class _Loop(asyncio.SelectorEventLoop):
    """An asyncio loop that records whether a callback is scheduled and has not run yet."""

    pending = False

    def call_soon(  # type: ignore[override]
        self, *words: Any, **named: Any
    ) -> asyncio.Handle:
        self.pending = True
        return super().call_soon(*words, **named)


class ManualEventLoop:
    """Owns an asyncio loop.

    :ivar deadline: of everything that is waited for here, by time.monotonic(); None: there is none
    :ivar hopeless: whether nothing will come within so many seconds, so that waiting is of no use;
        called only when nothing came for a while
    """

    def __init__(self) -> None:
        self._selector = _Selector()
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
        ready = self._selector.look(seconds)
        # "If stop() is called before run_forever() is called, the loop will poll the I/O selector
        # once with a timeout of zero, run all callbacks scheduled in response to I/O events (and
        # those that were already scheduled), and then exit." (asyncio's reference)
        loop = self.loop
        while True:
            loop.pending = False
            loop.stop()
            loop.run_forever()
            if not loop.pending:
                return ready

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
