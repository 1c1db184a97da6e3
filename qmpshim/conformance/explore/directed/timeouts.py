"""Directed cases about ``cbw-timeout``: a copy that takes too long fails, and goes on unseen.

The time is QEMU's own clock (``qemu_co_timeout``, util/qemu-co-timeout.c, QEMU 7.1 on), which no
request at the gate stands for: an explorer cannot choose when it has run out. So these are cases.
"""

from __future__ import annotations

from errno import EINVAL

from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    Broken,
    CaseMachine,
    content,
    io_of,
)
from qmpshim.errors import BuildError
from qmpshim.machine.images.image_view import ImageView
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict

LONG = 100  # seconds; as nanoseconds in 32 bits 1.2
_SHORTER = 50.0  # seconds: no host is so busy that a timer of LONG is seen as less


def _begins(machine: CaseMachine) -> tuple[int, HeldIO]:
    """A write to the first cluster, whose copy is held: its cookie, and the copy's read."""
    cookie = machine.begun("primary", io_of("secondary", Nbd.READ), Nbd.WRITE, 0, COUNT)
    (copy,) = machine.held("a primary write", 1)
    return cookie, copy


def _goes_on(machine: CaseMachine, copy: HeldIO) -> None:
    """The copy that timed out is let go, and what it reads then comes to the target."""
    source = bytes(machine.gate.snapshot("secondary"))[:CLUSTER]
    machine.gate.open()
    machine.gate.release(copy)
    machine.comes(lambda: 0 in machine.allocation("hidden"), "a copy that timed out")
    if ImageView(machine.gate.snapshot("hidden")).read(0, CLUSTER).tobytes() != source:
        text = "a copy that timed out comes to the target with other data than it has read"
        raise Broken(Verdict.CONTENT, text, "a copy after a timeout")
    machine.settle()


def timeout_is_long(machine: CaseMachine) -> None:
    """The time that a copy has is cbw-timeout, in seconds."""
    cookie, copy = _begins(machine)
    if not machine.quiescence.known:
        raise BuildError("this host does not show when QEMU's timers are due")
    left = machine.quiescence.main_timer()
    machine.gate.open()
    machine.gate.release(copy)
    machine.succeeds("primary", cookie, "primary write fails")
    if not _SHORTER < left <= LONG:
        text = f"with cbw-timeout={LONG} QEMU waits {left:.1f} s for a copy"
        raise Broken(Verdict.ERROR_CONTRACT, text, "cbw-timeout is shorter")


def breaks_snapshot(machine: CaseMachine) -> None:
    """With on-cbw-error=break-snapshot a write whose copy takes too long is done.

    The snapshot is broken then: no read of it succeeds, and no write is copied any more.
    """
    cookie, copy = _begins(machine)
    machine.succeeds("primary", cookie, "a timeout breaks the write")
    _expect_unreadable(machine, "after a timeout")
    machine.gate.open()
    reads = machine.gate.counts("secondary")[Nbd.READ]
    machine.written("primary", 3, COUNT, COUNT)
    if machine.gate.counts("secondary")[Nbd.READ] != reads:
        text = "a write is copied, though the snapshot is broken"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a broken snapshot is copied")
    _goes_on(machine, copy)
    _expect_unreadable(machine, "once the copy that timed out is done")
    for start, number in ((0, 2), (COUNT, 3)):
        machine.shows(
            "primary", number, start, COUNT, "a write is lost after a timeout", Verdict.LOST_WRITE
        )


def _expect_unreadable(machine: CaseMachine, when: str) -> None:
    for cluster in (0, 1):  # whose copy failed, and that of a write after it
        errno = machine.io("guest", Nbd.READ, cluster * COUNT, COUNT).errno
        if errno != EINVAL:  # EACCES, which NBD has not
            text = f"{when} a read of cluster {cluster} of a broken snapshot answers errno {errno}"
            raise Broken(Verdict.ISOLATION, text, "a broken snapshot can be read")


def breaks_write(machine: CaseMachine) -> None:
    """By default a write whose copy takes too long fails, and nothing is written.

    The copy goes on. The write can be done once more when it is over, and the snapshot stands.
    """
    old = content(1, 0, 2 * COUNT)
    cookie, copy = _begins(machine)
    if not machine.answered("primary", cookie, "a write whose copy takes too long"):
        text = "a write is done, though its copy takes too long"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a timeout is ignored")
    if bytes(machine.gate.snapshot("secondary")) != old:
        text = "a write that failed because its copy takes too long is on the disk"
        raise Broken(Verdict.CONTENT, text, "a failed write is done")
    _goes_on(machine, copy)
    machine.written("primary", 3, 0, COUNT)
    if machine.read("guest", 0, COUNT) + machine.read("guest", COUNT, COUNT) != old:
        text = "the snapshot does not hold the old data after a copy that timed out"
        raise Broken(Verdict.ISOLATION, text, "a snapshot after a timeout")
