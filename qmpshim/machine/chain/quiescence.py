"""When is QEMU still: every thread sleeps, the main one in its poll, and nothing came from it.

Why that is right. QEMU's disks are sockets to us, so nothing inside it works on its own: it goes on
only when a socket becomes readable, one of its threads wakes another, or a timer fires. Linux marks
a sleeping thread as running *inside* the ``send`` that makes a socket readable which it polls
(``try_to_wake_up``), before ``send`` returns, and a thread that wakes another is itself running. So
when all threads are seen asleep *at one moment* after our last ``send``, with the main thread in
``ppoll`` or the like, then all we sent has been handled, or lies in a socket that is not polled:
the monitor's in a drained section, which is not read until the I/O it waits for is let go.
Whatever QEMU sent is in our sockets by then: so look at the threads first, then at the sockets.
Neither a QMP round trip nor a settle time is needed, and a blocked command makes no difference.

At one moment: every thread is seen asleep, then every thread once more, and none has run between
(the third number of ``schedstat``). The moment lies between the two looks. One look is not enough:
QMP is read by a thread of its own (``mon_iothread``), which hands commands to the main thread.

Timers remain. A block job sleeps for 100 ms between two slices (BLOCK_JOB_SLICE_TIME), and a
connection waits to be made again. Such a QEMU is still, and will move later. It can be seen when:
the thread that runs the timer waits with a time limit, in a system call whose arguments are known
(:meth:`Quiescence.timer`). A QEMU that is still and has no timer does nothing more until it gets
something from outside. Each has one, far away: qcow2 cleans its caches every ten minutes.

A process that was stopped (SIGSTOP) is not still: it has work to do and does not do it.

Where /proc does not show it (hidden by the container, or QEMU is a child of a wrapper that was
started in its place), two QMP round trips that bring nothing, and for a blocked monitor a settle
time, take its place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from math import inf
from struct import Struct

# ppoll, poll, epoll_wait, epoll_pwait, epoll_pwait2, io_uring_enter; by machine
_POLLS = {
    "x86_64": frozenset({271, 7, 232, 281, 441, 426}),
    "aarch64": frozenset({73, 22, 441, 426}),
}
# System calls that wait, by number: which argument is how long, and whether it is a number (of
# milliseconds, negative: for ever) or points to a timespec (NULL: for ever). What is not here may
# wait with a limit: nanosleep, io_uring_enter, whose timeouts are requests, ...
_NUMBER, _POINTER, _FUTEX, _NEVER = range(4)
_X86_64 = {
    271: (2, _POINTER), 7: (2, _NUMBER), 232: (3, _NUMBER), 281: (3, _NUMBER), 441: (3, _POINTER),
    202: (3, _FUTEX), 128: (2, _POINTER),
    # of a wrapper: read, accept, recvfrom, recvmsg, wait4, accept4
    **dict.fromkeys((0, 43, 45, 47, 61, 288), (0, _NEVER)),
}  # fmt: skip
_AARCH64 = {
    73: (2, _POINTER), 22: (3, _NUMBER), 441: (3, _POINTER), 98: (3, _FUTEX), 137: (2, _POINTER),
    **dict.fromkeys((63, 202, 207, 212, 260, 242), (0, _NEVER)),
}  # fmt: skip
_LIMITS = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(os.uname().machine, {})
_TIMESPEC = Struct("=qq")
_STOPPED = 1.0  # seconds for which a process is seen stopped until it counts as stopped for good
_LOOK = 0.1  # seconds that one look counts for: we may have been stopped, too


class Quiescence:
    """Watches the threads of one process.

    :ivar known: whether /proc shows it; if not, :meth:`asleep` is of no use
    """

    def __init__(self, pid: int) -> None:
        self._tasks = f"/proc/{pid}/task"
        self._polls = _POLLS.get(os.uname().machine, frozenset())
        self._pid = str(pid)
        self._threads: dict[str, tuple[int, int]] = {}  # descriptors of stat and schedstat
        self._links = 0  # of the directory: how many threads there are, and two
        self._main = -1
        self._seen_stopped = 0.0  # seconds
        self._looked = 0.0
        self.known = bool(self._polls)
        try:
            self._main = _open(f"{self._tasks}/{pid}/syscall")
            os.pread(self._main, 16, 0)
            self._list()
            if _children(pid):
                self.known = False
        except OSError:
            self.known = False

    def asleep(self) -> bool:
        """Whether all threads were asleep at one moment, the main one waiting for its sockets."""
        try:
            if not self._main_polls():
                return False
            if os.stat(self._tasks).st_nlink != self._links:
                self._list()
            read, threads = os.pread, self._threads.values()
            runs = [read(ran, 80, 0).rpartition(b" ")[2] for _, ran in threads]
            for state, _ in threads:
                if read(state, 64, 0).partition(b") ")[2][:1] != b"S":
                    return False
            for (state, ran), before in zip(threads, runs, strict=True):
                # "syscall" also answers for a thread that another processor is just waking up
                # (TASK_WAKING); "stat" calls that one R.
                if read(state, 64, 0).partition(b") ")[2][:1] != b"S":
                    return False
                if read(ran, 80, 0).rpartition(b" ")[2] != before:
                    return False
        except OSError:  # a thread, or all of QEMU, ended this moment
            self._links = 0
            return False
        return True

    def timer(self) -> float:
        """For how many seconds QEMU's threads, which are asleep, are to sleep at most.

        Counted from when they fell asleep; ``inf``: nothing but what comes from outside wakes them,
        0.0: that is not known.
        """
        return _timer([f"{self._tasks}/{thread}" for thread in self._threads])

    def main_timer(self) -> float:
        """As :meth:`timer`, of the main thread alone: idle threads of a pool wait for seconds."""
        return _timer([f"{self._tasks}/{self._pid}"])

    def stopped(self) -> bool:
        """Whether QEMU is, at several looks over some time, stopped by a signal (SIGSTOP).

        A debugger that holds it is another matter, and so is Ctrl-Z, which stops us as well.
        """
        now = time.monotonic()
        self._seen_stopped += min(now - self._looked, _LOOK)
        if not any(_state(f"/proc/{pid}/stat") == b"T" for pid in self._family()):
            self._seen_stopped = 0.0
        self._looked = now
        return self._seen_stopped >= _STOPPED

    def _family(self) -> list[int]:
        """The process, and where it is no QEMU itself those below it."""
        return [int(self._pid)] if self.known else family(int(self._pid))

    def _main_polls(self) -> bool:
        call = os.pread(self._main, 8, 0).split(None, 1)[0]
        return call.isdigit() and int(call) in self._polls

    def _list(self) -> None:
        """Look which threads there are."""
        links = os.stat(self._tasks).st_nlink
        now = set(os.listdir(self._tasks))
        for gone in self._threads.keys() - now:
            for descriptor in self._threads.pop(gone):
                os.close(descriptor)
        for new in now - self._threads.keys():
            place = f"{self._tasks}/{new}"
            self._threads[new] = _open(f"{place}/stat"), _open(f"{place}/schedstat")
        self._links = links

    def close(self) -> None:
        """Give back the descriptors."""
        for descriptor in (self._main, *(d for both in self._threads.values() for d in both)):
            if descriptor >= 0:
                os.close(descriptor)
        self._main, self._threads = -1, {}


def family(pid: int) -> list[int]:
    """A process and all that are below it."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as file:
                    todo += map(int, file.read().split())
        except OSError:  # it, or one of its threads, ended this moment
            continue
    return found


def resting(pid: int) -> float:
    """As :meth:`Quiescence.timer`, of a process and all below it: a QEMU and what was put before
    it.

    :returns: 0.0 also where one of their threads runs, or has run while we looked
    """
    try:
        tasks = [
            f"/proc/{one}/task/{task}"
            for one in family(pid)
            for task in os.listdir(f"/proc/{one}/task")
        ]
        before = [_ran(task) for task in tasks]
        for _ in range(2):
            if any(_state(f"{task}/stat") != b"S" for task in tasks):
                return 0.0
        limit = _timer(tasks)
        return limit if [_ran(task) for task in tasks] == before else 0.0
    except OSError:
        return 0.0


class Idleness:
    """Watches for how long a process, and all below it, does nothing: it waits, or was stopped.

    For a QEMU whose disks are files, where :class:`Quiescence` does not suffice: a thread in the
    middle of a read sleeps as well. Here each one has to be in a system call that only waits.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: list[bytes] = []
        self._looked = 0.0
        self._seconds = 0.0

    def seconds(self) -> float:
        """For how long each look found it so, and that nothing had run since the one before.

        Many looks have to be taken: one counts for half a second at most.
        """
        now = time.monotonic()
        seen = self._look()
        self._seconds += min(now - self._looked, 0.5)
        if not seen or seen != self._seen:
            self._seconds = 0.0
        self._seen, self._looked = seen, now
        return self._seconds

    def _look(self) -> list[bytes]:
        """How often each thread ran; empty: one of them is at work."""
        tasks = [
            f"/proc/{one}/task/{task}"
            for one in family(self._pid)
            for task in _names(f"/proc/{one}/task")
        ]
        try:
            return [_ran(task) for task in tasks] if all(map(_waits, tasks)) else []
        except OSError:
            return []


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _waits(task: str) -> bool:
    state = _state(f"{task}/stat")
    if state != b"S":
        return state == b"T"
    with open(f"{task}/syscall", "rb") as file:
        call = file.read(16).split()[0]
    return call.isdigit() and int(call) in _LIMITS


def _timer(tasks: Sequence[str]) -> float:
    try:
        return min(map(_limit, tasks), default=0.0)
    except (OSError, ValueError, IndexError):  # a thread ended this moment
        return 0.0


def _limit(task: str) -> float:
    with open(f"{task}/syscall", "rb") as file:
        call, *arguments = file.read(160).split()
    if not call.isdigit() or int(call) not in _LIMITS:
        return 0.0  # "running", "-1": not in a system call; or another one
    which, kind = _LIMITS[int(call)]
    value = int(arguments[which], 16)
    if kind == _NUMBER:  # an int: the upper half of its register means nothing
        return inf if value & 0x8000_0000 else (value & 0x7FFF_FFFF) / 1000
    if kind == _NEVER or value == 0:
        return inf
    if kind == _FUTEX:  # that may be a point in time
        return 0.0
    with open(f"{task}/mem", "rb", buffering=0) as memory:
        memory.seek(value)
        seconds, nanoseconds = _TIMESPEC.unpack(memory.read(_TIMESPEC.size))
    return float(seconds + nanoseconds / 1e9)


def _state(stat: str) -> bytes:
    try:
        with open(stat, "rb") as file:
            return file.read(64).partition(b") ")[2][:1]
    except OSError:
        return b""


def _ran(task: str) -> bytes:
    with open(f"{task}/schedstat", "rb") as file:
        return file.read(80)


def _children(pid: int) -> bool:
    """Whether a process has children, which QEMU itself has none of."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return bool(file.read().strip())
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return False


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
