"""Whose order matters on a real QEMU: too little of it and an exploration misses schedules."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore.harness.choices import Start
from qmpshim.conformance.explore.harness.footprints import Footprints
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.model.explore.system import Footprint
from qmpshim.model.operations import Operation, operation

FAR = 128 * 61  # a sector of the 62nd backup cluster


def starts(*ops: Operation, cluster: int = 128) -> list[Footprint]:
    feet = Footprints(RealScenario("made", ops, size=128 * 64, cluster=cluster))
    return [feet.step(Start(n), n, None, False) for n in range(len(ops))]


@pytest.mark.parametrize("do", ["checkpoint", "failover", "guest_flush"])
@pytest.mark.parametrize("sector", [0, FAR])
def test_commands_and_flushes_meet_every_cluster(do: str, sector: int) -> None:
    write, other = starts(operation("primary_write", sector, 8), operation(do))
    assert write.conflicts(other)


def test_all_meet_in_qcow2s_tables() -> None:
    ops = operation("primary_write", 0, 8), operation("guest_write", FAR, 8)
    near, far = starts(*ops)
    assert not near.conflicts(far)
    feet = Footprints(RealScenario("made", ops, size=128 * 64), all_io=True)
    assert feet.step(Start(0), 0, None, True).conflicts(near)
    assert feet.step(Start(0), 0, None, True).conflicts(far)
    assert not feet.alone(0) and not feet.alone(1)


def test_writes_meet_in_one_backup_cluster_however_small_those_of_qcow2_are() -> None:
    one, two, far = (operation("primary_write", sector, 8) for sector in (0, 64, FAR))
    a, b, c = starts(one, two, far, cluster=8)
    assert a.conflicts(b)
    assert not a.conflicts(c)


def test_the_status_meets_commands_only() -> None:
    status, first, far, command = starts(
        operation("status"),
        operation("primary_write", 0, 8),
        operation("primary_write", FAR, 8),
        operation("checkpoint"),
    )
    assert status.conflicts(command)
    assert not status.conflicts(first) and not status.conflicts(far)
