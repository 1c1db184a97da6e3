"""Bitmaps: each way in which one can be wrong is found out, of QEMU's side or of the model's."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from errno import EIO

import pytest

from qmpshim.conformance.explore.checkers.bitmaps import beside_transaction
from qmpshim.conformance.explore.harness.choices import Cut
from qmpshim.conformance.explore.harness.io_naming import NamedIo
from qmpshim.conformance.explore.harness.push import granules_of
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.pointintime.bitmap import Bitmap
from qmpshim.model.pointintime.jobs import Ending
from qmpshim.model.pointintime.masks import span
from vmtests.support.backup_left import granules_left_as, left_as
from vmtests.support.backups import Kinds, Recording, endings, explored, kinds, point_of
from vmtests.support.failing import one
from vmtests.support.gate import of
from vmtests.support.pulls import finer_bitmaps

_BITMAP = {"node": "secondary", "name": "b0"}
_FORGOTTEN = granules_left_as(lambda granules: ())


pytestmark = pytest.mark.usefixtures("fresh_predictions")

MISSES = {(Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES, "b0")}
EXCEEDS = {(Verdict.ALLOCATION, CauseKind.BITMAP_EXCEEDS, "b0")}


def found(
    pool: QemuPool, name: str, release: Release = faithfully, errnos: tuple[int, ...] = ()
) -> Kinds:
    """What is found with these operations; a single letter, and no other, is a scenario, too."""
    chain, dash, letters = name.partition("-")
    scenario = one(name if len(letters) > 1 else f"{chain}{dash}r{letters}")
    scenario = replace(scenario, ops=scenario.ops[-len(letters) :])
    return kinds(explored(pool, scenario, release=release, errnos=errnos, most=100))


@of("secondary", "write")
def _not_recorded(machine: GatedMachine, named: NamedIo) -> None:
    """The bitmap does not record while a write ends, which is when QEMU marks it."""
    machine.call("block-dirty-bitmap-disable", _BITMAP)
    machine.gate.release(named.io)
    machine.settle()
    machine.call("block-dirty-bitmap-enable", _BITMAP)


@of("secondary", "write")
def _cleared(machine: GatedMachine, named: NamedIo) -> None:
    """The bitmap is cleared when a write has ended."""
    machine.gate.release(named.io)
    machine.settle()
    machine.call("block-dirty-bitmap-clear", _BITMAP)


@pytest.mark.kills("bitmaps")
def test_a_granule_that_is_not_marked_is_missed(pool: QemuPool) -> None:
    enabled_again = {(Verdict.PROTOCOL, CauseKind.BITMAP_STATE, "b0")}
    assert found(pool, "push-Vd", _not_recorded) == MISSES | enabled_again


@pytest.mark.kills("bitmaps")
def test_a_bitmap_that_is_cleared_too_early_is_found_out(pool: QemuPool) -> None:
    assert found(pool, "push-WD", _cleared) == MISSES


@pytest.mark.kills("bitmaps")
def test_a_successor_that_is_lost_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QEMU that forgets what was written while its job ran: the bitmap ends empty."""

    left_as(monkeypatch, _FORGOTTEN)
    assert found(pool, "push-Wi") == MISSES


def test_a_copy_that_failed_stays_in_the_bitmap_and_one_that_was_lost_does_not(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bitmap-mode=always. A target that is gone may have lost what it acknowledged."""
    assert not found(pool, "push-a", errnos=(EIO, Cut.FOR_GOOD))
    left_as(monkeypatch, _FORGOTTEN)
    for errno in (EIO, Cut.FOR_GOOD):
        assert found(pool, "push-a", errnos=(errno,)) == MISSES


def test_what_a_failed_job_gave_back_may_be_cleared(pool: QemuPool) -> None:
    """After the job's end, that is: while it runs its bitmap is busy."""
    name = "primary_write+bitmap_clear,third=with_backup_always,history=dirty"
    system = explored(pool, point_of("push", name), Recording, errnos=(EIO,))
    assert Ending.FAILED in endings(system)
    assert kinds(system) == set()


@pytest.mark.kills("bitmaps")
def test_a_bitmap_that_is_not_given_back_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model that gives all of it back when QEMU does not."""
    monkeypatch.setattr(Bitmap, "abdicate", Bitmap.reclaim)
    for name in ("push-Wi", "push-Wa"):
        assert found(pool, name) == MISSES


@pytest.mark.kills("bitmaps")
def test_a_bitmap_that_names_too_much_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model in which bitmap-mode=never, and a job that was cancelled, give nothing back."""
    monkeypatch.setattr(Bitmap, "reclaim", Bitmap.abdicate)
    for name in ("push-Wn", "push-Si"):
        assert found(pool, name) == EXCEEDS


@pytest.mark.parametrize(
    ("precedence", "named"),
    [
        ([set(), set()], True),  # both at the same time
        ([set(), {0}], False),  # the write had ended before
        ([{1}, set()], False),  # it began when the transaction was answered
    ],
)
def test_what_is_beside_a_transaction(precedence: list[set[int]], named: bool) -> None:
    """A write that ended before it, or began after it, is not."""
    scenario = one("push-Wt")
    touched = span(0, 128) if named else 0
    assert beside_transaction(scenario, list(map(frozenset, precedence))) == touched


@pytest.mark.kills("bitmaps")
def test_a_new_bitmap_may_name_what_is_written_beside_its_transaction(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more. Of 5.2, 7.2, 10.0 and 11.1 only 5.2 was seen to name what the backup has."""
    assert found(pool, "push-WVt") == set()
    left_as(monkeypatch, granules_left_as(lambda granules: {*granules, 2}))
    assert found(pool, "push-WVt") == {(Verdict.ALLOCATION, CauseKind.BITMAP_EXCEEDS, "b1")}


@pytest.mark.kills("bitmaps")
def test_a_bitmap_of_another_granularity_is_found_out(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its granules are not those that are predicted, and may be too many to find out."""
    finer_bitmaps(monkeypatch)
    pool.close()  # its QEMU has bitmaps already
    seen = found(pool, "push-Wi")
    pool.close()
    assert seen == {(Verdict.PROTOCOL, CauseKind.BITMAP_STATE, "b0")}


def test_too_many_sets_of_granules_are_not_tried() -> None:
    assert granules_of("", 1 << 13, 1 << 12) is None


def test_granules_are_found_by_their_checksum() -> None:
    """Words of 64 granules, the first one lowest."""
    for total, *places in ((3, 0, 2), (70, 1, 69), (3,)):
        granules = frozenset(places)
        bits = sum(1 << n for n in granules)
        digest = hashlib.sha256(bits.to_bytes(-(-total // 64) * 8, "little")).hexdigest()
        assert granules_of(digest, total, len(granules)) == granules
        assert granules_of(digest, total, len(granules) + 1) is None
