"""Processes known by a mark: a variable of the environment that all they start is handed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

_LOOK = 0.01  # seconds between two looks at whether what was killed has ended


@dataclass(frozen=True, slots=True)
class Marked:
    """The processes that have a mark.

    :ivar name: the variable's name
    :ivar matches: whether a value of it is a mark that is meant
    """

    name: str
    matches: Callable[[str], bool]

    def pids(self) -> list[int]:
        """Those that are seen at one look; what is just at an exec is not."""
        return self._look()[0]

    def end(self, seconds: float) -> None:
        """Kill them, also what they start meanwhile, and wait until none is left.

        :param seconds: the most that it waits for their end
        """
        deadline = time.monotonic() + seconds
        unread_limit = time.monotonic() + min(seconds, 1.0)
        while time.monotonic() < deadline:
            found, unread = self._look()
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            # Some have no environment at any time, so these are not waited for as long.
            if not found and (not unread or time.monotonic() >= unread_limit):
                return
            time.sleep(_LOOK)

    def _look(self) -> tuple[list[int], bool]:
        """The processes, and whether there are some whose marks cannot be read yet.

        At an exec a process has a program already, and its environment reads as empty.
        """
        found, unread = [], False
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    environment = file.read()
                if environment:
                    if any(map(self._matches, environment.split(b"\0"))):
                        found.append(int(name))
                else:
                    os.readlink(f"/proc/{name}/exe")  # not so for kernel threads and zombies
                    unread = True
            except OSError:  # it is gone, or another user's
                continue
        return found, unread

    def _matches(self, variable: bytes) -> bool:
        name, _, value = variable.decode(errors="replace").partition("=")
        return name == self.name and self.matches(value)
