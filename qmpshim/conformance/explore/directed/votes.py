"""Directed cases about a quorum whose children vote (``read-pattern=quorum``): block/quorum.c."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from errno import EIO, ENOSPC
from typing import Any

from qmpshim.conformance.explore.directed.machine import (
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
    any_of,
    content,
    io_of,
)
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.errors import BuildError
from qmpshim.machine.nbd.protocol.structured_replies import STATE_ZERO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.machine.nbd.status_client import StatusClient
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_THREE = ("one", "two", "three")
_BAD, _LOST = "QUORUM_REPORT_BAD", "QUORUM_FAILURE"
_ZEROES = (Nbd.WRITE_ZEROES, Nbd.WRITE)  # up to 5.2 a quorum writes zeroes as data
_HAS_ZEROES = (6, 0)
_CHANGE = "x-blockdev-change"
_NUMBERED = {f"children.{number}": name for number, name in enumerate(_THREE)}


def most_votes(machine: CaseMachine) -> None:
    """What most children hold is read, if there are enough of them for the vote; else the read
    fails. An event names the child that holds something else, or the disk that has no majority,
    and the sectors. Without rewrite-corrupted no child is changed.
    """
    _open(machine, _THREE, 2)
    for number, name in enumerate(_THREE, 2):
        _spoil(machine, name, number, 1)
        _reads(machine, 1, 0, COUNT)
        _expect_events(machine, {_BAD: [_bad("read", name, 0, COUNT)]}, f"{name} differs")
        _reads(machine, 1, 2, 2)
        _expect_events(machine, {}, "a read of sectors in which all agree")
        _expect_disks(machine, name, [1, number, 1])
        _spoil(machine, name, 1, 1)
    for number, name in enumerate(_THREE, 1):
        _spoil(machine, name, number, 1)
    errno = machine.io("votes", Nbd.READ, 1, 1).errno
    if errno != EIO:
        text = f"a read of a sector in which all children differ answers with errno {errno}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a read without a majority")
    _expect_events(machine, {_LOST: [_lost(1, 1)]}, "all children differ")


def failed_votes(machine: CaseMachine) -> None:
    """A child that fails has no vote. A request fails where too few are left, with the error that
    most children have; an event names each child that failed, and one the disk whose request did.
    """
    for op in (Nbd.READ, Nbd.WRITE, Nbd.WRITE_ZEROES):
        names = [f"{name}-of-{op.name.lower()}" for name in _THREE]  # events are limited by name
        one, two, three = names
        _open(machine, names, 2)
        for name, errno in ((one, EIO), (two, ENOSPC), (three, EIO)):
            _fail(machine, op, {name: errno}, 0)
            kind = "read" if op is Nbd.READ else "write"
            _expect_events(machine, {_BAD: [_bad(kind, name, 0, COUNT)]}, f"{name} fails", names)
        _fail(machine, op, {one: EIO, two: ENOSPC, three: ENOSPC}, ENOSPC)
        _fail(machine, op, {one: ENOSPC, two: ENOSPC, three: EIO}, ENOSPC)
        _fail(machine, op, {two: EIO, three: EIO}, EIO)
        if op is Nbd.READ:
            _spoil(machine, two, 2, 1)
            _fail(machine, op, {one: EIO}, EIO)  # the two that are left do not agree
        _comes_event(machine, _lost(0, COUNT), f"a {op.name.lower()} by votes fails")
        machine.remove_client("votes")
        machine.call("blockdev-del", {"node-name": "votes"})


def _fail(machine: CaseMachine, op: Nbd, errors: Mapping[str, int], wanted: int) -> None:
    """Some children fail a request of the first cluster, which must end with *wanted*."""
    machine.qmp.events.clear()
    ops = _ZEROES if op is Nbd.WRITE_ZEROES else (op,)
    cookie = machine.begun("votes", any_of(*ops), op, 0, COUNT, 1)
    what = f"a {op.name.lower()} of which {', '.join(errors)} fail"
    waiting = machine.caught(what, len(_THREE))
    for io in waiting:
        if io.image in errors:
            machine.gate.fail(io, errors[io.image])
        else:
            machine.gate.release(io)
    if (errno := machine.answered("votes", cookie, what)) != wanted:
        text = f"{what} ends with errno {errno}, not {wanted}"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"the error of a {op.name.lower()} by votes")
    if op is Nbd.READ and not wanted:
        _expect_owners(machine.clients["votes"].answers[cookie].data, [1] * COUNT, what)


def next_is_read(machine: CaseMachine) -> None:
    """With read-pattern=fifo the next child is read where one fails; an event names each that
    fails. The read fails, with the last error, where all of them do.
    """
    _open(machine, _THREE, 1, **{"read-pattern": "fifo"})
    for number, errors in enumerate(((EIO,), (EIO, ENOSPC), (EIO, EIO, ENOSPC)), 1):
        what = f"a read of which {number} of three children fail"
        cookie = machine.begun("votes", any_of(Nbd.READ), Nbd.READ, 0, COUNT)
        for name, errno in zip(_THREE, errors, strict=False):
            (io,) = machine.held(what, 1)
            if io.image != name:
                text = f"{what}: {io.image} is read, not {name}"
                raise Broken(Verdict.ORDER, text, "the child that is read next")
            machine.gate.fail(io, errno)
            machine.settle()
        machine.gate.open()
        machine.gate.release_all()
        wanted = errors[-1] if number == len(_THREE) else 0
        if (errno := machine.answered("votes", cookie, what)) != wanted:
            text = f"{what} ends with errno {errno}, not {wanted}"
            raise Broken(Verdict.ERROR_CONTRACT, text, "the error of a read, one child at a time")
        if not wanted:
            _expect_owners(machine.clients["votes"].answers[cookie].data, [1] * COUNT, what)
    for name in _THREE:
        _comes_bad(machine, name)


def _comes_bad(machine: CaseMachine, name: str) -> None:
    """An event that a child's read failed comes, or came, if not at once."""
    bad = _bad("read", name, 0, COUNT)
    machine.comes(lambda: bad in _reported(machine), f"a read of {name} fails: its {_BAD}")


def rewritten(machine: CaseMachine) -> None:
    """With rewrite-corrupted each child that holds something else than the majority is given that,
    before the read is answered. The children take writes for that, though nothing else writes.
    """
    five = (*_THREE, "four", "five")
    _open(machine, five, 3, **{"rewrite-corrupted": True})
    for different in (("one",), ("five",), ("two", "four"), ("one", "five")):
        for number, name in enumerate(different, 2):
            _spoil(machine, name, number, 1)
        cookie = machine.begun("votes", any_of(Nbd.WRITE), Nbd.READ, 0, COUNT)
        what = f"a read where {' and '.join(different)} differ"
        waiting = machine.held(what, len(different))
        if {io.image for io in waiting} != {*different}:
            text = f"{what}: {waiting} are rewritten"
            raise Broken(Verdict.CONTENT, text, "which children are rewritten")
        for io in waiting:
            machine.settle()
            if cookie in machine.clients["votes"].answers:
                text = f"{what} is answered before all of them are rewritten"
                raise Broken(Verdict.ORDER, text, "a read overtakes what it rewrites")
            machine.gate.release(io)
        machine.gate.open()
        machine.succeeds("votes", cookie, "a read that rewrites fails")
        _expect_owners(machine.clients["votes"].answers[cookie].data, [1] * COUNT, what)
        for name in five:
            _expect_disks(machine, name, [1] * COUNT)


def rewrite_fails(machine: CaseMachine) -> None:
    """A child that cannot be rewritten stays as it is, and the read succeeds nevertheless."""
    _open(machine, _THREE, 2, **{"rewrite-corrupted": True})
    _spoil(machine, "two", 2, 1)
    cookie = machine.begun("votes", any_of(Nbd.WRITE), Nbd.READ, 0, COUNT)
    (rewrite,) = machine.caught("a read that rewrites a child", 1)
    machine.gate.fail(rewrite, EIO)
    machine.succeeds("votes", cookie, "a rewrite's error is the reader's")
    _expect_disks(machine, "two", [1, 2, 1])


def rewritten_for_reader(machine: CaseMachine) -> None:
    """Where children are rewritten, the quorum takes the permission to write them though its user
    only reads; where they are not, it takes none, and changes nothing.
    """
    for name in _THREE:
        machine.add_disk(name)
    words = {"driver": "quorum", "node-name": "votes", "children": [*_THREE], "vote-threshold": 2}
    for rewrites in (True, False):
        machine.call("blockdev-add", {**words, "rewrite-corrupted": rewrites})
        machine.add_export("votes")
        machine.connect("votes")
        writing = {*_THREE} if rewrites else set()
        if (found := _taken(machine, "write")) != writing:
            text = f"the permission to write is taken of {sorted(found)}, not {sorted(writing)}"
            raise Broken(Verdict.PROTOCOL, text, "permissions that a quorum takes")
        _spoil(machine, "two", 2, 1)
        _reads(machine, 1, 0, COUNT)
        _expect_disks(machine, "two", [1, 1 if rewrites else 2, 1])
        machine.remove_client("votes")
        machine.call("blockdev-del", {"node-name": "votes"})


def _taken(machine: CaseMachine, permission: str) -> set[str]:
    """The children of which the quorum takes a permission."""
    return {child for child, edge in _children(machine) if permission in edge["perm"]}


def _children(machine: CaseMachine) -> list[tuple[str, dict[str, Any]]]:
    """The quorum's children by name, with the edges to them in the block graph."""
    graph = machine.call("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    edges = [edge for edge in graph["edges"] if names[edge["parent"]] == "votes"]
    return [(names[edge["child"]], edge) for edge in edges]


def write_beside_rewrite(machine: CaseMachine) -> None:
    """A write that was answered stays, though reads were under way beside it that give children
    what most have.
    """
    _open(machine, _THREE, 2, **{"rewrite-corrupted": True})
    reads = [
        machine.begun("votes", io_of(late, Nbd.READ), Nbd.READ, 0, 1) for late in ("three", "two")
    ]
    waiting = machine.held("two reads of a quorum", 2)
    machine.written("votes", 2, 0, 1)
    machine.gate.open()
    for cookie, io in zip(reads, waiting, strict=True):
        machine.gate.release(io)
        machine.succeeds("votes", cookie, "a read beside a write by votes fails")
    found = owners(machine.read("votes", 0, 1), 0)
    if found != [2]:
        text = "a write was answered, and a read after it gives what was there before"
        raise Broken(Verdict.LOST_WRITE, text, "a write beside rewrites is lost")


def changed_children(machine: CaseMachine) -> None:
    """A child that is added is written and read as the others, one that is removed is not any more;
    no fewer are left than the vote needs. What cannot be added or removed is refused.
    """
    _open(machine, _THREE, 2)
    machine.add_disk("four")
    machine.add_null("fixed", **{"read-only": True})
    machine.fails(_CHANGE, {"parent": "votes", "node": "fixed"})
    _change(machine, node="four")
    _expect_children(machine, {**_NUMBERED, "children.3": "four"})
    for words in (
        {"node": "one"},  # it has a parent
        {"node": "nowhere"},
        {"child": "children.4"},
        {"child": "children.3", "node": "secondary"},
        {},
    ):
        machine.fails(_CHANGE, {"parent": "votes", **words})
    _writes(machine, 2, {"one", "two", "three", "four"})
    _change(machine, child="children.3")
    _expect_children(machine, _NUMBERED)
    _writes(machine, 3, {"one", "two", "three"})
    machine.gate.store("four").write(0, content(3, 0, COUNT))
    _change(machine, node="four")
    _expect_children(machine, {**_NUMBERED, "children.3": "four"})
    _change(machine, child="children.0")
    _writes(machine, 4, {"two", "three", "four"})
    _reads(machine, 4, 0, COUNT)
    _change(machine, child="children.2")
    _writes(machine, 5, {"two", "four"})
    _reads(machine, 5, 0, COUNT)
    for left in ("children.1", "children.3"):
        machine.fails(_CHANGE, {"parent": "votes", "child": left})
    _spoil(machine, "two", 6, 1)
    if machine.io("votes", Nbd.READ, 0, COUNT).errno != EIO:
        text = "two children that differ give a majority"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a read without a majority")


def child_leaves_beside_write(machine: CaseMachine) -> None:
    """A child is removed, and one added, while a write is under way: that ends, on those children
    that it began on, and what comes after it is on the children that are there then.
    """
    _open(machine, _THREE, 2)
    machine.add_disk("four")
    _change_beside_write(machine, 2, [*_THREE], node="four")
    _change_beside_write(machine, 3, [*_THREE, "four"], child="children.0")
    _writes(machine, 4, {"two", "three", "four"})


def _change_beside_write(
    machine: CaseMachine, number: int, children: list[str], **words: str
) -> None:
    cookie = machine.begun("votes", any_of(Nbd.WRITE), Nbd.WRITE, 0, COUNT, number)
    machine.held("a write to a quorum", len(children))
    command = machine.qmp.send(_CHANGE, {"parent": "votes", **words})
    machine.settle()
    machine.gate.open()
    machine.gate.release_all()
    machine.succeeds("votes", cookie, "a write beside a change of children")
    machine.comes(lambda: command in machine.qmp.answers, _CHANGE)
    for name in children:
        _expect_disks(machine, name, [number] * COUNT)


def zeroes_by_votes(machine: CaseMachine) -> None:
    """Zeroes may leave a hole in all children, if the writer lets them, and none where a child
    cannot keep that apart. A quorum reports zeroes where all children do, and only there.
    """
    _open(machine, _THREE, 2, discard="unmap")
    if machine.version < _HAS_ZEROES:
        raise BuildError("up to 5.2 a quorum writes zeroes as data")
    _expect_holes(machine, True)
    machine.add_null("null", **{"read-zeroes": True})
    for words, may in (({"node": "null"}, False), ({"child": "children.3"}, True)):
        _change(machine, **words)
        _expect_holes(machine, may)
    machine.written("votes", 1, 0, COUNT)
    half = COUNT // 2
    for name, count in (("one", COUNT), ("two", half), ("three", COUNT)):
        machine.settle()
        machine.gate.store(name).zero(0, count * SECTOR)
    _expect_status(machine, [(half, True), (SIZE // SECTOR - half, False)])
    for name in ("one", "two", "three"):
        machine.gate.store(name).zero(0, SIZE)
    _expect_status(machine, [(SIZE // SECTOR, True)])
    machine.gate.store("two").write(half * SECTOR, content(1, half, 1))
    machine.gate.hold(io_of("three", Nbd.BLOCK_STATUS))
    client = _status_client(machine)
    cookie = client.send(Nbd.BLOCK_STATUS, 0, half * SECTOR)
    machine.settle()
    (query,) = machine.caught("block status of a quorum", 1)
    machine.gate.fail(query, EIO)
    machine.comes(lambda: cookie in client.answers, "block status of a quorum")
    if client.answers[cookie].errno == 0 and _extents(client.answers[cookie].data)[0][1]:
        text = "a quorum reports zeroes, though it does not know of one child"
        raise Broken(Verdict.CONTENT, text, "status of a quorum whose child fails")
    client.close()


def compared(machine: CaseMachine) -> None:
    """With blkverify two children that are equal are read as either; no child can be added."""
    _open(machine, ("one", "two"), 2, blkverify=True)
    _reads(machine, 1, 0, COUNT)
    machine.written("votes", 2, 0, COUNT)
    _reads(machine, 2, 0, COUNT)
    machine.add_disk("three")
    machine.fails(_CHANGE, {"parent": "votes", "node": "three"})
    verify = {"driver": "quorum", "node-name": "other", "vote-threshold": 2, "blkverify": True}
    for more in (
        {"children": ["three"], "vote-threshold": 1},
        {"children": ["three", "secondary"], "vote-threshold": 1},
        {"children": ["three", "secondary"], "rewrite-corrupted": True},
    ):
        machine.fails("blockdev-add", {**verify, **more})


def _change(machine: CaseMachine, **words: str) -> None:
    machine.settle()
    machine.call(_CHANGE, {"parent": "votes", **words})


def _writes(machine: CaseMachine, number: int, names: set[str]) -> None:
    """What is written to the first cluster is on these disks, and on no other."""
    machine.written("votes", number, 0, COUNT)
    machine.settle()
    for name in (*_THREE, "four"):
        found = owners(bytes(machine.gate.store(name).read(0, COUNT * SECTOR)), 0)
        if (found == [number] * COUNT) is not (name in names):
            text = f"a write to {sorted(names)}: the disk {name} holds operation {found[0]}"
            raise Broken(Verdict.CONTENT, text, "children that are written")


def _expect_children(machine: CaseMachine, wanted: Mapping[str, str]) -> None:
    found = {edge["name"]: child for child, edge in _children(machine)}
    if found != wanted:
        text = f"the children of the quorum are {found}, not {dict(wanted)}"
        raise Broken(Verdict.PROTOCOL, text, "children of a quorum")
    name = machine.node("votes")["image"]["filename"]
    named = json.loads(name.removeprefix("json:")).get("children", [])
    exports = [child["file"]["export"] for child in named]
    if exports != [*wanted.values()]:
        text = f"the quorum's name has the children {exports}, not {[*wanted.values()]}"
        raise Broken(Verdict.PROTOCOL, text, "children in a quorum's name")


def _expect_holes(machine: CaseMachine, may: bool) -> None:
    """Zeroes that may leave a hole reach the disks as such, or as zeroes that may not."""
    cookie = machine.begun("votes", any_of(Nbd.WRITE_ZEROES), Nbd.WRITE_ZEROES, 0, COUNT)
    zeroes = machine.caught("zeroes through a quorum", len(_THREE))
    for io in zeroes:
        machine.gate.release(io)
    machine.succeeds("votes", cookie, "zeroes through a quorum fail")
    if {io.no_hole for io in zeroes} != {not may}:
        text = f"zeroes that may leave a hole reach the disks as {zeroes}"
        raise Broken(Verdict.ALLOCATION, text, "zeroes below a quorum")


def _expect_status(machine: CaseMachine, wanted: list[tuple[int, bool]]) -> None:
    """The disk is in these parts of so many sectors, which are zeroes or not."""
    client = _status_client(machine)
    found: list[tuple[int, bool]] = []
    at = 0
    while at < SIZE:
        answer = client.call(Nbd.BLOCK_STATUS, at, SIZE - at)
        for length, zero in _extents(answer.data):
            at += length
            if found and found[-1][1] == zero:
                length += found.pop()[0] * SECTOR
            found.append((length // SECTOR, zero))
    client.close()
    if found != wanted:
        text = f"a quorum reports {found}, in sectors and whether they are zeroes, not {wanted}"
        raise Broken(Verdict.ALLOCATION, text, "block status of a quorum")


def _status_client(machine: CaseMachine) -> StatusClient:
    machine.settle()
    return StatusClient(machine.event_loop, machine.workspace.path / "nbd", "votes")


def _extents(data: bytes) -> list[tuple[int, bool]]:
    """Bytes of each extent, and whether it is zeroes."""
    numbers = [int.from_bytes(data[n : n + 4], "big") for n in range(0, len(data), 4)]
    states = zip(numbers[::2], numbers[1::2], strict=True)
    return [(length, bool(state & STATE_ZERO)) for length, state in states]


def _open(machine: CaseMachine, names: Sequence[str], threshold: int, **options: Any) -> None:
    """A quorum ``votes`` of disks that all hold the data of operation 1, and a client of it."""
    for name in names:
        machine.add_disk(name)
    words = {"driver": "quorum", "node-name": "votes", "children": list(names)}
    machine.call("blockdev-add", {**words, "vote-threshold": threshold, **options})
    machine.add_client("votes")


def _spoil(machine: CaseMachine, name: str, number: int, sector: int) -> None:
    """A sector of a disk is changed below QEMU."""
    machine.settle()
    machine.gate.store(name).write(sector * SECTOR, content(number, sector, 1))


def _reads(machine: CaseMachine, number: int, start: int, count: int) -> None:
    """All sectors that are read are of one operation; events of before are forgotten."""
    machine.qmp.events.clear()
    _expect_owners(
        *(machine.read("votes", start, count), [number] * count, "a read by votes"), start
    )


def _expect_owners(data: bytes, wanted: list[int], what: str, start: int = 0) -> None:
    if owners(data, start) != wanted:
        text = f"{what} gives {owners(data, start)}, not {wanted}"
        raise Broken(Verdict.CONTENT, text, "data of a quorum's read")


def _expect_disks(machine: CaseMachine, name: str, wanted: list[int]) -> None:
    """The first sectors of a disk are of these operations."""
    machine.settle()
    data = bytes(machine.gate.store(name).read(0, len(wanted) * SECTOR))
    if owners(data, 0) != wanted:
        text = f"the child {name} holds {owners(data, 0)}, not {wanted}"
        raise Broken(Verdict.CONTENT, text, "data of a quorum's child")


def _bad(kind: str, name: str, start: int, count: int) -> tuple[Any, ...]:
    return kind, name, start, count


def _lost(start: int, count: int) -> tuple[Any, ...]:
    return "votes", start, count


def _expect_events(
    machine: CaseMachine,
    wanted: Mapping[str, list[tuple[Any, ...]]],
    what: str,
    names: Sequence[str] = _THREE,
) -> None:
    """Since the last look QEMU has sent these events about the quorum of these, and no others.

    QEMU sends one a second that names a child, and one a second that names the quorum; what comes
    between waits, and only the last of it is sent then.
    """
    bad = [one for one in _reported(machine) if one[1] in names]
    found = {_BAD: bad, _LOST: _failures(machine)}
    machine.qmp.events.clear()
    if found != {_BAD: wanted.get(_BAD, []), _LOST: wanted.get(_LOST, [])}:
        text = f"{what}: the events are {found}, not {dict(wanted)}"
        raise Broken(Verdict.PROTOCOL, text, "events of a quorum")


def _comes_event(machine: CaseMachine, wanted: tuple[Any, ...], what: str) -> None:
    """An event that a request failed comes, if not at once."""
    machine.comes(lambda: wanted in _failures(machine), f"{what}: its {_LOST}")
    machine.qmp.events.clear()


def _reported(machine: CaseMachine) -> list[tuple[Any, ...]]:
    return [
        _bad(one["type"], one["node-name"], one["sector-num"], one["sectors-count"])
        for one in machine.events(_BAD)
    ]


def _failures(machine: CaseMachine) -> list[tuple[Any, ...]]:
    return [
        (one["reference"], one["sector-num"], one["sectors-count"]) for one in machine.events(_LOST)
    ]
