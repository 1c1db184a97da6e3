"""Directed cases about a copy-before-write filter, and about the snapshot above it."""

from __future__ import annotations

import contextlib
from errno import EIO

from qmpshim.conformance.explore.directed.machine import (
    CLUSTER,
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
    content,
    copies_to,
    io_of,
)
from qmpshim.conformance.explore.harness.io_naming import owners
from qmpshim.errors import CommandFailed
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.protocol.transmission import CMD_NO_HOLE
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.chain.behaviour import KnownDefect, snapshot_defects
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR


def refused(machine: CaseMachine) -> None:
    """A filter is refused where its options contradict each other, have a value that there is not,
    or name a bitmap that does not exist or is of a disk of another size; else it is made.
    """
    children = "driver=copy-before-write,file.driver=null-co,target.driver=null-co"
    for drive, given, there in (
        ("bad", f"{children},bitmap=name,bitmap.node=node", False),
        ("bad", f"{children},on-cbw-error=explode", False),
        ("bad", "driver=snapshot-access", False),
        ("good", children, True),
    ):
        if machine.adds_drive(drive, given) is not there:
            text = f"a drive with the options {given} is {'not ' * there}made"
            raise Broken(Verdict.PROTOCOL, text, f"a drive with a filter and {drive} options")
    for name, size in (("disk", SIZE), ("spare", SIZE), ("larger", 2 * SIZE)):
        machine.add_null(name, size)
    machine.call("block-dirty-bitmap-add", {"node": "larger", "name": "bitmap"})
    one = {"driver": "copy-before-write", "node-name": "one", "file": "disk", "target": "spare"}
    for options in (
        {"bitmap": {"node": "disk", "name": "bitmap"}},
        {"bitmap": {"node": "larger", "name": "bitmap"}},
        {"min-cluster-size": 3 * CLUSTER},
        {"min-cluster-size": 1 << 63},
    ):
        if not machine.schema.lacking("blockdev-add", {**one, **options}):
            machine.fails("blockdev-add", {**one, **options})
    machine.call("blockdev-add", one)


def named_as_its_disk(machine: CaseMachine) -> None:
    """A snapshot, and the filter below it, have the file name of the disk that they show."""
    nodes = machine.call("query-named-block-nodes", {"flat": True})
    names = {one["node-name"]: one["image"]["filename"] for one in nodes}
    if len({names[name] for name in ("secondary", "filter", "snapshot")}) > 1:
        text = f"of one disk the nodes have several file names: {names}"
        raise Broken(Verdict.PROTOCOL, text, "the file name of a snapshot")


def changes_refused(machine: CaseMachine) -> None:
    """A snapshot takes no data and no zeroes from its reader, and stays what it is."""
    for op in (Nbd.WRITE, Nbd.WRITE_ZEROES):
        if not machine.io("guest", op, 0, COUNT).errno:
            text = f"a {op.name.lower()} to a snapshot says success"
            raise Broken(Verdict.ERROR_CONTRACT, text, "a snapshot takes a change")
    machine.shows("guest", 1, 0, COUNT, "a snapshot after a change that it refused")


def passed_on(machine: CaseMachine) -> None:
    """A filter passes on what is done through it, sector by sector; the snapshot stays."""
    end = machine.shape.size // SECTOR
    wanted = [1] * end
    for number, op, start, many in (
        (2, Nbd.WRITE, COUNT - 1, 2),  # a sector of either cluster
        (0, Nbd.WRITE_ZEROES, 3 * COUNT - 1, 2),
        (0, Nbd.TRIM, 5 * COUNT - 1, 2),
        (3, Nbd.WRITE, 6 * COUNT, COUNT),  # a cluster, which touches others
        (0, Nbd.WRITE_ZEROES, 8 * COUNT, COUNT),
        (0, Nbd.TRIM, 10 * COUNT, COUNT),
    ):
        if machine.io("primary", op, start, many, number).errno:
            text = f"a {op.name.lower()} through a filter fails, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, "I/O through a filter fails")
        wanted[start : start + many] = [number] * many
    flushes = machine.gate.counts("secondary")[Nbd.FLUSH]
    machine.io("primary", Nbd.FLUSH, 0, 0)
    if machine.gate.counts("secondary")[Nbd.FLUSH] == flushes:
        text = "a flush through a filter does not reach the disk below it"
        raise Broken(Verdict.LOST_WRITE, text, "a flush through a filter")
    below = bytes(machine.gate.snapshot("secondary"))
    for seen, place in ((machine.read("primary", 0, end), "through it"), (below, "below it")):
        wrong = [n for n, owner in enumerate(owners(seen, 0)) if owner != wanted[n]]
        if wrong:
            text = f"I/O through a filter leaves other data {place} in sectors {wrong}"
            raise Broken(Verdict.CONTENT, text, f"data of a filter, seen {place}")
    if (copied := set(machine.allocation("hidden"))) != {0, 1, 2, 3, 4, 5, 6, 8, 10}:
        text = f"changes in clusters 0 to 5, 6, 8 and 10 copy {copied}"
        raise Broken(Verdict.ALLOCATION, text, "what a filter copies")
    pieces = [(n * COUNT, COUNT) for n in range(12)]
    if KnownDefect.SNAPSHOT_READS_NEW_DATA not in snapshot_defects(machine.version):
        pieces += [(0, end), (7 * COUNT - 1, 2), (8 * COUNT - 1, 2)]
    for start, many in pieces:
        machine.shows("guest", 1, start, many, "the snapshot after changes through a filter")


def failed_copies(machine: CaseMachine) -> None:
    """What cannot be copied is not changed, and its writer gets the error; so does a reader of the
    snapshot where the disk cannot be read.
    """
    old = bytes(machine.gate.snapshot("secondary"))
    for cluster, op in enumerate((Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM)):
        _fails_with(machine, "primary", op, cluster)
    if bytes(machine.gate.snapshot("secondary")) != old:
        text = "what could not be copied is changed all the same"
        raise Broken(Verdict.ORDER, text, "a change without its copy")
    _fails_with(machine, "guest", Nbd.READ, 0)


def _fails_with(machine: CaseMachine, side: str, op: Nbd, cluster: int) -> None:
    """A request must fail when its copy does, or a read of the disk for it."""

    def hold(io: HeldIO) -> bool:
        return io.image == "secondary" if op is Nbd.READ else copies_to("hidden")(io)

    cookie = machine.begun(side, hold, op, cluster * COUNT, COUNT)
    (io,) = machine.caught(f"a {op.name.lower()} of the {side}", 1)
    machine.gate.fail(io, EIO)
    errno = machine.answered(side, cookie, f"a {op.name.lower()} of the {side}")
    if errno != EIO:
        text = f"a {op.name.lower()} of the {side} whose I/O failed says {errno}, not EIO"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} {op.name.lower()} hides an error")


def frozen_read(machine: CaseMachine) -> None:
    """While sectors of the snapshot are read from the source no new data reaches their clusters."""
    for number, start, sector, many in (
        (2, 0, 0, 1),
        (3, COUNT, 2 * COUNT - 1, 1),
        (4, 3 * COUNT, 3 * COUNT - 1, 2),
    ):
        held = io_of("secondary", Nbd.READ)
        reading = machine.begun("guest", held, Nbd.READ, sector, many)
        (first,) = machine.caught("a read of the snapshot", 1)
        writing = machine.sent("primary", Nbd.WRITE, start, COUNT, number)
        if machine.ends_beside(writing, 2 * COUNT):
            text = f"a write to the cluster overtakes the snapshot's read of its sector {sector}"
            raise Broken(Verdict.ORDER, text, "a write overtakes a snapshot's read")
        machine.gate.release(first)
        for side, cookie in (("guest", reading), ("primary", writing)):
            machine.succeeds(side, cookie, f"{side} fails beside the other")
        if machine.clients["guest"].answers[reading].data != content(1, sector, many):
            text = f"the snapshot does not hold the old data in sector {sector}"
            raise Broken(Verdict.ISOLATION, text, "a snapshot's read beside a write")


def discarded_stays(machine: CaseMachine) -> None:
    """What a snapshot's reader has discarded it cannot read any more, whatever is written there.

    A read that has a sector of it fails, and one that only touches it does not.
    """
    if machine.features.snapshot_takes_discards:
        machine.io("guest", Nbd.TRIM, COUNT, COUNT - 1)  # not the whole of it: all of it stays
        machine.shows("guest", 1, COUNT, COUNT, "a part of a cluster is discarded")
    machine.io("guest", Nbd.TRIM, COUNT, COUNT)
    for when in ("", " that was written later"):
        for start, many in ((COUNT, 1), (COUNT - 1, 2), (2 * COUNT - 1, 2), (2 * COUNT - 1, 1)):
            if not machine.io("guest", Nbd.READ, start, many).errno:
                text = f"a discarded part of the snapshot{when} can be read"
                raise Broken(Verdict.ISOLATION, text, "a discarded part of a snapshot can be read")
        machine.written("primary", 2, COUNT, COUNT)
    if machine.allocation("hidden").get(1) is Alloc.DATA:
        text = "what the snapshot's reader has given up is copied all the same"
        raise Broken(Verdict.ALLOCATION, text, "a discarded part of a snapshot is copied")
    for start in (0, 2 * COUNT):
        machine.shows("guest", 1, start, COUNT, "the rest of a discarded snapshot")


def shrunk(machine: CaseMachine) -> None:
    """A disk below a filter is made smaller, as far as QEMU lets that be done: of what is gone a
    reader of the snapshot gets the old data, or an error.
    """
    machine.remove_client("primary")  # with an export QEMU refuses it; with a guest's device not
    with contextlib.suppress(CommandFailed):
        machine.call("block_resize", {"node-name": "filter", "size": CLUSTER})
    for start in (0, COUNT):
        answer = machine.io("guest", Nbd.READ, start, COUNT)
        if not answer.errno and answer.data != content(1, start, COUNT):
            text = f"the snapshot of a disk that became smaller has other data at sector {start}"
            raise Broken(Verdict.ISOLATION, text, "the snapshot of a smaller disk")


def kept_holes(machine: CaseMachine) -> None:
    """Zeroes may leave a hole in the disk below a copy-before-write filter, if the writer lets
    them.
    """
    for offset, flags in ((0, 0), (CLUSTER, CMD_NO_HOLE)):
        machine.settle()
        machine.gate.hold(io_of("secondary", Nbd.WRITE_ZEROES))
        client = machine.clients["primary"]
        cookie = client.send(Nbd.WRITE_ZEROES, offset, CLUSTER, b"", flags)
        machine.settle()
        (zeroes,) = machine.held("zeroes", 1)
        if zeroes.no_hole is not bool(flags):
            may, reached = ("must not", "may") if flags else ("may", "must not")
            text = f"zeroes that {may} leave a hole reach the disk as such that {reached}"
            raise Broken(Verdict.ALLOCATION, text, "zeroes below a filter")
        machine.gate.open()
        machine.gate.release(zeroes)
        machine.succeeds("primary", cookie, "zeroes fail")
