"""Ways in which a QEMU could keep the bitmaps of a pulled snapshot, as mutants of its storage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from qmpshim.conformance.compare.evidence import Allocated
from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.checkers.online import OnlineChecker
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed
from qmpshim.machine.chain.build import closing, opening
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import on_disk
from qmpshim.machine.chain.qmp_commands import BACKS_UP, TRANSACTION, QmpCommand
from qmpshim.model.operations import operation
from qmpshim.model.units import SECTOR
from vmtests.support import misbehaving_gate
from vmtests.support.backups import point_of
from vmtests.support.gate import Misbehaviour, of

#: Those of a transaction.
Actions = list[dict[str, Any]]

#: The bitmap that begins with the pull.
SINCE = {"node": "secondary", "name": "b1"}


def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge what comes of a pull, and no change of the disk as it arrives."""
    monkeypatch.setattr(OnlineChecker, "pull_has_begun", lambda checker: None)


def finer_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitmaps have granules of half the size that is asked for."""
    call, batch = GatedMachine.call, GatedMachine.batch

    def halved(name: str, arguments: Any) -> Any:
        if name != "block-dirty-bitmap-add":
            return arguments
        return {**arguments, "granularity": arguments["granularity"] // 2}

    def finer(machine: GatedMachine, name: str, arguments: Any = None) -> Any:
        return call(machine, name, halved(name, arguments))

    def all_finer(machine: GatedMachine, commands: list[QmpCommand]) -> list[Any]:
        changed = [QmpCommand(one.name, halved(one.name, one.arguments)) for one in commands]
        return batch(machine, changed)

    monkeypatch.setattr(GatedMachine, "call", finer)
    monkeypatch.setattr(GatedMachine, "batch", all_finer)


def reading_second() -> RealScenario:
    """A write of each disk, the start, and a read of the second one's snapshot."""
    pair = point_of("pull", "primary_write+primary_write,third=with_start,disks=two")
    size = pair.disk_size
    return replace(pair, ops=(*pair.ops, operation("guest_read", size, size, after=2)))


def copied_too(
    monkeypatch: pytest.MonkeyPatch, place: Path, scenario: RealScenario, disk: int, first: int
) -> Allocated:
    """A granule is copied to a disk's target when all is over; the evidence of that.

    It has what the disk held at first, and so does the view.

    :param place: of a file of its data
    :param first: its first sector, counted from the disk's own beginning on
    """
    node, count = on_disk("hidden", disk), min(scenario.granule, scenario.disk_size - first)
    place.write_bytes(bytes(pattern.data_of(BASE, disk * scenario.apart + first, count)))
    look = final_state.look

    def copied(machine: GatedMachine, *end: Any) -> Any:
        line = f'qemu-io {node} "write -s {place} {first * SECTOR} {count * SECTOR}"'
        machine.call("human-monitor-command", {"command-line": line})
        return look(machine, *end)

    monkeypatch.setattr(final_state, "look", copied)
    return Allocated(node, first // scenario.unit_of("hidden"), ("unallocated",))


def started_by(
    monkeypatch: pytest.MonkeyPatch, scenario: RealScenario, change: Callable[[Actions], Actions]
) -> None:
    """The transaction has other actions; and no properties."""
    commands = cast(MutableMapping[str, QmpCommand], scenario.topology.commands)
    actions = change(list(commands["start"].arguments["actions"]))
    monkeypatch.setitem(commands, "start", QmpCommand(TRANSACTION, {"actions": actions}))


def without_last_job(actions: Actions) -> Actions:
    """Without the job of the second disk."""
    assert actions[-1]["type"] == BACKS_UP and actions[-1]["data"]["device"] == "other-secondary"
    return actions[:-1]


def _done(machine: GatedMachine, named: NamedIo) -> None:
    """Let a request go, and wait for what comes of it."""
    machine.gate.release(named.io)
    machine.settle()


@of("secondary", "write")
def not_recorded(machine: GatedMachine, named: NamedIo) -> None:
    """The active bitmap does not record while a write ends, which is when QEMU marks it."""
    machine.call("block-dirty-bitmap-disable", SINCE)
    _done(machine, named)
    machine.call("block-dirty-bitmap-enable", SINCE)


@of("secondary", "write")
def cleared(machine: GatedMachine, named: NamedIo) -> None:
    """The active bitmap is cleared when a write has ended."""
    _done(machine, named)
    machine.call("block-dirty-bitmap-clear", SINCE)


@of("secondary", "write")
def stopped(machine: GatedMachine, named: NamedIo) -> None:
    """The active bitmap records no more when a write has ended."""
    _done(machine, named)
    machine.call("block-dirty-bitmap-disable", SINCE)


@of("secondary", "write")
def recorded(machine: GatedMachine, named: NamedIo) -> None:
    """The frozen bitmap has recorded a write when that has ended; it is offered as before.

    The reader of the snapshot must have nothing under way.
    """
    _done(machine, named)
    (export,) = machine.topology.offering
    machine.send(closing(export))
    machine.event_loop.until(lambda: len(machine.call("query-block-exports")) == 1, 5.0)
    merged = {"node": "secondary", "target": "b0", "bitmaps": ["b1"]}
    machine.call("block-dirty-bitmap-merge", merged)
    machine.send(opening(export, lambda node: {}))
    machine.connect(export.name)
    if export.name in machine.status_clients:
        machine.connect_status(export.name)


def _bitmaps(machine: GatedMachine) -> set[str]:
    nodes = machine.call("query-named-block-nodes")
    (disk,) = (node for node in nodes if node["node-name"] == "secondary")
    return {one.get("name", "") for one in disk.get("dirty-bitmaps", ())}


@of("secondary", "write")
def counted_late(machine: GatedMachine, named: NamedIo) -> None:
    """A write that was under way when a pull was started is marked as one that came after."""
    _done(machine, named)
    if SINCE["name"] in _bitmaps(machine):
        merged = {"node": "secondary", "target": SINCE["name"], "bitmaps": ["b0"]}
        machine.call("block-dirty-bitmap-merge", merged)
        machine.call("block-dirty-bitmap-clear", {"node": "secondary", "name": "b0"})


@of("secondary", "write")
def forgotten(machine: GatedMachine, named: NamedIo) -> None:
    """Each bitmap that is not in use is cleared when a write has ended."""
    _done(machine, named)
    for name in sorted(_bitmaps(machine) - {""}):
        with contextlib.suppress(CommandFailed):
            machine.call("block-dirty-bitmap-clear", {"node": "secondary", "name": name})


def _reads_of(image: str, owner: int) -> Misbehaviour:
    """What is read of a disk is of this operation."""

    @of(image, "read")
    def release(machine: GatedMachine, named: NamedIo) -> None:
        misbehaving_gate.corrupt(
            machine.gate, named.io, bytes(pattern.data_of(owner, named.start, named.count))
        )

    return release


#: What is copied for the snapshot is the data of the beginning, and not of T0.
stale = _reads_of("secondary", 1)

#: What is copied for the snapshot of a second disk is of no operation.
stray = _reads_of("other-secondary", 77)
_MISREAD = {stale: ("secondary", 1), stray: ("other-secondary", 77)}


@of("secondary", "write")
def started_late(machine: GatedMachine, named: NamedIo) -> None:
    """The job starts after a write that came when the transaction was over."""
    _done(machine, named)
    if SINCE["name"] in _bitmaps(machine):
        job = TOPOLOGIES["backup"].begins
        assert job is not None
        machine.send(job)


#: The transaction of a pull that leaves the job to :func:`started_late`.
WITHOUT_JOB = QmpCommand(
    "transaction", {"actions": TOPOLOGIES["pull"].commands["start"].arguments["actions"][:-1]}
)


_WRITTEN = '        if step[0] == "complete" and step[1].startswith("secondary write"):\n'


def _once_written(*lines: str) -> str:
    return _WRITTEN + "".join(f"            {line}\n" for line in lines)


#: What a script does in each step, and how its disks answer.
_STEP = "        taken += 1\n        take(step)\n        settle()\n"
_ANSWER = "images[r.image].perform(r)"
#: The same in an exported script: what it does after each step.
_AFTER_STEP = {
    forgotten: _once_written(
        'for name in ("b0", "b1"):',
        '    qmp.call("block-dirty-bitmap-clear", node="secondary", name=name)',
    ),
    cleared: _once_written('need("block-dirty-bitmap-clear", node="secondary", name="b1")'),
    stopped: _once_written('need("block-dirty-bitmap-disable", node="secondary", name="b1")'),
    recorded: _once_written(
        'need("block-export-del", id="guest", mode="hard")',
        'while len(need("query-block-exports")) > 1:',
        "    settle()",
        'need("block-dirty-bitmap-merge", node="secondary", target="b0", bitmaps=["b1"])',
        "export(**offering[0])",
        'clients["guest"] = Client(at("nbd"), "guest")',
        'clients["guest status"] = StatusClient(at("nbd"), "guest", ["b0"])',
    ),
}


def in_script(storage: Misbehaviour, script: str) -> str:
    """The script with a QEMU, or with disks, that misbehave in the same way."""
    place, wrong = _STEP, _STEP + _AFTER_STEP.get(storage, "")
    if storage in _MISREAD:
        (image, owner), place = _MISREAD[storage], _ANSWER
        other = f"pattern({owner}, r.guest, r.length // SECTOR)"
        wrong = f"{other} if (r.image, r.op) == ({image!r}, READ) and live else {_ANSWER}"
    assert script.count(place) == 1
    return script.replace(place, wrong)
