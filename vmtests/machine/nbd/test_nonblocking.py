"""The NBD client of the event loop: a server that goes away or does not answer is reported."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from qmpshim.errors import MachineDied, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.host.manual_event_loop import ManualEventLoop
from qmpshim.machine.nbd.nonblocking import NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.machine.nbd.status_client import StatusClient


def test_an_nbd_server_that_goes_away_before_the_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    listening.listen()

    class Left(socket.socket):
        """Connects, and the server is gone."""

        def connect(self, address: Any) -> None:
            super().connect(address)
            listening.close()

    monkeypatch.setattr(socket, "socket", Left)
    with (
        contextlib.closing(ManualEventLoop()) as loop,
        pytest.raises(MachineDied, match="NBD"),
    ):
        NonBlockingNbd(loop, tmp_path / "s", "e")


@pytest.mark.parametrize("client", [NonBlockingNbd, StatusClient])
@pytest.mark.parametrize("sent", [b"", b"NBDMAGICIHAVEOPT\0\3"])
def test_an_nbd_server_that_does_not_answer_hangs(
    client: type[NonBlockingNbd], sent: bytes, tmp_path: Path
) -> None:
    """Whether it stops before its greeting or after; it refuses nothing."""
    with (
        socket.socket(socket.AF_UNIX) as listening,
        contextlib.closing(ManualEventLoop()) as loop,
    ):
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        accepted: list[socket.socket] = []

        def accept() -> None:
            accepted.append(listening.accept()[0])
            accepted[0].sendall(sent)

        loop.on_readable(listening.fileno(), accept)
        with pytest.raises(MachineHung, match=r"NBD connection to e: no answer in 1 s"):
            client(loop, tmp_path / "s", "e", limit=1.0)
        accepted[0].close()


def test_a_stopped_qemu_hangs_and_refuses_no_client(qemu_build: Build) -> None:
    machine = GatedMachine(qemu_build, Shape(TOPOLOGIES["replication"], 1 << 20, 1 << 16))
    with contextlib.closing(machine):
        os.kill(machine.pid, signal.SIGSTOP)
        for connect in (machine.connect, machine.connect_status):
            with pytest.raises(MachineHung, match=r"NBD connection to primary: no answer in \d+ s"):
                connect("primary")
            assert machine.alive()


def test_a_request_that_qemu_does_not_read_yet_holds_up_nothing(qemu_build: Build) -> None:
    """The export is drained until an I/O that we hold is done: what we send meanwhile is kept."""
    size = 4 << 20
    machine = GatedMachine(qemu_build, Shape(TOPOLOGIES["replication"], size, 1 << 16))
    with contextlib.closing(machine):
        client, data = machine.clients["primary"], bytes(range(256)) * (size // 256)
        machine.gate.hold(lambda io: io.image == "secondary" and io.op is NbdCommand.WRITE)
        first = client.send(NbdCommand.WRITE, 0, 0, bytes(512))
        machine.settle()
        stop = machine.qmp.send("stop")  # drains all nodes
        machine.settle()
        large = client.send(NbdCommand.WRITE, 0, 0, data)  # more than a socket's buffer takes
        last = client.send(NbdCommand.READ, size - 512, 512)
        machine.settle()
        assert not client.answers and stop not in machine.qmp.answers
        machine.gate.open()
        machine.gate.release_all()
        machine.qmp.wait("stop", stop, 20)
        assert machine.event_loop.until(lambda: {first, large, last} <= client.answers.keys(), 20)
        assert [client.answers[one].errno for one in (first, large, last)] == [0, 0, 0]
        assert bytes(machine.gate.snapshot("secondary")) == data
