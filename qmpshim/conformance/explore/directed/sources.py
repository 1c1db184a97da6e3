"""Directed cases about backups by what they copy from and to: overlays, and files of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qmpshim.conformance.explore.directed.jobs import begin
from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    Broken,
    CaseMachine,
    content,
    io_of,
)
from qmpshim.machine.chain.images import blank_qcow2
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR


def overlay_backup(machine: CaseMachine) -> None:
    """A backup of an overlay with sync=full is the whole disk, and with sync=top what the overlay
    holds: at T0, whatever is written there later. It fails where that cannot be found out.
    """
    machine.clients["primary"].call(Nbd.WRITE_ZEROES, 2 * CLUSTER, CLUSTER)
    machine.remove_client("primary")  # a job wants a backing file without a writer
    below = [content(1, n * COUNT, COUNT) for n in range(4)]
    below[2] = none = bytes(CLUSTER)
    end = 6 * COUNT  # two clusters beyond the disk below
    machine.add_image("wide", end * SECTOR, backing="secondary")
    _back_up(machine, "wide", "full")
    _expect_backup(machine, "full", dict(enumerate([*below, none, none])))

    machine.add_image("overlay", end * SECTOR, 2 * SECTOR, backing="secondary")
    _back_up(machine, "overlay", "nothing")
    _expect_backup(machine, "nothing", {})
    machine.add_client("overlay")
    machine.written("overlay", 2, COUNT, 1)
    machine.written("overlay", 3, end - 1, 1)
    part = content(2, COUNT, 1) + below[1][SECTOR:]
    last = bytes(CLUSTER - SECTOR) + content(3, end - 1, 1)
    _back_up(machine, "overlay", "top", speed=1)  # it copies a cluster, and waits for hours
    for number, start in ((4, 0), (5, 5 * COUNT)):
        machine.written("overlay", number, start, COUNT)
    machine.call("block-job-set-speed", {"device": "backup", "speed": 0})
    _expect_backup(machine, "top", {1: part, 5: last})

    _begin_to_look(machine, "early")
    client = machine.clients["overlay"]
    cookies = [client.send(Nbd.WRITE, n * CLUSTER, 0, content(6, n * COUNT, COUNT)) for n in (1, 2)]
    machine.settle()
    while waiting := machine.gate.held:
        machine.gate.release(waiting[0])
        machine.settle()
    machine.gate.open()
    for cookie in cookies:
        machine.answered("overlay", cookie, "a write to an overlay")
    first, last = (content(*of, COUNT) for of in ((4, 0), (5, 5 * COUNT)))
    _expect_backup(machine, "early", {0: first, 1: part, 5: last})

    _begin_to_look(machine, "failed")
    machine.gate.open()
    for io in machine.gate.held:
        machine.gate.fail(io, 5)
    if "error" not in _end_of_job(machine):
        text = "a backup with sync=top succeeds that cannot know what the overlay holds"
        raise Broken(Verdict.ERROR_CONTRACT, text, "sync=top without the overlay's tables")


def snapshot_backup(machine: CaseMachine) -> None:
    """A backup of a snapshot is the disk at T0, and gives up what it has copied where it has to
    (discard-source).
    """
    machine.written("primary", 2, 0, COUNT)
    machine.add_image("image", 4 * CLUSTER)
    discards = {"discard-source": True} if machine.features.discard_source else {}
    begin(machine, device="snapshot", target="image", sync="full", **discards)
    _expect_whole(machine, "a backup of a snapshot")
    for cluster in range(4):
        answer = machine.clients["guest"].call(Nbd.READ, cluster * CLUSTER, CLUSTER)
        if bool(answer.errno) is not bool(discards):
            text = f"after its backup cluster {cluster} of a snapshot is read with {answer.errno}"
            raise Broken(Verdict.PROTOCOL, text, "what a backup of a snapshot gives up")


def files(machine: CaseMachine) -> None:
    """Between files of the host, which may copy by itself, a backup copies the same: to a raw file,
    and to a qcow2 file that grows.
    """
    whole = content(1, 0, 4 * COUNT)
    blank = blank_qcow2(machine.build, len(whole), CLUSTER).rstrip(b"\0")
    for name, driver, before in (
        ("source", "raw", whole),
        ("same", "raw", bytes(len(whole))),
        ("grows", "qcow2", blank + bytes(-len(blank) % CLUSTER)),
    ):
        path = machine.workspace.path / name
        path.write_bytes(before)
        file = {"driver": "file", "filename": str(path)}
        machine.call("blockdev-add", {"driver": driver, "node-name": name, "file": file})
        if name == "source":
            continue
        machine.add_client(name)
        for offload in (True, False):
            perf = {"use-copy-range": offload, "max-workers": 1, "max-chunk": 2 * CLUSTER}
            begin(machine, device="source", target=name, sync="full", **{"x-perf": perf})
            if "error" in _end_of_job(machine):
                text = "a backup between files fails, though all disks are well"
                raise Broken(Verdict.ERROR_CONTRACT, text, "a backup between files fails")
            if machine.read(name, 0, 4 * COUNT) != whole:
                text = f"a backup to a {driver} file is not what its source is"
                raise Broken(Verdict.CONTENT, text, f"a backup to a {driver} file")
            machine.clients[name].call(Nbd.WRITE, 0, 0, bytes(len(whole)))


def small_transfers(machine: CaseMachine) -> None:
    """A backup is the disk where its target takes less at once than a cluster."""
    machine.add_image("image", 4 * CLUSTER)
    small = {"driver": "blkdebug", "node-name": "small", "image": "image", "opt-discard": CLUSTER}
    machine.call("blockdev-add", {**small, "max-transfer": CLUSTER // 4})
    begin(machine, device="secondary", target="small", sync="full")
    _expect_whole(machine, "a backup in small transfers")


def compressed_backup(machine: CaseMachine) -> None:
    """A backup is the disk, compressed or not: with compress every cluster of its target is, and
    without it none. It is refused where the target's format has no compressed clusters.
    """
    job = {"job-id": "backup", "device": "secondary", "sync": "full"}
    for compress, name in ((False, "plain"), (True, "packed")):
        machine.add_image(name, 4 * CLUSTER)
        machine.call("blockdev-backup", {**job, "target": name, "compress": compress})
        if "error" in _end_of_job(machine):
            text = f"a backup with compress={compress} fails, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a compressed backup fails")
        view = ImageView(machine.flushed_image(name))
        packed = set(map(view.is_compressed, view.runs()))
        if packed != {compress}:
            text = f"the clusters of a backup with compress={compress} are compressed: {packed}"
            raise Broken(Verdict.ALLOCATION, text, f"compressed clusters of a {name} backup")
        machine.add_client(name)
        whole = content(1, 0, 4 * COUNT)
        if machine.read(name, 0, 4 * COUNT) != whole or view.read(0, len(whole)).tobytes() != whole:
            text = f"a backup with compress={compress} is not what its source is"
            raise Broken(Verdict.CONTENT, text, f"data of a {name} backup")
    machine.add_null("raw", 4 * CLUSTER)
    machine.fails("blockdev-backup", {**job, "target": "raw", "compress": True})


def _begin_to_look(machine: CaseMachine, target: str) -> None:
    """Begin a backup of the overlay, which has to wait for the overlay's tables."""
    machine.remove_client("overlay")
    machine.call("blockdev-del", {"node-name": "overlay"})  # and what it knows of its tables
    machine.open_image("overlay", backing="secondary")
    machine.add_client("overlay")
    machine.settle()
    machine.gate.hold(io_of("overlay", Nbd.READ))
    _back_up(machine, "overlay", target)
    machine.held("a job that looks what an overlay holds", 1)


def _back_up(machine: CaseMachine, source: str, target: str, speed: int = 0) -> None:
    """Begin a backup to a new image, with ``sync=full`` where that is called so."""
    sync = "full" if target == "full" else "top"
    machine.add_image(target, 6 * CLUSTER)
    begin(machine, device=source, target=target, sync=sync, speed=speed)


def _expect_backup(machine: CaseMachine, target: str, data: Mapping[int, bytes]) -> None:
    """The job has copied this, by cluster, and nothing else is in its target."""
    done = _end_of_job(machine)
    if "error" in done or done["offset"] != done["len"] or done["len"] != len(data) * CLUSTER:
        text = f"the backup of {len(data)} clusters ends with {done}"
        raise Broken(Verdict.PROTOCOL, text, "end of a backup of an overlay")
    allocated = {n for n, kind in machine.allocation(target).items() if kind is Alloc.DATA}
    wanted = {n for n in data if any(data[n])}
    if allocated != wanted:
        text = f"a backup of {sorted(wanted)} of an overlay's clusters has {sorted(allocated)}"
        verdict = Verdict.CONTENT if wanted - allocated else Verdict.ALLOCATION
        raise Broken(verdict, text, f"clusters of a backup of an overlay: {target}")
    machine.add_client(target)
    for n, wanted_data in data.items():
        if machine.read(target, n * COUNT, COUNT) != wanted_data:
            text = f"a backup of an overlay has other data in cluster {n} than the disk at T0"
            raise Broken(Verdict.CONTENT, text, f"data of a backup of an overlay: {target}")


def _expect_whole(machine: CaseMachine, what: str) -> None:
    """The job has succeeded, and ``image`` is the disk of four clusters at T0.

    :param what: the backup
    """
    if "error" in _end_of_job(machine):
        text = f"{what} fails, though all disks are well"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what} fails")
    machine.add_client("image")
    if machine.read("image", 0, 4 * COUNT) != content(1, 0, 4 * COUNT):
        raise Broken(Verdict.CONTENT, f"{what} is not the disk at T0", f"data of {what}")


def _end_of_job(machine: CaseMachine) -> Mapping[str, Any]:
    """What QEMU reports of the last job, when there is none any more."""
    done = machine.job_ended()
    return done[-1] if done else {"error": "it was not reported"}
