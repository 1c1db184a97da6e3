"""Fixtures of tests that explore backup jobs."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore.checkers import point_in_time


@pytest.fixture
def fresh_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """No prediction is kept: those of a mutant of the model are not those of the model."""
    monkeypatch.setattr(point_in_time, "possible", point_in_time.possible.__wrapped__)
