"""A shell on a terminal: what is typed into it, and what it shows then."""

from __future__ import annotations

from typing import Any

import pexpect


def say(terminal: pexpect.spawn, line: str, *expected: Any) -> None:
    """Type a line, or the rest of one, and wait until all of *expected* has come, in that order."""
    terminal.send(f"{line}\r")
    for one in expected:
        terminal.expect(one)
