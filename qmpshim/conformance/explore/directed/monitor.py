"""Directed cases about what the monitor shows and refuses: job status, sizes, events, arguments.

What a client of the disks cannot see and no schedule changes: so each needs to be done once.
"""

from __future__ import annotations

from errno import EIO
from typing import Any

from qmpshim.conformance.explore.directed.machine import (
    BACKUP,
    CLUSTER,
    COUNT,
    SIZE,
    Broken,
    CaseMachine,
    any_of,
    clusters_in_words,
    content,
)
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

_CHANGING, _HARMLESS = {"write", "resize"}, {"consistent-read", "write-unchanged"}
_JOB = {**BACKUP, "sync": "none"}
#: What ``do_backup_common`` (blockdev.c, QEMU 5.2 to 11.1) refuses; the bitmap is called ``there``.
_WITH_WRONG_BITMAPS: tuple[dict[str, str], ...] = (
    {"sync": "incremental"},
    {"sync": "bitmap"},
    {"sync": "bitmap", "bitmap-mode": "always"},
    {"sync": "incremental", "bitmap": "there", "bitmap-mode": "always"},
    {"sync": "incremental", "bitmap": "missing"},
    {"sync": "bitmap", "bitmap": "there"},
    {"sync": "full", "bitmap": "there"},
    {"sync": "full", "bitmap-mode": "always"},
    {"sync": "none", "bitmap": "there", "bitmap-mode": "always"},
    {"sync": "full", "bitmap": "there", "bitmap-mode": "never"},
)


def job_progress(machine: CaseMachine) -> None:
    """A backup job's status is its work: all there is to copy, and what was copied; zeroes too."""
    machine.io("primary", Nbd.WRITE_ZEROES, COUNT, COUNT)
    machine.call("blockdev-backup", _JOB)
    _expect_job(machine, 0, "before the first write")
    machine.written("primary", 2, 64, 128)  # half of either cluster: both are copied
    _expect_job(machine, SIZE, "when all was copied")
    machine.written("primary", 3, 0, 128)
    _expect_job(machine, SIZE, "when there was nothing left to copy")
    image = machine.flushed_image("hidden")
    found = Qcow2Reader.parse(image)
    if found.allocation() != {0: Alloc.DATA, 1: Alloc.ZERO}:
        there = clusters_in_words(found.allocation())
        text = f"after a copy of data and of zeroes the hidden disk has {there}"
        raise Broken(Verdict.ALLOCATION, text, "the copy of zeroes is no zero cluster")
    (place,) = (int(n) for n in found.clusters().host[:1])
    if image[place : place + CLUSTER] != content(1, 0, COUNT):
        raise Broken(Verdict.CONTENT, "the copy is not the old data", "the copy beside zeroes")


def _expect_job(machine: CaseMachine, offset: int, when: str) -> None:
    """The job's status, as qapi/block-core.json (BlockJobInfo) describes it.

    :param offset: bytes that are copied
    """
    machine.settle()
    jobs = machine.call("query-block-jobs")
    job = jobs[0] if len(jobs) == 1 else {"error": f"not the only one of {len(jobs)} jobs"}
    wanted = {"device": "backup", "type": "backup", "len": SIZE, "offset": offset, "speed": 0,
              "paused": False, "io-status": "ok", "ready": False, "status": "running",
              "auto-finalize": True, "auto-dismiss": True}  # fmt: skip
    wrong = {name: job.get(name) for name, value in wanted.items() if job.get(name) != value}
    if wrong or "error" in job:
        text = f"{when} the backup job's status has {wrong or job['error']}"
        raise Broken(Verdict.PROTOCOL, text, f"job status {when}")


def sizes_stay(machine: CaseMachine) -> None:
    """Writes that end where a disk ends change the size of no node."""
    machine.start()
    for side, number in (("primary", 2), ("guest", 3)):
        machine.written(side, number, 0, SIZE // SECTOR)
    machine.settle()
    for node in machine.call("query-named-block-nodes", {"flat": True}):
        size = node["image"]["virtual-size"]
        if node["node-name"] in ("secondary", "hidden", "active", "top") and size != SIZE:
            text = f"after a write to its end {node['node-name']} has {size} bytes, not {SIZE}"
            raise Broken(Verdict.PROTOCOL, text, f"size of {node['node-name']}")


def write_threshold(machine: CaseMachine) -> None:
    """A write beyond a node's threshold is an event with the amount, one up to it is none."""
    name = {"node-name": "secondary"}
    machine.call("block-set-write-threshold", {**name, "write-threshold": CLUSTER})
    for start, exceeded in ((0, []), (2, [2 * SECTOR])):
        machine.written("primary", 2, start, COUNT)
        found = [one["amount-exceeded"] for one in machine.events("BLOCK_WRITE_THRESHOLD")]
        if found != exceeded:
            text = f"a write to sector {start} exceeds the threshold by {found}, not {exceeded}"
            raise Broken(Verdict.PROTOCOL, text, "BLOCK_WRITE_THRESHOLD")


def first_child_is_read(machine: CaseMachine) -> None:
    """A quorum with read-pattern=fifo reads its first child, and finds fault with none."""
    machine.start()
    machine.shows("guest", 1, 0, 8, "quorum read", Verdict.CONTENT)
    if bad := machine.events("QUORUM_REPORT_BAD") + machine.events("QUORUM_FAILURE"):
        text = f"the quorum finds fault with {bad[0]}, though all disks are well"
        raise Broken(Verdict.PROTOCOL, text, "quorum event without a failure")


def flush_error(machine: CaseMachine) -> None:
    """A flush that fails on a child of a quorum is an event that names the child; it succeeds as
    long as enough children for the vote are flushed.
    """
    machine.start()
    for image, child in (("primary", "primary"), ("secondary", "forward")):
        machine.written("guest", 2, 0, 8)
        cookie = machine.begun("guest", any_of(Nbd.FLUSH), Nbd.FLUSH, 0, 0)
        if image == "secondary":  # the children are flushed one after the other
            machine.gate.release(*machine.held("a flush of a quorum", 1))
            machine.settle()
        (flush,) = machine.caught("a flush of a quorum", 1)
        machine.gate.fail(flush, 5)
        machine.succeeds("guest", cookie, "a flush of a quorum fails")
        bad = machine.events("QUORUM_REPORT_BAD")
        found = [(one["type"], one["node-name"]) for one in bad][-1:]
        if found != [("flush", child)]:
            text = f"a flush fails on the {image} disk, and the last event about it is {found}"
            raise Broken(Verdict.PROTOCOL, text, "quorum event of a failed flush")


def failed_quorum(machine: CaseMachine) -> None:
    """A write or flush that fails on all children of a quorum fails, with their error (10.0:
    quorum_has_too_much_io_failed() and quorum_co_flush() in block/quorum.c). Replication does not
    run: its filter fails each write then.
    """
    for op in (Nbd.WRITE, Nbd.FLUSH):
        cookie = machine.begun("guest", any_of(op), op, 0, 8 if op is Nbd.WRITE else 0)
        what = f"a {op.name.lower()} to a quorum"
        waiting = machine.held(what)
        while waiting:  # of a flush the next comes when one has been answered
            machine.gate.fail(waiting[0], EIO)
            machine.settle()
            waiting = machine.gate.held
        machine.gate.open()
        if (errno := machine.answered("guest", cookie, what)) != EIO:
            text = f"{what} that fails on all its children ends with errno {errno}"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"failed {op.name.lower()} to a quorum")


def quorum_permissions(machine: CaseMachine) -> None:
    """A quorum lets no other node write or resize a child, which "would make the children differ"
    (quorum_child_perm(), block/quorum.c); writes that change nothing, and reads, it shares. The
    filter below it reads what it is on.
    """
    machine.start()
    edges = _Edges(machine)
    for child in ("primary", "forward"):
        shared = set(edges.between("top", child)["shared-perm"]) & {*_CHANGING, *_HARMLESS}
        if shared != _HARMLESS:
            text = f"the quorum shares {sorted(shared)} of {child} with others"
            raise Broken(Verdict.PROTOCOL, text, "permissions that a quorum shares")
    if "consistent-read" not in edges.between("forward", "secondary")["perm"]:
        text = "the replication filter does not ask for consistent reads of what it is on"
        raise Broken(Verdict.PROTOCOL, text, "permissions that a filter takes")


def filter_permissions(machine: CaseMachine) -> None:
    """No other node writes or resizes the disk of a copy-before-write filter, which would change it
    without a copy, or resizes its target, whose size is looked at once; writes to the target are
    shared (cbw_child_perm(), block/copy-before-write.c). It reads the one, and writes the other.
    """
    edges = _Edges(machine)
    for child, needs, shares in (
        ("secondary", "consistent-read", set()),
        ("hidden", "write", {"write"}),
    ):
        edge = edges.between("filter", child)
        shared = _CHANGING & {*edge["shared-perm"]}
        if shared != shares:
            text = f"the filter shares {sorted(shared)} of {child}, not {sorted(shares)}"
            raise Broken(Verdict.PROTOCOL, text, f"permissions that a filter shares: {child}")
        if needs not in edge["perm"]:
            text = f"the filter does not ask for {needs} of {child}"
            raise Broken(Verdict.PROTOCOL, text, f"permissions that a filter takes: {child}")


class _Edges:
    """The edges of the block graph."""

    def __init__(self, machine: CaseMachine) -> None:
        graph = machine.call("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        self._edges: dict[tuple[str, str], dict[str, Any]] = {
            (names[e["parent"]], names[e["child"]]): e for e in graph["edges"]
        }

    def between(self, parent: str, child: str) -> dict[str, Any]:
        """The edge from one node to another.

        :raises Broken: there is none
        """
        if (parent, child) not in self._edges:
            text = f"{child} is no child of {parent}, though it was opened so"
            raise Broken(Verdict.PROTOCOL, text, f"{child} is no child of {parent}")
        return self._edges[parent, child]


def quorum_refused(machine: CaseMachine) -> None:
    """A quorum of disks that differ in size, of none, or with a threshold that cannot be met, is
    refused.

    One that makes sense is opened and closed, with two children and with three.
    """
    sizes = {"one": SIZE, "other": SIZE, "third": SIZE, "larger": 2 * SIZE}
    for name, size in sizes.items():
        machine.add_null(name, size)

    def quorum(threshold: int, *children: str, **more: Any) -> dict[str, Any]:
        words = {"driver": "quorum", "node-name": "quorum", "children": list(children)}
        return {**words, "vote-threshold": threshold, **more}

    for options in ("vote-threshold=x,children.0=one", "vote-threshold=1,children.x=one"):
        words = f"driver=quorum,{options}"
        if machine.adds_drive("bad", words):
            text = f"a drive with the options {words} is made"
            raise Broken(Verdict.PROTOCOL, text, "a drive with a quorum and bad options")
    machine.fails("blockdev-add", quorum(1))
    machine.fails("blockdev-add", quorum(1, "one", "larger"))
    machine.fails("blockdev-add", quorum(3, "one", "other"))
    machine.fails("blockdev-add", quorum(0, "one", "other"))
    machine.fails("blockdev-add", quorum(1, "one", "other", blkverify=True))
    machine.fails("blockdev-add", quorum(1, "third", "nowhere"))
    machine.call("blockdev-del", {"node-name": "third"})  # nothing holds it any more
    machine.add_null("third")
    for children in (("one", "other"), ("one", "other", "third")):
        machine.call("blockdev-add", quorum(2, *children))
        machine.call("blockdev-del", {"node-name": "quorum"})


def backup_refused(machine: CaseMachine) -> None:
    """A backup is refused with arguments that make no sense, and then done with ones that do."""
    machine.add_null("larger", 2 * SIZE)
    machine.call("block-dirty-bitmap-add", {"node": "secondary", "name": "there"})
    machine.fails("blockdev-backup", {**_JOB, "target": "secondary"})
    machine.fails("blockdev-backup", {**_JOB, "target": "larger"})
    for words in _WITH_WRONG_BITMAPS:
        machine.fails("blockdev-backup", {**_JOB, **words})
    machine.fails("blockdev-backup", {**_JOB, "speed": -1})
    machine.fails("blockdev-backup", {**_JOB, "target": "nowhere"})
    machine.fails("blockdev-backup", {**_JOB, "filter-node-name": "hidden"})
    if machine.features.x_perf:
        for name, value in (("max-workers", 0), ("max-chunk", -1), ("max-chunk", CLUSTER // 2)):
            machine.fails("blockdev-backup", {**_JOB, "x-perf": {name: value}})
    if machine.call("query-block-jobs"):
        raise Broken(Verdict.PROTOCOL, "a refused backup left a job", "a job that was refused")
    machine.call("blockdev-backup", _JOB)
    machine.fails("blockdev-backup", _JOB)
    machine.add_null("spare")
    other = {"job-id": "other", "device": "hidden", "target": "spare"}  # which a job writes to
    machine.fails("blockdev-backup", {**_JOB, **other})
