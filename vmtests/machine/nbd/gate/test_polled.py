"""A gate on a manual event loop: slow clients, clients that leave, connections that are cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmpshim.errors import HostError
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.gate.polled import PolledTransport
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.nonblocking import NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd

SIZE = 8 << 20  # bytes: more than a socket takes


@pytest.fixture
def gate(event_loop: ManualEventLoop, tmp_path: Path) -> Iterator[Gate]:
    made = Gate()
    made.add("disk", MemoryStore(bytes(range(256)) * (SIZE // 256)))
    made.serve(event_loop, tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def client(event_loop: ManualEventLoop, gate: Gate, tmp_path: Path) -> Iterator[NonBlockingNbd]:
    made = NonBlockingNbd(event_loop, tmp_path / "s", "disk")
    yield made
    made.close()


def test_what_a_socket_does_not_take_at_once_comes_later(client: NonBlockingNbd) -> None:
    data = bytes(reversed(range(256))) * (SIZE // 256)
    client.write(data, 0)
    assert client.read(SIZE, 0) == data


def test_a_client_that_does_not_read_is_not_read(
    event_loop: ManualEventLoop, gate: Gate, client: NonBlockingNbd
) -> None:
    """Its requests wait in its own socket, and are answered once it reads."""
    wanted, most = 64, 4
    silent = client._sock.fileno()  # the client does not look at what comes
    reads = client._readable
    event_loop.on_readable(silent, None)
    sent = [client.send(Nbd.READ, 0, 1 << 20) for _ in range(wanted)]
    while event_loop.poll(0.05):
        pass
    assert gate.counts("disk")[Nbd.READ] <= most
    event_loop.on_readable(silent, reads)
    assert event_loop.until(lambda: client.answers.keys() >= set(sent), 20.0)
    assert gate.counts("disk")[Nbd.READ] == wanted


def test_a_client_that_leaves_takes_what_it_waits_for_with_it(
    event_loop: ManualEventLoop, gate: Gate, client: NonBlockingNbd
) -> None:
    gate.hold()
    client.send(Nbd.READ, 0, 512)
    assert event_loop.until(lambda: len(gate.held) == 1, 10.0)
    client.close()
    assert event_loop.until(lambda: not gate.held, 10.0) and not gate.connections("disk")


def test_a_cut_reaches_the_client(
    event_loop: ManualEventLoop, gate: Gate, client: NonBlockingNbd
) -> None:
    gate.hold()
    client.send(Nbd.WRITE, 0, 0, bytes(512))
    assert event_loop.until(lambda: len(gate.held) == 1, 10.0)
    gate.cut(gate.held[0])
    assert not gate.held and not client.lost
    assert event_loop.until(lambda: client.lost, 10.0)


def test_a_path_that_is_too_long_is_reported(event_loop: ManualEventLoop, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot listen"):
        Gate().serve(event_loop, tmp_path / ("x" * 200))


def test_close_sends_the_rest_and_abort_does_not(event_loop: ManualEventLoop) -> None:
    for end, all_of_it in ((PolledTransport.close, True), (PolledTransport.abort, False)):
        protocol = _Protocol()
        ours, theirs = socket.socketpair()
        with theirs:
            transport = PolledTransport(event_loop, ours, protocol)
            transport.write(bytes(SIZE))
            assert protocol.full and not protocol.lost
            end(transport)
            assert transport.is_closing() and protocol.lost is not all_of_it
            theirs.setblocking(False)
            came = 0
            for _ in range(10 * SIZE):
                try:
                    data = theirs.recv(SIZE)
                except BlockingIOError:
                    event_loop.poll()
                    continue
                came += len(data)
                if not data:
                    break
            assert (came == SIZE) is all_of_it and protocol.lost


def test_what_is_not_to_be_read_stays_in_the_socket(event_loop: ManualEventLoop) -> None:
    protocol = _Protocol()
    ours, theirs = socket.socketpair()
    with theirs:
        transport = PolledTransport(event_loop, ours, protocol)
        transport.pause_reading()
        theirs.send(b"x")
        assert not event_loop.poll() and len(protocol.got) == 0 and not transport.is_reading()
        transport.resume_reading()
        assert event_loop.poll() and protocol.got == b"x" and transport.is_reading()
        transport.abort()


class _Protocol(asyncio.Protocol):
    full = lost = False
    got = b""

    def data_received(self, data: bytes) -> None:
        self.got += data

    def pause_writing(self) -> None:
        self.full = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
