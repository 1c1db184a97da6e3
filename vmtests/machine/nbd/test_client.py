"""The NBD client against real servers: QEMU's, and nbdkit for what QEMU's never does."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmpshim.errors import HostError, IOFailed, MachineDied, MachineHung
from qmpshim.machine.nbd.client import NbdClient
from vmtests.support.waiting import wait_until

pytest.importorskip("nbd")
KiB, MiB = 1 << 10, 1 << 20
SIZE = 4 * MiB + 512

Server = Callable[..., tuple[subprocess.Popen[bytes], str]]


@pytest.fixture
def serve(qemu_on_path: None) -> Iterator[Server]:
    """Starts servers and gives their URIs; they are gone after the test."""
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="nbd-") as sockets:

        def start(*command: str) -> tuple[subprocess.Popen[bytes], str]:
            path = str(Path(sockets) / f"{len(started)}")
            words = [word.replace("SOCKET", path) for word in command]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
            started.append(process)
            with socket.socket(socket.AF_UNIX) as probe:  # it must be there, and be listened at
                wait_until(lambda: process.poll() is not None or not probe.connect_ex(path))
            assert process.poll() is None
            return process, f"nbd+unix:///?socket={path}"

        yield start
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def qemu_nbd(serve: Server, tmp_path: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A server with an empty raw image."""
    (tmp_path / "image").touch()
    os.truncate(tmp_path / "image", SIZE)
    return serve("qemu-nbd", "-k", "SOCKET", "-f", "raw", "--discard=unmap", "--cache=unsafe",
                 "--persistent", str(tmp_path / "image"))  # fmt: skip


@pytest.fixture
def client(qemu_nbd: tuple[subprocess.Popen[bytes], str]) -> Iterator[NbdClient]:
    made = NbdClient(qemu_nbd[1], limit=20.0)
    yield made
    made.close()


@pytest.mark.parametrize("plain", [False, True])
def test_what_is_written_is_read(
    qemu_nbd: tuple[subprocess.Popen[bytes], str], plain: bool
) -> None:
    client = NbdClient(qemu_nbd[1], plain=plain)
    assert client.size == SIZE
    data = random.Random(1).randbytes(3 * 65536)
    client.wait(client.submit_write(data, 512))
    client.wait(client.submit_flush())
    assert client.read(len(data), 512) == data
    client.wait(client.submit_zero(65536, 65536))
    client.wait(client.submit_discard(65536, 131072))
    expected = bytearray(bytes(512) + data)
    expected[65536 : 3 * 65536] = bytes(2 * 65536)
    assert client.read(len(expected), 0) == expected
    client.close()
    client.close()  # twice is once


def test_requests_overlap(client: NbdClient) -> None:
    pieces = [random.Random(seed).randbytes(4096) for seed in range(64)]
    writes = [client.submit_write(piece, at * 4096) for at, piece in enumerate(pieces)]
    for cookie in reversed(writes):
        client.wait(cookie)
    buffers = [bytearray(4096) for _ in pieces]
    reads = [client.submit_read(buffer, at * 4096) for at, buffer in enumerate(buffers)]
    for cookie in reads:
        client.wait(cookie)
    assert buffers == pieces


def test_long_reads_are_cut_into_pieces(client: NbdClient) -> None:
    client.wait(client.submit_write(b"\xaa" * 1024, SIZE - 1024))
    assert client.read(SIZE, 0) == bytes(SIZE - 1024) + b"\xaa" * 1024
    assert client.read(0, 0) == b""


def test_reads_that_are_under_way_at_once(client: NbdClient) -> None:
    """Also after a reader that gave up: what it did not wait for goes into no buffer of another."""
    data = bytes(random.Random(1).randbytes(12 * KiB))
    client.write(data, 0)
    ranges = [(at, min(KiB, len(data) - at)) for at in range(0, len(data), KiB)]
    for _ in client.read_ahead(ranges):
        break
    read = [(offset, bytes(part)) for offset, part in client.read_ahead(ranges)]
    assert read == [(offset, data[offset : offset + length]) for offset, length in ranges]


def test_extents(client: NbdClient) -> None:
    """Holes are what the host's file system calls so, in blocks of its own size."""
    client.wait(client.submit_write(b"\xaa" * 65536, 131072))
    client.wait(client.submit_write(b"\xaa" * 512, SIZE - 512))
    extents = client.data_extents()
    covered = {
        at // 512 for offset, length in extents for at in range(offset, offset + length, 512)
    }
    assert covered >= {*range(256, 384), SIZE // 512 - 1}
    assert len(covered) < 1024
    assert all(offset + length <= SIZE for offset, length in extents)


def test_without_block_status_everything_counts(
    qemu_nbd: tuple[subprocess.Popen[bytes], str],
) -> None:
    plain = NbdClient(qemu_nbd[1], plain=True)
    assert plain.data_extents() == [(0, SIZE)]
    plain.close()


# -- what goes wrong -----------------------------------------------------------------------------

needs_nbdkit = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="nbdkit is not installed")


@needs_nbdkit
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPERM])
def test_errors_of_the_server_are_reported(serve: Server, number: int) -> None:
    _, uri = serve("nbdkit", "-f", "-U", "SOCKET", "--filter=error", "memory", "1M",
                   f"error={errno.errorcode[number]}", "error-rate=100%")  # fmt: skip
    client = NbdClient(uri, limit=20.0)
    submits: list[Callable[[], int]] = [
        lambda: client.submit_read(bytearray(512), 0),
        lambda: client.submit_write(bytes(512), 0),
        lambda: client.submit_zero(512, 0),
        lambda: client.submit_discard(512, 0),
    ]
    for submit in submits:
        with pytest.raises(IOFailed) as raised:
            client.wait(submit())
        assert raised.value.errno == number
    client.close()


@needs_nbdkit
def test_a_server_that_takes_its_time(serve: Server) -> None:
    _, uri = serve("nbdkit", "-f", "-U", "SOCKET", "--filter=delay", "memory", "1M", "rdelay=60")
    client = NbdClient(uri, limit=0.5)
    client.wait(client.submit_write(bytes(512), 0))
    with pytest.raises(MachineHung, match=r"not answered in 0\.5 s"):
        client.read(512, 0)
    client.close()  # does not wait for the answer either


def test_a_request_beyond_the_end(client: NbdClient) -> None:
    """libnbd itself refuses it."""
    with pytest.raises(IOFailed):
        client.wait(client.submit_write(bytes(1024), SIZE - 512))
    assert client.read(512, 0) == bytes(512)  # and the connection goes on


def test_a_server_that_dies(qemu_nbd: tuple[subprocess.Popen[bytes], str]) -> None:
    server, uri = qemu_nbd
    client = NbdClient(uri, limit=20.0)
    client.wait(client.submit_write(bytes(512), 0))
    server.kill()
    server.wait()
    with pytest.raises(MachineDied, match="the NBD connection broke"):
        client.read(512, 0)
    with pytest.raises(MachineDied, match="the NBD connection broke"):
        client.wait(client.submit_flush())
    client.close()


def test_a_server_that_hangs(qemu_nbd: tuple[subprocess.Popen[bytes], str]) -> None:
    """Also when it is closed: it does not wait until the server has read the disconnect."""
    server, uri = qemu_nbd
    client = NbdClient(uri, limit=0.5)
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(MachineHung):
        client.wait(client.submit_flush())
    client.close()


def test_no_server_and_no_such_export(serve: Server, tmp_path: Path) -> None:
    with pytest.raises(MachineDied, match=r"NBD connection to .*No such file"):
        NbdClient(f"nbd+unix:///?socket={tmp_path / 's'}")
    (tmp_path / "image").write_bytes(bytes(512))
    _, uri = serve("qemu-nbd", "-k", "SOCKET", "-f", "raw", "-x", "primary", "-t",
                   str(tmp_path / "image"))  # fmt: skip
    with pytest.raises(MachineDied, match=r"NBD connection to .*/other"):
        NbdClient(uri.replace("///", "///other"))
    NbdClient(uri.replace("///", "///primary")).close()


def test_without_libnbd(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(HostError, match=r"apt-get install python3-libnbd .*venv"):
        NbdClient("nbd+unix:///?socket=/nowhere")


def test_a_server_that_was_stopped_is_not_connected_to(
    qemu_nbd: tuple[subprocess.Popen[bytes], str],
) -> None:
    """The kernel accepts for it: what does not come is its greeting."""
    process, uri = qemu_nbd
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(MachineHung, match="connection was not accepted in 1 s"):
        NbdClient(uri, limit=1.0)
