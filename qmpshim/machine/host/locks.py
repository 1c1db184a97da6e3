"""Finds the threads of another process that wait for a mutex, to recognize a deadlock.

``/proc/PID/task/TID/syscall`` shows a thread that sleeps in futex(2) and the futex's address, and
glibc keeps the owner beside it: ``struct __pthread_mutex_s`` (bits/struct_mutex.h, x86-64) is
``__lock``, ``__count``, ``__owner``, ... of 32 bits each. So a thread that waits for itself is
found without a debugger.
"""

from __future__ import annotations

import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

_FUTEX = {"x86_64": 202, "aarch64": 98}
_WAIT, _PRIVATE = 0, 128
_CONTENDED = 2  # __lock: taken, with at least one waiter


@dataclass(frozen=True, slots=True)
class Waiter:
    """A thread that waits for a mutex.

    :ivar owner: the thread that has it
    """

    thread: int
    name: str
    owner: int


def waiters(pid: int) -> list[Waiter]:
    """The threads of a process that wait for a mutex; [] where the kernel does not show it."""
    found = []
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
                waiter = _waiter(task, memory.fileno())
                if waiter is not None:
                    found.append(waiter)
    except OSError:
        return found
    return found


def _waiter(task: Path, memory: int) -> Waiter | None:
    try:
        words = (task / "syscall").read_text().split()
        if words[0] != str(_FUTEX.get(platform.machine())) or int(words[3], 16) != _CONTENDED:
            return None
        if int(words[2], 16) & ~_PRIVATE != _WAIT:
            return None
        address = int(words[1], 16)
        lock, _count, owner = struct.unpack("<Iii", os.pread(memory, 12, address))
        name = (task / "comm").read_text().strip()
    except (OSError, ValueError, IndexError, struct.error):
        return None
    return Waiter(int(task.name), name, owner) if lock == _CONTENDED else None


@dataclass(frozen=True, slots=True)
class Deadlock:
    """A circle of threads that wait for each other.

    :ivar circle: in words, the same for all circles of as many threads
    :ivar behind: how many other threads wait for a mutex
    """

    circle: str
    behind: int

    def __str__(self) -> str:
        if not self.behind:
            return self.circle
        threads = (
            "1 other thread waits" if self.behind == 1 else f"{self.behind} other threads wait"
        )
        return f"{self.circle}, and {threads} behind it"


def deadlock(pid: int) -> Deadlock | None:
    """What can never end in this process; None: no threads wait for each other in a circle."""
    waiting = {waiter.thread: waiter for waiter in waiters(pid)}
    for start in waiting:
        seen: list[int] = []
        at = start
        while at in waiting and at not in seen:
            seen.append(at)
            at = waiting[at].owner
        if at in seen:
            circle = len(seen) - seen.index(at)
            alone = "a thread waits for a mutex that it holds itself"
            text = alone if circle == 1 else f"{circle} threads wait for each other's mutexes"
            return Deadlock(text, len(waiting) - circle)
    return None
