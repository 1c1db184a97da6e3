"""What one client is sent: replies and events in the order in which QEMU sent them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Message:
    """A message that waits: ``data`` is None where a reply still has to be made.

    :ivar oob: of a reply, whether its command ran out of band; None for an event
    """

    oob: bool | None
    data: bytes | None


class Outbox:
    """Keeps QEMU's order where a reply is not ready at once.

    Some replies need work (more commands to QEMU, I/O) after QEMU has sent them. Their place is
    reserved when they arrive; whatever comes later waits behind it.

    :param write: sends bytes to the client
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._waiting: deque[_Message] = deque()

    def reserve(self, oob: bool) -> None:
        """QEMU has sent a reply that will be given to :meth:`reply` later.

        A session answers one command in band and one out of band at a time, so *oob* names it.
        """
        if not any(message.oob == oob and message.data is None for message in self._waiting):
            self._waiting.append(_Message(oob, None))

    def reply(self, data: bytes, oob: bool) -> None:
        """Send a reply: in its reserved place if there is one, else after all that waits."""
        for message in self._waiting:
            if message.oob == oob and message.data is None:
                message.data = data
                break
        else:
            self.event(data)
        while self._waiting and (ready := self._waiting[0].data) is not None:
            self._waiting.popleft()
            self._write(ready)

    def event(self, data: bytes) -> None:
        """Send what QEMU sends unasked, after all that waits."""
        if self._waiting:
            self._waiting.append(_Message(None, data))
        else:
            self._write(data)
