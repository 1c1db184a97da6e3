"""The client that has QEMU learn the block status of its disk."""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.errors import MachineDied
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.chains import TOPOLOGIES, topology_of
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.chain.variants import FROZEN
from qmpshim.machine.nbd.protocol.transmission import NbdCommand
from qmpshim.machine.nbd.status_client import StatusAnswer, StatusClient

CLUSTER = 1 << 16
SHAPE = Shape(TOPOLOGIES["replication"], 2 * CLUSTER, CLUSTER)


def asked(machine: GatedMachine) -> list[tuple[int, int]]:
    """Which ranges QEMU asked the secondary disk about, and forget that."""
    found = [
        (event.offset, event.length)
        for event in machine.gate.trace
        if event.image == "secondary" and event.op is NbdCommand.BLOCK_STATUS
    ]
    machine.gate.trace.clear()
    return found


def test_what_it_has_learnt_it_need_not_ask(qemu_build: Build) -> None:
    """Since 6.2, unless it was written as a hole meanwhile; also over a new connection."""
    with closing(GatedMachine(qemu_build, SHAPE)) as machine:
        machine.stores["secondary"].restore(b"\1" * SHAPE.size)
        machine.gate.trace.clear()
        machine.learn_block_status()
        assert (0, SHAPE.size) in asked(machine)
        machine.learn_block_status()
        assert bool(asked(machine)) is (machine.version < (6, 2))
        machine.clients["primary"].call(NbdCommand.WRITE_ZEROES, 0, 512)
        machine.stores["secondary"].restore(b"\1" * SHAPE.size)
        machine.gate.trace.clear()
        machine.status_client("primary").close()
        machine.learn_block_status()
        assert (0, SHAPE.size) in asked(machine)


def test_a_bitmap_is_reported_beside_the_allocation(qemu_build: Build) -> None:
    """It is frozen: a write between two answers is in the one and not in the other."""
    topology = topology_of("backup", options=(("guest", FROZEN, ((CLUSTER, CLUSTER + 1),)),))
    with closing(GatedMachine(qemu_build, replace(SHAPE, topology=topology))) as machine:
        machine.start()
        machine.connect_status("guest")
        for _ in range(2):
            answer = machine.status_client("guest").call(NbdCommand.BLOCK_STATUS, 0, SHAPE.size)
            assert isinstance(answer, StatusAnswer) and not answer.errno
            extents = list(struct.iter_unpack(">II", answer.marked["b0"]))
            assert extents == [(CLUSTER, 0), (CLUSTER, 1)]
            assert sum(length for length, _ in struct.iter_unpack(">II", answer.data)) > 0
            machine.clients["primary"].write(b"\1" * CLUSTER, 0)
        path: Path = machine.workspace.path / "nbd"
        with pytest.raises(MachineDied, match="no such block status"):
            StatusClient(machine.event_loop, path, "guest", bitmaps=["b1"])


def test_an_export_that_is_not_there(qemu_build: Build) -> None:
    with closing(GatedMachine(qemu_build, SHAPE)) as machine:
        path: Path = machine.workspace.path / "nbd"
        with pytest.raises(MachineDied, match="nonsense"):
            StatusClient(machine.event_loop, path, "nonsense")
