"""The contract: a command runs in a drained section, between requests and never beside one.

Restates what ``bdrv_drained_begin``/``bdrv_drained_end`` (block/io.c, QEMU 7.2) and the requests
queued in block/block-backend.c do for COLO, which stops the VM and settles both sides' I/O before
it takes a checkpoint, fails over or stops.
"""

from __future__ import annotations

from typing import TypeVar

from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.runtime.coroutines import Co, CoQueue

T = TypeVar("T")


class Drain:
    """Lets requests through, except while a command drains.

    :ivar busy: numbers of the requests that are in flight
    :ivar drainers: numbers of the commands that drain
    """

    def __init__(self, memory: StateContainers = PLAIN) -> None:
        self.busy = memory.bits("busy requests")
        self.drainers = memory.bits("draining commands")
        self._resumed = CoQueue("the end of the drained section")
        self._resumed.owner = lambda: next(iter(self.drainers), None)
        self._idle = CoQueue("requests in flight")
        self._idle.owner = lambda: next(iter(self.busy), None)

    def request(self, number: int, co: Co[T]) -> Co[T]:
        """Do *co* as a request: not while a command drains."""
        while self.drainers:
            yield from self._resumed.wait()
        self.busy.add(number)
        try:
            return (yield from co)
        finally:
            self.busy.discard(number)
            if self.drainers and not self.busy:
                self._idle.restart_all()

    def command(self, number: int, co: Co[T]) -> Co[T]:
        """Do *co* as a command: alone."""
        while self.drainers:
            yield from self._resumed.wait()
        self.drainers.add(number)
        try:
            while self.busy:
                yield from self._idle.wait()
            return (yield from co)
        finally:
            self.drainers.discard(number)
            self._resumed.restart_all()
