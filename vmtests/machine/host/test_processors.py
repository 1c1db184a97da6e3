"""Taking turns on one processor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qmpshim.machine.host.processors import one_processor

_ALLOWED = "import os; print(len(os.sched_getaffinity(0)))"


def test_a_process_and_what_it_starts_share_one_for_a_time() -> None:
    before = os.sched_getaffinity(0)
    with one_processor():
        assert len(os.sched_getaffinity(0)) == 1
        started = subprocess.check_output([sys.executable, "-c", _ALLOWED], text=True)
    assert started.strip() == "1"
    assert os.sched_getaffinity(0) == before


def test_it_is_given_back_after_an_error_too() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), one_processor():
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before


def test_numbers_are_counted_round() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with one_processor(len(allowed)):
        assert os.sched_getaffinity(0) == {allowed[0]}


def test_where_it_is_forbidden_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, processors: set[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    with one_processor():
        pass
