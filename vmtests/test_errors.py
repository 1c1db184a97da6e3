"""The errors: how a QEMU ended is a value, which bundles have as a text."""

from __future__ import annotations

import signal

import pytest

from qmpshim.errors import Exit


@pytest.mark.parametrize(
    ("exit_", "text"),
    [
        (Exit(-signal.SIGABRT), "was killed by SIGABRT"),
        (Exit(0), "exited with status 0"),
        (Exit(134), "exited with status 134"),
        (Exit(None), "closed its connection but still runs"),
    ],
)
def test_an_end_is_read_again(exit_: Exit, text: str) -> None:
    assert str(exit_) == text and Exit.parse(text) == exit_


@pytest.mark.parametrize("text", ["", "was killed by SIGNOSUCH", "exited with status"])
def test_what_is_no_end(text: str) -> None:
    with pytest.raises(ValueError, match="no way to end"):
        Exit.parse(text)
