"""Replies and events reach a client in the order in which QEMU sent them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import Build
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.shim.endpoint.outbox import Outbox
from qmpshim.shim.endpoint.server import Intercept, Shim
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.endpoint.upstream import Reply
from qmpshim.shim.tracking.chain_commands import ChainCommands
from qmpshim.shim.tracking.chains import TrackedChains
from qmpshim.shim.tracking.shim_commands import Commands
from vmtests.support.shim_harness import Loop, Process, Wire, client_of, start_shim
from vmtests.support.waiting import until, wait_until

#: Commands of the script's that the shim never sends for itself.
SCRIPTED = {
    "blockdev-backup", "blockdev-mirror", "block-job-cancel", "block-job-pause", "job-dismiss",
    "block-job-resume", "block-job-set-speed", "stop", "cont", "x-order-end",
}  # fmt: skip
_TO_SINK: dict[str, object] = {"job-id": "job", "device": "source", "target": "sink"}
COMMANDS: list[tuple[str, dict[str, object] | None]] = [
    ("blockdev-backup", {**_TO_SINK, "sync": "full", "speed": 65536}),
    ("blockdev-backup", {**_TO_SINK, "sync": "full"}),
    ("blockdev-backup", {**_TO_SINK, "sync": "none"}),
    ("blockdev-mirror", {**_TO_SINK, "sync": "full"}),
    ("block-job-cancel", {"device": "job"}),
    ("block-job-cancel", {"device": "job", "force": True}),
    ("block-job-pause", {"device": "job"}),
    ("block-job-resume", {"device": "job"}),
    ("block-job-set-speed", {"device": "job", "speed": 0}),
    ("stop", None),
    ("cont", None),
]
STEPS = st.lists(
    st.tuples(st.sampled_from(COMMANDS), st.sampled_from([0.0, 0.0, 0.001, 0.02])),
    min_size=2,
    max_size=12,
)


class Recorded:
    """A shim that takes down what QEMU sends in answer to the script, and works on replies."""

    def __init__(self, loop: Loop, build: Build, directory: Path) -> None:
        self.process = Process(build)
        self.loop = loop
        self.sent: list[str] = []
        self.delays: list[float] = []
        self.hold = False  # work on replies until it is taken back
        self.shim = start_shim(loop, self.process)
        self.chains = loop.run(self._watch(directory))
        self.client = client_of(loop, self.shim)
        self.client.negotiate()

    async def _watch(self, directory: Path) -> TrackedChains:
        shim = self.shim
        chains = TrackedChains(shim, directory, behaviour_of((7, 2, 22)))
        ChainCommands(chains)
        Commands(shim, chains)
        for name in {*SCRIPTED, *shim.intercepts}:
            shim.intercepts[name] = self._slowly(shim.intercepts.get(name, shim.forward))
        scripted: set[int] = set()
        send, reply, on_event = (
            shim.upstream.send,
            shim.upstream._reply,
            shim.upstream._on_event,
        )

        def sending(name: str, *words: Any, **more: Any) -> None:
            if name in SCRIPTED:
                scripted.add(shim.upstream._number + 1)
            send(name, *words, **more)

        def replied(number: int, body: bytes) -> None:
            if number in scripted:
                self.sent.append(_normal(json.loads(body)))
            reply(number, body)

        def happened(line: bytes) -> None:
            self.sent.append(_normal(json.loads(line)))
            on_event(line)

        shim.upstream.send = sending  # type: ignore[method-assign]
        shim.upstream._reply = replied  # type: ignore[method-assign]
        shim.upstream._on_event = happened
        return chains

    def _slowly(self, reference: Intercept) -> Callable[[Command], Awaitable[Reply | None]]:
        async def slow(command: Command) -> Reply | None:
            reply = await reference(command)
            await asyncio.sleep(self.delays.pop() if self.delays else 0.0)
            await until(lambda: not self.hold)  # set from another thread
            return reply

        return slow

    def close(self) -> None:
        self.loop.run(self.chains.close())
        self.loop.run(self.shim.close())
        self.process.close()


def _normal(message: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in message.items() if key != "id"})


@pytest.fixture
def recorded(loop: Loop, each_build: Build, tmp_path: Path) -> Iterator[Recorded]:
    made = Recorded(loop, each_build, tmp_path)
    for node in ("source", "sink"):
        null = {"driver": "null-co", "node-name": node, "size": 64 << 20, "read-zeroes": True}
        assert made.client.ask("blockdev-add", null)["return"] == {}
    yield made
    made.close()


def _received(client: Wire) -> list[str]:
    """What came until the answer to the script's last command."""
    got: list[str] = []
    while True:
        message = client.message()
        assert message is not None, "the shim hung up"
        if message.get("id") == "end":
            return [*got, _normal(message)]
        got.append(_normal(message))


def _end_job(client: Wire) -> None:
    client.ask("cont")
    client.ask("block-job-resume", {"device": "job"})
    client.ask("block-job-cancel", {"device": "job", "force": True})
    while client.ask("query-block-jobs")["return"]:
        pass


@settings(max_examples=8)
@given(steps=STEPS)
def test_a_client_gets_what_qemu_sent_in_its_order(
    recorded: Recorded, steps: list[tuple[tuple[str, dict[str, object] | None], float]]
) -> None:
    """Many commands in flight, whose replies the shim works on for a while."""
    client = recorded.client
    recorded.loop.call(recorded.sent.clear)
    recorded.delays = [delay for _, delay in steps]
    script = [
        *({"execute": name, "arguments": words or {}} for (name, words), _ in steps),
        {"execute": "x-order-end", "id": "end"},
    ]
    client.send(b"".join(json.dumps(command).encode() for command in script))
    got = _received(client)
    sent = recorded.loop.call(lambda: list(recorded.sent))
    assert got == sent[: len(got)]
    _end_job(client)


def test_a_reply_that_is_worked_on_keeps_its_place(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes, and whatever QEMU sends meanwhile."""
    other = client_of(recorded.loop, recorded.shim)
    other.negotiate()

    def sent() -> list[str]:
        return recorded.loop.call(lambda: list(recorded.sent))

    def one() -> list[str]:
        recorded.loop.call(recorded.sent.clear)
        recorded.hold = True
        recorded.client.send(b"{'execute': 'cont'}{'execute': 'x-order-end', 'id': 'end'}")
        wait_until(lambda: any('"return"' in line for line in sent()))
        assert other.ask("system_reset") == {"return": {}}
        wait_until(lambda: any('"RESET"' in line for line in sent()))
        recorded.hold = False
        return _received(recorded.client)

    assert one() == sent()
    monkeypatch.setattr(Outbox, "reserve", lambda self, oob: None)
    got = one()
    assert got != sent(), "the check must see a reply that comes late"
    assert sorted(got) == sorted(sent())


def test_out_of_band_replies_wait_in_line() -> None:
    out: list[bytes] = []
    box = Outbox(out.append)
    box.event(b"1")
    box.reserve(False)
    box.event(b"3")
    box.reply(b"4", oob=True)
    box.reserve(True)
    box.event(b"6")
    assert out == [b"1"]
    box.reply(b"5", oob=True)
    assert out == [b"1"]
    box.reply(b"2", oob=False)
    assert out == [b"1", b"2", b"3", b"4", b"5", b"6"]
    box.reply(b"7", oob=False)
    assert out[-1] == b"7"


def test_an_intercept_that_fails_has_its_answer_in_place(loop: Loop, qemu_build: Build) -> None:
    """It is asked of QEMU again: the later answer is the client's, where the first one came."""
    process = Process(qemu_build)
    shim: Shim = start_shim(loop, process)

    async def fails(command: Command) -> Reply | None:
        await shim.forward(command)
        raise QmpshimError("no more")

    shim.intercepts["stop"] = fails
    try:
        client = client_of(loop, shim)
        client.negotiate()
        client.send(b"{'execute': 'stop', 'id': 1}{'execute': 'query-status', 'id': 2}")
        assert [client.reply()["id"] for _ in range(2)] == [1, 2]
        assert client.ask("query-name") == {"return": {}}
    finally:
        loop.run(shim.close())
        process.close()
