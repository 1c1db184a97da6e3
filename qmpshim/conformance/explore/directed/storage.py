"""Directed cases about the storage under the chain, and about other users of it."""

from __future__ import annotations

import time
from errno import EIO

from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    PATIENCE,
    SIZE,
    START,
    Broken,
    CaseMachine,
    any_of,
    content,
    io_of,
)
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.conformance.workload import pattern
from qmpshim.machine.chain.qmp_commands import QmpCommand
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.nonblocking import NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

DELAYED_LIMIT = 20.0  # seconds for a write that QEMU keeps through a reconnect-delay of up to 10 s


def answer_waits(machine: CaseMachine) -> None:
    """Two reads are in flight on one NBD connection: the first is done when its answer is there."""
    client = machine.clients["primary"]
    first = machine.begun("primary", io_of("secondary", Nbd.READ), Nbd.READ, 0, 1)
    second = machine.sent("primary", Nbd.READ, COUNT, 1)
    one, other = machine.held("two primary reads", 2)
    machine.gate.release(one)
    machine.settle()
    machine.event_loop.until(
        lambda: first in client.answers or machine.stalled(PATIENCE, beside=(other,)), PATIENCE
    )
    done = first in client.answers
    machine.gate.release(other)
    for cookie in (first, second):
        machine.answered("primary", cookie, "a primary read")
    if not done:
        text = (
            "a read of an NBD node does not end when its answer comes, but only when the answer "
            "of another one does"
        )
        raise Broken(Verdict.HANG, text, "an NBD request waits for another one's answer")


def _cut_while_writing(machine: CaseMachine) -> int:
    """Break the connection to the secondary disk under a primary write; its cookie."""
    machine.call("xen-set-replication", START)
    cookie = machine.begun("primary", io_of("secondary", Nbd.WRITE), Nbd.WRITE, 0, COUNT)
    machine.held("a primary write", 1)
    machine.gate.refuse("secondary")
    machine.gate.cut("secondary")
    machine.gate.open()
    machine.settle()
    return cookie


def back_in_time(machine: CaseMachine) -> None:
    """The disk is back within reconnect-delay: the write is sent again, and succeeds."""
    client, cookie = machine.clients["primary"], _cut_while_writing(machine)
    if machine.event_loop.until(lambda: cookie in client.answers, 0.5):
        text = "a write fails although reconnect-delay is not over"
        raise Broken(Verdict.ERROR_CONTRACT, text, "reconnect-delay is not kept")
    machine.gate.refuse("secondary", False)
    errno = machine.answered("primary", cookie, "a write whose disk is back", DELAYED_LIMIT)
    _expect_content(machine, errno, "its disk came back in time")


def back_too_late(machine: CaseMachine) -> None:
    """The disk is back after reconnect-delay: the write has failed by then, a later one works."""
    cookie = _cut_while_writing(machine)
    errno = machine.answered("primary", cookie, "a write whose disk is gone", DELAYED_LIMIT)
    if errno != EIO:
        text = f"the write says {errno}, not EIO"
        raise Broken(Verdict.ERROR_CONTRACT, text, "no EIO after reconnect-delay")
    machine.gate.refuse("secondary", False)
    errnos = []
    until = time.monotonic() + DELAYED_LIMIT
    while time.monotonic() < until:  # the connection is made beside the requests, which do not wait
        errnos.append(machine.write("primary", 2, 0, 128))
        if not errnos[-1]:
            break
        machine.event_loop.poll(0.05)
    _expect_content(machine, errnos[-1], "its disk is back")


def _expect_content(machine: CaseMachine, errno: int, when: str) -> None:
    if errno:
        text = f"a write fails with errno {errno} although {when}"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"a write fails although {when}")
    if machine.gate.store("secondary").read(0, 128 * SECTOR) != content(2, 0, 128):
        raise Broken(Verdict.LOST_WRITE, f"a write is lost although {when}", f"lost, {when}")
    machine.shows("guest", 1, 0, 128, f"not the old data, {when}")


def snapshot_after_checkpoint(machine: CaseMachine) -> None:
    """A snapshot-access on the filter of replication's own job shows the last checkpoint.

    ``backup_do_checkpoint`` resets the copy bitmap and not the filter's ``done_bitmap``, so a
    cluster that is "done" is read from the hidden disk though it is empty again. From there it
    falls through to the secondary disk, and the hidden disk's tracked requests keep the next copy
    waiting as long as that takes.
    """
    machine.call("xen-set-replication", START)
    nodes = machine.call("query-named-block-nodes", {"flat": True})
    names = [node["node-name"] for node in nodes if node["drv"] == "copy-before-write"]
    machine.add_snapshot(names[0] if names else "top")  # 5.2 has none of the two drivers
    for number in (2, 3):
        _see(machine, number - 1, "before a write")
        machine.written("primary", number, 0, 128)
        _see(machine, number - 1, "after a write")
        machine.settle()
        machine.call("xen-colo-do-checkpoint")
    # Now a read that is under way while the next write would copy and then write.
    reading = machine.begun("snapshot", lambda io: io.length >= CLUSTER, Nbd.READ, 0, COUNT)
    (first,) = machine.held("a read of the snapshot", 1)
    writing = machine.sent("primary", Nbd.WRITE, 0, COUNT, 4)
    while others := [io for io in machine.gate.held if io != first]:
        machine.gate.release(others[0])
        machine.settle()
    machine.gate.open()
    machine.gate.release_all()
    for side, cookie in (("snapshot", reading), ("primary", writing)):
        machine.succeeds(side, cookie, f"{side} fails beside the other")
    _is_of(machine.clients["snapshot"].answers[reading].data, 3, "while a write is under way")


def _see(machine: CaseMachine, number: int, when: str) -> None:
    _is_of(machine.read("snapshot", 0, COUNT), number, when)


def _is_of(data: bytes, number: int, when: str) -> None:
    if set(owners(data, 0)) != {number}:
        text = f"the snapshot does not show the last checkpoint {when}"
        raise Broken(Verdict.ISOLATION, text, f"snapshot-access {when}")


def detected_zeroes(machine: CaseMachine) -> None:
    """Zeroes that are written as data are detected, and leave a hole where the disk may have one;
    what is beside them is not taken for zeroes.

    A flush that fails is reported, whatever driver it fails in.
    """
    machine.remove_client("primary")
    for option, no_hole in (("on", True), ("unmap", False)):
        words = {"driver": "raw", "file": "secondary", "discard": "unmap"}
        machine.call("blockdev-add", {**words, "node-name": option, "detect-zeroes": option})
        machine.add_client(option)
        machine.settle()
        machine.gate.hold(any_of(Nbd.WRITE, Nbd.WRITE_ZEROES))
        cookie = machine.clients[option].send(Nbd.WRITE, 0, 0, bytes(CLUSTER))
        machine.settle()
        (zeroes,) = machine.caught("zeroes that are written as data", 1)
        machine.gate.release(zeroes)
        machine.answered(option, cookie, "zeroes that are written as data")
        if (zeroes.op, zeroes.no_hole) != (Nbd.WRITE_ZEROES, no_hole):
            text = f"with detect-zeroes={option} zeroes reach the disk as {zeroes}"
            raise Broken(Verdict.ALLOCATION, text, f"detect-zeroes={option}")
        _written_beside_zeroes(machine, option)
        machine.remove_client(option)
        machine.call("blockdev-del", {"node-name": option})
    error = {"event": "none", "iotype": "flush", "errno": 5, "immediately": False}
    words = {"driver": "blkdebug", "node-name": "failing", "image": "secondary"}
    machine.call("blockdev-add", {**words, "inject-error": [error]})
    machine.add_client("failing")
    machine.written("failing", 2, 0, 1)
    if not machine.io("failing", Nbd.FLUSH, 0, 0).errno:
        text = "a flush succeeds that failed in the driver"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a flush's error is lost")


def _written_beside_zeroes(machine: CaseMachine, node: str) -> None:
    """Data that is zeroes but for one sector is written as it is, wherever that sector is."""
    for sector in (0, 64, CLUSTER // SECTOR - 1):
        data = bytearray(CLUSTER)
        data[sector * SECTOR : (sector + 1) * SECTOR] = pattern.data_of(2, sector, 1)
        machine.clients[node].call(Nbd.WRITE, 0, 0, bytes(data))
        if bytes(machine.gate.store("secondary").read(0, CLUSTER)) != bytes(data):
            text = f"of a write of zeroes and one sector of data, sector {sector}, that is lost"
            raise Broken(Verdict.LOST_WRITE, text, "data beside zeroes that are detected")


def snapshot_of_nothing(machine: CaseMachine) -> None:
    """A snapshot-access on a node that has no snapshot cannot be read, and discards nothing."""
    machine.remove_client("primary")
    machine.add_snapshot("secondary")
    machine.io("snapshot", Nbd.TRIM, 0, COUNT)  # which is advice: QEMU may ignore it
    if not machine.io("snapshot", Nbd.READ, 0, COUNT).errno:
        text = "a snapshot can be read that there is not"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a read of no snapshot")
    if bytes(machine.gate.snapshot("secondary")[:CLUSTER]) != content(1, 0, 128):
        text = "a discard of a snapshot that there is not changes the disk"
        raise Broken(Verdict.LOST_WRITE, text, "a discard of no snapshot")


def small_discard(machine: CaseMachine) -> None:
    """On a disk with blocks of 4096 bytes a discard of less is advice as any other: it succeeds,
    and what is around it stays.
    """
    block = 8  # sectors
    machine.remove_client("primary")
    words = {"driver": "blkdebug", "node-name": "blocks", "align": block * SECTOR}
    machine.call("blockdev-add", {**words, "discard": "unmap", "image": "secondary"})
    machine.add_client("blocks")
    allowed = [{1} for _ in range(COUNT)]  # whose data a sector may hold
    for start, count in (
        (1, 1),  # inside a block
        (2 * block, 3),  # its beginning
        (4 * block - 2, 4),  # the end of one and the beginning of another
    ):
        if errno := machine.io("blocks", Nbd.TRIM, start, count).errno:
            text = f"a discard of {count} sectors fails with errno {errno}"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a small discard fails")
        allowed[start : start + count] = [{0, 1}] * count
    found = owners(machine.read("blocks", 0, COUNT), 0)
    if wrong := [sector for sector in range(COUNT) if found[sector] not in allowed[sector]]:
        text = f"discards of parts of blocks leave other data in sectors {wrong}"
        raise Broken(Verdict.CONTENT, text, "small discards")


def ejected_target(machine: CaseMachine) -> None:
    """An image with broken tables is ejected: I/O fails, nothing is backed up to it or from it."""
    machine.add_image("image", SIZE)
    machine.add_client("image")
    machine.written("image", 2, 0, SIZE // SECTOR)
    machine.remove_client("image")
    machine.call("blockdev-del", {"node-name": "image"})
    store = machine.gate.store("image")
    header = Qcow2Reader.parse(store.snapshot()).header
    store.write(header.l1_offset + 6, bytes([2]))  # its table is at an odd sector
    machine.open_image("image")
    machine.add_client("image")
    above = machine.has_snapshots()
    if above:
        machine.add_snapshot("image")
    for op in (Nbd.READ, Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM):
        if not machine.io("image", op, 0, COUNT).errno:
            text = f"a {op.name.lower()} succeeds on an image with broken tables"
            raise Broken(Verdict.ERROR_CONTRACT, text, "I/O of an ejected image")
    if above:
        machine.io("snapshot", Nbd.TRIM, 0, COUNT)
        if not machine.io("snapshot", Nbd.READ, 0, COUNT).errno:
            text = "a snapshot of an image with broken tables can be read"
            raise Broken(Verdict.ERROR_CONTRACT, text, "I/O above an ejected image")
        machine.remove_client("snapshot")
    machine.remove_client("image")
    job = {"job-id": "job", "device": "secondary", "target": "image", "sync": "none"}
    machine.fails("blockdev-backup", job)
    words = {"driver": "copy-before-write", "node-name": "filter", "file": "secondary"}
    machine.fails("blockdev-add", {**words, "target": "image"})
    machine.add_null("sound")
    machine.fails("blockdev-backup", {**job, "device": "image", "target": "sound"})


def client_of_iothread(machine: CaseMachine) -> None:
    """A client of an export that an iothread serves comes and goes, as any backup program does."""
    machine.batch(
        [
            QmpCommand("object-add", {"qom-type": "iothread", "id": "io"}),
            QmpCommand("blockdev-add", {"driver": "null-co", "node-name": "nowhere", "size": SIZE}),
        ]
    )
    machine.add_export("nowhere", "threaded", iothread="io")
    NonBlockingNbd(machine.event_loop, machine.workspace.path / "nbd", "threaded").close()
    machine.settle()
    machine.call("query-version")
