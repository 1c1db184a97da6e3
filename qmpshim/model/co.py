"""Coroutines without an event loop: what the model yields, and the queue its tasks wait in.

A model coroutine is a plain generator.  It yields an :class:`Io` for every I/O it wants done and a
:class:`Wait` when it must sleep; whoever drives it (the straight run, a scheduler, a real QEMU in
step) decides when that happens.  Between two yields a coroutine runs undisturbed, exactly as a
QEMU coroutine does between two yield points of one AioContext.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class ModelIOError(Exception):
    """An I/O of the model failed; thrown into the coroutine that asked for it.

    :param errno: the errno QEMU would see (positive)
    """

    def __init__(self, errno: int) -> None:
        super().__init__(f"errno {errno}")
        self.errno = errno


class Io:
    """One I/O that a coroutine wants done on one image.

    :ivar op: ``read``, ``write``, ``zero``, ``discard``, ``flush`` or ``empty``
    :ivar disk: the image's name: ``secondary``, ``hidden`` or ``active``
    :ivar start: first sector
    :ivar count: number of sectors
    :ivar perform: does it, at the moment the driver chooses, and returns what was read
    """

    __slots__ = ("count", "disk", "op", "perform", "start")

    def __init__(
        self, op: str, disk: str, start: int, count: int, perform: Callable[[], Any]
    ) -> None:
        self.op = op
        self.disk = disk
        self.start = start
        self.count = count
        self.perform = perform

    def __repr__(self) -> str:
        return f"{self.op} {self.disk} [{self.start}, {self.start + self.count})"


class Wait:
    """The coroutine sleeps in *queue* until somebody restarts it."""

    __slots__ = ("queue",)

    def __init__(self, queue: CoQueue) -> None:
        self.queue = queue

    def __repr__(self) -> str:
        return f"wait for {self.queue.label}"


Event = Io | Wait
Co = Generator[Event, Any, T]


class CoQueue:
    """QEMU's ``CoQueue``: first in, first out; who wakes must check its condition again.

    The driver appends whatever it uses as a task handle to :attr:`waiters` when a coroutine yields
    a :class:`Wait`; :meth:`restart_all` hands every handle to its wake-up function.

    Restates util/qemu-coroutine-lock.c (``qemu_co_queue_wait``, ``qemu_co_queue_restart_all``).
    """

    __slots__ = ("label", "waiters")

    def __init__(self, label: str) -> None:
        self.label = label
        self.waiters: list[Callable[[], None]] = []

    def wait(self) -> Co[None]:
        """Sleep until restarted."""
        yield Wait(self)

    def restart_all(self) -> None:
        """Make every waiter runnable, in the order they came."""
        waiters, self.waiters = self.waiters, []
        for wake in waiters:
            wake()


class Deadlock(Exception):
    """A coroutine sleeps and nobody is left to wake it."""


def run_straight(co: Co[T]) -> T:
    """Drive one coroutine to its end, doing each I/O at once (DESIGN: run 1).

    :raises Deadlock: it waits, although nothing else is running that could wake it
    """
    try:
        event = next(co)
        while True:
            if isinstance(event, Io):
                try:
                    result = event.perform()
                except ModelIOError as error:
                    event = co.throw(error)
                    continue
                event = co.send(result)
            else:
                raise Deadlock(repr(event))
    except StopIteration as stop:
        value: T = stop.value
        return value
