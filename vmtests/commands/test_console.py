"""The console off a terminal, as in the log of a CI job."""

from __future__ import annotations

import io

import pytest

from qmpshim.commands import console as module
from qmpshim.commands.console import Console


def test_progress_that_is_the_same_as_before_is_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    out = io.StringIO()
    console = Console(out)
    for text in ("exploring: 0/9", "exploring: 0/9", "exploring: 1/9"):
        console.progress(text)
    assert out.getvalue() == "exploring: 0/9\nexploring: 1/9\n"
