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
connection waits to be made again. Such a QEMU is still, and will move later. That is why a *hang*
is told from stillness only by waiting (see :mod:`qmpshim.conformance.explore.system`).

Where /proc does not tell (hidden by the container, or QEMU is a child of a wrapper that was started
in its place), two QMP round trips that bring nothing, and for a blocked monitor a settle time, take
its place.
"""

from __future__ import annotations

import os
import platform

# ppoll, poll, epoll_wait, epoll_pwait, epoll_pwait2, io_uring_enter; by machine
_POLLS = {
    "x86_64": frozenset({271, 7, 232, 281, 441, 426}),
    "aarch64": frozenset({73, 22, 441, 426}),
}


class Stillness:
    """Watches the threads of one process.

    :ivar known: whether /proc tells; if not, :meth:`asleep` is of no use
    """

    def __init__(self, pid: int) -> None:
        self._tasks = f"/proc/{pid}/task"
        self._polls = _POLLS.get(platform.machine(), frozenset())
        self._pid = str(pid)
        self._threads: dict[str, tuple[int, int]] = {}  # descriptors of stat and schedstat
        self._links = 0  # of the directory: how many threads there are, and two
        self._main = -1
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


def _children(pid: int) -> bool:
    """Whether a process has children, which QEMU itself has none of."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return bool(file.read().strip())
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return False


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
