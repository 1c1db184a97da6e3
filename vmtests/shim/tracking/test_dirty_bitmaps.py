"""What bitmaps have to name is known however they are changed while their disk is written."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.tracking.dirty_bitmaps import BitmapAction, DirtyBitmaps
from vmtests.support.shim_harness import Loop, Wire
from vmtests.support.tracking_service import CLUSTER, SIZE, Service, writing
from vmtests.support.waiting import wait_until

_NAMES = ("a", "b", "c")
_BITMAP = {"node": "secondary", "name": "a"}
Step = Callable[[Service, Wire], None]
_VERBS = ("add", "add", "remove", "clear", "disable", "merge", "merge")
_BACKUP = {"job-id": "backup", "device": "secondary", "target": "hidden", "sync": "none"}


def _action(chance: random.Random, verbs: Sequence[str]) -> dict[str, Any]:
    """A random change of a bitmap, which may well be refused."""
    verb = chance.choice(verbs)
    name = chance.choice(_NAMES)
    data: dict[str, Any] = {"node": "secondary", "name": name}
    if verb == "add":
        data |= {"disabled": chance.random() < 0.3}
        data |= {"granularity": chance.choice((4096, 16384, 65536))}
    elif verb == "merge":
        other = chance.choice(_NAMES)
        source = chance.choice((other, {"node": "secondary", "name": other}))
        data = {"node": "secondary", "target": name, "bitmaps": [source]}
    return {"type": f"block-dirty-bitmap-{verb}", "data": data}


def _change(wire: Wire, chance: random.Random) -> None:
    """Change bitmaps at random."""
    if chance.random() < 0.4:
        action = _action(chance, (*_VERBS, "enable"))
        wire.ask(action["type"], action["data"])
    else:  # QEMU dies of one that is refused after it was to enable a bitmap (ENABLE_UNDONE)
        actions = [_action(chance, _VERBS) for _ in range(chance.randrange(1, 4))]
        wire.ask("transaction", {"actions": actions})


def _start(wire: Wire, name: str) -> None:
    """Start a job as libvirt does, with an export that has a bitmap of what *name* names."""
    view = {"node": "hidden", "name": "view", "disabled": True, "granularity": CLUSTER}
    merge = {
        "node": "hidden",
        "target": "view",
        "bitmaps": [{"node": "secondary", "name": name}],
    }
    actions = [
        {"type": "block-dirty-bitmap-add", "data": view},
        {"type": "block-dirty-bitmap-merge", "data": merge},
        {"type": "blockdev-backup", "data": _BACKUP},
    ]
    assert wire.ask("transaction", {"actions": actions}) == {"return": {}}
    export = {"type": "nbd", "id": "view", "node-name": "hidden", "bitmaps": ["view"]}
    assert wire.ask("block-export-add", export) == {"return": {}}


def _verified(loop: Loop, build: Build, seed: int, changes: Sequence[Step]) -> list[str]:
    """Change bitmaps and back up, while it is written; the verdicts on the bitmap."""
    spec = ChainSpec(Workflow.BACKUP, SIZE, CLUSTER)
    service = Service(loop, Options(build=build, chain=spec, log_writes=True))
    try:
        wire, chain = service.client(), service.served.chain
        assert chain is not None
        wire.ask("block-dirty-bitmap-add", _BITMAP)
        with closing(NbdClient(chain.uri("primary"))) as primary:
            primary.write(b"x" * 512, SIZE - 512)  # where nothing else is written
        with writing(chain.uri("primary"), seed) as done:
            for change in changes:
                there = done()
                wait_until(lambda: done() > there + 2)  # noqa: B023
                change(service, wire)
            wire.ask("block-dirty-bitmap-add", _BITMAP)
            _start(wire, "a")
            there = done()
            wait_until(lambda: done() > there + 20)
        (chain_,) = wire.ask("x-shim-verify")["return"]["chains"]
        assert chain_["bitmaps"] == ["view"], chain_
        assert not chain_["doubts"], chain_
        return [one["verdict"] for one in chain_["verdicts"]]
    finally:
        service.close()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 10))]
)
def test_bitmaps_that_are_changed_while_it_is_written(
    each_build: Build, loop: Loop, seed: int
) -> None:
    chance = random.Random(seed)
    changes = [lambda _, wire: _change(wire, chance)] * 15
    assert _verified(loop, each_build, seed, changes) == []


def _ask(verb: str) -> Step:
    def ask(_: Service, wire: Wire) -> None:
        assert wire.ask(f"block-dirty-bitmap-{verb}", _BITMAP) == {"return": {}}

    return ask


def test_a_bitmap_that_lost_everything(qemu_build: Build, loop: Loop) -> None:
    def clear(service: Service, _: Wire) -> None:
        loop.run(service.served.shim.execute("block-dirty-bitmap-clear", _BITMAP))

    assert _verified(loop, qemu_build, 0, [clear]) == ["lost-write"]


def _nothing(_: Service, __: Wire) -> None:
    pass


def _ignored(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    reference = DirtyBitmaps.apply

    def act(self: DirtyBitmaps, action: BitmapAction, granularity: Any) -> None:
        if action.verb != verb:
            reference(self, action, granularity)

    monkeypatch.setattr(DirtyBitmaps, "apply", act)


def _all_before(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = DirtyBitmaps.came_before
    monkeypatch.setattr(
        DirtyBitmaps, "came_before", lambda self, node, _: reference(self, node, 1 << 30)
    )


@pytest.mark.parametrize(
    ("wrong", "changes"),
    [
        (lambda patch: _ignored(patch, "clear"), [_ask("disable"), _ask("clear")]),
        (lambda patch: _ignored(patch, "disable"), [_ask("disable"), _ask("clear"), _nothing]),
        (_all_before, []),
    ],
)
def test_a_wrong_idea_of_bitmaps_is_found_out(
    qemu_build: Build,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[pytest.MonkeyPatch], None],
    changes: Sequence[Step],
) -> None:
    assert _verified(loop, qemu_build, 0, changes) == []
    wrong(monkeypatch)
    # A run in which nothing is written between a command and the next shows nothing.
    assert any(_verified(loop, qemu_build, seed, changes) for seed in range(20))
