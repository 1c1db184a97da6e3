"""The directed cases about a quorum that votes see what they look at."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO
from typing import Any

from qmpshim.conformance.workload import pattern
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.nbd.nonblocking import NbdAnswer, NonBlockingNbd
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import Mutant, run_mutant, sees
from vmtests.support.mutants.clients import client_ending, client_with, on_connect
from vmtests.support.mutants.disks import nothing_held, succeeding, taken_for
from vmtests.support.mutants.qmp import Arguments, answering, asking, asking_otherwise

ERROR_CONTRACT = Verdict.ERROR_CONTRACT
FAILED = NbdAnswer(EIO, b"")
CHANGE = "x-blockdev-change"
_WRONG = bytes(pattern.data_of(4, 0, 2))


def quorum_with(**changes: Any) -> Mutant:
    """Each quorum is opened with other options."""

    def change(name: str, arguments: Arguments) -> Arguments:
        own = name == "blockdev-add" and arguments["driver"] == "quorum"
        return {**arguments, **changes} if own else arguments

    return asking_otherwise(change)


def one_bad_event_more(machine: GatedMachine) -> None:
    """Each time that events are looked at a child is reported as bad."""

    def more(version: Any) -> Any:
        data = {"type": "read", "node-name": "one", "sector-num": 0, "sectors-count": 1}
        machine.qmp.events.append({"event": "QUORUM_REPORT_BAD", "data": data})
        return version

    answering("query-version", more)(machine)


def answered_at_once(errno: int) -> Mutant:
    """Each read of the quorum is answered before its children have been."""

    def change(client: NonBlockingNbd) -> None:
        send = client.send

        def at_once(op: Nbd, *words: Any) -> int:
            cookie = send(op, *words)
            if op is Nbd.READ:
                client.answers[cookie] = NbdAnswer(errno, b"")
            return cookie

        client.send = at_once  # type: ignore[method-assign, assignment]

    return on_connect("votes", change)


def change_swallowed(words: Callable[[Arguments], bool]) -> Mutant:
    """Some changes of children are not made, and say success."""
    return asking_otherwise(
        lambda name, arguments: None if name == CHANGE and words(arguments) else arguments
    )


def _without_children(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**node, "image": {**node["image"], "filename": "json:{}"}} for node in nodes]


#: The names of nodes do not have what is below them.
renamed = answering("query-named-block-nodes", _without_children)


test_a_case_sees = sees(
    ("quorum-votes", quorum_with(**{"vote-threshold": 1}), ERROR_CONTRACT,
     "a read without a majority"),
    ("quorum-votes", quorum_with(**{"read-pattern": "fifo"}), Verdict.CONTENT,
     "data of a quorum's read"),
    ("quorum-votes", quorum_with(**{"rewrite-corrupted": True}), Verdict.CONTENT,
     "data of a quorum's child"),
    ("quorum-votes", one_bad_event_more, Verdict.PROTOCOL, "events of a quorum"),
    ("quorum-votes-fail", quorum_with(**{"vote-threshold": 1}), ERROR_CONTRACT,
     "the error of a read by votes"),
    ("quorum-votes-fail", quorum_with(**{"vote-threshold": 3}), ERROR_CONTRACT,
     "the error of a read by votes"),
    ("quorum-votes-fail", succeeding, Verdict.PROTOCOL, "events of a quorum"),
    ("quorum-votes-fail", nothing_held, Verdict.ORDER, "a read of which one-of-read fail"),
    ("quorum-reads-next", quorum_with(**{"read-pattern": "quorum"}), Verdict.ORDER,
     "a read of which 1 of three children fail: other I/O"),
    ("quorum-reads-next", quorum_with(children=["two", "one", "three"]), Verdict.ORDER,
     "the child that is read next"),
    ("quorum-reads-next", client_ending("votes", Nbd.READ, FAILED), ERROR_CONTRACT,
     "the error of a read, one child at a time"),
    ("quorum-changes-children", renamed, Verdict.PROTOCOL, "children in a quorum's name"),
    ("quorum-rewrites", quorum_with(**{"rewrite-corrupted": False}), Verdict.ORDER,
     "a read where one differ: other I/O"),
    ("quorum-rewrites", taken_for("store", "one", "two"), Verdict.CONTENT,
     "which children are rewritten"),
    ("quorum-rewrites", answered_at_once(0), Verdict.ORDER,
     "a read overtakes what it rewrites"),
    ("quorum-rewrites", client_ending("votes", Nbd.READ, FAILED), ERROR_CONTRACT,
     "a read that rewrites fails"),
    ("quorum-rewrites", taken_for("store", "three", "hidden"), Verdict.CONTENT,
     "data of a quorum's child"),
    ("quorum-rewrite-fails", succeeding, Verdict.CONTENT, "data of a quorum's child"),
    ("quorum-rewrite-fails", answered_at_once(EIO), ERROR_CONTRACT,
     "a rewrite's error is the reader's"),
    *(("quorum-rewrites-for-reader", quorum_with(**{"rewrite-corrupted": does}),
       Verdict.PROTOCOL, "permissions that a quorum takes") for does in (True, False)),
    ("quorum-rewrites-for-reader", client_with("votes", Nbd.READ, NbdAnswer(0, bytes(1024))),
     Verdict.CONTENT, "data of a quorum's read"),
    ("quorum-rewrite-beside-write", client_ending("votes", Nbd.READ, FAILED), ERROR_CONTRACT,
     "a read beside a write by votes fails"),
    ("quorum-changes-children", change_swallowed(lambda words: words.get("node") == "four"),
     Verdict.PROTOCOL, "children of a quorum"),
    ("quorum-changes-children", change_swallowed(lambda words: "two" in words.values()
                                                 or words == {"parent": "votes"}),
     ERROR_CONTRACT, f"{CHANGE} fails silently"),
    ("quorum-changes-children",
     change_swallowed(lambda words: words.get("child") == "children.2"), Verdict.CONTENT,
     "children that are written"),
    ("quorum-changes-children", quorum_with(**{"vote-threshold": 1}), ERROR_CONTRACT,
     f"{CHANGE} fails silently"),
    ("quorum-child-leaves", client_ending("votes", Nbd.WRITE, FAILED), ERROR_CONTRACT,
     "a write beside a change of children"),
    ("quorum-child-leaves", nothing_held, Verdict.ORDER, "a write to a quorum: other I/O"),
    ("quorum-zeroes", asking(CHANGE), Verdict.ALLOCATION, "zeroes below a quorum"),
    ("quorum-zeroes", taken_for("store", "two", "one"), Verdict.ALLOCATION,
     "block status of a quorum"),
    ("quorum-zeroes", succeeding, Verdict.CONTENT, "status of a quorum whose child fails"),
    ("quorum-compares", asking(CHANGE), ERROR_CONTRACT, f"{CHANGE} fails silently"),
    ("quorum-compares", client_with("votes", Nbd.WRITE, NbdAnswer(0, b"")), Verdict.CONTENT,
     "data of a quorum's read"),
)  # fmt: skip


def test_a_write_stays_where_nothing_is_rewritten(qemu_build: Build) -> None:
    sound = quorum_with(**{"rewrite-corrupted": False})
    assert run_mutant("quorum-rewrite-beside-write", sound, qemu_build) is None
