"""Directed cases about backups that copy by themselves: a whole disk, or what a bitmap names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmpshim.conformance.explore.directed.machine import (
    BACKUP,
    CLUSTER,
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
    copies_to,
    io_of,
)
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.errors import OptionMissing
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_BOTH_AT_ONCE = {"max-workers": 2, "max-chunk": CLUSTER}
_BITMAP = {"node": "secondary", "name": "changed"}


def errors_of_disks(machine: CaseMachine) -> None:
    """A full backup whose source cannot be read, or whose target cannot be written to, stops where
    it is to stop, goes on where it is to ignore that, and is whole when it ends.
    """
    number, sizes = 0, []
    for side, hit in (("source", io_of("secondary", Nbd.READ)), ("target", copies_to("hidden"))):
        for action in ("stop", "ignore"):
            option, number = f"on-{side}-error", number + 1
            machine.written("primary", number, 0, SIZE // SECTOR)  # what no earlier job has copied
            machine.settle()
            machine.gate.hold(hit)
            begin(machine, sync="full", **{option: action})
            first, other = machine.caught("a backup job", 2)
            machine.gate.fail(first, 5)
            machine.gate.release(other)
            if action == "stop":
                machine.settle()
                _expect_status(machine, "paused", "failed", f"{option}=stop")
                _is_resumed(machine, hit, option)
            sizes.append(SIZE)
            _completes(machine, *sizes)
            _expect_copied(machine, {0, 1}, number)


def _is_resumed(machine: CaseMachine, hit: Callable[[HeldIO], bool], option: str) -> None:
    """A job that an error has paused is resumed, runs again, and has forgotten the error."""
    machine.gate.hold(hit)
    machine.call("block-job-resume", {"device": "backup"})
    machine.settle()
    again = machine.caught("a job that is resumed")
    _expect_status(machine, "running", "ok", f"{option}=stop, then block-job-resume")
    for io in again:
        machine.gate.release(io)


def _expect_status(machine: CaseMachine, status: str, io_status: str, promise: str) -> None:
    jobs = machine.call("query-block-jobs")
    if [(job["status"], job["io-status"]) for job in jobs] != [(status, io_status)]:
        text = f"a job with {promise} is {jobs or 'gone'}, not {status} with io-status {io_status}"
        raise Broken(Verdict.ERROR_CONTRACT, text, promise)


def concluded(machine: CaseMachine) -> None:
    """A job without auto-dismiss stays when it has ended, and QEMU quits beside it."""
    machine.call("blockdev-backup", {**BACKUP, "sync": "full", "auto-dismiss": False})

    def statuses() -> list[str]:
        return [job["status"] for job in machine.call("query-jobs")]

    machine.comes(lambda: statuses() in ([], ["concluded"]), "the backup job")
    if not statuses():
        text = "a job that is not to be dismissed is gone when it has ended"
        raise Broken(Verdict.PROTOCOL, text, "a job without auto-dismiss")


def bitmap_backup(machine: CaseMachine) -> None:
    """A backup of what a bitmap names copies that as it was, and with bitmap-mode=never keeps it.

    Meanwhile the bitmap is busy, and a write to the end of the disk is nothing special.
    """
    machine.call("block-dirty-bitmap-add", {**_BITMAP, "granularity": CLUSTER})
    machine.io("primary", Nbd.TRIM, 0, COUNT)
    machine.expect_bitmaps("secondary", [CLUSTER], "after a discard of a cluster")
    machine.written("primary", 1, 0, SIZE // SECTOR)
    machine.expect_bitmaps("secondary", [SIZE], "after a write of everything")
    limited = {"speed": 1, "bitmap-mode": "never"}  # it copies a cluster, and waits for hours
    begin(machine, sync="bitmap", bitmap="changed", **limited)
    machine.written("primary", 2, COUNT, COUNT)
    machine.call("block-job-set-speed", {"device": "backup", "speed": 0})
    _completes(machine, SIZE)
    _expect_copied(machine, {0, 1})
    machine.expect_bitmaps("secondary", [SIZE], "after a backup with bitmap-mode=never")


def failed_copy_stays(machine: CaseMachine) -> None:
    """With bitmap-mode=always a bitmap keeps what could not be copied when its job failed, and what
    was not begun then.

    What was copied it does not name any more. The next backup copies the rest.
    """
    size = machine.shape.size
    machine.call("block-dirty-bitmap-add", {**_BITMAP, "granularity": CLUSTER})
    machine.written("primary", 2, 0, 4 * COUNT)
    machine.settle()
    machine.gate.hold(copies_to("hidden"))
    begin(machine, sync="bitmap", bitmap="changed", **{"bitmap-mode": "always"})
    first, other = machine.caught("a backup job", 2)
    machine.gate.fail(first, 5)
    machine.settle()
    machine.gate.release(other)
    _completes(machine, None)
    machine.expect_bitmaps("secondary", [3 * CLUSTER], "after a backup that copied a quarter", size)
    begin(machine, sync="bitmap", bitmap="changed", **{"bitmap-mode": "on-success"})
    _completes(machine, None, 3 * CLUSTER)
    _expect_copied(machine, {0, 1, 2, 3}, 2)
    machine.expect_bitmaps("secondary", [0], "after a backup that succeeded", size)


def throttled(machine: CaseMachine) -> None:
    """A job that its speed makes wait for hours is paused, resumed, sped up and cancelled at once.

    It has not copied anything twice then, and nothing too little.
    """
    job = {"device": "backup"}
    for command, arguments in (("block-job-set-speed", {"speed": 0}), ("block-job-cancel", {})):
        machine.written("primary", 2, 0, SIZE // SECTOR)
        begin(machine, sync="full", speed=1)
        machine.call("block-job-pause", job)
        _comes_to(machine, "paused")
        machine.call("block-job-resume", job)
        _comes_to(machine, "running")
        machine.call(command, {**job, **arguments})
        if arguments:
            _completes(machine, SIZE)
            _expect_copied(machine, {0, 1}, 2)
    machine.job_ended()
    if len(machine.events("BLOCK_JOB_CANCELLED")) != 1:
        text = "a job that was cancelled while it waited does not end as cancelled"
        raise Broken(Verdict.PROTOCOL, text, "end of a cancelled job")


def cancelled_beside_lost_target(machine: CaseMachine) -> None:
    """A job is cancelled by force at once, though QEMU waits a minute for its raw target to be
    back.
    """
    machine.stores["raw"] = MemoryStore(SIZE)
    machine.gate.add("raw", machine.stores["raw"])
    file = {**machine.gate.blockdev("raw"), "reconnect-delay": 60}
    machine.call("blockdev-add", {"driver": "raw", "node-name": "raw", "file": file})
    machine.settle()
    machine.gate.hold(io_of("raw", Nbd.WRITE))
    begin(machine, target="raw", sync="full")
    machine.held("a backup job")
    machine.gate.refuse("raw")
    machine.gate.cut("raw")
    machine.gate.open()
    machine.settle()
    if [job["status"] for job in machine.call("query-block-jobs")] != ["running"]:
        text = "a job does not wait for its target to come back within reconnect-delay"
        raise Broken(Verdict.ERROR_CONTRACT, text, "reconnect-delay of a target is not kept")
    machine.call("block-job-cancel", {"device": "backup", "force": True})
    machine.job_ended()


def _comes_to(machine: CaseMachine, status: str) -> None:
    def there() -> bool:
        return [job["status"] for job in machine.call("query-block-jobs")] == [status]

    machine.comes(there, f"a throttled job that should be {status}")


def begin(machine: CaseMachine, **more: Any) -> None:
    """Start a job that copies each cluster by itself."""
    if not machine.features.x_perf:
        raise OptionMissing("this QEMU has no x-perf")
    machine.call("blockdev-backup", {**BACKUP, "x-perf": _BOTH_AT_ONCE, **more})
    machine.settle()


def _completes(machine: CaseMachine, *sizes: int | None) -> None:
    """Wait for the job's end, which is that of the last of these.

    :param sizes: by job, how many bytes it must have copied; None: it must have failed
    """
    done = machine.job_ended()
    found = [None if "error" in one else (one["offset"], one["len"]) for one in done]
    if found != [size and (size, size) for size in sizes]:
        raise Broken(Verdict.PROTOCOL, f"the backup job ends with {done}", "end of a backup job")


def _expect_copied(machine: CaseMachine, clusters: set[int], number: int = 1) -> None:
    """The hidden disk has the data of operation *number* in these clusters, and nothing else."""
    image = machine.flushed_image("hidden")
    found = Qcow2Reader.parse(image).clusters()
    places = dict(zip(found.index.tolist(), found.host.tolist(), strict=True))
    whose = {n: set(owners(image[at : at + CLUSTER], n * COUNT)) for n, at in places.items()}
    if whose != {n: {number} for n in clusters}:
        raise Broken(Verdict.CONTENT, f"the backup holds the data of {whose}", "a backup's content")
