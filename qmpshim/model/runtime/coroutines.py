"""Coroutines without an event loop: what the model yields, and the queue its tasks wait in.

A model coroutine is a plain generator.  It yields an :class:`Io` for every I/O it wants done, a
:class:`Wait` when it must sleep, a :class:`Spawn` to have another run beside it; its driver (the
sequential one, a scheduler, a real QEMU in step) decides when that happens.  Between two yields
a coroutine runs undisturbed, exactly as a QEMU coroutine does between two yield points of one
AioContext.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class OperationError(Exception):
    """An operation of the model ends with an error."""


class ModelAssertion(OperationError):
    """QEMU would abort here: an assertion of its source does not hold."""


class ModelIOError(OperationError):
    """An I/O of the model failed; thrown into the coroutine that requested it.

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


class Spawn:
    """Another coroutine starts and runs beside this one, which goes on at once."""

    __slots__ = ("co",)

    def __init__(self, co: Co[None]) -> None:
        self.co = co

    def __repr__(self) -> str:
        return "spawn"


Event = Io | Wait | Spawn
Co = Generator[Event, Any, T]


OWN = -1  # a queue's owner: the operation that sleeps in it, by another of its coroutines


class CoQueue:
    """QEMU's ``CoQueue``: first in, first out; a woken coroutine must check its condition again.

    The driver appends whatever it uses as a task handle to :attr:`waiters` when a coroutine yields
    a :class:`Wait`; :meth:`restart_all` calls every handle's wake-up function.

    Restates util/qemu-coroutine-lock.c (``qemu_co_queue_wait``, ``qemu_co_queue_restart_all``).
    """

    __slots__ = ("label", "owner", "waiters")

    def __init__(self, label: str) -> None:
        self.label = label
        self.waiters: list[Callable[[], None]] = []
        # Number of the operation whose steps restart it, if known.
        self.owner: Callable[[], int | None] | int | None = None

    def wait(self) -> Co[None]:
        """Sleep until restarted."""
        yield Wait(self)

    def restart_all(self) -> None:
        """Make every waiter runnable, in the order they came."""
        waiters, self.waiters = self.waiters, []
        for wake in waiters:
            wake()


class AioTaskPool:
    """Coroutines that run beside each other, until the first of them fails.

    Restates block/aio_task.c (QEMU 7.2) without its limit on the number of tasks.
    """

    def __init__(self) -> None:
        self.error: ModelIOError | None = None
        self._busy = 0
        self._queue = CoQueue("tasks of its own")
        self._queue.owner = OWN

    def start(self, co: Co[None]) -> Co[None]:
        """Start *co* in the pool."""
        self._busy += 1
        yield Spawn(self._entry(co))

    def _entry(self, co: Co[None]) -> Co[None]:
        try:
            yield from co
        except ModelIOError as error:
            self.error = self.error or error
        finally:
            self._busy -= 1
            self._queue.restart_all()

    def wait_all(self) -> Co[None]:
        """Wait until all have ended.

        :raises ModelIOError: the first error of any of them
        """
        while self._busy:
            yield from self._queue.wait()
        if self.error is not None:
            raise self.error


class Deadlock(Exception):
    """A coroutine sleeps and nothing is left that would wake it."""


def run_sequentially(co: Co[T], fate: Callable[[Io], int] | None = None) -> T:
    """Drive one coroutine to its end, doing each I/O at once: the sequential specification.

    :param fate: the errno with which an I/O is to fail, 0: it is done; ``None``: all are done
    :raises Deadlock: it waits, although nothing else is running that could wake it
    """
    try:
        event = next(co)
        while True:
            if isinstance(event, Io):
                try:
                    errno = fate(event) if fate is not None else 0
                    if errno:
                        raise ModelIOError(errno)
                    result = event.perform()
                except ModelIOError as error:
                    event = co.throw(error)
                    continue
                event = co.send(result)
            elif isinstance(event, Spawn):
                run_sequentially(event.co, fate)
                event = next(co)
            else:
                raise Deadlock(repr(event))
    except StopIteration as stop:
        value: T = stop.value
        return value
