"""The directed cases about a filter and the snapshot above it see what they look at."""

from __future__ import annotations

from typing import Any

from qmpshim.conformance.explore.directed.machine import CLUSTER
from qmpshim.machine.builds.build import Build
from qmpshim.machine.nbd.nonblocking import NbdAnswer
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, run_mutant, sees, since
from vmtests.support.mutants.clients import (
    answered_early,
    client_with,
    kept,
    only_unreadable,
    whole_discarded,
    without_flags,
)
from vmtests.support.mutants.disks import (
    NEW_DATA,
    REFUSED,
    failing_otherwise,
    never_copied,
    not_flushed,
    nothing_held,
    on_failure,
    seen_as,
    spoilt_store,
    succeeding,
)
from vmtests.support.mutants.qmp import Arguments, answering, asking, asking_otherwise

ERROR_CONTRACT = Verdict.ERROR_CONTRACT


def otherwise_named(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A node has a file name of its own."""
    for node in nodes:
        if node["node-name"] == "snapshot":
            node["image"]["filename"] = "snapshot"
    return nodes


def taking(option: str, value: object) -> Mutant:
    """A filter is made where it has this option, which is left out."""

    def change(name: str, arguments: Arguments) -> Arguments:
        if arguments.get(option) != value:
            return arguments
        return {key: of for key, of in arguments.items() if key != option}

    return asking_otherwise(change)


def whatever_at_errors(name: str, arguments: Arguments) -> Arguments:
    """A drive is made whatever its filter is to do at an error."""
    line = arguments.get("command-line")
    if line is None:
        return arguments
    return {"command-line": line.replace(",on-cbw-error=explode", "")}


test_a_case_sees = sees(
    ("filter-passes-on", spoilt_store("secondary", 3 * CLUSTER), Verdict.CONTENT,
     "data of a filter, seen through it"),
    ("filter-passes-on", seen_as("secondary", lambda image: bytes(len(image))), Verdict.CONTENT,
     "data of a filter, seen below it"),
    ("filter-passes-on", never_copied, Verdict.ALLOCATION, "what a filter copies"),
    ("filter-passes-on", not_flushed, Verdict.LOST_WRITE, "a flush through a filter"),
    ("filter-passes-on", client_with("guest", Nbd.READ, NbdAnswer(0, bytes(CLUSTER))),
     Verdict.ISOLATION, "the snapshot after changes through a filter"),
    ("filter-passes-on", client_with("primary", Nbd.TRIM, NbdAnswer(5, b"")), ERROR_CONTRACT,
     "I/O through a filter fails"),
    ("filter-reports", succeeding, ERROR_CONTRACT, "primary write hides an error"),
    ("filter-reports", failing_otherwise, ERROR_CONTRACT, "primary write hides an error"),
    ("filter-reports", on_failure, Verdict.ORDER, "a change without its copy"),
    ("filter-reports", nothing_held, Verdict.ORDER, "a write of the primary: other I/O"),
    ("filter-keeps-holes", without_flags("primary"), Verdict.ALLOCATION,
     "zeroes below a filter"),
    ("filter-keeps-holes", REFUSED, ERROR_CONTRACT, "zeroes fail"),
    ("filter-refused", answering("query-block", lambda drives: []), Verdict.PROTOCOL,
     "a drive with a filter and good options"),
    ("filter-refused", answering("query-block", lambda drives: [{"device": "bad"}]),
     Verdict.PROTOCOL, "a drive with a filter and bad options"),
    *(("filter-refused", taking("bitmap", {"node": node, "name": "bitmap"}), ERROR_CONTRACT,
       "blockdev-add fails silently") for node in ("disk", "larger")),
    *(("filter-refused", since((10, 0), taking("min-cluster-size", size)), ERROR_CONTRACT,
       "blockdev-add fails silently") for size in (3 * CLUSTER, 1 << 63)),
    ("filter-refused", asking_otherwise(whatever_at_errors), Verdict.PROTOCOL,
     "a drive with a filter and bad options"),
    *(("snapshot-refuses-changes", client_with("guest", op, NbdAnswer(0, b"")),
       ERROR_CONTRACT, "a snapshot takes a change") for op in (Nbd.WRITE, Nbd.WRITE_ZEROES)),
    ("snapshot-has-a-name", answering("query-named-block-nodes", otherwise_named),
     Verdict.PROTOCOL, "the file name of a snapshot"),
    ("snapshot-refuses-changes", client_with("guest", Nbd.READ, NbdAnswer(0, bytes(CLUSTER))),
     Verdict.ISOLATION, "a snapshot after a change that it refused"),
    ("snapshot-of-smaller-disk", client_with("guest", Nbd.READ, NbdAnswer(0, bytes(CLUSTER))),
     Verdict.ISOLATION, "the snapshot of a smaller disk"),
    ("snapshot-read-freezes", nothing_held, Verdict.ORDER, "a read of the snapshot: other"),
    ("snapshot-read-freezes", answered_early, Verdict.ORDER,
     "a write overtakes a snapshot's read"),
    ("snapshot-read-freezes", NEW_DATA, Verdict.ISOLATION, "a snapshot's read beside a write"),
    ("snapshot-read-freezes", REFUSED, ERROR_CONTRACT, "guest fails beside the other"),
    ("snapshot-discard-stays", kept, Verdict.ISOLATION,
     "a discarded part of a snapshot can be read"),
    ("snapshot-discard-stays",
     since((9, 1), client_with("guest", Nbd.READ, NbdAnswer(0, bytes(CLUSTER)))),
     Verdict.ISOLATION, "a part of a cluster is discarded"),
    ("snapshot-discard-stays", since((9, 1), whole_discarded), ERROR_CONTRACT,
     "guest read fails"),
    ("snapshot-discard-stays", only_unreadable, Verdict.ALLOCATION,
     "a discarded part of a snapshot is copied"),
    ("snapshot-discard-stays", spoilt_store("secondary", 0), Verdict.ISOLATION,
     "the rest of a discarded snapshot"),
)  # fmt: skip


def test_the_snapshot_of_a_disk_that_stays_as_large_can_be_read(qemu_build: Build) -> None:
    assert run_mutant("snapshot-of-smaller-disk", asking("block_resize"), qemu_build) is None
