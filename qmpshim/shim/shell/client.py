"""The shell's QMP connection: numbered requests, events as they come, traffic on request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from qmpshim.errors import CommandFailed, InputError, MachineDied, MachineHung
from qmpshim.shim.endpoint.listener import Address

_LINE = 256 << 20  # bytes a message may have; QEMU sends no longer ones


class ShellClient:
    """One negotiated connection to a shim or to a plain QEMU.

    :param on_event: called with each event
    :param on_line: called with each line that is sent (``->``) or received (``<-``)
    :param on_end: called when the connection ends
    """

    def __init__(
        self,
        on_event: Callable[[dict[str, Any]], None],
        on_line: Callable[[str, str], None],
        on_end: Callable[[], None],
    ) -> None:
        self._on_event = on_event
        self._on_line = on_line
        self._on_end = on_end
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._task: asyncio.Task[None] | None = None
        self.greeting: dict[str, Any] = {}
        self.ended = False
        self.oob = False  # out-of-band execution was negotiated

    async def connect(self, address: Address, limit: float = 10.0) -> None:
        """Connect and negotiate.

        :raises InputError: nothing listens there
        :raises MachineHung: no answer: a plain QEMU talks to one client at a time
        """
        sock = await address.connect()
        self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=_LINE)
        try:
            async with asyncio.timeout(limit):
                self.greeting = json.loads(await self._reader.readline())
                self.oob = "oob" in self.greeting["QMP"]["capabilities"]
        except (TimeoutError, ValueError) as error:
            self._writer.transport.abort()
            raise MachineHung(
                f"no QMP greeting from {address}: is another client there?"
            ) from error
        except (TypeError, LookupError) as error:
            self._writer.transport.abort()
            raise InputError(f"{address} does not speak QMP") from error
        self._task = asyncio.ensure_future(self._listen())
        await self.execute("qmp_capabilities", {"enable": ["oob"]} if self.oob else None)

    async def _listen(self) -> None:
        try:
            with contextlib.suppress(OSError):
                while line := await self._reader.readline():
                    self._on_line("<-", line.decode().rstrip())
                    self._take(json.loads(line))
        finally:
            self.ended = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(MachineDied("QEMU went away"))
            self._on_end()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message)
            return
        future = self._waiting.pop(message.get("id", self._number), None)
        if future is not None and not future.done():
            future.set_result(message)

    async def send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request; gives the whole reply, with the id the request had.

        :raises MachineDied: the connection ended
        """
        if self.ended:
            raise MachineDied("QEMU went away")
        self._number += 1
        number = self._number
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        text = json.dumps({**request, "id": number})
        self._on_line("->", text)
        self._writer.write(text.encode() + b"\n")
        try:
            reply = dict(await future)
        finally:
            self._waiting.pop(number, None)
        reply.pop("id", None)
        if "id" in request:
            reply["id"] = request["id"]
        return reply

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, oob: bool = False
    ) -> Any:
        """Run a command and give what it returns.

        :param oob: out of band, where that was negotiated
        :raises CommandFailed: it failed
        :raises MachineDied: the connection ended
        """
        request: dict[str, Any] = {"exec-oob" if oob and self.oob else "execute": command}
        if arguments is not None:
            request["arguments"] = dict(arguments)
        reply = await self.send(request)
        if "error" in reply:
            raise CommandFailed(command, reply["error"]["class"], reply["error"]["desc"])
        return reply["return"]

    async def close(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._writer.transport.abort()
