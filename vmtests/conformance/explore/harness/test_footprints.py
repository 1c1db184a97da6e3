"""Whose order matters on a real QEMU: too little of it and an exploration misses schedules."""

from __future__ import annotations

import pytest

from qmpshim.conformance.explore.harness.choices import IoId, Start
from qmpshim.conformance.explore.harness.footprints import Footprints
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.explore.system import Footprint
from qmpshim.model.operations import Operation, operation

FAR = 128 * 61  # a sector of the 62nd backup cluster


def starts(*ops: Operation, cluster: int = 128) -> list[Footprint]:
    feet = Footprints(RealScenario("made", ops, size=128 * 64, cluster=cluster))
    return [feet.step(Start(n), n, None, False) for n in range(len(ops))]


def io(op: int, verb: str, start: int) -> NamedIo:
    """An I/O on a cluster of the chain of a backup job."""
    image = "hidden" if verb == "write" else "secondary"
    held = HeldIO(1, image, Nbd.WRITE, start * 512, 128 * 512, b"", False, False, 1)
    return NamedIo(IoId(op, image, verb, f"{start}+128"), held, start, 128)


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


def test_a_copy_meets_its_own_clusters_and_what_goes_on_with_it() -> None:
    job, far = operation("backup_full"), operation("primary_write", FAR, 8)
    scenario = RealScenario("made", (job, far), form="push", size=128 * 64)
    feet = Footprints(scenario)
    command, beyond = (feet.step(Start(n), n, None, False) for n in range(2))
    assert command.conflicts(beyond)

    copy, there = io(0, "write", 0), io(0, "write", FAR)
    assert not feet.of_copy(copy, ()).conflicts(beyond)
    assert feet.of_copy(there, ()).conflicts(beyond)
    assert feet.of_copy(copy, (io(1, "write", 128 * 61),)).conflicts(beyond)
    assert feet.of_copy(copy, (io(0, "read", 128 * 61),)).conflicts(beyond)
    assert not feet.of_copy(copy, (io(0, "read", 128),)).conflicts(beyond)  # the job's own places
    read = feet.of_copy(io(0, "read", 0), (copy,))
    assert not read.conflicts(read) and read.conflicts(feet.of_copy(copy, ()))
    assert Footprints(scenario, all_io=True).of_copy(copy, ()).conflicts(beyond)


def test_a_request_that_goes_on_with_a_copy_touches_all_that_it_is_about() -> None:
    ops = (operation("backup_full"), operation("primary_write", FAR - 128, 256))
    last = operation("primary_write", FAR, 8)
    feet = Footprints(RealScenario("made", (*ops, last), form="push", size=128 * 64))
    beyond = feet.step(Start(2), 2, None, False)
    assert feet.of_copy(io(0, "write", 0), (io(1, "write", FAR - 128),)).conflicts(beyond)


def test_what_a_request_may_need_does_not_count_as_a_copy() -> None:
    job, far = operation("backup_full"), operation("primary_write", FAR, 8)
    feet = Footprints(RealScenario("made", (job, far), form="push", size=128 * 64))
    assert feet.is_copy(io(0, "write", 0), {1})  # the write is elsewhere
    assert not feet.is_copy(io(0, "write", FAR), {1})
    assert feet.is_copy(io(0, "write", FAR), {0})  # the write is over
    assert not feet.is_copy(io(1, "read", 0), {0})  # it is the write's own
    assert not feet.is_copy(io(1, "write", FAR), ())


def of_disk(image: str, verb: str, op: int = 0) -> NamedIo:
    """An I/O on the first cluster of a disk that votes; a flush is on none."""
    many = 0 if verb == "flush" else 128
    held = HeldIO(1, image, Nbd.WRITE, 0, many * 512, b"", False, False, 1)
    return NamedIo(IoId(op, image, verb, f"0+{many}"), held, 0, many)


def test_each_disk_that_votes_has_places_of_its_own() -> None:
    write, far = operation("guest_write", 0, 128), operation("guest_write", FAR, 8)
    feet = Footprints(RealScenario("made", (write, far), form="votes", size=128 * 64))
    disks = [feet.of_voter(of_disk(name, "write"), ()) for name in ("primary", "tertiary")]
    assert disks[0].conflicts(disks[0]) and not disks[0].conflicts(disks[1])
    begins, beyond = (feet.step(Start(n), n, None, False) for n in range(2))
    assert all(one.conflicts(begins) and not one.conflicts(beyond) for one in disks)
    flush = feet.of_voter(of_disk("primary", "flush"), ())
    assert flush.conflicts(beyond) and flush.conflicts(disks[0])
    assert not flush.conflicts(disks[1])
    assert feet.of_voter(of_disk("primary", "flush"), [of_disk("tertiary", "flush")]).conflicts(
        disks[1]
    )
    read = feet.of_voter(of_disk("primary", "read"), ())
    assert read.conflicts(disks[0]) and not read.conflicts(read)
    # A disk that differs is written when the last one was read.
    assert feet.of_voter(of_disk("primary", "read"), [of_disk("tertiary", "write")]).conflicts(
        disks[1]
    )


def test_the_status_meets_commands_only() -> None:
    status, first, far, command = starts(
        operation("status"),
        operation("primary_write", 0, 8),
        operation("primary_write", FAR, 8),
        operation("checkpoint"),
    )
    assert status.conflicts(command)
    assert not status.conflicts(first) and not status.conflicts(far)
