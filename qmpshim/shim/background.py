"""A shim that serves from a thread of its own, for plain functions that are its clients."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from qmpshim.shim.serve import Options, Served, endpoint


@contextlib.contextmanager
def background(options: Options) -> Iterator[Served]:
    """Serve while the context lasts; whoever enters it may block.

    Raises what :func:`qmpshim.shim.serve.endpoint` raises.
    """
    loop = asyncio.new_event_loop()
    # One thread for all of it: QEMU dies with the thread that started it.
    thread = threading.Thread(target=loop.run_forever, name="shim", daemon=True)
    thread.start()
    ready: asyncio.Future[Served] = asyncio.run_coroutine_threadsafe(_future(), loop).result()
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

    async def until_ready() -> Served:
        return await ready

    serving = asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        yield asyncio.run_coroutine_threadsafe(until_ready(), loop).result()
    finally:
        loop.call_soon_threadsafe(leave.set)
        try:
            serving.result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _future() -> asyncio.Future[Served]:
    return asyncio.get_running_loop().create_future()
