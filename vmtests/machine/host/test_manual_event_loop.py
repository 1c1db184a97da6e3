"""The manual event loop: which callbacks are called, when, and which are not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from vmtests.support.timers import call_later


@pytest.fixture
def ready() -> Iterator[list[socket.socket]]:
    """Two sockets with something to read."""
    pairs = [socket.socketpair() for _ in range(2)]
    for ours, theirs in pairs:
        theirs.send(b"x")
        ours.setblocking(False)
    yield [ours for ours, _ in pairs]
    for pair in pairs:
        for end in pair:
            end.close()


def test_what_is_ready_is_called(event_loop: ManualEventLoop, ready: list[socket.socket]) -> None:
    got: list[bytes] = []
    file = ready[0].fileno()
    event_loop.on_readable(file, lambda: got.append(ready[0].recv(1)))
    assert event_loop.poll() and got == [b"x"]
    assert not event_loop.poll()
    event_loop.on_writable(file, lambda: got.append(b"w"))
    assert event_loop.poll() and got == [b"x", b"w"]
    event_loop.on_writable(file, None)
    assert not event_loop.poll() and got == [b"x", b"w"]


def test_what_was_removed_meanwhile_is_not(
    event_loop: ManualEventLoop, ready: list[socket.socket]
) -> None:
    called: list[int] = []

    def first_of(which: int) -> None:
        called.append(which)
        event_loop.forget(ready[1 - which].fileno())

    event_loop.on_readable(ready[0].fileno(), lambda: first_of(0))
    event_loop.on_readable(ready[1].fileno(), lambda: first_of(1))
    assert event_loop.poll() and len(called) == 1


def test_an_end_is_something_to_read_and_to_write(
    event_loop: ManualEventLoop, ready: list[socket.socket]
) -> None:
    """Else what waits for a peer that is gone waits for ever."""
    called: list[str] = []
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        event_loop.on_readable(ours.fileno(), lambda: called.append("read"))
        assert event_loop.poll() and called == ["read"]
        event_loop.on_readable(ours.fileno(), None)
        assert not event_loop.poll()  # and what does not want to know is left alone
        event_loop.on_writable(ours.fileno(), lambda: called.append("write"))
        assert event_loop.poll() and called == ["read", "write"]
        event_loop.forget(ours.fileno())


def test_timers_come_in_order_and_in_no_poll_that_is_too_early(event_loop: ManualEventLoop) -> None:
    called: list[str] = []
    call_later(event_loop, 3600.0, lambda: called.append("late"))
    call_later(event_loop, 0.0, lambda: called.append("first"))
    call_later(event_loop, 0.0, lambda: called.append("second"))
    assert not event_loop.poll() and called == ["first", "second"]


def test_an_error_in_a_callback_is_not_lost(
    event_loop: ManualEventLoop, ready: list[socket.socket]
) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    event_loop.on_readable(ready[0].fileno(), fail)
    with pytest.raises(ValueError, match="on purpose"):
        event_loop.poll()
