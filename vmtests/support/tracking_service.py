"""A shim's endpoint that follows chains, its clients, and what they write to its exports."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from qmpshim.machine.nbd.client import NbdClient
from qmpshim.shim.emulator.serve import Options, Served, endpoint
from vmtests.support.shim_harness import Loop, Wire

SIZE = 4 << 20  # of the disks, bytes
CLUSTER = 64 << 10
#: What `writing` writes to: small, so that clusters are written again and again.
REGION = 20 * CLUSTER


class Service:
    """A running endpoint, and clients of it."""

    def __init__(self, loop: Loop, options: Options) -> None:
        self._loop = loop
        self._context = endpoint(options)
        self.served: Served = loop.run(self._context.__aenter__())
        self._wires: list[Wire] = []

    def client(self) -> Wire:
        """A new client, negotiated."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.served.addresses[0].path))
        wire = Wire(sock)
        wire.negotiate()
        self._wires.append(wire)
        return wire

    def close(self) -> None:
        """End its clients and the endpoint."""
        for wire in self._wires:
            wire.close()
        self._loop.run(self._context.__aexit__(None, None, None))


def export_uris(wire: Wire) -> dict[str, str]:
    """The NBD URI of each export that the shim has an endpoint for, by the export's name."""
    status = wire.ask("x-shim-status")["return"]
    return {entry["export"]: entry["uri"] for entry in status["endpoints"]}


def write_once(uri: str, data: bytes, offset: int) -> None:
    """Write at a byte offset, by a connection of its own."""
    with closing(NbdClient(uri)) as client:
        client.wait(client.submit_write(data, offset))


def verify(wire: Wire) -> dict[str, Any]:
    """What ``x-shim-verify`` returns."""
    reply = wire.ask("x-shim-verify")
    assert "return" in reply, reply
    return dict(reply["return"])


@contextmanager
def writing(uri: str, seed: int, discards: bool = False) -> Iterator[Callable[[], int]]:
    """Writes one after another while the context lasts; gives how many were done so far."""
    over, done, chance = threading.Event(), 0, random.Random(seed)

    def write() -> None:
        nonlocal done
        with closing(NbdClient(uri, 20.0, plain=True)) as client:
            while not over.is_set():
                length = 512 * chance.randrange(1, 40)
                at = 512 * chance.randrange((REGION - length) // 512)
                match chance.randrange(8):
                    case 0 if discards:
                        client.discard(CLUSTER, at // CLUSTER * CLUSTER)
                    case 1:
                        client.zero(length, at)
                    case _:
                        client.write(chance.randbytes(length), at)
                done += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: done
    finally:
        over.set()
        thread.join()
