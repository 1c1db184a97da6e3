"""Fixtures of the shim's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shim_harness import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A running event loop in its own thread."""
    made = Loop()
    yield made
    made.close()
