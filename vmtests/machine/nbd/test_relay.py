"""The NBD link between a pair: it passes, reports, loses, stalls and breaks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmpshim.errors import IOFailed, MachineDied
from qmpshim.machine.colo.nbd_link import NbdLink
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol.transmission import NbdCommand, Request

SIZE = 1 << 20


class Wire:
    """A gate as the server, a link before it, both in a loop of their own thread."""

    def __init__(self, directory: Path) -> None:
        self.completed: list[tuple[str, int, int]] = []
        self.gate = Gate()
        self.store = MemoryStore(SIZE)
        self.gate.add("disk", self.store)
        self.link = NbdLink(
            directory / "server.sock", "disk", directory / "link.sock", self._report
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.run(lambda: self.gate.start(directory / "server.sock"))
        self.run(self.link.start)

    def _report(self, request: Request, error: int) -> None:
        self.completed.append((NbdCommand(request.type).name, request.offset, error))

    def run(self, make: Callable[[], object]) -> object:
        async def call() -> object:
            made = make()
            return await made if asyncio.iscoroutine(made) else made

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(20)

    def close(self) -> None:
        self.run(self.link.close)
        self.run(self.gate.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def wire(workspace: Workspace) -> Iterator[Wire]:
    made = Wire(workspace.path)
    yield made
    made.close()


def client(wire: Wire) -> NbdClient:
    return NbdClient(wire.link.uri, 20.0, plain=True)


def write(nbd: NbdClient, data: bytes, offset: int) -> None:
    nbd.wait(nbd.submit_write(data, offset))


def test_passes_and_reports(wire: Wire) -> None:
    nbd = client(wire)
    write(nbd, b"a" * 512, 1024)
    nbd.wait(nbd.submit_zero(512, 4096))
    assert bytes(nbd.read(512, 1024)) == b"a" * 512
    assert wire.completed == [("WRITE", 1024, 0), ("WRITE_ZEROES", 4096, 0)]
    nbd.close()


def test_loses_what_it_has_to_lose(wire: Wire) -> None:
    wire.link.lose = lambda request: request.offset == 512
    nbd = client(wire)
    write(nbd, b"a" * 512, 0)
    write(nbd, b"b" * 512, 512)  # acknowledged, and gone
    assert wire.store.read(0, 1024) == b"a" * 512 + bytes(512)
    assert [offset for _, offset, _ in wire.completed] == [0]
    assert wire.link.lost == 1
    nbd.close()


def test_stall_and_mend(wire: Wire) -> None:
    nbd = client(wire)
    wire.run(wire.link.stall)
    cookie = nbd.submit_write(b"a" * 512, 0)
    waiter = threading.Thread(target=nbd.wait, args=(cookie,))
    waiter.start()
    deadline = 200
    while not wire.link.waiting and deadline:
        waiter.join(0.05)
        deadline -= 1
    assert wire.link.waiting == 1
    assert wire.completed == []
    wire.run(wire.link.mend)
    waiter.join(20)
    assert wire.completed == [("WRITE", 0, 0)]
    nbd.close()


def test_cut_ends_connections_and_refuses_new_ones(wire: Wire) -> None:
    nbd = client(wire)
    write(nbd, b"a" * 512, 0)
    wire.run(wire.link.cut)
    with pytest.raises((IOFailed, MachineDied)):
        write(nbd, b"b" * 512, 0)
    with pytest.raises(MachineDied):
        client(wire)
    wire.run(wire.link.mend)
    again = client(wire)
    write(again, b"c" * 512, 0)
    assert wire.store.read(0, 512) == b"c" * 512
    again.close()
    nbd.close()


def test_a_server_that_dies_in_a_request_does_not_leave_the_client_waiting(wire: Wire) -> None:
    nbd = client(wire)
    wire.run(lambda: wire.gate.hold("disk"))
    cookie = nbd.submit_write(b"a" * 512, 0)
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            nbd.wait(cookie)
        except (IOFailed, MachineDied) as error:
            failed.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert wire.run(lambda: wire.gate.until(lambda: bool(wire.gate.held), 20.0))
    wire.run(lambda: wire.gate.cut("disk"))
    waiter.join(20)
    assert len(failed) == 1
    nbd.close()
    wire.run(wire.link.settled)
    assert [error != 0 for _, _, error in wire.completed] == [True]  # done or not is unknown
