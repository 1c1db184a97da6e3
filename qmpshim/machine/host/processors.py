"""One processor for two that take turns: us and a QEMU on gated storage.

Each waits while the other works. On two processors each message wakes an idle one, which costs more
than what most requests do once they run, on a virtual machine several times as much.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def one_processor(number: int | None = None) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, on one processor.

    :param number: which of those that it may use, counted round; None: the one that it is on
    """
    allowed = os.sched_getaffinity(0)
    chosen = _current() if number is None else sorted(allowed)[number % len(allowed)]
    try:
        os.sched_setaffinity(0, {chosen} & allowed or allowed)
    except OSError:  # a sandbox that forbids it: slower, and nothing else
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # they were taken away meanwhile
            os.sched_setaffinity(0, allowed)


def _current() -> int:
    """The processor that this thread runs on (proc_pid_stat(5), field 39)."""
    fields = Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()
    return int(fields[36])
