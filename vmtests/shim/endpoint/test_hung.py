"""A QEMU that answers no more: every client is informed soon; what needs no QEMU is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from qmpshim.errors import MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.serve import Options, Served, endpoint
from qmpshim.shim.endpoint.listener import Address
from qmpshim.shim.endpoint.watchdog import Watchdog
from vmtests.support.shim_harness import Loop, Wire
from vmtests.support.waiting import wait_until

CHAIN = ChainSpec(Workflow.REPLICATION, 1 << 20, 64 << 10)
SOON = 3.0  # seconds


@pytest.fixture
def served(qemu_build: Build, loop: Loop, request: pytest.FixtureRequest) -> Iterator[Served]:
    stack = AsyncExitStack()
    gated = getattr(request, "param", False)
    options = Options(build=qemu_build, chain=CHAIN, gated=gated)
    served = loop.run(stack.enter_async_context(endpoint(options)))
    loop.call(lambda: served.shim.watchdog.start(SOON))
    try:
        yield served
    finally:
        _signal(served, signal.SIGCONT)
        loop.run(stack.aclose())


def _signal(served: Served, number: signal.Signals) -> None:
    assert served.emulator is not None
    os.kill(served.emulator.pid, number)


def client(served: Served, oob: bool = False) -> Wire:
    (address,) = served.addresses
    assert isinstance(address, Address) and isinstance(address.path, Path)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(address.path))
    wire = Wire(sock)
    wire.negotiate(oob)
    return wire


def until_event(wire: Wire, name: str) -> tuple[dict[str, Any], list[Any]]:
    """The data of the event, and the messages before it."""
    before = []
    while (message := wire.message()).get("event") != name:
        before.append(message)
    return message["data"], before


def test_every_client_gets_the_event(served: Served) -> None:
    with closing(client(served)) as one, closing(client(served)) as other:
        schema = one.ask("query-qmp-schema")["return"]
        _signal(served, signal.SIGSTOP)
        one.send(b'{"execute": "query-status", "id": 1}{"execute": "x-shim-status", "id": 2}')
        # An event to all, then an error to each that waits; and the shim itself answers.
        data, before = until_event(one, "X_SHIM_QEMU_HUNG")
        assert (data["commands"], before) == (["query-status"], []) and data["seconds"] >= SOON
        assert until_event(other, "X_SHIM_QEMU_HUNG")[0] == data
        reply = one.message()
        assert reply["id"] == 1 and reply["error"]["class"] == "GenericError"
        assert f"QEMU has not answered for {SOON:.0f} s; it may still" in reply["error"]["desc"]
        status = one.message()
        assert status["id"] == 2 and status["return"]["hung"] >= SOON
        # A later client is sent it, too; nothing is sent to QEMU any more.
        with closing(client(served)) as late:
            assert until_event(late, "X_SHIM_QEMU_HUNG")[0]["commands"] == ["query-status"]
            assert late.ask("x-shim-status")["return"]["clients"] == 3
            assert "this was not sent" in late.ask("stop")["error"]["desc"]
            verify = late.ask("x-shim-watch-node", {"node": "secondary"})
            assert "QEMU has not answered" in verify["error"]["desc"]
            assert late.ask("query-qmp-schema")["return"] == schema
            assert "error" in late.ask("qmp_capabilities", {"enable": ["nonsense"]})
        _signal(served, signal.SIGCONT)
        assert until_event(one, "X_SHIM_QEMU_ANSWERS")[1] == []
        # The late answer goes to no client; what was not sent was not done.
        assert one.ask("query-status", id=3)["id"] == 3
        assert one.ask("query-status")["return"]["status"] == "running"
        status = one.ask("x-shim-status")["return"]
        assert "hung" not in status and status["doubts"] == [] and status["divergences"] == 0


def test_what_qemu_does_later_is_no_divergence(served: Served) -> None:
    """What was given up is carried out later: the model no longer says what must be."""
    start = {"enable": True, "primary": False}
    with closing(client(served)) as wire:
        assert wire.ask("xen-set-replication", start) == {"return": {}}
        assert wire.ask("x-shim-status")["return"]["doubts"] == []
        _signal(served, signal.SIGSTOP)
        checkpoint = wire.ask("xen-colo-do-checkpoint")
        assert "may still carry this out" in checkpoint["error"]["desc"]
        # Nor is a command sent that the shim has its own questions about.
        assert "this was not sent" in wire.ask("xen-set-replication", start)["error"]["desc"]
        _signal(served, signal.SIGCONT)
        until_event(wire, "X_SHIM_QEMU_ANSWERS")
        status = wire.ask("x-shim-status")["return"]
        assert status["divergences"] == 0 and (
            "QEMU did not answer xen-colo-do-checkpoint" in status["doubts"]
        )


def test_what_the_shim_needs_itself_hangs_and_does_not_fail(served: Served, loop: Loop) -> None:
    """Whether it was sent and not answered, or not sent any more."""
    for why in ("it may still carry this out", "this was not sent"):
        _signal(served, signal.SIGSTOP)
        with pytest.raises(MachineHung, match=f"^cont: QEMU has not answered for .*{why}"):
            loop.run(served.shim.perform("cont"))
    with pytest.raises(MachineHung, match=r"^cont: QEMU has not answered"):
        loop.run(served.shim.execute("cont"))


def test_out_of_band_commands_go_through(served: Served) -> None:
    """They are what may still get a QEMU going."""
    with closing(client(served, oob=True)) as wire:
        _signal(served, signal.SIGSTOP)
        assert "error" in wire.ask("query-status")
        wire.send(b'{"exec-oob": "migrate-pause", "id": 7}')
        wait_until(lambda: served.shim.upstream.owed == ["query-status", "migrate-pause"])


@pytest.mark.parametrize("served", [True], indirect=True)
def test_what_we_hold_ourselves_is_no_hang(served: Served) -> None:
    with closing(client(served)) as wire:
        wire.ask("x-shim-hold")
        wire.send(b'{"execute": "human-monitor-command", "id": 1, "arguments": '
                  b'{"command-line": "qemu-io secondary \\"read 0 4k\\""}}')  # fmt: skip
        time.sleep(3 * SOON)  # until it would be one
        assert served.shim.upstream.owed == ["human-monitor-command"]
        assert not served.shim.watchdog.is_hung
        with closing(client(served, oob=True)) as other:
            other.send(b'{"exec-oob": "x-shim-let", "id": 2}')
            assert "return" in other.reply()
        assert "return" in wire.reply()


class Waiting:
    """An upstream that owes one answer; how often its clock was set back."""

    gone, owed = False, ("stop",)

    def __init__(self) -> None:
        self.restarts = 0
        self._since = time.monotonic()

    @property
    def silent_for(self) -> float:
        return time.monotonic() - self._since

    def restart_clock(self) -> None:
        self.restarts += 1
        self._since = time.monotonic()

    def give_up(self, desc: str) -> None:
        """Nothing waits here."""


def test_what_was_let_go_a_moment_ago_is_not_overdue() -> None:
    """The look after it starts the clock: QEMU has the whole limit from then on."""
    upstream = Waiting()

    async def hung_after() -> int:
        hung = asyncio.Event()
        dog = Watchdog(upstream, lambda name, data: hung.set())  # type: ignore[arg-type]
        dog.excused = lambda: upstream.restarts == 0  # until the first look
        dog.start(0.05)
        await asyncio.wait_for(hung.wait(), 10)
        dog.stop()
        return upstream.restarts

    assert asyncio.run(hung_after()) == 2
