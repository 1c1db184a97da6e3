"""The manual event loop: who is called back, when, and who is not."""

from __future__ import annotations

import socket
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
    """Two sockets with something to read."""
    pairs = [socket.socketpair() for _ in range(2)]
    for ours, theirs in pairs:
        theirs.send(b"x")
        ours.setblocking(False)
    yield [ours for ours, _ in pairs]
    for pair in pairs:
        for end in pair:
            end.close()


def test_what_is_ready_is_called(manual: ManualEventLoop, ready: list[socket.socket]) -> None:
    got: list[bytes] = []
    file = ready[0].fileno()
    manual.on_readable(file, lambda: got.append(ready[0].recv(1)))
    assert manual.poll() and got == [b"x"]
    assert not manual.poll()
    manual.on_writable(file, lambda: got.append(b"w"))
    assert manual.poll() and got == [b"x", b"w"]
    manual.on_writable(file, None)
    assert not manual.poll() and got == [b"x", b"w"]


def test_what_was_removed_meanwhile_is_not(
    manual: ManualEventLoop, ready: list[socket.socket]
) -> None:
    called: list[int] = []

    def first_of(which: int) -> None:
        called.append(which)
        manual.forget(ready[1 - which].fileno())

    manual.on_readable(ready[0].fileno(), lambda: first_of(0))
    manual.on_readable(ready[1].fileno(), lambda: first_of(1))
    assert manual.poll() and len(called) == 1


def test_an_end_is_something_to_read_and_to_write(
    manual: ManualEventLoop, ready: list[socket.socket]
) -> None:
    """Else who waits for a peer that is gone waits for ever."""
    called: list[str] = []
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        manual.on_readable(ours.fileno(), lambda: called.append("read"))
        assert manual.poll() and called == ["read"]
        manual.on_readable(ours.fileno(), None)
        assert not manual.poll()  # and who does not want to know is left alone
        manual.on_writable(ours.fileno(), lambda: called.append("write"))
        assert manual.poll() and called == ["read", "write"]
        manual.forget(ours.fileno())


def test_timers_come_in_order_and_in_no_poll_that_is_too_early(manual: ManualEventLoop) -> None:
    called: list[str] = []
    manual.call_later(3600.0, lambda: called.append("late"))
    manual.call_later(0.0, lambda: called.append("first"))
    manual.call_later(0.0, lambda: called.append("second"))
    assert not manual.poll() and called == ["first", "second"]


def test_an_error_in_a_callback_is_not_lost(
    manual: ManualEventLoop, ready: list[socket.socket]
) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    manual.on_readable(ready[0].fileno(), fail)
    with pytest.raises(ValueError, match="on purpose"):
        manual.poll()
