"""Directed cases about an overlay's clusters: how they are allocated, and given up again."""

from __future__ import annotations

from errno import EIO

from qmpshim.conformance.explore.directed.machine import (
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
    clusters_in_words,
    content,
    io_of,
)
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

_BLOCK = 8  # sectors of a block
_SUBCLUSTER = COUNT // 32  # sectors
_ALL = SIZE // SECTOR  # sectors of the disk
_TABLED = 200  # sectors, each a cluster, that the first refcount block of 512 bytes has room for
_MOST = 40  # requests that a write makes, and more


def writes_of_one_cluster(machine: CaseMachine) -> None:
    """Two writes to a cluster that an overlay does not have yet are written to one: the second of
    them waits until the first one has allocated it.
    """
    machine.add_image("image", SIZE)
    machine.add_client("image")
    first = machine.begun("image", io_of("image", Nbd.WRITE), Nbd.WRITE, 0, _BLOCK)
    (data,) = machine.held("a write to a new cluster", 1)
    second = machine.sent("image", Nbd.WRITE, 2 * _BLOCK, _BLOCK, 3)
    machine.gate.open()
    machine.gate.release(data)
    for cookie in (first, second):
        machine.succeeds("image", cookie, "a write to a new cluster fails beside another one")
    for number, start in ((2, 0), (3, 2 * _BLOCK)):
        machine.shows(
            "image", number, start, _BLOCK, "a new cluster of two writes", Verdict.CONTENT
        )
    found = machine.allocation("image")
    if found != {0: Alloc.DATA}:
        text = f"after two writes to one cluster the image has {clusters_in_words(found)}"
        raise Broken(Verdict.ALLOCATION, text, "a cluster for two writes")


def write_over_subclusters(machine: CaseMachine) -> None:
    """A write that ends in another cluster than it begins in copies what is missing of its last
    subcluster, which belongs to that cluster (``calculate_l2_meta``, block/qcow2-cluster.c).
    """
    machine.add_image("image", SIZE, create=(("extended_l2", "on"),), backing="secondary")
    machine.add_client("image")
    machine.written("image", 2, 0, COUNT)  # all of the first cluster
    machine.written("image", 2, 2 * COUNT - _SUBCLUSTER, _SUBCLUSTER)  # the next one's end
    end = COUNT + 3 * _SUBCLUSTER + 1
    machine.written("image", 3, COUNT - _BLOCK, end - COUNT + _BLOCK)
    for number, start, count in (
        (2, 0, COUNT - _BLOCK),
        (3, COUNT - _BLOCK, end - COUNT + _BLOCK),
        (1, end, 2 * COUNT - _SUBCLUSTER - end),
        (2, 2 * COUNT - _SUBCLUSTER, _SUBCLUSTER),
    ):
        promise = "subclusters beside a write over two clusters"
        machine.shows("image", number, start, count, promise, Verdict.CONTENT)


def discard_of_all(machine: CaseMachine) -> None:
    """A discard frees clusters that lie in the file in another order than on the disk."""
    machine.add_image("image", SIZE)
    machine.add_client("image")
    for cluster in (1, 0):
        machine.written("image", 2, cluster * COUNT, COUNT)
    if errno := machine.io("image", Nbd.TRIM, 0, _ALL).errno:
        text = f"a discard of two clusters fails with errno {errno}, though all disks are well"
        raise Broken(Verdict.ERROR_CONTRACT, text, "a discard of two clusters fails")
    found = machine.allocation("image")
    if Alloc.DATA in found.values():
        text = f"after a discard of both its clusters the image has {clusters_in_words(found)}"
        raise Broken(Verdict.ALLOCATION, text, "a discard frees two clusters")
    if machine.read("image", 0, _ALL) != bytes(SIZE):
        text = "an image without a backing file shows data after a discard of all of it"
        raise Broken(Verdict.CONTENT, text, "what was discarded reads as zeroes")


def failed_allocation(machine: CaseMachine) -> None:
    """A write that takes one more refcount block fails where any write to the image does, and can
    be done again.
    """
    rest = _TABLED, _ALL - _TABLED
    for number in range(_MOST):
        name = f"image{number}"
        machine.add_image(name, SIZE, SECTOR)
        machine.add_client(name)
        machine.written(name, 2, 0, _TABLED)
        cookie = machine.begun(name, io_of(name, Nbd.WRITE), Nbd.WRITE, *rest, 3)
        failed = _fail(machine, number)
        errno = machine.answered(name, cookie, "a write that allocates")
        if errno != (EIO if failed else 0):
            text = f"a write ends with errno {errno}, though {failed or 'nothing'} failed"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a write that cannot allocate")
        machine.written(name, 3, *rest)
        data = content(2, 0, _TABLED) + content(3, *rest)
        if machine.read(name, 0, _ALL) != data:
            text = f"the image does not hold what was written, after {failed or 'nothing'} failed"
            raise Broken(Verdict.CONTENT, text, "data after an allocation that failed")
        machine.allocation(name)  # which can be read
        machine.remove_client(name)
        machine.call("blockdev-del", {"node-name": name})
        if not failed:
            return


def _fail(machine: CaseMachine, number: int) -> str:
    """Let the writes that come one after another go on, and the one of this number fail.

    (That a flush fails here goes unnoticed: the known defect failed-flush-unorders-refcounts.)

    :returns: what failed; ``""``: there are not so many
    """
    for _ in range(number):
        if not machine.gate.held:
            break
        machine.gate.release(machine.gate.held[0])
        machine.settle()
    failed = next(iter(machine.gate.held), None)
    machine.gate.open()
    if failed is None:
        return ""
    machine.gate.fail(failed, EIO)
    return f"its {failed.op.name.lower()} of {failed.length} bytes at {failed.offset}"
