"""What is checked of disks that vote kills mutants: of the model, of a disk, and of QEMU."""

from __future__ import annotations

from collections.abc import Hashable
from errno import EIO, ENOSPC

import pytest

from qmpshim.conformance.explore.checkers import quorum, sequential
from qmpshim.conformance.explore.harness.choices import IoId, io_id
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.qmp.nonblocking import NonBlockingQmp
from qmpshim.model.chain.votes import VotingDisks
from qmpshim.model.disks.image import Owners
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import Operation, operation
from qmpshim.model.runtime.coroutines import Co
from vmtests.support import misbehaving_gate
from vmtests.support.failing import Misbehaving, Swallowing, causes, explored, one
from vmtests.support.gate import drop, of

WRITE, READ, FLUSH = (
    operation("guest_write", 0, 128),
    operation("guest_read", 0, 256, 0),
    operation("guest_flush", after=0),
)
DISKS = "primary", "secondary", "tertiary"
EACH = pytest.mark.parametrize("disk", DISKS)


def of_votes(*ops: Operation) -> RealScenario:
    return RealScenario("made", ops, form="votes")


def failing(
    pool: QemuPool,
    scenario: RealScenario,
    *fails: IoId,
    errno: int = EIO,
    kind: type[RealSystem] = RealSystem,
) -> set[str]:
    """The causes of what is found in one schedule in which these I/Os fail."""
    system = kind(pool, scenario, injection=Injection(plan=dict.fromkeys(fails, errno)))
    system.reset()
    while left := system.enabled():
        system.take(left[0])
    system.finish()
    assert not system.leave(apart=False)
    return causes(system)


# -- QEMU as it is ---------------------------------------------------------------------------------


def test_reference_disks_yield_no_finding(pool: QemuPool) -> None:
    for name in ("votes-RP", "votes-RE", "votes-GF", "votes-MT"):
        assert not explored(pool, one(name), most=20, online=True).found, name


def test_overlapping_writes_part_the_disks(pool: QemuPool) -> None:
    system = RealSystem(pool, one("votes-PG"))
    explore(system, Mode.DPOR, Budget(60))
    system.leave()
    assert causes(system) == {"disks that vote differ"}


@EACH
@pytest.mark.parametrize("verb", ["read", "write", "flush"])
def test_two_disks_are_enough(pool: QemuPool, disk: str, verb: str) -> None:
    scenario = of_votes(WRITE, READ, FLUSH)
    index = ("write", "read", "flush").index(verb)
    name = {"write": f"{disk} write 0+128", "read": f"{disk} read 0+256"}.get(verb, f"{disk} flush")
    assert not failing(pool, scenario, io_id(index, name))


@pytest.mark.parametrize("errno", [EIO, ENOSPC])
def test_where_two_fail_the_request_does(pool: QemuPool, errno: int) -> None:
    both = [io_id(0, f"{disk} write 0+128") for disk in DISKS[:2]]
    assert not failing(pool, of_votes(WRITE, READ), *both, errno=errno)


def test_a_read_beside_a_write_needs_a_third_disk(pool: QemuPool) -> None:
    plan = {io_id(0, "tertiary read 0+256"): EIO}
    system = RealSystem(pool, one("votes-RP"), injection=Injection(plan=plan))
    explore(system, Mode.DPOR, Budget(60))
    system.leave()
    assert causes(system) == {"guest_read answers errno 5, after a failed tertiary read"}


# -- the model -------------------------------------------------------------------------------------


class ForgetsADisk(VotingDisks):
    """One disk is not written."""

    def guest_write(self, start: int, count: int, op: int) -> Co[None]:
        last = self.disks[-1]
        old = last.contents.read(start, count)
        yield from super().guest_write(start, count, op)
        last.contents.write(start, old)


class ReadsTheFirst(VotingDisks):
    """A read does not vote."""

    def guest_read(self, start: int, count: int) -> Co[Owners]:
        return (yield from self.disks[0].read(start, count))


class NeedsAll(VotingDisks):
    """Two of three are not enough."""

    def __init__(self, names: tuple[str, ...], size: int, threshold: int) -> None:
        super().__init__(names, size, threshold + 1)


class NeedsOne(VotingDisks):
    """One of three is enough."""

    def __init__(self, names: tuple[str, ...], size: int, threshold: int) -> None:
        super().__init__(names, size, threshold - 1)


@pytest.mark.parametrize(
    ("model", "refused", "cause"),
    [
        (ForgetsADisk, (), "tertiary: the guest's data instead of the old data"),
        (ReadsTheFirst, DISKS[:1],
         "guest_read: the guest's data instead of the old data, after a failed primary write"),
        (NeedsAll, DISKS[:1],
         "guest_write answers ok, after a failed primary write"),
        (NeedsOne, DISKS[:2],
         "guest_write answers errno 5, after a failed primary write"),
    ],
)  # fmt: skip
def test_a_model_that_is_wrong_is_not_agreed_with(
    pool: QemuPool,
    model: type[VotingDisks],
    refused: tuple[str, ...],
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = of_votes(WRITE, READ)
    fails = [io_id(0, f"{disk} write 0+128") for disk in refused]
    assert not failing(pool, scenario, *fails)
    monkeypatch.setattr(sequential, "VotingDisks", model)
    assert failing(pool, scenario, *fails) == {cause}


# -- the disks under QEMU --------------------------------------------------------------------------


def altered(disk: str) -> Release:
    """What is written to a disk is not what arrives there."""

    def alter(machine: GatedMachine, named: NamedIo) -> None:
        misbehaving_gate.corrupt(
            machine.gate, named.io, bytes(pattern.data_of(3000, named.start, named.count))
        )

    return of(disk, "write")(alter)


def unflushed(disk: str) -> Release:
    return of(disk, "flush")(lambda machine, named: misbehaving_gate.drop(machine.gate, named.io))


@EACH
def test_a_disk_that_misbehaves_is_found_out(pool: QemuPool, disk: str) -> None:
    lost = f"{disk}: the old data instead of the guest's data"
    assert causes(explored(pool, of_votes(WRITE), release=drop(disk))) == {lost}
    spoilt = f"{disk}: the probe's data instead of the guest's data"
    assert causes(explored(pool, of_votes(WRITE), release=altered(disk))) == {spoilt}
    assert causes(explored(pool, of_votes(WRITE, FLUSH), release=unflushed(disk))) == {
        f"guest_flush does not flush the {disk} disk"
    }


@EACH
def test_a_write_that_is_lost_beside_another_is_found_out(pool: QemuPool, disk: str) -> None:
    """Where two writes overlap the disks may differ; that one has neither is another matter."""
    found = causes(explored(pool, of_votes(WRITE, WRITE), release=drop(disk)))
    assert f"{disk}: the old data instead of the guest's data" in found


@EACH
def test_a_refused_write_that_happened_nevertheless_is_found_out(pool: QemuPool, disk: str) -> None:
    fails = io_id(0, f"{disk} write 0+128")
    found = failing(pool, of_votes(WRITE), fails, kind=Misbehaving)
    done = f"{disk}: the guest's data instead of the old data, after a failed {disk} write"
    assert found == {done}


# -- QEMU ------------------------------------------------------------------------------------------


def test_a_swallowed_error_is_found_out(pool: QemuPool) -> None:
    both = [io_id(0, f"{disk} write 0+128") for disk in DISKS[1:]]
    assert failing(pool, of_votes(WRITE), *both, kind=Swallowing) == {
        "guest_write answers ok, after a failed secondary write"
    }


@pytest.mark.kills("quorum")
@pytest.mark.parametrize("disk", [DISKS[0], DISKS[2]])
def test_a_disk_that_fails_and_is_not_named(
    pool: QemuPool, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in = NonBlockingQmp.take_message

    def deaf(qmp: NonBlockingQmp, line: bytes) -> str:
        return "" if b"QUORUM_REPORT_BAD" in line else take_in(qmp, line)

    pool.discard()
    monkeypatch.setattr(quorum, "EVENT_LIMIT", 0.3)
    monkeypatch.setattr(NonBlockingQmp, "take_message", deaf)
    found = failing(pool, of_votes(WRITE), io_id(0, f"{disk} write 0+128"))
    pool.discard()
    assert found == {"guest_write: neither an error nor QUORUM_REPORT_BAD"}


# -- which schedules -------------------------------------------------------------------------------


def outcomes(pool: QemuPool, scenario: RealScenario, mode: Mode) -> set[object]:
    """The ends of all executions, and which operations came before which."""
    found: set[object] = set()

    class Noting(RealSystem):
        def finish(self) -> Hashable:
            end = super().finish()
            found.add((self.now.outcome, *self.now.precedence))
            return end

    system = Noting(pool, scenario)
    assert explore(system, mode, Budget(300)).exhaustive
    system.leave()
    return found


@pytest.mark.full
def test_no_outcome_is_missed(pool: QemuPool) -> None:
    """Each disk has places of its own; all schedules give no more ends than those taken."""
    scenario = one("votes-PF")
    assert outcomes(pool, scenario, Mode.STATEFUL) == outcomes(pool, scenario, Mode.NAIVE)
