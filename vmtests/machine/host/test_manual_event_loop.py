"""The manual event loop: what asyncio promises of callbacks holds though the loop seldom turns."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from qmpshim.machine.host.manual_event_loop import ManualEventLoop


@pytest.fixture
def manual() -> Iterator[ManualEventLoop]:
    made = ManualEventLoop()
    yield made
    made.close()


@pytest.fixture
def ready() -> Iterator[list[socket.socket]]:
    """Two sockets with something to read, and their other ends."""
    pairs = [socket.socketpair() for _ in range(2)]
    for _, theirs in pairs:
        theirs.send(b"x")
    yield [ours for ours, _ in pairs]
    for pair in pairs:
        for end in pair:
            end.close()


def test_what_is_ready_is_called(manual: ManualEventLoop, ready: list[socket.socket]) -> None:
    got: list[bytes] = []
    manual.loop.add_reader(ready[0], lambda: got.append(ready[0].recv(1)))
    assert manual.poll() and got == [b"x"]
    assert not manual.poll()
    manual.loop.add_writer(ready[0], lambda: got.append(b"w"))
    assert manual.poll() and got == [b"x", b"w"]


def test_what_was_removed_meanwhile_is_not(
    manual: ManualEventLoop, ready: list[socket.socket]
) -> None:
    called: list[int] = []
    failed: list[object] = []
    manual.loop.set_exception_handler(lambda _, context: failed.append(context))

    def first_of(which: int) -> None:
        called.append(which)
        manual.loop.remove_reader(ready[1 - which])

    for which in (0, 1):
        manual.loop.add_reader(ready[which], first_of, which)
    assert manual.poll() and len(called) == 1 and not failed


def test_a_callback_of_a_callback_comes_in_the_same_poll(
    manual: ManualEventLoop, ready: list[socket.socket]
) -> None:
    called: list[str] = []

    def read() -> None:
        ready[0].recv(1)
        manual.loop.call_soon(lambda: manual.loop.call_soon(called.append, "later"))

    manual.loop.add_reader(ready[0], read)
    assert manual.poll() and called == ["later"]


def test_a_timer_fires_in_a_poll(manual: ManualEventLoop) -> None:
    called: list[str] = []
    manual.loop.call_later(0.0, called.append, "timer")
    assert not manual.poll() and called == ["timer"]


def test_a_thread_may_schedule(manual: ManualEventLoop) -> None:
    called: list[str] = []
    thread = threading.Thread(target=manual.loop.call_soon_threadsafe, args=(called.append, "it"))
    thread.start()
    thread.join()
    manual.poll()
    assert called == ["it"]


def test_an_error_in_a_callback_goes_to_the_handler(
    manual: ManualEventLoop, ready: list[socket.socket]
) -> None:
    """And what else is ready is handled."""
    failed: list[str] = []
    got: list[bytes] = []
    manual.loop.set_exception_handler(lambda _, context: failed.append(str(context["exception"])))

    def fail() -> None:
        ready[0].recv(1)
        raise ValueError("on purpose")

    manual.loop.add_reader(ready[0], fail)
    manual.loop.add_reader(ready[1], lambda: got.append(ready[1].recv(1)))
    assert manual.poll() and (failed, got) == (["on purpose"], [b"x"])
