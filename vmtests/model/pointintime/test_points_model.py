"""The model of bitmaps and jobs: what follows from docs/interop/bitmaps.rst, without a QEMU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpshim.model.disks.image import Contents
from qmpshim.model.pointintime.bitmap import Bitmap, ErrorClass, RefusedError
from qmpshim.model.pointintime.disk import Disk
from qmpshim.model.pointintime.jobs import BitmapMode, Ending, JobSpec, OnError, Stage, Sync
from qmpshim.model.pointintime.masks import cover, runs, span, units
from qmpshim.model.pointintime.points import BitmapAction, BitmapVerb, JobVerb, PointInTime
from qmpshim.model.pointintime.sectors import NOTHING, Sectors, sectors

SIZE, CLUSTER = 1027, 128


def model() -> PointInTime:
    return PointInTime([Disk(SIZE, CLUSTER, Contents()) for _ in range(2)])


def add(name: str = "a", **more: object) -> BitmapAction:
    return BitmapAction(BitmapVerb.ADD, 0, name, **more)  # type: ignore[arg-type]


@given(st.integers(0, 2**200), st.sampled_from([1, 8, 64]))
def test_a_set_is_its_runs_and_is_covered_by_units(mask: int, unit: int) -> None:
    assert sum(span(start, count) for start, count in runs(mask)) == mask
    covered = cover(mask, unit, 201)
    wanted = {at // unit for at in range(201) if mask >> at & 1}
    assert mask & ~covered == 0 and covered >> 201 == 0
    assert units(covered, unit) == len(wanted)


@given(st.integers(0, 2**200), st.integers(0, 2**200), st.sampled_from([1, 8, 64]))
def test_sets_by_their_runs_are_those_by_their_bits(one: int, other: int, unit: int) -> None:
    left, right = Sectors.of(runs(one)), Sectors.of(runs(other))
    assert left.mask == one and list(left.runs()) == list(runs(one)) and bool(left) == bool(one)
    for found, wanted in (
        (left | right, one | other),
        (left & right, one & other),
        (left - right, one & ~other),
        (left.cover(unit, 201), cover(one, unit, 201)),
    ):
        assert found == Sectors.of(runs(wanted)) and found.mask == wanted
    assert left.cover(unit, 201).units(unit) == units(cover(one, unit, 201), unit)
    if one:
        assert (left.first, left.last) == ((one & -one).bit_length() - 1, one.bit_length() - 1)


@pytest.mark.parametrize("mode", BitmapMode)
@pytest.mark.parametrize("ending", Ending)
def test_what_a_job_leaves_of_its_bitmap(mode: BitmapMode, ending: Ending) -> None:
    points = model()
    points.transact([add()])
    points.disks[0].write(0, 8, 1)
    points.transact([JobSpec(0, Sync.BITMAP, "a", mode)])
    points.disks[0].write(256, 8, 2)
    bitmap = points.disks[0].bitmaps["a"]
    assert bitmap.user == "job0" and bitmap.must == sectors(0, 128)
    with pytest.raises(RefusedError):
        bitmap.check()
    points.end("job0", ending)
    old, new = sectors(0, 128), sectors(256, 128)
    completed = ending is Ending.COMPLETED
    kept = mode is BitmapMode.NEVER or (mode is BitmapMode.ON_SUCCESS and not completed)
    assert bitmap.must == (old | new if kept else new)
    uncopied = mode is BitmapMode.ALWAYS and not completed
    assert bitmap.may == (old | new if kept or uncopied else new)
    assert bitmap.enabled and bitmap.user is None and bitmap.successor is None


@pytest.mark.parametrize("ending", Ending)
def test_a_job_that_ends_early_has_not_looked_what_the_image_holds(ending: Ending) -> None:
    """backup_run() in block/backup.c: the copy bitmap of sync=top is the whole disk at first."""
    points = model()
    points.disks[0].write(0, 8, 1)
    points.transact([add()])
    points.transact([JobSpec(0, Sync.TOP, "a", BitmapMode.ALWAYS)])
    points.end("job0", ending)
    whole = sectors(0, SIZE)
    assert points.disks[0].bitmaps["a"].may == (NOTHING if ending is Ending.COMPLETED else whole)


def test_a_refused_transaction_changes_nothing() -> None:
    points = model()
    points.transact([add()])
    points.disks[0].write(0, 8, 1)
    refused: list[BitmapAction | JobSpec] = [
        BitmapAction(BitmapVerb.CLEAR, 0, "a"),
        add("b"),
        JobSpec(0, Sync.FULL, "b", BitmapMode.ALWAYS),
        BitmapAction(BitmapVerb.DISABLE, 0, "none"),
    ]
    assert points.refusal(refused) is ErrorClass.GENERIC and points.refused_at(refused) == 3
    with pytest.raises(RefusedError):
        points.transact(refused)
    assert list(points.disks[0].bitmaps) == ["a"] and not points.jobs
    assert points.disks[0].bitmaps["a"].must == sectors(0, 128)


def test_two_disks_of_a_transaction_have_one_t0() -> None:
    points = model()
    for disk in points.disks:
        disk.write(0, 8, 1)
    points.transact([JobSpec(0, Sync.FULL), JobSpec(1, Sync.FULL)])
    for disk in points.disks:
        disk.write(0, 8, 2)
    assert {points.jobs[f"job{n}"].t0.read(0, 1)[0] for n in (0, 1)} == {1}


def test_an_increment_is_whole_as_long_as_its_bitmap_records() -> None:
    points = model()
    points.transact([add(), JobSpec(0, Sync.FULL)])
    points.end("job0", Ending.COMPLETED)
    points.disks[0].write(0, 8, 1)
    increment = JobSpec(0, Sync.INCREMENTAL, "a")
    points.transact([increment])
    assert points.jobs["job0"].whole
    points.end("job0", Ending.COMPLETED)
    for verb in (BitmapVerb.DISABLE, BitmapVerb.ENABLE):
        points.transact([BitmapAction(verb, 0, "a")])
        points.disks[0].write(512, 8, 2)
    points.transact([increment])
    assert not points.jobs["job0"].whole


def test_a_grouped_job_must_not_complete_when_its_partner_cannot() -> None:
    points = model()
    jobs = [JobSpec(0, Sync.FULL, fault=OnError.REPORT), JobSpec(1, Sync.FULL)]
    points.transact(jobs, grouped=True)
    assert points.endings("job1") == {Ending.CANCELLED}
    points.end("job0", Ending.FAILED)
    assert points.endings("job1") == {Ending.CANCELLED}


def test_jobs_that_end_together_wait_for_one_finalize() -> None:
    points = model()
    points.transact([JobSpec(0, Sync.FULL, manual=True), JobSpec(1, Sync.FULL)], grouped=True)
    for job in ("job0", "job1"):
        assert Ending.COMPLETED not in points.endings(job)
    points.finalizing("job1")
    for job in ("job0", "job1"):
        assert points.endings(job) == {Ending.COMPLETED}


def test_commands_of_a_job_by_its_stage() -> None:
    points = model()
    assert points.job_refusal("job0", JobVerb.PAUSE) is ErrorClass.NOT_ACTIVE
    points.transact([JobSpec(0, Sync.FULL, manual=True)])
    points.command("job0", JobVerb.PAUSE)
    assert points.job_refusal("job0", JobVerb.CANCEL) is ErrorClass.GENERIC
    assert points.job_refusal("job0", JobVerb.CANCEL, force=True) is None
    points.jobs["job0"].stage = Stage.PENDING
    assert points.job_refusal("job0", JobVerb.FINALIZE) is None
    points.end("job0", Ending.COMPLETED)
    assert points.job_refusal("job0", JobVerb.DISMISS) is None
    points.command("job0", JobVerb.DISMISS)
    assert not points.jobs


def test_what_is_left_of_bitmaps_after_an_end() -> None:
    points = model()
    points.transact([add("a", persistent=True), add("b")])
    points.restart()
    points.transact([add("c", persistent=True)])
    assert set(points.disks[0].bitmaps) == {"a", "c"}
    points.kill()
    (bitmap,) = points.disks[0].bitmaps.values()
    assert bitmap.name == "a" and bitmap.inconsistent and not bitmap.recording


def test_a_merge_rounds_outwards() -> None:
    fine, coarse = Bitmap("f", 1, SIZE), Bitmap("c", 512, SIZE)
    fine.record(sectors(600, 1), sectors(600, 1))
    coarse.merge(fine)
    assert coarse.must == sectors(512, 512)
    fine.merge(coarse)
    assert fine.must == sectors(512, 512)


def test_a_discard_is_of_whole_clusters_and_the_last() -> None:
    disk = Disk(SIZE, CLUSTER, Contents())
    assert disk.discarded(1, 254) == (128, 0)
    assert disk.discarded(100, 200) == (128, 128)
    assert disk.discarded(1000, 27) == (1024, 3)
