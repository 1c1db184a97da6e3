"""Directed cases about replication's commands and the failures its document names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EIO
from typing import Any, NamedTuple

from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    FAILOVER,
    PATIENCE,
    SIZE,
    START,
    Broken,
    CaseMachine,
    content,
    io_of,
)
from qmpshim.errors import BuildError, CommandFailed
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR


def busy_start(machine: CaseMachine) -> None:
    """Replication cannot start: the secondary disk belongs to another job. Then again."""
    machine.add_null("nowhere")
    job = {"job-id": "other", "device": "secondary", "target": "nowhere", "sync": "none"}
    machine.call("blockdev-backup", job)
    machine.fails("xen-set-replication", START)
    machine.fails("xen-set-replication", START)


def bad_top(machine: CaseMachine) -> None:
    """A filter whose top-id names nothing: starting fails, and fails again."""
    machine.remove_client("guest")
    machine.call("blockdev-del", {"node-name": "top"})
    words = {"driver": "replication", "node-name": "top", "mode": "secondary", "file": "active"}
    machine.call("blockdev-add", {**words, "top-id": "nobody"})
    machine.fails("xen-set-replication", START)
    machine.fails("xen-set-replication", START)


def no_backend(machine: CaseMachine) -> None:
    """Starting is refused while nothing uses the secondary disk: no export, no device."""
    machine.remove_client("primary")
    machine.fails("xen-set-replication", START)


def read_only(machine: CaseMachine) -> None:
    """Starting makes a hidden disk writable that was opened read-only, as backing files are."""
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    machine.shows("guest", 1, 0, 128, "hidden disk read-only at the start")


def not_running(machine: CaseMachine) -> None:
    """Before replication starts the filter takes no I/O, and no disk changes by it."""
    for op in (Nbd.WRITE, Nbd.READ):
        errno = machine.io("guest", op, 0, COUNT).errno
        if errno != EIO:
            text = f"a guest {op.name.lower()} before the start says {errno}, not EIO"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"guest {op.name.lower()} before the start")
    machine.call("xen-set-replication", START)
    machine.shows("guest", 1, 0, 128, "guest data of before the start", Verdict.CONTENT)


def failed_copy(machine: CaseMachine) -> None:
    """Copying fails (3. of the seven failures): it is to be reported to the FT/HA manager."""
    _failing(machine, "hidden", Nbd.WRITE, "Backup failed (writing the hidden disk)")


def failed_old_read(machine: CaseMachine) -> None:
    """The secondary disk fails (4. of the seven): it is to be reported to the FT/HA manager."""
    _failing(machine, "secondary", Nbd.READ, "I/O error on the secondary disk (reading old data)")


def failed_new_write(machine: CaseMachine) -> None:
    """The secondary disk refuses the new data (4. of the seven): it is to be reported, too."""
    _failing(machine, "secondary", Nbd.WRITE, "I/O error on the secondary disk (new data)")


def _failing(machine: CaseMachine, image: str, op: Nbd, what: str) -> None:
    machine.call("xen-set-replication", START)

    def hold(io: HeldIO) -> bool:
        return io.image == image and io.op is op and io.length >= 512

    cookie = machine.begun("primary", hold, Nbd.WRITE, 0, COUNT)
    for io in machine.held("a primary write"):
        machine.gate.fail(io, 5)
    machine.gate.open()
    errno = machine.answered("primary", cookie, "a primary write whose I/O failed")
    machine.settle()
    if errno != EIO:
        text = f"{what}: the primary's write says {errno}, not EIO"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what}: no EIO")
    if machine.status() is None:
        text = (
            f"{what}: query-xen-replication-status reports no error, though the document says "
            "it is reported to the FT/HA manager"
        )
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what}: not in the status")


def failed_empty(machine: CaseMachine) -> None:
    """Emptying the hidden disk fails (6.): reported, and the next checkpoint makes all well."""
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    machine.written("guest", 3, 128, 128)
    if _succeeds_without_hidden_disk(machine, "xen-colo-do-checkpoint"):
        text = "emptying the hidden disk fails, and the checkpoint says success"
        raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent")
    machine.call("xen-colo-do-checkpoint")
    machine.written("primary", 4, 0, COUNT)
    wanted = content(2, 0, COUNT) + content(1, 128, 128)
    if machine.read("guest", 0, 256) != wanted:
        text = "the guest does not see the state of the checkpoint that follows a failed one"
        raise Broken(Verdict.ISOLATION, text, "the next checkpoint does not make all well")


def failed_start(machine: CaseMachine) -> None:
    """Starting fails while it empties the hidden disk: then replication does not run."""
    if _succeeds_without_hidden_disk(machine, "xen-set-replication", START):
        text = "emptying the hidden disk fails, and starting says success"
        raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent at the start")
    if machine.status() is None:
        text = "starting replication fails, and its status says that it runs without error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a failed start leaves replication running")


def ejected_disk(machine: CaseMachine) -> None:
    """A checkpoint that cannot empty the hidden disk loses it: it and the next one report that."""
    _eject(machine, "hidden")


def ejected_active_disk(machine: CaseMachine) -> None:
    """A checkpoint that cannot empty the active disk loses it: it and the next one report that."""
    _eject(machine, "active")


def _eject(machine: CaseMachine, disk: str) -> None:
    if not machine.features.ejected_disk_is_reported:
        raise BuildError("this QEMU's end divides by zero then, which is written up")
    machine.start()
    machine.settle()
    machine.gate.hold(io_of(disk, Nbd.WRITE_ZEROES))
    number = machine.qmp.send("xen-colo-do-checkpoint")
    machine.settle()
    (emptying,) = machine.caught("a checkpoint", 1)
    machine.gate.fail(emptying, 5)
    if _succeeds(machine, "xen-colo-do-checkpoint", number):
        text = f"emptying the {disk} disk fails, and the checkpoint says success"
        raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent")
    for _ in range(2):
        machine.fails("xen-colo-do-checkpoint", {})


def checkpoint_to_the_end(machine: CaseMachine) -> None:
    """After a checkpoint everything is copied again, a disk's end inside a cluster too."""
    machine.start()
    last = machine.shape.size // SECTOR - 1
    for number in (2, 3, 4):
        machine.written("primary", number, last, 1)
        machine.shows("guest", number - 1, last, 1, "the end of a disk after a checkpoint")
        machine.settle()
        machine.call("xen-colo-do-checkpoint")


def start_refused(machine: CaseMachine) -> None:
    """A secondary does not start where its disks are no chain of three, or differ in size, however
    often that is tried; and it starts where they are.
    """
    machine.add_null("disk")
    machine.add_export("disk", writable=True)
    for images in (
        [_Overlay("one", SIZE)],
        [_Overlay("two", SIZE), _Overlay("three", SIZE, "two")],
        [_Overlay("large", 2 * SIZE, "disk"), _Overlay("larger", 2 * SIZE, "large")],
    ):
        _add_filter(machine, images)
        for _ in range(2):
            machine.fails("xen-set-replication", START)
        machine.call("blockdev-del", {"node-name": "filter"})
    _add_filter(machine, [_Overlay("below", SIZE, "disk"), _Overlay("top", SIZE, "below")])
    machine.call("xen-set-replication", START)


class _Overlay(NamedTuple):
    """An empty image, above another node or above nothing.

    :ivar size: bytes
    """

    name: str
    size: int
    backing: str | None = None


def _add_filter(machine: CaseMachine, images: Sequence[_Overlay]) -> None:
    """Open images, and a replication filter on the last of them."""
    for name, size, backing in images:
        options: dict[str, Any] = {"backing": backing} if backing else {}
        machine.add_image(name, size, CLUSTER, **options)
    words = {"driver": "replication", "node-name": "filter", "mode": "secondary"}
    machine.call("blockdev-add", {**words, "top-id": "filter", "file": images[-1].name})


def refused(machine: CaseMachine) -> None:
    """A replication filter is refused without a disk, without a mode or with one that there is not,
    with a top-id where there is no sense in it, or without one where there is.
    """
    disk = ",file.driver=null-co"
    for given in (disk, f"{disk},mode=tertiary", ",mode=primary"):
        options = f"driver=replication{given}"
        if machine.adds_drive("bad", options):
            text = f"a drive with the options {options} is made"
            raise Broken(Verdict.PROTOCOL, text, "a drive with a replication filter and no mode")
    machine.add_null("disk")
    words = {"driver": "replication", "node-name": "filter"}
    machine.fails("blockdev-add", {**words, "mode": "secondary", "file": "disk"})
    machine.fails("blockdev-add", {**words, "mode": "primary", "file": "disk", "top-id": "top"})
    for good in (
        {"mode": "primary"},
        {"mode": "primary", "read-only": True},
        {"mode": "secondary", "top-id": "filter"},
    ):
        machine.fails("blockdev-add", {**words, **good, "file": "nowhere"})
        machine.call("blockdev-add", {**words, **good, "file": "disk"})
        machine.call("blockdev-del", {"node-name": "filter"})


def _succeeds_without_hidden_disk(
    machine: CaseMachine, command: str, arguments: Mapping[str, object] | None = None
) -> bool:
    """What a command answers while nothing can be written to the hidden disk."""
    machine.settle()
    machine.gate.hold(lambda io: io.image == "hidden" and io.op is not Nbd.READ)
    number = machine.qmp.send(command, arguments)
    machine.settle()
    waiting = machine.held(command)
    while waiting:
        machine.gate.fail(waiting[0], 5)
        machine.settle()
        waiting = machine.gate.held
    machine.gate.open()
    return _succeeds(machine, command, number)


def _succeeds(machine: CaseMachine, command: str, number: int) -> bool:
    """Whether a command that was sent ends with success."""
    machine.qmp.wait(command, number, PATIENCE)
    try:
        machine.qmp.take(command, number)
    except CommandFailed:
        return False
    return True


def quit_running(machine: CaseMachine) -> None:
    """Quit while replication runs: QEMU ends with status 0."""
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)


def failed_failover(machine: CaseMachine) -> None:
    """The commit fails (7.): the guest goes on reading what it wrote, and its writes arrive."""
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    machine.written("guest", 3, 16, 8)
    for io in machine.fail_over():
        machine.gate.fail(io, 5)
    machine.gate.open()
    machine.settle()
    if machine.status() is None:
        text = "failover's commit fails, and the status reports no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "failed failover is not in the status")
    # The last begins in a cluster that the active disk has, and ends in one that it has not.
    for start, number in ((0, 4), (128, 5), (20, 6), (124, 7)):
        if machine.write("guest", number, start, 8):
            text = "after a failed failover a guest write fails"
            raise Broken(Verdict.ERROR_CONTRACT, text, "guest write after failed failover fails")
    for start, count, number in ((0, 4, 4), (132, 4, 5), (20, 4, 6), (16, 4, 3), (124, 8, 7)):
        machine.shows(
            "guest",
            number,
            start,
            count,
            "guest write after failed failover is lost",
            Verdict.LOST_WRITE,
        )
    # Zeroes, too, go where the guest's data of their place is: neither overlay has this cluster.
    machine.io("guest", Nbd.WRITE_ZEROES, 132, 4)
    if any(machine.gate.store("secondary").read(132 * SECTOR, 4 * SECTOR)):
        text = "after a failed failover the guest's zeroes do not reach the secondary disk"
        raise Broken(Verdict.LOST_WRITE, text, "guest zeroes after failed failover are lost")


def stop_flushes_all(machine: CaseMachine) -> None:
    """Stop flushes all disks (do_vm_stop()), those that only the monitor owns as well."""
    machine.call("xen-set-replication", START)
    machine.written("guest", 2, 0, COUNT)
    machine.call("xen-set-replication", FAILOVER)
    machine.comes(lambda: machine.status() is None, "failover")
    machine.call("stop")
    machine.settle()
    if not Qcow2Reader.parse(memoryview(machine.stores["active"].snapshot())).allocation():
        text = (
            "after failover and stop the active disk's file has no cluster, though the guest "
            "wrote one: its metadata is still in QEMU's memory"
        )
        raise Broken(Verdict.ALLOCATION, text, "stop does not flush every node")
