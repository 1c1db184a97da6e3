"""Processes: a program run to its end, whether one lives, how much memory this one has taken."""

from __future__ import annotations

import asyncio
from pathlib import Path


async def run(*command: str | Path, fails: bool = False) -> str:
    """Run a program to its end, its output; the exit status must be 0 (or not, if it ``fails``)."""
    process = await asyncio.create_subprocess_exec(
        "timeout",
        "-k1",
        "20",
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()
    assert (process.returncode != 0) is fails, output
    return output


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def peak_memory() -> float:
    """Of this process, in MiB. Not ``ru_maxrss``: that begins with the size of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
