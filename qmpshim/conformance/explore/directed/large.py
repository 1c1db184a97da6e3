"""Directed cases about requests of more than 2 GiB, which only zeroes and discards can be."""

from __future__ import annotations

from collections.abc import Collection

from qmpshim.conformance.explore.directed.machine import Broken, CaseMachine, content
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.machine.chain.images import create_qcow2
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_GIB = 1 << 30
_SIZE = 4 * _GIB
_CLUSTER = 2 << 20  # bytes: so that tables and copies are few
_ROOM = _GIB  # for what is written to an image
_LIMIT = 60.0  # seconds for a request, on a host that is busy
_START = 1  # sectors
_COUNT = 3 * _GIB // SECTOR + 1  # ends within a cluster
_END = _START + _COUNT
_HALF = 2 * _GIB // SECTOR  # a sector that 32 bits with a sign do not reach, in bytes
#: Sectors that have data: those at the edges of a request, and in the middle.
_INSIDE = (_START, _HALF - 2, _HALF - 1, _HALF, _HALF + _START, _END - 1)
_OUTSIDE = (_START - 1, _END, _SIZE // SECTOR - 1)
_MARKED = (*_INSIDE, *_OUTSIDE)


def requests(machine: CaseMachine) -> None:
    """Zeroes of more than 2 GiB in one request are zeroes, on raw and on qcow2 disks; a discard of
    so much is done or not; neither touches what is beside it. A dirty bitmap names all of it.
    """
    _add_raw(machine, "raw")
    _add_qcow2(machine, "qcow2")
    for name in ("raw", "qcow2"):
        machine.add_client(name)
        bitmap = {"node": name, "name": "changed", "granularity": _CLUSTER}
        for op, inside in ((Nbd.WRITE_ZEROES, {0}), (Nbd.TRIM, {0, 1})):
            for sector in _MARKED:
                _write(machine, name, 1, sector)
            machine.settle()
            machine.call("block-dirty-bitmap-add", bitmap)
            _do(machine, name, op)
            what = f"a {op.name.lower()} of {_COUNT} sectors"
            _expect(machine, name, inside, what)
            touched = (_END * SECTOR - 1) // _CLUSTER + 1
            machine.expect_bitmaps(name, [touched * _CLUSTER], f"after {what}", _SIZE)
            machine.call("block-dirty-bitmap-remove", {"node": name, "name": "changed"})


def copied(machine: CaseMachine) -> None:
    """What zeroes of more than 2 GiB in one request are about to change is copied for the snapshot
    before, all of it; so is what such a discard is about to.
    """
    for op, inside in ((Nbd.WRITE_ZEROES, {0}), (Nbd.TRIM, {0, 1})):
        disk, target, over = (f"{op.name.lower()}-{name}" for name in ("raw", "target", "filter"))
        _add_raw(machine, disk)
        _add_qcow2(machine, target)
        for sector in _MARKED:
            data = content(1, sector, 1)
            machine.gate.store(disk).write(sector * SECTOR, data)
        machine.add_filter(over, disk, target)
        machine.add_snapshot(over)
        _do(machine, over, op)
        what = f"a {op.name.lower()} of {_COUNT} sectors through a filter"
        _expect(machine, over, inside, what)
        _expect(machine, "snapshot", {1}, what)
        machine.remove_client("snapshot")
        machine.call("blockdev-del", {"node-name": "snapshot"})


def _add_raw(machine: CaseMachine, name: str) -> None:
    machine.stores[name] = MemoryStore(_SIZE)
    machine.gate.add(name, machine.stores[name])
    file = {**machine.gate.blockdev(name), "discard": "unmap"}
    words = {"driver": "raw", "node-name": name, "discard": "unmap", "file": file}
    machine.call("blockdev-add", words)


def _add_qcow2(machine: CaseMachine, name: str) -> None:
    path = machine.workspace.path / f"{name}.qcow2"
    build = machine.build
    create_qcow2(build.tool("qemu-img"), path, _SIZE, _CLUSTER, (), build.environment())
    machine.stores[name] = MemoryStore(_ROOM)
    machine.stores[name].write(0, path.read_bytes())
    machine.gate.add(name, machine.stores[name])
    machine.open_image(name)


def _write(machine: CaseMachine, name: str, number: int, sector: int) -> None:
    data = content(number, sector, 1)
    if errno := machine.clients[name].call(Nbd.WRITE, sector * SECTOR, 0, data, _LIMIT).errno:
        text = f"a write of a sector of a large disk fails with errno {errno}"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a write to a large disk fails")


def _do(machine: CaseMachine, name: str, op: Nbd) -> None:
    answer = machine.clients[name].call(op, _START * SECTOR, _COUNT * SECTOR, b"", _LIMIT)
    if answer.errno:
        text = f"a {op.name.lower()} of {_COUNT} sectors fails with errno {answer.errno}"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"a large {op.name.lower()} fails")


def _expect(machine: CaseMachine, name: str, inside: Collection[int], what: str) -> None:
    """Sectors of the request are of one of these operations, and those beside it as before."""
    for sector in _MARKED:
        allowed = inside if sector in _INSIDE else {1}
        (found,) = owners(machine.read(name, sector, 1), sector)
        if found not in allowed:
            text = f"after {what} {name} holds operation {found} in sector {sector}, not {allowed}"
            raise Broken(Verdict.CONTENT, text, f"a large request, seen at {name}")
