"""A shim that serves from a thread of its own, for plain functions that are its clients."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import fields
from typing import Any, TypeVar

from qmpshim.errors import InputError
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.shim.emulator.serve import Options, Served, endpoint
from qmpshim.shim.shell.client import ShellClient

T = TypeVar("T")


class BlockingShim(Served):
    """A running endpoint, and clients of it for plain functions.

    :param loop: where *served* runs
    :param limit: seconds an NBD request may take
    """

    def __init__(self, served: Served, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        super().__init__(**{field.name: getattr(served, field.name) for field in fields(served)})
        self._loop = loop
        self._limit = limit
        self._qmp: ShellClient | None = None
        self._disks: dict[str, NbdClient] = {}

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command, QEMU's or the shim's, as a client of the shim; gives what it returns.

        :raises CommandFailed: it was answered with an error
        :raises MachineDied: QEMU has ended
        """
        return self._run(self._execute(command, arguments))

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None) -> Any:
        if self._qmp is None:
            client = ShellClient(lambda _: None, lambda *_: None, lambda: None)
            await client.connect(self.addresses[0], self._limit)
            self._qmp = client
        return await self._qmp.execute(command, arguments)

    @property
    def primary(self) -> NbdClient:
        """A client of the secondary disk's export; the test has a chain."""
        return self.disk("primary")

    @property
    def guest(self) -> NbdClient:
        """A client of the export where a guest would be; the test has a chain."""
        return self.disk("guest")

    def disk(self, export: str) -> NbdClient:
        """A client of the NBD export with that id, the same at each call.

        :raises InputError: there is none
        :raises MachineDied: the server does not answer
        """
        if export not in self._disks:
            exports = self._run(self._exports())
            uris = {one["export"]: str(one["uri"]) for one in exports}
            if export not in uris:
                raise InputError(f"no NBD export {export!r}: {', '.join(uris) or 'none is there'}")
            self._disks[export] = NbdClient(uris[export], self._limit, plain=True)
        return self._disks[export]

    async def _exports(self) -> list[dict[str, Any]]:
        return await self.chains.nbd_exports.entries()

    def hang_up(self) -> None:
        """End the clients' connections."""
        for client in self._disks.values():
            client.close()
        self._disks.clear()
        if self._qmp is not None:
            self._run(self._qmp.close())
            self._qmp = None

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()


@contextlib.contextmanager
def background(options: Options) -> Iterator[BlockingShim]:
    """Serve while the context lasts; its user may block.

    Raises what :func:`qmpshim.shim.emulator.serve.endpoint` raises.
    """
    loop = asyncio.new_event_loop()
    # One thread for all of it: QEMU dies with the thread that started it.
    thread = threading.Thread(target=loop.run_forever, name="shim", daemon=True)
    thread.start()
    ready: Future[Served] = Future()
    leave = asyncio.Event()

    async def serve() -> None:
        try:
            async with endpoint(options) as served:
                ready.set_result(served)
                await leave.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    serving = asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        shim = BlockingShim(ready.result(), loop, options.limit)
        try:
            yield shim
        finally:
            shim.hang_up()
    finally:
        loop.call_soon_threadsafe(leave.set)
        try:
            serving.result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
