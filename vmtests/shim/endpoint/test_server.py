"""Many clients over one QEMU, descriptors, out-of-band, slow and rude clients, QEMU's death."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.shim.endpoint.server import Shim
from vmtests.support.shim_harness import (
    Loop,
    Process,
    Wire,
    client_of,
    open_fds,
    pair,
    start_shim,
    touch,
)
from vmtests.support.waiting import wait_until

Connect = Callable[[], Wire]


@pytest.fixture
def shim(loop: Loop, process: Process) -> Iterator[Shim]:
    made = start_shim(loop, process)
    yield made
    loop.run(made.close())


@pytest.fixture
def connect(loop: Loop, shim: Shim) -> Iterator[Connect]:
    wires: list[Wire] = []

    def new() -> Wire:
        wires.append(client_of(loop, shim))
        return wires[-1]

    yield new
    for wire in wires:
        wire.close()


def _blocker(fifo: Path, name: str) -> bytes:
    """A command that blocks until *fifo* is opened for writing (tests/qtest/qmp-test.c)."""
    return json.dumps(
        {
            "execute": "blockdev-add",
            "id": name,
            "arguments": {
                "driver": "blkdebug",
                "node-name": name,
                "config": str(fifo),
                "image": {"driver": "null-co", "read-zeroes": True},
            },
        }
    ).encode()


def _unblock(fifo: Path) -> None:
    os.close(os.open(fifo, os.O_WRONLY))


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_each_client_has_its_own_negotiation_and_ids(connect: Connect) -> None:
    one, two = connect(), connect()
    one.negotiate(oob=True)
    assert "QMP" in two.message()
    assert two.ask("query-name")["error"]["class"] == "CommandNotFound"
    two.ask("qmp_capabilities")
    for wire, id_ in ((one, "same"), (two, "same"), (one, 7), (two, {"a": [None]})):
        wire.send(json.dumps({"execute": "query-name", "id": id_}).encode())
    assert [one.message()["id"], one.message()["id"]] == ["same", 7]
    assert [two.message()["id"], two.message()["id"]] == ["same", {"a": [None]}]
    assert one.ask("migrate-pause", id=1)["id"] == 1
    two.send(b"{'exec-oob': 'migrate-pause'}")
    assert two.reply()["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"


def test_events_reach_all_clients_that_have_negotiated_in_the_same_order(connect: Connect) -> None:
    listening = [connect() for _ in range(5)]
    for wire in listening:
        wire.negotiate()
    mute = connect()
    mute.message()
    for _ in range(10):
        listening[0].ask("stop")
        listening[1].ask("cont")
    seen = []
    for wire in listening:
        events = [m for m in wire.until_quiet() if "event" in m]
        seen.append(events)
    assert mute.ask("query-name")["error"]["class"] == "CommandNotFound"  # and no event before it
    assert seen[2] == seen[3] == seen[4]
    assert [e["event"] for e in seen[2]] == ["STOP", "RESUME"] * 10


def test_oob_overtakes_and_in_band_does_not(each_build: Build, loop: Loop, fifo: Path) -> None:
    """QEMU's own test_qmp_oob, directly and through the shim, with a bystander in the way."""
    with pair(loop, each_build) as both:
        bystander = client_of(loop, both.shim)
        bystander.negotiate()
        for wire in (both.direct, both.through):
            wire.negotiate(oob=True)
            wire.send(b"{ 'exec-oob': 'query-cpus-fast' }")
            assert "error" in wire.message()
            wire.send(_blocker(fifo, "ib-blocks-1"))
            wire.send(b"{ 'execute': 'query-name', 'id': 'ib-quick-1' }")
            bystander.send(b"{ 'execute': 'query-name', 'id': 'by' }")
            wire.send(b"{ 'exec-oob': 'migrate-pause', 'id': 'oob-1' }")
            assert wire.message()["id"] == "oob-1"
            _unblock(fifo)
            assert wire.message()["id"] == "ib-blocks-1"
            assert wire.message()["id"] == "ib-quick-1"
            wire.send(_blocker(fifo, "blocks-2"))
            wire.send(b"{ 'id': 'err-2' }")
            _unblock(fifo)
            assert wire.message()["id"] == "blocks-2"
            assert wire.message()["id"] == "err-2"
            assert bystander.message()["id"] == "by"


def test_one_client_blocks_no_oob_of_another_however_many_wait(
    connect: Connect, fifo: Path
) -> None:
    blocking = connect()
    blocking.negotiate()
    crowd = [connect() for _ in range(20)]
    for wire in crowd:
        wire.negotiate()
    urgent = connect()
    urgent.negotiate(oob=True)
    blocking.send(_blocker(fifo, "b"))
    for number, wire in enumerate(crowd):
        wire.send(b"{'execute': 'query-name', 'id': %d}" % number)
    urgent.send(b"{'exec-oob': 'migrate-pause', 'id': 'now'}")
    assert urgent.message()["id"] == "now"
    _unblock(fifo)
    assert blocking.message()["id"] == "b"
    assert [wire.message()["id"] for wire in crowd] == list(range(20))


def test_oob_waits_behind_a_full_queue_as_in_qemu(
    loop: Loop, fifo: Path, qemu_build: Build
) -> None:
    """QEMU reads eight in-band requests ahead, and no more."""
    with pair(loop, qemu_build) as both:
        for wire in (both.direct, both.through):
            wire.negotiate(oob=True)
            for queued, overtakes in ((7, True), (8, False)):
                wire.send(_blocker(fifo, f"b{queued}"))
                for number in range(queued):
                    wire.send(b"{'execute': 'query-name', 'id': %d}" % number)
                wire.send(b"{'exec-oob': 'migrate-pause', 'id': 'oob'}")
                if overtakes:
                    assert wire.message()["id"] == "oob"
                else:
                    wire.sock.settimeout(0.2)
                    with pytest.raises(TimeoutError):
                        wire.message()
                    wire.sock.settimeout(20)
                _unblock(fifo)
                ids = [wire.message()["id"] for _ in range(queued + (1 if overtakes else 2))]
                assert [i for i in ids if i != "oob"] == [f"b{queued}", *range(queued)]


def test_commands_of_a_client_that_left_are_dropped(connect: Connect, fifo: Path) -> None:
    blocking, leaving = connect(), connect()
    blocking.negotiate()
    leaving.negotiate()
    blocking.send(_blocker(fifo, "b"))
    leaving.send(b"{'execute': 'query-name'} {'execute': 'quit'}")
    leaving.close()
    _unblock(fifo)
    assert blocking.message()["id"] == "b"
    assert blocking.ask("query-name") == {"return": {}}


def test_a_half_closed_client_still_gets_its_answers(connect: Connect) -> None:
    wire = connect()
    wire.send(b"{'execute': 'qmp_capabilities'} {'execute': 'query-name', 'id': 1} {]")
    wire.sock.shutdown(socket.SHUT_WR)
    assert [next(iter(m)) for m in wire.rest()] == ["QMP", "return", "return", "error"]


# -- file descriptors ------------------------------------------------------------


def test_descriptors(loop: Loop, tmp_path: Path, qemu_build: Build) -> None:
    with pair(loop, qemu_build) as both:
        before = open_fds()
        reported = []
        for wire in (both.direct, both.through):
            wire.negotiate()
            answers: list[Any] = []

            def ask(
                text: bytes, *fds: int, wire: Wire = wire, answers: list[Any] = answers
            ) -> None:
                if fds:
                    wire.send_with_fd(text, *fds)
                else:
                    wire.send(text)
                answers.append(wire.reply())

            one, two = touch(tmp_path / "one"), touch(tmp_path / "two")
            ask(b"{'execute': 'getfd', 'arguments': {'fdname': 'a'}}", one)
            ask(b"{'execute': 'getfd', 'arguments': {'fdname': 'b'}}")
            ask(b"{'execute': 'getfd', 'arguments': {'fdname': '7'}}", one)
            ask(b"{'execute': 'getfd', 'arguments': {'fdname': 'b'}}")
            ask(b"{'execute': 'getfd', 'arguments': {'nope': 'b'}}", one)
            ask(b"{'execute': 'getfd', 'arguments': {'fdname': 'c'}}")  # the one of before
            ask(b"{'execute': 'getfd', 'arguments': {'fdname': 'd'}}")
            ask(b"{'execute': 'query-name'}", one, two)  # kept for the command that wants it
            ask(b"{'execute': 'add-fd', 'arguments': {'fdset-id': 3, 'opaque': 'two'}}")
            ask(b"{'execute': 'add-fd', 'arguments': {'fdset-id': 3}}", two, one)
            ask(b"{'execute': 'add-fd', 'arguments': {'fdset-id': -1}}", two)
            ask(b"{'execute': 'add-fd', 'arguments': {'fdset-id': 3}}")
            ask(b"{'execute': 'query-fdsets'}")
            for name in "abcdx":
                ask(b"{'execute': 'closefd', 'arguments': {'fdname': '%s'}}" % name.encode())
            ask(b"{'execute': 'remove-fd', 'arguments': {'fdset-id': 3}}")
            os.close(one)
            os.close(two)
            reported.append(_without_fd_numbers(answers))
        assert reported[0] == reported[1]
        assert "return" in reported[1][5] and "error" in reported[1][6]
        assert open_fds() == before


def _without_fd_numbers(answers: list[Any]) -> Any:
    return json.loads(
        json.dumps(answers), object_hook=lambda d: {k: v for k, v in d.items() if k != "fd"}
    )


def test_a_descriptor_goes_to_the_client_that_sent_it(connect: Connect, tmp_path: Path) -> None:
    clients = [connect() for _ in range(12)]
    for number, wire in enumerate(clients):
        wire.negotiate()
        (tmp_path / f"{number}").write_bytes(b"%d" % number * 512)
    for number, wire in enumerate(clients):
        fd = os.open(tmp_path / f"{number}", os.O_RDWR)
        text = b"{'execute': 'add-fd', 'arguments': {'fdset-id': %d}}" % number
        wire.send_with_fd(text, fd)
        os.close(fd)
    for number, wire in enumerate(clients):
        assert wire.message()["return"]["fdset-id"] == number
        wire.ask(
            "blockdev-add",
            {"driver": "file", "filename": f"/dev/fdset/{number}", "node-name": f"n{number}"},
        )
        answer = wire.ask(
            "human-monitor-command", {"command-line": f'qemu-io n{number} "read 0 1"'}
        )
        assert "return" in answer
        nodes = {n["node-name"] for n in wire.ask("query-named-block-nodes")["return"]}
        assert f"n{number}" in nodes


# -- rude clients ------------------------------------------------------------


def test_a_client_that_reads_nothing_harms_no_other(loop: Loop, process: Process) -> None:
    shim = start_shim(loop, process, lambda sock: Shim(sock, backlog_limit=1 << 20))
    stuck, good = client_of(loop, shim), client_of(loop, shim)
    stuck.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.negotiate()
    good.negotiate()
    stuck.sock.settimeout(1.0)
    with pytest.raises(TimeoutError):  # it is no longer read from
        stuck.send(b"{'execute': 'query-qmp-schema'}" * 10_000)
    assert good.ask("query-name") == {"return": {}}
    backlog = max(client.link.backlog for client in shim.clients)
    assert backlog < 1 << 20

    def fill() -> None:
        for _ in range(100):
            shim.emit("X_TEST", {"filler": "x" * 1000})

    for _ in range(40):
        loop.call(fill)
        good.until_quiet()
    wait_until(lambda: len(shim.clients) == 1)  # events filled it up: it was cut off
    assert good.ask("query-name") == {"return": {}}
    loop.run(shim.close())
    stuck.close()
    good.close()


def test_nonsense_by_the_megabyte(connect: Connect) -> None:
    random.seed(5)
    good = connect()
    good.negotiate()

    def shout(wire: Wire) -> None:
        with contextlib.suppress(OSError):
            wire.send(random.randbytes(1 << 18))

    rude = [connect() for _ in range(4)]
    threads = [threading.Thread(target=shout, args=(wire,)) for wire in rude]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert good.ask("query-name") == {"return": {}}
    for wire in rude:
        wire.sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(20)


def test_clients_come_and_go_and_nothing_is_left(loop: Loop, shim: Shim, connect: Connect) -> None:
    good = connect()
    good.negotiate()
    before = open_fds()
    for number in range(200):
        wire = client_of(loop, shim)
        if number % 3:
            wire.negotiate()
        if number % 5 == 0:
            wire.send(b"{'execute': 'query-qmp-schema'}{'execute': ")
        wire.close()
    wait_until(lambda: len(shim.clients) == 1)
    assert good.ask("query-name") == {"return": {}}
    gc.collect()
    assert open_fds() <= before


# -- the end of QEMU ------------------------------------------------------------


def test_qemu_killed(connect: Connect, process: Process, fifo: Path) -> None:
    blocked, idle, mute = connect(), connect(), connect()
    blocked.negotiate(oob=True)
    idle.negotiate()
    blocked.send(_blocker(fifo, "b"))
    blocked.send(b"{'execute': 'query-name', 'id': 'c'}")
    blocked.send(b"{'exec-oob': 'migrate-pause', 'id': 'o'}")
    assert blocked.message()["id"] == "o"
    os.kill(process.process.pid, signal.SIGKILL)
    first, second, third = blocked.rest()
    assert first["id"] == "b" and "went away" in first["error"]["desc"]
    assert second["id"] == "c" and "went away" in second["error"]["desc"]
    assert third["event"] == "X_SHIM_QEMU_GONE"
    assert [m["event"] for m in idle.rest()] == ["X_SHIM_QEMU_GONE"]
    assert [list(m) for m in mute.rest()] == [["QMP"]]


def test_quit_by_one_ends_all_as_qemu_would(connect: Connect) -> None:
    one, two = connect(), connect()
    one.negotiate()
    two.negotiate()
    two.send(b"{'execute': 'quit'}")
    assert [m.get("event") for m in one.rest()] == ["SHUTDOWN"]
    assert {m.get("event") for m in two.rest()} == {None, "SHUTDOWN"}
