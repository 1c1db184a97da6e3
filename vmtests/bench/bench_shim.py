"""What the shim costs: latency, throughput, events, many clients, abuse; QEMU's own beside it.

    python -m vmtests.bench.bench_shim [--quick]

Exit status 1 when a promise is not kept: latency at most 1.4 times direct, 16 clients at least 0.9
of one direct client's throughput, no event lost or reordered, nothing left of clients that went.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import select
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from qemu.qmp import QMPClient

from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.stress import stress

QEMU = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
SERVE = """
import asyncio, sys
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.emulator.serve import Options, serve
options = Options(listen=(Address.parse(sys.argv[1]),), qmp=Address.parse(sys.argv[2]))
asyncio.run(serve(options, lambda served: print("ready", flush=True)))
"""


@contextlib.contextmanager
def qemu(directory: Path, monitors: int) -> Iterator[list[Path]]:
    """A QEMU with monitors at sockets."""
    paths = [directory / f"qemu-{number}" for number in range(monitors)]
    words = [w for path in paths for w in ("-qmp", f"unix:{path},server=on,wait=off")]
    process = subprocess.Popen([*QEMU, *words], stdin=subprocess.DEVNULL)
    try:
        while not all(path.exists() for path in paths):
            time.sleep(0.01)
        yield paths
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def shim(directory: Path, monitor: Path) -> Iterator[Path]:
    """A shim process before a monitor: its address."""
    path = directory / "shim"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, f"unix:{path}", f"unix:{monitor}"], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield path
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def socat(directory: Path, monitor: Path) -> Iterator[Path | None]:
    """A socat relay before a monitor, if there is a socat."""
    program = shutil.which(os.environ.get("SOCAT", "socat"))
    if program is None:
        yield None
        return
    path = directory / "socat"
    process = subprocess.Popen([program, f"UNIX-LISTEN:{path},fork", f"UNIX-CONNECT:{monitor}"])
    try:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        yield path if path.exists() else None
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def client(path: Path) -> AsyncIterator[QMPClient]:
    made = QMPClient("bench")
    await made.connect(str(path))
    try:
        yield made
    finally:
        await made.disconnect()


async def latency(paths: dict[str, Path], rounds: int, each: int) -> dict[str, float]:
    """Median microseconds of a round trip, measured in turns so that noise hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    async with contextlib.AsyncExitStack() as stack:
        clients = {n: await stack.enter_async_context(client(p)) for n, p in paths.items()}
        for _ in range(rounds):
            for name, one in clients.items():
                for _ in range(each):
                    before = time.perf_counter()
                    await one.execute("query-name")
                    times[name].append(time.perf_counter() - before)
    return {name: statistics.median(taken) * 1e6 for name, taken in times.items()}


async def throughput(
    clients: dict[str, tuple[Path, int]], rounds: int, seconds: float
) -> dict[str, float]:
    """Round trips a second of so many clients at a path together: the median of turns."""
    rates: dict[str, list[float]] = {name: [] for name in clients}
    async with contextlib.AsyncExitStack() as stack:
        crowds = {
            name: [await stack.enter_async_context(client(path)) for _ in range(count)]
            for name, (path, count) in clients.items()
        }
        for _ in range(rounds):
            for name, crowd_ in crowds.items():
                rates[name].append(await _rate(crowd_, seconds))
    return {name: statistics.median(found) for name, found in rates.items()}


async def _rate(clients: list[QMPClient], seconds: float) -> float:
    done = 0
    begin = time.perf_counter()
    deadline = begin + seconds

    async def talk(one: QMPClient) -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            await one.execute("query-name")
            done += 1

    await asyncio.gather(*(talk(one) for one in clients))
    return done / (time.perf_counter() - begin)


def connect(path: Path) -> socket.socket:
    """A plain client that has negotiated."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    file = sock.makefile("rb")
    file.readline()
    sock.sendall(b"{'execute': 'qmp_capabilities'}")
    file.readline()
    return sock


def pretend(path: Path, rate: int, wanted: int, go: threading.Event) -> threading.Thread:
    """Something that looks like QEMU to the shim, and makes events at a rate no QEMU makes."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    version = "{'qemu': {'micro': 0, 'minor': 0, 'major': 99}, 'package': ''}".replace("'", '"')

    def run() -> None:
        sock, _ = listening.accept()
        listening.close()
        sock.sendall(b'{"QMP": {"version": %s, "capabilities": ["oob"]}}\r\n' % version.encode())
        seen = b""
        already = b'{"id": %d, "error": {"class": "CommandNotFound", "desc": "already"}}\r\n'

        def answer() -> None:
            """Answers negotiation: the first as a QEMU does, later ones as it refuses them."""
            nonlocal seen
            seen += sock.recv(1 << 16)
            while b"\n" in seen:
                line, _, seen = seen.partition(b"\n")
                if line.startswith(b"[1 2]"):
                    sock.sendall(b'{"error": {"class": "GenericError", "desc": "JSON"}}\r\n')
                elif line.startswith(b'{"id": 0.'):
                    sock.sendall(b'{"id": 0.0078125, "error": {"class": "G", "desc": ""}}\r\n')
                else:
                    number = int(line.rpartition(b": ")[2].rstrip(b"}"))
                    first = number == 1
                    sock.sendall(b'{"return": {}, "id": 1}\r\n' if first else already % number)

        while not go.is_set():
            if selectors_ready(sock):
                answer()
        begin = time.perf_counter()
        for number in range(wanted):
            if number % 10 == 0:
                ahead = begin + number / rate - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
            sock.sendall(
                b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BENCH", '
                b'"data": {"number": %d}}\r\n' % number
            )
        while sock.recv(1 << 16):
            pass
        sock.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def selectors_ready(sock: socket.socket) -> bool:
    """Whether there is something to read, soon."""
    return bool(select.select([sock], [], [], 0.05)[0])


def events(through: Path, clients: int, wanted: int, go: threading.Event) -> tuple[float, int]:
    """Seconds until all clients had all events, and how many clients got other bytes."""
    ends = [connect(through) for _ in range(clients)]
    selector = selectors.DefaultSelector()
    received = [0] * clients
    digests = [hashlib.md5(usedforsecurity=False) for _ in ends]
    right = hashlib.md5(usedforsecurity=False)
    length = 0
    for number in range(wanted):
        line = (
            b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BENCH", '
            b'"data": {"number": %d}}\r\n' % number
        )
        right.update(line)
        length += len(line)
    for number, sock in enumerate(ends):
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, number)
    go.set()
    begin = time.perf_counter()
    while min(received) < length and time.perf_counter() < begin + 120:
        for key, _ in selector.select(1.0):
            data = ends[key.data].recv(1 << 20)
            if not data:
                selector.unregister(ends[key.data])
                received[key.data] = length
            digests[key.data].update(data)
            received[key.data] += len(data)
    seconds = time.perf_counter() - begin
    for sock in ends:
        sock.close()
    return seconds, sum(digest.digest() != right.digest() for digest in digests)


def main() -> int:
    quick = "--quick" in sys.argv
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept = True

    def promise(text: str, ok: bool) -> None:
        nonlocal kept
        kept &= ok
        print(f"{'ok  ' if ok else 'MISS'} {text}")

    with tempfile.TemporaryDirectory() as name, qemu(Path(name), 4) as monitors:
        directory = Path(name)
        with shim(directory, monitors[1]) as path, socat(directory, monitors[2]) as relay:
            paths = {"direct": monitors[0], "shim": path}
            if relay is not None:
                paths["socat"] = relay
            rounds = 10 if quick else 40
            taken = asyncio.run(latency(paths, rounds, 100))
            direct = taken["direct"]
            figures = ", ".join(f"{n} {t:.0f} us ({t / direct:.2f}x)" for n, t in taken.items())
            promise(f"round trip, median: {figures}", taken["shim"] <= 1.4 * direct)
            compared = {"one direct": (monitors[0], 1), "16 through the shim": (path, 16)}
            if relay is not None:
                compared["one through socat"] = (relay, 1)
            rates = asyncio.run(throughput(compared, 5 if quick else 20, 0.4))
            one = rates["one direct"]
            figures = ", ".join(f"{n} {r:.0f}/s ({r / one:.2f}x)" for n, r in rates.items())
            promise(f"throughput, median: {figures}", rates["16 through the shim"] >= 0.9 * one)
            for clients in (1000, 1000) if not quick else (1000,):
                done = stress(Address(path=path), clients, 5_000 if quick else 50_000)
                assert done.before is not None and done.after is not None
                promise(
                    f"crowd and abuse: {clients} clients in {done.clients_seconds:.1f} s, "
                    f"{done.malformed / done.malformed_seconds:.0f} malformed messages/s; the shim "
                    f"had {done.before.memory >> 10} KiB, has {done.after.memory >> 10} KiB",
                    bool(done.cut_off) and not done.leaks,
                )
        go = threading.Event()
        wanted = 20_000 if quick else 100_000
        fake = Path(name) / "fake"
        pretend(fake, 10_000, wanted, go)
        other = Path(name) / "other"
        other.mkdir()
        with shim(other, fake) as path:
            seconds, wrong = events(path, 100, wanted, go)
        promise(
            f"events: {wanted} at 10000/s reached 100 clients in {seconds:.1f} s, {wrong} of them "
            "got others or in another order",
            wrong == 0 and seconds < 1.2 * wanted / 10_000,
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
