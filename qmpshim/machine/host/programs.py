"""Where programs are found, and how one is run for what it prints."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from qmpshim.errors import HostError
from qmpshim.machine.host.safe_path import program_path


def find_program(name: str) -> str | None:
    """The program's path, or None; a name is looked up in PATH's absolute entries only."""
    return shutil.which(name, path=program_path())


def need_program(name: str, package: str) -> str:
    """The program's path.

    :param package: Debian's, that has it
    :raises HostError: it is not there
    """
    found = find_program(name)
    if found is None:
        raise HostError(f"{name} is missing: apt-get install {package}")
    return found


def run_program(
    words: Sequence[str],
    limit: float | None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program, which has nothing to read, to its end; what it prints is kept.

    :param limit: seconds
    :param env: its whole environment; None: ours
    :raises subprocess.TimeoutExpired: it did not end in time, and was killed
    :raises OSError: it cannot be run
    """
    return subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=env,
        cwd=cwd,
        timeout=limit,
        check=False,
    )
