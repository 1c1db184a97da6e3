"""Waiting for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LIMIT = 60.0  # seconds
_LOOK = 0.005  # seconds between two looks


def becomes_true(what: Callable[[], object], seconds: float = LIMIT) -> bool:
    """Whether something is true within so many *seconds*."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


def wait_until(what: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait until something is true; AssertionError when it is not after so many *seconds*."""
    assert becomes_true(what, seconds), "it did not become true in time"


async def until(what: Callable[[], object], seconds: float = LIMIT) -> None:
    """As :func:`wait_until`, while the event loop runs."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not become true in time"
        await asyncio.sleep(_LOOK)
