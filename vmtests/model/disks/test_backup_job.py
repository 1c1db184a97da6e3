"""The seed's interface: names, units, rounding, the list, the queue, the checkpoint's error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qmpshim.model.disks.backup_job import (
    BackupJob,
    CowRequest,
    backup_calculate_cluster_size,
    backup_cow_request_begin,
    backup_cow_request_end,
    backup_do_checkpoint,
    backup_do_cow,
    backup_wait_for_overlapping_requests,
)
from qmpshim.model.disks.image import Alloc, Qcow2Image, RawImage, owned
from qmpshim.model.runtime.coroutines import Co, Deadlock, Io, ModelIOError, Wait, run_sequentially


def make_job(cluster: int = 128, size: int = 1024) -> BackupJob:
    source = RawImage("secondary", size)
    run_sequentially(source.write(0, owned(1, size)))
    return BackupJob(source, Qcow2Image("hidden", size, cluster, backed=True))


def begin(job: BackupJob, sector: int, count: int) -> CowRequest:
    req = CowRequest()
    backup_cow_request_begin(req, job, sector, count)
    return req


def sleep(co: Co[Any]) -> Wait:
    """The wait at which a coroutine goes to sleep."""
    event = next(co)
    assert isinstance(event, Wait)
    return event


@pytest.mark.parametrize(
    ("sector", "count", "clusters"),
    [
        (0, 1, (0, 1)),
        (0, 128, (0, 1)),
        (0, 129, (0, 2)),
        (127, 1, (0, 1)),
        (127, 2, (0, 2)),
        (128, 128, (1, 2)),
        (130, 300, (1, 4)),
    ],
)
def test_sectors_are_rounded_outwards_to_clusters(
    sector: int, count: int, clusters: tuple[int, int]
) -> None:
    req = begin(make_job(), sector, count)
    assert (req.start, req.end) == clusters


@pytest.mark.parametrize(("cluster", "expected"), [(8, 128), (128, 128), (256, 256), (4096, 4096)])
def test_cluster_size_is_at_least_64_kib(cluster: int, expected: int) -> None:
    assert backup_calculate_cluster_size(cluster) == expected
    assert make_job(cluster, 8192).cluster_size == expected


def test_without_overlap_nothing_waits() -> None:
    job = make_job()
    begin(job, 0, 128)
    run_sequentially(backup_wait_for_overlapping_requests(job, 128, 128))


def test_overlap_waits_for_the_request_it_overlaps_with() -> None:
    job = make_job()
    req = begin(job, 0, 128)
    begin(job, 256, 128)
    assert sleep(backup_wait_for_overlapping_requests(job, 64, 128)).queue is req.wait_queue
    with pytest.raises(Deadlock):
        run_sequentially(backup_wait_for_overlapping_requests(job, 0, 1))


def test_newest_request_is_found_first() -> None:
    job = make_job()
    begin(job, 0, 1024)
    newest = begin(job, 0, 128)
    assert sleep(backup_wait_for_overlapping_requests(job, 0, 1)).queue is newest.wait_queue


def test_end_takes_the_request_out_and_wakes_all_in_order() -> None:
    job = make_job()
    req = begin(job, 0, 128)
    woken: list[str] = []
    req.wait_queue.waiters += [lambda: woken.append("first"), lambda: woken.append("second")]
    backup_cow_request_end(req)
    assert woken == ["first", "second"]
    assert not job.inflight_reqs and not req.wait_queue.waiters


def test_waiters_look_again_after_each_wake_up() -> None:
    job = make_job()
    first = begin(job, 0, 128)
    waiter = backup_wait_for_overlapping_requests(job, 0, 256)
    assert sleep(waiter).queue is first.wait_queue
    backup_cow_request_end(first)
    second = begin(job, 128, 128)  # somebody else was quicker
    event = waiter.send(None)
    assert isinstance(event, Wait) and event.queue is second.wait_queue
    backup_cow_request_end(second)
    with pytest.raises(StopIteration):
        waiter.send(None)


def steps(co: Co[Any]) -> Iterator[str]:
    """The I/Os of a coroutine, in order; each is performed."""
    result = None
    while True:
        try:
            event = co.send(result)
        except StopIteration:
            return
        assert isinstance(event, Io)
        yield f"{event.op} {event.disk} {event.start}+{event.count}"
        result = event.perform()


def test_do_cow_reads_then_writes_each_cluster_once() -> None:
    job = make_job()
    copies = ["read secondary 0+128", "write hidden 0+128"]
    more = ["read secondary 128+128", "write hidden 128+128"]
    assert list(steps(backup_do_cow(job, 10, 1))) == copies
    assert list(steps(backup_do_cow(job, 0, 256))) == more
    assert list(steps(backup_do_cow(job, 0, 256))) == []
    assert job.done_bitmap == {0, 1} and not job.inflight_reqs
    assert job.target.alloc == {0: Alloc.DATA, 1: Alloc.DATA}


def test_do_cow_clips_the_last_cluster() -> None:
    job = make_job(size=200)
    assert list(steps(backup_do_cow(job, 199, 1))) == [
        "read secondary 128+72", "write hidden 128+72"]  # fmt: skip


def test_failed_copy_sets_no_bit_and_ends_its_request() -> None:
    job = make_job()
    co = backup_do_cow(job, 0, 128)
    next(co)
    with pytest.raises(ModelIOError):
        co.throw(ModelIOError(5))
    assert not job.done_bitmap and not job.inflight_reqs


def test_checkpoint_forgets_what_was_copied() -> None:
    job = make_job()
    run_sequentially(backup_do_cow(job, 0, 256))
    backup_do_checkpoint(job)
    assert not job.done_bitmap


@pytest.mark.parametrize(
    "sync", ["full", "top", "incremental", "bitmap"], ids=lambda sync: f"sync-{sync}"
)
def test_checkpoint_of_another_sync_mode_fails(sync: str) -> None:
    job = make_job()
    run_sequentially(backup_do_cow(job, 0, 256))
    job.sync_mode = sync
    text = "The backup job only supports block checkpoint in sync=none mode"
    with pytest.raises(ValueError, match=text):
        backup_do_checkpoint(job)
    assert job.done_bitmap == {0, 1}
