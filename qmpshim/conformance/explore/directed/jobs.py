"""Directed cases about backups that copy by themselves: a whole disk, or what a bitmap names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.explore.directed.monitor import events
from qmpshim.conformance.explore.directed.tools import (
    CLUSTER,
    PATIENCE,
    SIZE,
    Broken,
    add_client,
    add_image,
    answered,
    comes,
    flushed_image,
    held,
    open_image,
    read,
    remove_client,
    written,
)
from qmpshim.conformance.explore.harness.io_naming import owners, tags
from qmpshim.conformance.workload import pattern
from qmpshim.errors import BuildError
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.protocol import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

_BOTH_AT_ONCE = {"max-workers": 2, "max-chunk": CLUSTER}
_COUNT = CLUSTER // SECTOR  # sectors
_BITMAP = {"node": "secondary", "name": "changed"}


def source_error(machine: GatedMachine) -> None:
    """A full backup whose source cannot be read stops, and is whole when it was resumed."""
    machine.settle()
    machine.gate.hold(lambda io: io.image == "secondary" and io.op is Nbd.READ)
    _begin(machine, sync="full", **{"on-source-error": "stop"})
    first, other = held(machine, "a backup job", 2)
    machine.gate.fail(first, 5)
    machine.gate.release(other)
    machine.settle()
    found = [(job["status"], job["io-status"]) for job in machine.call("query-block-jobs")]
    if found != [("paused", "failed")]:
        text = f"a job with on-source-error=stop is {found or 'gone'} after an error of its source"
        raise Broken(Verdict.ERROR_CONTRACT, text, "on-source-error=stop")
    machine.gate.open()
    machine.call("block-job-resume", {"device": "backup"})
    _completes(machine, SIZE)
    _expect_copied(machine, {0, 1})


def bitmap_backup(machine: GatedMachine) -> None:
    """A backup of what a bitmap names copies that as it was, and with bitmap-mode=never keeps it.

    Meanwhile the bitmap is busy, and a write to the end of the disk is nothing special.
    """
    machine.call("block-dirty-bitmap-add", {**_BITMAP, "granularity": CLUSTER})
    machine.clients["primary"].call(Nbd.TRIM, 0, CLUSTER)
    _expect_dirty(machine, CLUSTER, "after a discard of a cluster")
    written(machine, "primary", 1, 0, SIZE // SECTOR)
    _expect_dirty(machine, SIZE, "after a write of everything")
    limited = {"speed": 1, "bitmap-mode": "never"}  # it copies a cluster, and waits for hours
    _begin(machine, sync="bitmap", bitmap="changed", **limited)
    written(machine, "primary", 2, CLUSTER // SECTOR, CLUSTER // SECTOR)
    machine.call("block-job-set-speed", {"device": "backup", "speed": 0})
    _completes(machine, SIZE)
    _expect_copied(machine, {0, 1})
    _expect_dirty(machine, SIZE, "after a backup with bitmap-mode=never")


def failed_copy_stays(machine: GatedMachine) -> None:
    """With bitmap-mode=always a bitmap keeps what could not be copied when its job failed.

    What was copied it does not name any more. The next backup copies the rest.
    """
    machine.call("block-dirty-bitmap-add", {**_BITMAP, "granularity": CLUSTER})
    written(machine, "primary", 2, 0, SIZE // SECTOR)
    machine.settle()
    machine.gate.hold(
        lambda io: io.image == "hidden" and io.op is Nbd.WRITE and len(tags(io.data)) > 0
    )
    _begin(machine, sync="bitmap", bitmap="changed", **{"bitmap-mode": "always"})
    first, other = held(machine, "a backup job", 2)
    machine.gate.open()
    machine.gate.release(other)
    machine.gate.fail(first, 5)
    _completes(machine, None)
    _expect_dirty(machine, CLUSTER, "after a backup of which a half failed")
    _begin(machine, sync="bitmap", bitmap="changed", **{"bitmap-mode": "on-success"})
    _completes(machine, None, CLUSTER)
    _expect_copied(machine, {0, 1}, 2)
    _expect_dirty(machine, 0, "after a backup that succeeded")


def overlay_backup(machine: GatedMachine) -> None:
    """A backup of an overlay with sync=full is the whole disk, and with sync=top what the overlay
    holds: at T0, whatever is written there later. It fails where that cannot be found out.
    """
    machine.clients["primary"].call(Nbd.WRITE_ZEROES, 2 * CLUSTER, CLUSTER)
    remove_client(machine, "primary")  # a job wants a backing file that nobody writes to
    below = [bytes(pattern.data_of(1, n * _COUNT, _COUNT)) for n in range(4)]
    below[2] = none = bytes(CLUSTER)
    end = 6 * _COUNT  # two clusters beyond the disk below
    add_image(machine, "wide", end * SECTOR, backing="secondary")
    _back_up(machine, "wide", "full")
    _expect_backup(machine, "full", dict(enumerate([*below, none, none])))

    add_image(machine, "overlay", end * SECTOR, 2 * SECTOR, backing="secondary")
    _back_up(machine, "overlay", "nothing")
    _expect_backup(machine, "nothing", {})
    add_client(machine, "overlay")
    written(machine, "overlay", 2, _COUNT, 1)
    written(machine, "overlay", 3, end - 1, 1)
    part = bytes(pattern.data_of(2, _COUNT, 1)) + below[1][SECTOR:]
    last = bytes(CLUSTER - SECTOR) + bytes(pattern.data_of(3, end - 1, 1))
    _back_up(machine, "overlay", "top", speed=1)  # it copies a cluster, and waits for hours
    for number, start in ((4, 0), (5, 5 * _COUNT)):
        written(machine, "overlay", number, start, _COUNT)
    machine.call("block-job-set-speed", {"device": "backup", "speed": 0})
    _expect_backup(machine, "top", {1: part, 5: last})

    _begin_to_look(machine, "early")
    client = machine.clients["overlay"]
    cookies = [
        client.send(Nbd.WRITE, n * CLUSTER, 0, bytes(pattern.data_of(6, n * _COUNT, _COUNT)))
        for n in (1, 2)
    ]
    machine.settle()
    while waiting := machine.gate.held:
        machine.gate.release(waiting[0])
        machine.settle()
    machine.gate.open()
    for cookie in cookies:
        answered(machine, "overlay", cookie, "a write to an overlay")
    first, last = (bytes(pattern.data_of(*of, _COUNT)) for of in ((4, 0), (5, 5 * _COUNT)))
    _expect_backup(machine, "early", {0: first, 1: part, 5: last})

    _begin_to_look(machine, "failed")
    machine.gate.open()
    for io in machine.gate.held:
        machine.gate.fail(io, 5)
    if "error" not in _end_of_job(machine):
        text = "a backup with sync=top succeeds that cannot know what the overlay holds"
        raise Broken(Verdict.ERROR_CONTRACT, text, "sync=top without the overlay's tables")


def _begin_to_look(machine: GatedMachine, target: str) -> None:
    """Begin a backup of the overlay, which has to wait for the overlay's tables."""
    remove_client(machine, "overlay")
    machine.call("blockdev-del", {"node-name": "overlay"})  # and what it knows of its tables
    open_image(machine, "overlay", backing="secondary")
    add_client(machine, "overlay")
    machine.settle()
    machine.gate.hold(lambda io: io.image == "overlay" and io.op is Nbd.READ)
    _back_up(machine, "overlay", target)
    held(machine, "a job that looks what an overlay holds", 1)


def _back_up(machine: GatedMachine, source: str, target: str, speed: int = 0) -> None:
    """Begin a backup to a new image, with ``sync=full`` where that is called so."""
    sync = "full" if target == "full" else "top"
    add_image(machine, target, 6 * CLUSTER)
    _begin(machine, device=source, target=target, sync=sync, speed=speed)


def _expect_backup(machine: GatedMachine, target: str, data: Mapping[int, bytes]) -> None:
    """The job has copied this, by cluster, and nothing else is in its target."""
    done = _end_of_job(machine)
    if "error" in done or done["offset"] != done["len"] or done["len"] != len(data) * CLUSTER:
        text = f"the backup of {len(data)} clusters ends with {done}"
        raise Broken(Verdict.PROTOCOL, text, "end of a backup of an overlay")
    found = Qcow2Reader.parse(flushed_image(machine, target)).allocation()
    allocated = {n for n, kind in found.items() if kind is Alloc.DATA}
    wanted = {n for n in data if any(data[n])}
    if allocated != wanted:
        text = f"a backup of {sorted(wanted)} of an overlay's clusters has {sorted(allocated)}"
        raise Broken(Verdict.ALLOCATION, text, f"clusters of a backup of an overlay: {target}")
    add_client(machine, target)
    for n, content in data.items():
        if read(machine, target, n * _COUNT, _COUNT) != content:
            text = f"a backup of an overlay has other data in cluster {n} than the disk at T0"
            raise Broken(Verdict.CONTENT, text, f"data of a backup of an overlay: {target}")


def _end_of_job(machine: GatedMachine) -> Mapping[str, Any]:
    """What QEMU reports of the last job, when there is none any more."""
    comes(machine, lambda: not machine.call("query-block-jobs"), "the backup job", PATIENCE)
    data: Mapping[str, Any] = events(machine, "BLOCK_JOB_COMPLETED")[-1]["data"]
    return data


def _begin(machine: GatedMachine, **more: Any) -> None:
    """Start a job that copies each cluster by itself."""
    if machine.version < (6, 0):
        raise BuildError("this QEMU has no x-perf")
    words = {"job-id": "backup", "device": "secondary", "target": "hidden"}
    machine.call("blockdev-backup", {**words, "x-perf": _BOTH_AT_ONCE, **more})
    machine.settle()


def _completes(machine: GatedMachine, *sizes: int | None) -> None:
    """Wait for the job's end, which is that of the last of these.

    :param sizes: by job, how many bytes it must have copied; None: it must have failed
    """
    comes(machine, lambda: not machine.call("query-block-jobs"), "the backup job", PATIENCE)
    done = [event["data"] for event in events(machine, "BLOCK_JOB_COMPLETED")]
    found = [None if "error" in one else (one["offset"], one["len"]) for one in done]
    if found != [size and (size, size) for size in sizes]:
        raise Broken(Verdict.PROTOCOL, f"the backup job ends with {done}", "end of a backup job")


def _expect_copied(machine: GatedMachine, clusters: set[int], number: int = 1) -> None:
    """The hidden disk has the data of operation *number* in these clusters, and nothing else."""
    image = flushed_image(machine, "hidden")
    found = Qcow2Reader.parse(image).clusters()
    places = dict(zip(found.index.tolist(), found.host.tolist(), strict=True))
    whose = {
        n: set(owners(image[at : at + CLUSTER], n * CLUSTER // SECTOR)) for n, at in places.items()
    }
    if whose != {n: {number} for n in clusters}:
        raise Broken(Verdict.CONTENT, f"the backup holds the data of {whose}", "a backup's content")


def _expect_dirty(machine: GatedMachine, count: int, when: str) -> None:
    machine.settle()
    nodes = machine.call("query-named-block-nodes", {"flat": True})
    (node,) = (one for one in nodes if one["node-name"] == "secondary")
    (bitmap,) = (one for one in node["dirty-bitmaps"] if one.get("name") == "changed")
    if bitmap["count"] != count:
        text = f"{when} the bitmap names {bitmap['count']} bytes, not {count}"
        raise Broken(Verdict.PROTOCOL, text, f"a bitmap's count {when}")
