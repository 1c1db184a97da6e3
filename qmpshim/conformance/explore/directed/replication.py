"""Directed cases about replication's commands and the failures its document names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EIO
from typing import NamedTuple

from qmpshim.conformance.explore.directed.tools import (
    CLUSTER,
    FAILOVER,
    PATIENCE,
    SIZE,
    START,
    Broken,
    add_image,
    answered,
    begun,
    comes,
    fails,
    held,
    read,
    remove_client,
    status,
    write,
    written,
)
from qmpshim.conformance.workload import pattern
from qmpshim.errors import BuildError, CommandFailed
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR


def busy_start(machine: GatedMachine) -> None:
    """Replication cannot start: the secondary disk belongs to another job. Then again."""
    machine.call("blockdev-add", {"driver": "null-co", "node-name": "nowhere", "size": SIZE})
    job = {"job-id": "other", "device": "secondary", "target": "nowhere", "sync": "none"}
    machine.call("blockdev-backup", job)
    fails(machine, "xen-set-replication", START)
    fails(machine, "xen-set-replication", START)


def bad_top(machine: GatedMachine) -> None:
    """A filter whose top-id names nothing: starting fails, and fails again."""
    remove_client(machine, "guest")
    machine.call("blockdev-del", {"node-name": "top"})
    words = {"driver": "replication", "node-name": "top", "mode": "secondary", "file": "active"}
    machine.call("blockdev-add", {**words, "top-id": "nobody"})
    fails(machine, "xen-set-replication", START)
    fails(machine, "xen-set-replication", START)


def no_backend(machine: GatedMachine) -> None:
    """Starting is refused while nothing uses the secondary disk: no export, no device."""
    remove_client(machine, "primary")
    fails(machine, "xen-set-replication", START)


def read_only(machine: GatedMachine) -> None:
    """Starting makes a hidden disk writable that was opened read-only, as backing files are."""
    machine.call("xen-set-replication", START)
    written(machine, "primary", 2, 0, 128)
    if read(machine, "guest", 0, 128) != bytes(pattern.data_of(1, 0, 128)):
        text = "the guest does not see the old data: the hidden disk was read-only at the start"
        raise Broken(Verdict.ISOLATION, text, "hidden disk read-only at the start")


def not_running(machine: GatedMachine) -> None:
    """Before replication starts the filter takes no I/O, and no disk changes by it."""
    client = machine.clients["guest"]
    data = bytes(pattern.data_of(2, 0, 128))
    for op, words in ((Nbd.WRITE, (0, 0, data)), (Nbd.READ, (0, SECTOR))):
        errno = client.call(op, *words).errno
        if errno != EIO:
            text = f"a guest {op.name.lower()} before the start says {errno}, not EIO"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"guest {op.name.lower()} before the start")
    machine.call("xen-set-replication", START)
    if read(machine, "guest", 0, 128) != bytes(pattern.data_of(1, 0, 128)):
        text = "a guest write that was refused before the start is read after it"
        raise Broken(Verdict.CONTENT, text, "guest data of before the start")


def failed_copy(machine: GatedMachine) -> None:
    """Copying fails (3. of the seven failures): it is to be reported to the FT/HA manager."""
    _failing(machine, "hidden", Nbd.WRITE, "Backup failed (writing the hidden disk)")


def failed_old_read(machine: GatedMachine) -> None:
    """The secondary disk fails (4. of the seven): it is to be reported to the FT/HA manager."""
    _failing(machine, "secondary", Nbd.READ, "I/O error on the secondary disk (reading old data)")


def failed_new_write(machine: GatedMachine) -> None:
    """The same with the new data."""
    _failing(machine, "secondary", Nbd.WRITE, "I/O error on the secondary disk (new data)")


def _failing(machine: GatedMachine, image: str, op: Nbd, what: str) -> None:
    machine.call("xen-set-replication", START)

    def hold(io: HeldIO) -> bool:
        return io.image == image and io.op is op and io.length >= 512

    cookie = begun(machine, "primary", 128, hold)
    for io in held(machine, "a primary write"):
        machine.gate.fail(io, 5)
    machine.gate.open()
    errno = answered(machine, "primary", cookie, "a primary write whose I/O failed")
    machine.settle()
    if errno != EIO:
        text = f"{what}: the primary's write says {errno}, not EIO"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what}: no EIO")
    if status(machine) is None:
        text = (
            f"{what}: query-xen-replication-status reports no error, though the document says "
            "it is reported to the FT/HA manager"
        )
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what}: not in the status")


def failed_empty(machine: GatedMachine) -> None:
    """Emptying the hidden disk fails (6.): reported, and the next checkpoint makes all well."""
    machine.call("xen-set-replication", START)
    written(machine, "primary", 2, 0, 128)
    written(machine, "guest", 3, 128, 128)
    if _succeeds_without_hidden_disk(machine, "xen-colo-do-checkpoint"):
        text = "emptying the hidden disk fails, and the checkpoint says success"
        raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent")
    machine.call("xen-colo-do-checkpoint")
    written(machine, "primary", 4, 0, 128)
    wanted = bytes(pattern.data_of(2, 0, 128)) + bytes(pattern.data_of(1, 128, 128))
    if read(machine, "guest", 0, 256) != wanted:
        text = "the guest does not see the state of the checkpoint that follows a failed one"
        raise Broken(Verdict.ISOLATION, text, "the next checkpoint does not make all well")


def failed_start(machine: GatedMachine) -> None:
    """Starting fails while it empties the hidden disk: then replication does not run."""
    if _succeeds_without_hidden_disk(machine, "xen-set-replication", START):
        text = "emptying the hidden disk fails, and starting says success"
        raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent at the start")
    if status(machine) is None:
        text = "starting replication fails, and its status says that it runs without error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a failed start leaves replication running")


def ejected_disk(machine: GatedMachine) -> None:
    """A checkpoint that cannot empty the hidden disk loses it: it and the next one report that."""
    _eject(machine, "hidden")


def ejected_active_disk(machine: GatedMachine) -> None:
    """The same of the active disk, which is emptied first."""
    _eject(machine, "active")


def _eject(machine: GatedMachine, disk: str) -> None:
    if not machine.features.ejected_disk_is_reported:
        raise BuildError("this QEMU's end divides by zero then, which is written up")
    machine.start()
    machine.settle()
    machine.gate.hold(lambda io: io.image == disk and io.op is Nbd.WRITE_ZEROES)
    number = machine.qmp.send("xen-colo-do-checkpoint")
    machine.settle()
    (emptying,) = held(machine, "a checkpoint", 1)
    machine.gate.open()
    machine.gate.fail(emptying, 5)
    if _succeeds(machine, "xen-colo-do-checkpoint", number):
        text = f"emptying the {disk} disk fails, and the checkpoint says success"
        raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent")
    for _ in range(2):
        fails(machine, "xen-colo-do-checkpoint", {})


def checkpoint_to_the_end(machine: GatedMachine) -> None:
    """After a checkpoint everything is copied again, a disk's end inside a cluster too."""
    machine.start()
    last = machine.shape.size // SECTOR - 1
    for number in (2, 3, 4):
        written(machine, "primary", number, last, 1)
        if read(machine, "guest", last, 1) != bytes(pattern.data_of(number - 1, last, 1)):
            text = "the guest does not see the end of the disk as the last checkpoint left it"
            raise Broken(Verdict.ISOLATION, text, "the end of a disk after a checkpoint")
        machine.settle()
        machine.call("xen-colo-do-checkpoint")


def start_refused(machine: GatedMachine) -> None:
    """A secondary does not start where its disks are no chain of three, or differ in size, however
    often that is tried; and it starts where they are.
    """
    machine.call("blockdev-add", {"driver": "null-co", "node-name": "disk", "size": SIZE})
    names = {"type": "nbd", "id": "disk", "name": "disk", "node-name": "disk", "writable": True}
    machine.call("block-export-add", names)
    for images in (
        [_Overlay("one", SIZE)],
        [_Overlay("two", SIZE), _Overlay("three", SIZE, "two")],
        [_Overlay("large", 2 * SIZE, "disk"), _Overlay("larger", 2 * SIZE, "large")],
    ):
        _add_filter(machine, images)
        for _ in range(2):
            fails(machine, "xen-set-replication", START)
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


def _add_filter(machine: GatedMachine, images: Sequence[_Overlay]) -> None:
    """Open images, and a replication filter on the last of them."""
    for name, size, backing in images:
        add_image(machine, name, size, CLUSTER, **({"backing": backing} if backing else {}))
    words = {"driver": "replication", "node-name": "filter", "mode": "secondary"}
    machine.call("blockdev-add", {**words, "top-id": "filter", "file": images[-1].name})


def refused(machine: GatedMachine) -> None:
    """A replication filter is refused without a disk, without a mode or with one that there is not,
    with a top-id where there is no sense in it, or without one where there is.
    """
    disk = ",file.driver=null-co"
    for given in (disk, f"{disk},mode=tertiary", ",mode=primary"):
        options = f"if=none,id=bad,driver=replication{given}"
        machine.call("human-monitor-command", {"command-line": f"drive_add 0 {options}"})
        if any(one["device"] == "bad" for one in machine.call("query-block")):
            text = f"a drive with the options {options} is made"
            raise Broken(Verdict.PROTOCOL, text, "a drive with a replication filter and no mode")
    null = {"driver": "null-co", "node-name": "disk", "size": SIZE}
    machine.call("blockdev-add", null)
    words = {"driver": "replication", "node-name": "filter"}
    fails(machine, "blockdev-add", {**words, "mode": "secondary", "file": "disk"})
    fails(machine, "blockdev-add", {**words, "mode": "primary", "file": "disk", "top-id": "top"})
    for good in (
        {"mode": "primary"},
        {"mode": "primary", "read-only": True},
        {"mode": "secondary", "top-id": "filter"},
    ):
        fails(machine, "blockdev-add", {**words, **good, "file": "nowhere"})
        machine.call("blockdev-add", {**words, **good, "file": "disk"})
        machine.call("blockdev-del", {"node-name": "filter"})


def _succeeds_without_hidden_disk(
    machine: GatedMachine, command: str, arguments: Mapping[str, object] | None = None
) -> bool:
    """What a command answers while nothing can be written to the hidden disk."""
    machine.settle()
    machine.gate.hold(lambda io: io.image == "hidden" and io.op is not Nbd.READ)
    number = machine.qmp.send(command, arguments)
    machine.settle()
    waiting = held(machine, command)
    while waiting:
        machine.gate.fail(waiting[0], 5)
        machine.settle()
        waiting = machine.gate.held
    machine.gate.open()
    return _succeeds(machine, command, number)


def _succeeds(machine: GatedMachine, command: str, number: int) -> bool:
    """Whether a command that was sent ends with success."""
    machine.qmp.wait(command, number, PATIENCE)
    try:
        machine.qmp.take(command, number)
    except CommandFailed:
        return False
    return True


def quit_running(machine: GatedMachine) -> None:
    """Quit while replication runs: QEMU ends with status 0."""
    machine.call("xen-set-replication", START)
    written(machine, "primary", 2, 0, 128)


def failed_failover(machine: GatedMachine) -> None:
    """The commit fails (7.): the guest goes on reading what it wrote, and its writes arrive."""
    machine.call("xen-set-replication", START)
    written(machine, "primary", 2, 0, 128)
    written(machine, "guest", 3, 16, 8)
    machine.settle()
    machine.gate.hold(lambda io: io.image == "secondary" and io.op is Nbd.WRITE)
    machine.call("xen-set-replication", FAILOVER)
    machine.settle()
    for io in held(machine, "failover"):
        machine.gate.fail(io, 5)
    machine.gate.open()
    machine.settle()
    if status(machine) is None:
        text = "failover's commit fails, and the status reports no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "failed failover is not in the status")
    # The last begins in a cluster that the active disk has, and ends in one that it has not.
    for start, number in ((0, 4), (128, 5), (20, 6), (124, 7)):
        if write(machine, "guest", number, start, 8):
            text = "after a failed failover a guest write fails"
            raise Broken(Verdict.ERROR_CONTRACT, text, "guest write after failed failover fails")
    for start, count, number in ((0, 4, 4), (132, 4, 5), (20, 4, 6), (16, 4, 3), (124, 8, 7)):
        if read(machine, "guest", start, count) != bytes(pattern.data_of(number, start, count)):
            text = f"after a failed failover the guest's write to sector {start} is lost"
            raise Broken(Verdict.LOST_WRITE, text, "guest write after failed failover is lost")
    # Zeroes, too, go where the guest's data of their place is: neither overlay has this cluster.
    machine.clients["guest"].call(Nbd.WRITE_ZEROES, 132 * SECTOR, 4 * SECTOR)
    if any(machine.gate.store("secondary").read(132 * SECTOR, 4 * SECTOR)):
        text = "after a failed failover the guest's zeroes do not reach the secondary disk"
        raise Broken(Verdict.LOST_WRITE, text, "guest zeroes after failed failover are lost")


def stop_flushes_all(machine: GatedMachine) -> None:
    """Stop flushes all disks (do_vm_stop()), those that only the monitor owns as well."""
    machine.call("xen-set-replication", START)
    written(machine, "guest", 2, 0, 128)
    machine.call("xen-set-replication", FAILOVER)
    comes(machine, lambda: status(machine) is None, "failover")
    machine.call("stop")
    machine.settle()
    if not Qcow2Reader.parse(memoryview(machine.stores["active"].snapshot())).allocation():
        text = (
            "after failover and stop the active disk's file has no cluster, though the guest "
            "wrote one: its metadata is still in QEMU's memory"
        )
        raise Broken(Verdict.ALLOCATION, text, "stop does not flush every node")
