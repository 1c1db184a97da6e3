"""Single reads and writes through a shim's endpoints, which last as long as they are held."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from qmpshim.conformance.workload.pattern import data_of
from qmpshim.errors import InputError, MachineDied, QmpshimError
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.units import SECTOR
from qmpshim.shim.shell.client import ShellClient

T = TypeVar("T")
_FOREVER = 1e9  # seconds: a person holds the I/O
_LARGEST = 32 << 20  # bytes of data QEMU takes in one request (NBD_MAX_BUFFER_SIZE)
_MOST_READ = 64 << 20  # bytes, more than anybody reads as a hex dump
_SIDES = ("primary", "guest")  # of a chain, whatever their exports are called
_GLANCE = 0.1  # seconds until one looks whether something is held


class Flights:
    """What is under way: a prompt need not wait for what is held.

    :param write_line: prints a line
    :ivar gated: whether I/O can be held at all
    """

    def __init__(self, client: ShellClient, write_line: Callable[[str], None]) -> None:
        self.gated = False
        self._client = client
        self._write_line = write_line
        self._number = 0
        self._tasks: dict[int, tuple[str, asyncio.Task[str]]] = {}

    @property
    def there(self) -> list[str]:
        """What is under way, in words."""
        return [f"{number}: {what}" for number, (what, _) in self._tasks.items()]

    async def wait(self, what: str, job: Coroutine[Any, Any, str]) -> bool:
        """Print *job*'s result; return before it ends when its I/O is held.

        :param what: the job in words
        :returns: whether it is done
        :raises QmpshimError: as the job does
        """
        task = asyncio.ensure_future(job)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_GLANCE if self.gated else None)
                if self.gated and not task.done() and await self._held():
                    self._let_fly(what, task)
                    return False
        except asyncio.CancelledError:
            task.cancel()
            raise
        if text := task.result():
            self._write_line(text)
        return True

    async def land(self, limit: float) -> bool:
        """Wait until nothing is under way, or only what waits for held I/O.

        :param limit: seconds
        :returns: whether nothing is under way
        """
        deadline = time.monotonic() + limit
        while self._tasks and time.monotonic() < deadline and not await self._held():  # noqa: ASYNC110
            await asyncio.sleep(_GLANCE / 5)
        return not self._tasks

    async def _held(self) -> bool:
        reply = await self._client.execute("x-shim-held", oob=True)
        return bool(reply["held"])

    def _let_fly(self, what: str, task: asyncio.Task[str]) -> None:
        self._number += 1
        number = self._number
        self._tasks[number] = (what, task)
        self._write_line(f"in flight as {number}: {what}")

        def over(_: object) -> None:
            del self._tasks[number]
            if task.cancelled():
                return
            try:
                text = task.result()
                self._write_line(f"{number} done: {what}" + (f": {text}" if text else ""))
            except QmpshimError as error:
                self._write_line(f"{number} failed: {what}: {error}")

        task.add_done_callback(over)

    def close(self) -> None:
        """Wait for nothing any more."""
        for _, task in list(self._tasks.values()):
            task.cancel()


class Disks:
    """What is exported, by its NBD endpoints: ``primary``, ``guest``, or an export's id."""

    def __init__(self, client: ShellClient, flights: Flights) -> None:
        self._client = client
        self._flights = flights
        self._uris: dict[str, str] = {}
        self._idle: dict[str, list[NbdClient]] = {}
        self._writes = 0

    async def _uri(self, side: str) -> str:
        if side in self._uris:
            return self._uris[side]
        reply = await self._client.execute("x-shim-status")
        nodes = {n["disk"]: n["node"] for n in reply.get("chain", {}).get("nodes", [])}
        wanted = None
        if side in _SIDES:
            guest = "top" if "top" in nodes else "hidden"
            wanted = nodes.get("secondary" if side == "primary" else guest)
        for endpoint in reply["endpoints"]:
            if endpoint["node"] == wanted or (wanted is None and endpoint["export"] == side):
                if wanted is not None:
                    self._uris[side] = str(endpoint["uri"])
                return str(endpoint["uri"])
        if side in _SIDES:
            raise InputError(f"there is no NBD export for the {side} side: block-export-add one")
        there = ", ".join([*_SIDES, *(endpoint["export"] for endpoint in reply["endpoints"])])
        raise InputError(f"there is no NBD export {side!r}: {there}")

    async def _use(self, side: str, work: Callable[[NbdClient], T]) -> T:
        """Do *work* on a connection, in a daemon thread."""
        uri = await self._uri(side)
        idle = self._idle.setdefault(side, [])

        def run() -> T:
            client = idle.pop() if idle else NbdClient(uri, _FOREVER, plain=True)
            try:
                done = work(client)
            except MachineDied:
                client.close()
                raise
            except QmpshimError:
                idle.append(client)
                raise
            idle.append(client)
            return done

        try:
            return await in_thread(run)
        except MachineDied:
            self._uris.pop(side, None)  # the export may be another now
            raise

    async def write(self, side: str, offset: int, length: int, what: str, fua: bool = False) -> str:
        """Write a *what*: ``pattern``, ``zero``, ``zero-no-hole`` (no unmapping) or a byte.

        :param fua: data are durable when the write ends
        """
        zeroes, no_hole = what in ("zero", "zero-no-hole"), what == "zero-no-hole"
        if not zeroes and length > _LARGEST:
            raise InputError(f"QEMU takes {_LARGEST >> 20}M of data at once")
        if zeroes:
            await self._use(side, lambda c: c.wait(c.submit_zero(length, offset, no_hole)))
        else:
            data = await self._data(offset, length, what)
            await self._use(side, lambda c: c.wait(c.submit_write(data, offset, fua)))
        return f"wrote {length} bytes at {offset} through {side}"

    async def _data(self, offset: int, length: int, what: str) -> bytes | memoryview:
        if what != "pattern":
            try:
                return bytes([int(what, 0)]) * length
            except ValueError as error:
                raise InputError(
                    f"{what!r}: write pattern, zero, zero-no-hole or a byte like 0x5a"
                ) from error
        if offset % SECTOR or length % SECTOR:
            raise InputError("a pattern fills whole sectors of 512 bytes")
        self._writes += 1
        number = self._writes
        if self._flights.gated:  # the number under which the explorer would write it
            reply = await self._client.execute("x-shim-held", oob=True)
            number = int(reply["next-operation"])
        return data_of(number, offset // SECTOR, length // SECTOR)

    async def discard(self, side: str, offset: int, length: int) -> str:
        """Discard a range."""
        await self._use(side, lambda c: c.wait(c.submit_discard(length, offset)))
        return f"discarded {length} bytes at {offset} through {side}"

    async def flush(self, side: str) -> str:
        """Flush."""
        await self._use(side, lambda c: c.wait(c.submit_flush()))
        return f"flushed through {side}"

    async def read(self, side: str, offset: int, length: int) -> str:
        """Read a range; gives a hex dump."""
        if length > _MOST_READ:
            raise InputError(f"{_MOST_READ >> 20}M can be read at once")
        data = await self._use(side, lambda c: c.read(length, offset))
        return "\n".join(hex_dump(data, offset))

    def close(self) -> None:
        """Hang up, where nothing is under way."""
        for clients in self._idle.values():
            while clients:
                clients.pop().close()


async def in_thread(work: Callable[[], T]) -> T:
    """Do *work* in a daemon thread; raises what it raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except Exception as failure:  # whatever it is: its result is waited for
            error = failure
        with contextlib.suppress(RuntimeError):  # the shell has left
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await future


def hex_dump(data: bytes | bytearray, offset: int) -> Iterator[str]:
    """Lines of sixteen bytes, equal ones left out, as ``hexdump -C``."""
    last, starred = b"", False
    for at in range(0, len(data), 16):
        row = bytes(data[at : at + 16])
        if row == last and at + 16 < len(data):
            if not starred:
                yield "*"
            starred = True
            continue
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        yield f"{offset + at:08x}  {row.hex(' '):47}  {text}"
        last, starred = row, False
