"""How many in-band commands are at QEMU, and which client may send the next."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from qmpshim.shim.endpoint.link import Batch

#: In-band commands QEMU may hold at once. It reads on while fewer than eight are queued, so an
#: out-of-band command always gets through.
WINDOW = 7


class Waiting(Protocol):
    """A client that may wait for its turn."""

    def pump(self) -> None:
        """Send what is to be sent, as far as there is capacity."""


class Window:
    """The in-band commands of all clients that are at QEMU: few, and the clients take turns.

    :param gone: whether QEMU is gone, so that its commands are not answered any more
    """

    def __init__(self, batch: Batch, gone: Callable[[], bool]) -> None:
        self._batch = batch
        self._gone = gone
        self._in_band = 0
        self._line: OrderedDict[Waiting, None] = OrderedDict()
        self._closed = False
        self._closing = asyncio.Lock()
        self._waiting = 0  # in-band commands that wait for it

    @property
    def has_capacity(self) -> bool:
        """Whether QEMU may be given another in-band command."""
        return self._in_band < WINDOW and not self._closed

    def line_up(self, client: Waiting) -> None:
        """Schedule *client*, if it is not already, when there is capacity again."""
        self._line.setdefault(client)

    def begin(self) -> None:
        """A command takes its place."""
        self._in_band += 1

    def end(self) -> None:
        """A command has been answered; :meth:`next_turns` gives its place away."""
        self._in_band -= 1

    def next_turns(self) -> None:
        """Let those go on that wait, as far as there is capacity."""
        while self._line and self.has_capacity:
            client, _ = self._line.popitem(last=False)
            client.pump()

    @asynccontextmanager
    async def no_commands(self, own: int = 0) -> AsyncIterator[None]:
        """QEMU has no client's in-band command, and gets none, while the context lasts.

        :param own: how many in-band commands the caller is answering; they count as none
        """
        self._waiting += own
        try:
            await self._closing.acquire()
        finally:
            self._waiting -= own
        self._closed = True
        try:
            # Those that wait for us here are not at QEMU.
            while self._in_band > own + self._waiting and not self._gone():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            yield
        finally:
            self._closed = False
            self._closing.release()
            with self._batch:
                self.next_turns()
