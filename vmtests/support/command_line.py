"""Runs `qmpshim` as a person does, and looks for what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmtests.support.command_server import run_command
from vmtests.support.waiting import becomes_true

QMPSHIM = (sys.executable, "-m", "qmpshim")
ROOT = Path(__file__).parents[2]
LIMIT = 120.0  # seconds after which a command that does not end fails its test


@dataclass
class CommandLine:
    """The tool in an environment of its own.

    :ivar home: the current directory
    :ivar temporary: its TMPDIR, by which its processes are distinguished from others
    """

    home: Path
    temporary: Path
    environment: dict[str, str] = field(default_factory=dict)

    def env(self) -> dict[str, str]:
        """What it is started with."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "QMPSHIM_CACHE": str(self.home / "cache"),
            **self.environment,
        }

    def run(
        self, *args: str | Path, command: Sequence[str] = QMPSHIM
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        if command is QMPSHIM and not any(name.startswith("PYTHON") for name in self.environment):
            words = [*map(str, args)]
            return run_command(words, self.home, self.env(), LIMIT)
        return subprocess.run(
            [*command, *map(str, args)],
            cwd=self.home,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start, in a process group of its own, with a pipe at its stdout."""
        return subprocess.Popen(
            [*QMPSHIM, *map(str, args)],
            process_group=0,
            cwd=self.home,
            env=self.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[tuple[int, str]]:
        """(pid, command line) of what was started by it, directly or not."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                if mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if words != [b""]:  # a zombie has none
                found.append((int(entry.name), b" ".join(words).decode(errors="replace")))
        return found

    def emulators(self) -> list[int]:
        """The QEMUs among them."""
        return [pid for pid, words in self.processes() if "-machine none" in words]

    def files(self) -> list[str]:
        """Everything in TMPDIR, which may be vanishing right now: os.walk takes that calmly."""
        return [
            os.path.join(directory, name)
            for directory, below, files in os.walk(self.temporary)
            for name in (*below, *files)
        ]

    def left(self, patience: float = 0.0) -> list[str]:
        """Processes, and files in TMPDIR, that are still there after so many seconds."""

        def there() -> list[str]:
            return [f"{pid} {words}" for pid, words in self.processes()] + self.files()

        return [] if becomes_true(lambda: not there(), patience) else there()
