"""Waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 60.0  # seconds


def wait_until(what: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait until something is true; AssertionError when it is not after so many *seconds*."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)
