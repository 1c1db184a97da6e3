"""Fixtures of tests of the scenario space."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore.space.covering import Point
from qmpshim.conformance.explore.space.grammar import SPACE


@pytest.fixture(scope="session")
def pairs_of_space() -> tuple[Point, ...]:
    """The covering array of strength 2, which takes seconds."""
    return tuple(SPACE.covering_array(2))
