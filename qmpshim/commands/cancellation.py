"""Work that SIGINT and SIGTERM end in order: everything is taken down, the exit status has it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from qmpshim.commands.interrupted import Interrupted
from qmpshim.commands.streams import WRONG

_SIGNALS = signal.SIGINT, signal.SIGTERM
_TAKEN_DOWN = "QEMU was ended and its files removed"


def run_cancellable(main: Coroutine[Any, Any, int], then: str = _TAKEN_DOWN) -> int:
    """Run to the end; SIGINT and SIGTERM cancel it, so that everything is taken down.

    :param then: the consequence, for the message
    """

    async def guarded() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        caught: list[int] = []
        torn = False

        def cancel(number: int, _frame: object) -> None:
            if not caught:
                caught.append(number)
                loop.call_soon_threadsafe(at_the_next_await)
                signal.setitimer(signal.ITIMER_REAL, 1.0)

        def at_the_next_await() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if not torn:
                task.cancel()

        def now(_number: int, _frame: object) -> None:
            # The loop does not come round: a hung QEMU is waited for. That is where we are now.
            nonlocal torn
            torn = True
            raise asyncio.CancelledError

        signal.signal(signal.SIGALRM, now)
        for number in _SIGNALS:
            signal.signal(number, cancel)
        try:
            return await task
        except asyncio.CancelledError:
            print(f"interrupted; {then}", file=sys.stderr)
            return 128 + caught[0] if caught else WRONG

    return asyncio.run(guarded())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise :exc:`Interrupted` at SIGINT and SIGTERM: for work that knows no event loop."""

    def raise_once(number: int, _frame: object) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)  # what is taken down now must not be torn
        raise Interrupted(number, heed)

    def heed() -> None:
        for one in _SIGNALS:
            signal.signal(one, raise_once)

    before = {one: signal.getsignal(one) for one in _SIGNALS}
    heed()
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def run_interruptible(work: Callable[[], int]) -> int:
    """:func:`run_cancellable` for what knows no event loop."""
    try:
        with interruptible():
            return work()
    except Interrupted as interrupted:
        print(f"interrupted; {_TAKEN_DOWN}", file=sys.stderr)
        return 128 + interrupted.number
