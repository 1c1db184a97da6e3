"""Points of the form ``push``: what a faithful QEMU leaves, and a mutant of the model for each
dimension that changes what is predicted.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import replace

import pytest

from qmpshim.conformance.explore.checkers import sequential
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.outcome import BackupLeft
from qmpshim.conformance.explore.space.grammar import SPACE
from qmpshim.conformance.explore.space.naming import point_named, scenario_of
from qmpshim.errors import InputError
from qmpshim.model.check.cause import CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode
from qmpshim.model.explore.system import Choice, Footprint
from qmpshim.model.operations import OF_JOB, Operation, Verb, does
from qmpshim.model.pointintime.bitmap import Bitmap
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.push import PushChain
from qmpshim.model.pointintime.sectors import Sectors
from vmtests.support.backup_left import granules_left_as, left_as
from vmtests.support.backups import Kinds, explored, kinds, point_of

pytestmark = pytest.mark.usefixtures("fresh_predictions")

WRONG_DATA = (Verdict.CONTENT, CauseKind.WRONG_DATA, "target")
MISSES = (Verdict.LOST_WRITE, CauseKind.BITMAP_MISSES, "b0")
STATE = (Verdict.PROTOCOL, CauseKind.BITMAP_STATE, "b0")
LIST = (Verdict.PROTOCOL, CauseKind.BITMAP_STATE, "list")


def found(pool: QemuPool, name: str) -> Kinds:
    """What is wrong in the first schedules of a point of the form."""
    return kinds(explored(pool, point_of("push", name), most=60))


def test_a_job_is_started_once_and_cancelled_where_there_is_one() -> None:
    sampled = (SPACE.sample(random.Random(seed)) for seed in range(200))
    pushes = [point for point in sampled if point["form"] == "push"]
    assert len(pushes) > 10
    for one in map(scenario_of, pushes):
        jobs_started = sum(op.backs_up for op in one.ops)
        assert jobs_started == 1 or (not jobs_started and not does(one.ops, *OF_JOB))
        assert one.contract
    for wrong in (
        "primary_write+stop,form=push",
        "primary_write+primary_read,form=push",
        "primary_write+job_resume,form=push,third=with_backup_full",
        "primary_write+bitmap_clear,form=push,third=then_job_cancel",
        "primary_write+backup_full,form=push,third=with_backup_full",
    ):
        with pytest.raises(InputError, match="form=push"):
            point_named(wrong)
    assert SPACE.complete({"form": "push", "second": "stop"}) is not None


_LARGE = "target=large,history=dirty"
_MIN = "target=min-cluster,history=dirty"


@pytest.mark.parametrize(
    "name",
    [f"primary_write+backup_incremental,{_LARGE}", f"primary_write_fua+backup_never,{_MIN}"],
)
def test_a_copy_is_as_large_as_the_target_or_an_option_wants_it(
    pool: QemuPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(pool, name) == set()
    cover = Sectors.cover
    monkeypatch.setattr(
        Sectors, "cover", lambda copied, unit, size: cover(copied, min(unit, 128), size)
    )
    assert found(pool, name) == {WRONG_DATA}


def test_what_is_not_recorded_is_not_copied(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "primary_write+backup_incremental,history=not-recorded"
    assert found(pool, name) == set()

    def records(bitmap: Bitmap, changed: Sectors, touched: Sectors) -> None:
        recorder = bitmap.successor or bitmap
        recorder.must |= recorder.covering(changed)
        recorder.may |= recorder.covering(touched)

    monkeypatch.setattr(Bitmap, "record", records)
    assert found(pool, name) == {MISSES, WRONG_DATA}


def test_a_disk_that_keeps_what_is_discarded(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "primary_discard+backup_full,options=secondary-keeps,third=then_primary_write"
    assert found(pool, name) == set()
    do = PushChain.do

    def discards(chain: PushChain, *args: object) -> object:
        chain.discards = True
        return do(chain, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(PushChain, "do", discards)
    assert found(pool, name) == {WRONG_DATA}


def test_zeroes_have_to_be_written_to_a_target_with_something_behind_it(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a QEMU that takes what a target does not have for zeroes, whatever is behind it."""
    backed = "primary_write+backup_full,history=zeroed,target=backed"
    assert found(pool, backed) == set()

    def skipped(left: BackupLeft) -> BackupLeft:
        target = tuple(None if owner == 0 else owner for owner in left.target)
        return replace(left, target=target)

    left_as(monkeypatch, skipped)
    assert found(pool, "primary_write+backup_full,history=zeroed") == set()
    assert found(pool, backed) == {WRONG_DATA}


def test_what_an_always_job_did_not_copy_stays_in_the_bitmap(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whole granules of copying, which are larger than the bitmap's here."""
    name = "primary_write+backup_always,third=with_stop,target=large,history=dirty"
    assert found(pool, name) == set()

    # The second half of each granule that was not copied is not given back.
    halved = granules_left_as(lambda granules: [n for n in granules if n % 2 == 0])
    left_as(monkeypatch, halved)
    assert found(pool, name) == {MISSES}


def _nothing(*args: object) -> None:
    """A command of the model that does nothing."""


@pytest.mark.parametrize(
    ("name", "of", "method", "wrong"),
    [
        ("primary_write+bitmap_merge,history=two-bitmaps", Bitmap, "merge",
         (Verdict.ALLOCATION, CauseKind.BITMAP_EXCEEDS, "b1")),
        ("primary_write+bitmap_add", PushChain, "add_bitmap", LIST),
    ],
)  # fmt: skip
def test_a_command_about_a_bitmap_does_what_it_is_called(
    pool: QemuPool,
    name: str,
    of: type,
    method: str,
    wrong: tuple[Verdict, CauseKind, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert found(pool, name) == set()
    monkeypatch.setattr(of, method, _nothing)
    assert found(pool, name) == {wrong}


@pytest.mark.parametrize(
    ("name", "verb", "wrong"),
    [
        ("primary_write+bitmap_enable,history=not-recorded", Verb.BITMAP_ENABLE, {STATE}),
        ("primary_write+bitmap_remove,third=with_backup_incremental", Verb.BITMAP_REMOVE,
         {LIST, *(
             (Verdict.ERROR_CONTRACT, CauseKind.WRONG_ANSWER, command)
             for command in ("bitmap_remove", "backup_incremental")
         )}),
        ("primary_write+bitmap_remove", Verb.BITMAP_REMOVE, {LIST}),
    ],
)  # fmt: skip
def test_a_command_that_the_model_leaves_out_is_missed(
    pool: QemuPool, name: str, verb: Verb, wrong: Kinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(pool, name) == set()
    do = PushChain.do

    def leaves_out(chain: PushChain, op: Operation, number: int) -> object:
        return array("q") if op.verb is verb else do(chain, op, number)

    monkeypatch.setattr(PushChain, "do", leaves_out)
    assert found(pool, name) == wrong


def test_top_copies_all_that_the_image_has(pool: QemuPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters that were never written, or discarded, are not in it."""
    name = "primary_discard+backup_top,secondary=qcow2,target=backed"
    assert found(pool, name) == set()

    def left_out(left: BackupLeft) -> BackupLeft:
        return replace(left, target=(*left.target[:-64], *(None,) * 64))

    left_as(monkeypatch, left_out)
    assert found(pool, name) == {WRONG_DATA}


def test_a_qcow2_disk_discards_whole_clusters_only(
    pool: QemuPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "primary_discard+backup_full,secondary=qcow2,place=ragged"
    assert found(pool, name) == set()
    monkeypatch.setattr(
        sequential, "Disk", lambda size, cluster, base, backed: Disk(size, 1, base, backed)
    )
    assert found(pool, name) == {(Verdict.LOST_WRITE, CauseKind.WRONG_DATA, "secondary")}


@pytest.mark.parametrize(
    ("options", "most"), [("one-worker", 1), ("two-workers", 2), ("small-copies", 4)]
)
def test_so_many_copies_are_under_way_as_the_option_allows(
    pool: QemuPool, options: str, most: int
) -> None:
    """Else the dimension shows nothing: by the most I/Os of the job that were held at a time."""
    name = f"primary_write+bitmap_clear,third=with_backup_full,options={options}"
    scenario = point_of("push", name)
    system = explored(pool, scenario, Counting, mode=Mode.RANDOM, most=8, seed=1)
    assert not system.found and system.most == most


class Counting(RealSystem):
    """Counts the copies of a job that are under way, where none can be for a request."""

    most = 0

    def take(self, choice: Choice) -> Footprint:
        footprint = super().take(choice)
        ops = self.scenario.ops
        if self.now.started <= self.now.over:
            copies = sum(ops[one.op].backs_up for one in self.now.held.values())
            self.most = max(self.most, copies)
        return footprint
