"""Timers of a manual event loop, for what a test does a little later."""

from __future__ import annotations

import time
from collections.abc import Callable

from qmpshim.machine.host.manual_event_loop import ManualEventLoop


def call_later(loop: ManualEventLoop, seconds: float, callback: Callable[[], None]) -> None:
    """Call back in the first poll that comes after so many *seconds*; 0.0: in the next."""
    due, ready, left = time.monotonic() + seconds, loop.ready, [callback]

    def timed(seconds: float) -> list[tuple[int, int]]:
        found = ready(seconds)
        if left and time.monotonic() >= due:
            left.pop()()
        return found

    loop.ready = timed  # type: ignore[method-assign]
