"""Commands that bring a file descriptor: QEMU gets one at a time, or it mixes them up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from qmpshim.shim.endpoint.client import Client
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply, Upstream

WITH_FD = frozenset({"getfd", "add-fd"})
_STALE = "x-shim-stale"


class Descriptors:
    """Passes them on.

    :param finish: gives a client the reply to its command
    """

    def __init__(
        self, upstream: Upstream, finish: Callable[[Client, Command, Reply | None], None]
    ) -> None:
        self._upstream = upstream
        self._finish = finish
        self._busy = False
        self._line: deque[tuple[Client, Command]] = deque()

    def pass_on(self, client: Client, command: Command) -> None:
        """Send *command* with the descriptor that *client* sent, when it is its turn."""
        self._line.append((client, command))
        self._next()

    def _next(self) -> None:
        """Give QEMU one command with a descriptor at a time, or it would mix them up."""
        if self._busy or not self._line:
            return
        self._busy = True
        client, command = self._line.popleft()
        fd = client.session.take_fd() if self._upstream.link.passes_fds else None

        def finish(reply: Reply | None) -> None:
            self._busy = False
            self._finish(client, command, reply)
            self._next()

        def answered(reply: Reply | None) -> None:
            if fd is None or reply is None:
                finish(reply)
            elif not reply.failed:
                client.session.drop_fds()
                finish(reply)
            else:
                # A command with wrong arguments leaves the descriptor in QEMU's character
                # device, where the next one would find it: a real monitor's next client command
                # may use it, another client of ours must not.
                client.expects(command.oob)
                self._take_back(client, lambda: finish(reply))

        self._upstream.send(command.name, command.arguments, answered, command.oob, fd)

    def _take_back(self, client: Client, then: Callable[[], None]) -> None:
        def taken(reply: Reply | None) -> None:
            if reply is None:
                then()
            elif reply.failed:  # QEMU had used it up
                client.session.drop_fds()
                then()
            else:
                self._upstream.send("closefd", {"fdname": _STALE}, lambda _: then())

        self._upstream.send("getfd", {"fdname": _STALE}, taken)
