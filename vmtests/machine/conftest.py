"""Fixtures for what stands on the manual event loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmpshim.machine.host.manual_event_loop import ManualEventLoop


@pytest.fixture
def event_loop() -> Iterator[ManualEventLoop]:
    """One that is closed in the end."""
    made = ManualEventLoop()
    yield made
    made.close()
