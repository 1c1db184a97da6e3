"""Power loss: what a flush acknowledged is there, and the overlays are sound, whatever is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.checkers.crash_points import CrashPoints, How
from qmpshim.conformance.explore.checkers.online import OnlineChecker
from qmpshim.conformance.explore.checkers.power_loss import POWER_LOSS, losses
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, RealSystem
from qmpshim.conformance.explore.harness.run import faithfully
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.gate.journal import Journal
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget
from qmpshim.model.operations import operation
from vmtests.support import misbehaving_gate

Release = Callable[[GatedMachine, NamedIo], None]


def found(
    pool: QemuPool,
    scenario: RealScenario,
    release: Release = faithfully,
    how: How = How.NONE,
    all_io: bool = False,
    most: int = 40,
) -> set[tuple[Verdict, Cause]]:
    """What is found in the schedules of a scenario."""
    check = CrashPoints(how).check
    system = RealSystem(
        pool, scenario, release=release, checks=Checks(each_step=check), all_io=all_io
    )
    done = explore(system, Mode.DPOR, Budget(schedules=most), stop=False)
    pool.discard()
    assert done.outcomes - {"lost"}
    return set(system.found)


def flushed(side: str, secondary: str = "raw") -> RealScenario:
    """A write, and a flush behind it."""
    letters = {"primary": "WH", "guest": "GF"}[side]
    write, flush = (scenario_sets.LETTERS[letter] for letter in letters)
    ops = (write, replace(flush, after=0))
    return RealScenario("write-flush", ops, secondary=secondary)


def without_flushes_of(image: str) -> Release:
    """A QEMU that does not flush an image: the disk never learns of the flush."""

    def release(machine: GatedMachine, named: NamedIo) -> None:
        flush = named.io.op is Nbd.FLUSH and named.io.image == image
        if flush:
            misbehaving_gate.drop(machine.gate, named.io)
        else:
            machine.gate.release(named.io)

    return release


@pytest.mark.kills("power_loss")
@pytest.mark.parametrize(
    ("side", "image", "secondary"),
    [
        ("primary", "secondary", "raw"),
        ("primary", "secondary", "qcow2"),
        ("guest", "active", "raw"),
    ],
)
def test_an_answered_flush_has_reached_the_image(
    pool: QemuPool, side: str, image: str, secondary: str
) -> None:
    scenario = flushed(side, secondary)
    assert found(pool, scenario) == set()
    lost = (
        Verdict.LOST_WRITE,
        Cause(CauseKind.NOT_ON_DISK, f"{side}_write", f"{side}_flush"),
    )
    assert lost in found(pool, scenario, without_flushes_of(image))


def fua(side: str, secondary: str = "raw") -> RealScenario:
    """A write with FUA, and a write behind it."""
    first = operation(f"{side}_write_fua", 0, 128)
    then = operation(f"{side}_write", 128, 128, after=0)
    return RealScenario("fua", (first, then), secondary=secondary)


def lost_fua(side: str) -> tuple[Verdict, Cause]:
    name = f"{side}_write_fua"
    return Verdict.LOST_WRITE, Cause(CauseKind.NOT_ON_DISK, name, name)


_note = Journal.note


def without_fua(self: Journal, offset: int, before: bytes, fua: bool) -> None:
    """A disk that takes a write with FUA for any other."""
    _note(self, offset, before, False)


@pytest.mark.parametrize(
    ("side", "image", "secondary"),
    [
        ("primary", "secondary", "raw"),  # the flag goes to the disk
        ("primary", "secondary", "qcow2"),  # the rest know no FUA: the node is flushed
        ("guest", "active", "raw"),
    ],
)
def test_an_answered_fua_write_is_durable(
    pool: QemuPool, side: str, image: str, secondary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = fua(side, secondary)
    assert found(pool, scenario) == set()
    if (side, secondary) == ("primary", "raw"):
        monkeypatch.setattr(Journal, "note", without_fua)
        assert lost_fua(side) in found(pool, scenario)
    else:
        assert lost_fua(side) in found(pool, scenario, without_flushes_of(image))


@pytest.mark.kills("power_loss")
def test_a_loss_of_power_takes_no_fua_write(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when it ends: at any time after that."""
    scenario = fua("primary")
    assert found(pool, scenario, how=How.POWER_LOSS) == set()
    monkeypatch.setattr(Journal, "note", without_fua)
    monkeypatch.setattr(OnlineChecker, "made_durable", lambda self, now, index: None)
    assert lost_fua("primary") in found(pool, scenario, how=How.POWER_LOSS)


@pytest.mark.kills("power_loss")
def test_tables_are_ordered_by_flushes(pool: QemuPool) -> None:
    """Without the flush between them, a table may be there that refers to a free cluster."""
    scenario = flushed("guest")
    assert found(pool, scenario, faithfully, How.POWER_LOSS, all_io=True, most=8) == set()
    broken = (
        Verdict.CORRUPTION,
        Cause(CauseKind.BROKEN_BY_CRASH, "active", POWER_LOSS),
    )
    unordered = without_flushes_of("active")
    assert broken in found(pool, scenario, unordered, How.POWER_LOSS, all_io=True, most=8)


class Disk:
    """A store with a journal, to write to by hand."""

    def __init__(self, size: int = 4096) -> None:
        self.store = MemoryStore(size)
        self.journal = Journal(self.store)

    def write(self, offset: int, data: bytes, fua: bool = False) -> None:
        before = self.store.read(offset, len(data))
        self.store.write(offset, data)
        self.journal.note(offset, before, fua)


def test_a_journal_undoes_what_was_not_flushed() -> None:
    disk = Disk()
    disk.write(0, b"a" * 512)
    disk.journal.flush_begins(1)
    disk.write(512, b"b" * 512)  # answered after the flush began: it may be lost
    disk.journal.flush_ends(1)
    assert disk.journal.after_loss()[:1024] == b"a" * 512 + bytes(512)
    assert disk.journal.after_loss([0])[:1024] == b"a" * 512 + b"b" * 512
    disk.write(512, b"c" * 512, fua=True)
    assert disk.journal.after_loss()[:1024] == b"a" * 512 + b"c" * 512


def test_a_flush_of_unknown_beginning_makes_nothing_durable() -> None:
    disk = Disk()
    disk.write(0, b"a" * 512)
    disk.journal.flush_ends("another")
    assert disk.journal.after_loss() == bytes(4096)


def test_losses_are_all_subsets_of_few_effects_and_torn_ones() -> None:
    disk = Disk()
    for index, letter in enumerate(b"abc"):
        disk.write(1024 * index, bytes([letter]) * 1024)
    left = list(losses(disk.journal))
    whole = {
        image
        for image in left
        if all(len(set(image[n : n + 1024])) == 1 for n in range(0, 3072, 1024))
    }
    assert len(whole) == 8 and len(left) == len(set(left))
    # A torn one has either half of its effect: alone, or after all that came before it.
    assert b"a" * 512 + bytes(3584) in left and bytes(512) + b"a" * 512 + bytes(3072) in left
    assert b"a" * 1024 + b"b" * 512 + bytes(2560) in left


def test_of_many_effects_each_is_lost_alone_and_kept_alone() -> None:
    disk = Disk(8192)
    for index in range(7):
        disk.write(512 * index, b"x" * 512)
    kept = {tuple(n for n in range(7) if image[512 * n]) for image in losses(disk.journal)}
    every = tuple(range(7))
    assert kept >= {(), every, *((n,) for n in every)}
    assert kept >= {tuple(m for m in every if m != n) for n in every}
    assert kept >= {every[:n] for n in every}
