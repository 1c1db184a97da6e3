"""A deadlock is found from outside the process that is in it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qmpshim.machine.host.locks import Deadlock, deadlock, waiters
from vmtests.support.waiting import becomes_true

# pthread_mutex_lock(3) on a normal mutex by the thread that has it: it waits for itself.
SELF = """
import ctypes, threading
libc = ctypes.CDLL(None)
one = ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(one)
{}
print("ready", flush=True)
libc.pthread_mutex_lock(one)
"""
BEHIND = "threading.Thread(target=libc.pthread_mutex_lock, args=(one,), daemon=True).start()"
HELD = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
one = ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(one)
threading.Thread(target=libc.pthread_mutex_lock, args=(one,), daemon=True).start()
print("ready", flush=True)
time.sleep(100)
"""


@contextmanager
def process(code: str) -> Iterator[int]:
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running.pid
    finally:
        running.kill()
        running.communicate()


def found(pid: int, wanted: int) -> Deadlock | None:
    """The deadlock once so many threads wait."""
    if becomes_true(lambda: len(waiters(pid)) >= wanted, 8.0):
        return deadlock(pid)
    pytest.skip("this kernel does not tell where a thread sleeps")


def test_a_thread_that_waits_for_itself() -> None:
    with process(SELF.format("")) as pid:
        assert found(pid, 1) == Deadlock("a thread waits for a mutex that it holds itself", 0)


def test_others_behind_it() -> None:
    with process(SELF.format(BEHIND)) as pid:
        both = found(pid, 2)
    assert both == Deadlock("a thread waits for a mutex that it holds itself", 1)
    assert str(both).endswith(" itself, and 1 other thread waits behind it")


def test_waiting_is_no_deadlock() -> None:
    with process(HELD) as pid:
        assert found(pid, 1) is None


def test_a_process_that_is_gone() -> None:
    assert waiters(2**22 + 1) == []
