"""Replaces every rendering of the explorer by gibberish: what decides then decides by data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Completed,
    Ended,
    Failed,
    Note,
    Started,
)
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.model.answers import Described
from qmpshim.model.check.cause import Cause, FaultContext
from qmpshim.model.operations import Operation

#: What is rendered, each by its ``__str__``.
RENDERED = (
    *(Started, Completed, Failed, Arrived, Ended, Note),
    *(Described, Operation, Cause, FaultContext),
)


@contextmanager
def gibberish(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every rendering is another text each time, and so is the text of every violation."""
    number = count()

    def spoilt(*_: object) -> str:
        return f"gibberish {next(number)}"

    violated = RealViolation.__init__

    def violation(self: RealViolation, kind: Any, text: str, *more: Any, **named: Any) -> None:
        violated(self, kind, spoilt(), *more, **named)

    with monkeypatch.context() as patch:
        for kind in RENDERED:
            patch.setattr(kind, "__str__", spoilt)
        patch.setattr(RealViolation, "__init__", violation)
        yield
