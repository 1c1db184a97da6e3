"""Directed cases about a secondary's start on chains that are opened otherwise, and its end."""

from __future__ import annotations

from qmpshim.conformance.explore.directed.machine import COUNT, PATIENCE, START, Broken, CaseMachine
from qmpshim.model.check.verdict import Verdict

_FILTER = {"driver": "replication", "node-name": "top", "mode": "secondary", "file": "active"}


def closed_in_failover(machine: CaseMachine) -> None:
    """The filter is closed while a failover commits: the commit ends, and what the guest wrote
    stays in the disks it was in.
    """
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    machine.written("guest", 3, 16, 8)
    machine.remove_client("guest")
    machine.fail_over()
    number = machine.qmp.send("blockdev-del", {"node-name": "top"})
    machine.settle()
    machine.gate.open()
    machine.gate.release_all()
    machine.qmp.wait("blockdev-del", number, PATIENCE)
    machine.qmp.take("blockdev-del", number)
    machine.add_client("active")
    _expect(machine, "active", 16, 8, 3, "the guest's data after its filter was closed")


def named_above(machine: CaseMachine) -> None:
    """A filter whose top-id names a node above it starts, and the guest sees its disk there."""
    machine.remove_client("guest")
    machine.call("blockdev-del", {"node-name": "top"})
    machine.call("blockdev-add", {**_FILTER, "top-id": "above"})
    machine.call("blockdev-add", {"driver": "raw", "node-name": "between", "file": "top"})
    machine.call("blockdev-add", {"driver": "raw", "node-name": "above", "file": "between"})
    machine.add_client("above")
    machine.call("xen-set-replication", START)
    for number in (2, 3):
        machine.written("primary", number, 0, COUNT)
        _expect(machine, "above", 0, COUNT, number - 1, "what is seen above a filter")
        machine.settle()
        machine.call("xen-colo-do-checkpoint")


def named_elsewhere(machine: CaseMachine) -> None:
    """Starting is refused where top-id names a node that is not above the filter, or one that has
    another above it; and it starts with a filter that is named as it should be.
    """
    machine.add_null("elsewhere", machine.shape.size)
    machine.call("blockdev-add", {"driver": "raw", "node-name": "upon", "file": "elsewhere"})
    machine.remove_client("guest")
    for top in ("upon", "active"):
        machine.call("blockdev-del", {"node-name": "top"})
        machine.call("blockdev-add", {**_FILTER, "top-id": top})
        machine.fails("xen-set-replication", START)  # once: twice is written up
    machine.call("blockdev-del", {"node-name": "top"})
    machine.call("blockdev-add", {**_FILTER, "top-id": "top"})
    machine.add_client("top")
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    _expect(machine, "top", 0, COUNT, 1, "the view after starts that were refused")


def reads_in_failover(machine: CaseMachine) -> None:
    """While a failover commits the guest reads on, and its data is there afterwards."""
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    machine.written("guest", 3, 16, 8)
    machine.fail_over()
    _expect(machine, "guest", 16, 8, 3, "the guest's data in a failover")
    machine.gate.open()
    machine.gate.release_all()
    machine.comes(lambda: machine.status() is None, "failover")
    machine.written("guest", 4, 20, 8)
    _expect(machine, "guest", 16, 4, 3, "the guest's data after a failover")
    _expect(machine, "guest", 20, 8, 4, "the guest's data after a failover")


def read_only_secondary(machine: CaseMachine) -> None:
    """Starting makes a secondary disk writable that was opened read-only."""
    for name in ("guest", "primary"):
        machine.remove_client(name)
    for name in ("top", "active", "hidden", "secondary"):
        machine.call("blockdev-del", {"node-name": name})
    _reopen(machine, "secondary", "raw", **{"read-only": True})
    _reopen(machine, "hidden", "qcow2", backing="secondary")
    _reopen(machine, "active", "qcow2", backing="hidden")
    machine.call("blockdev-add", {**_FILTER, "top-id": "top"})
    machine.add_export("secondary", "reader")
    for read_only in (True, False):
        machine.settle()
        nodes = machine.call("query-named-block-nodes", {"flat": True})
        if [one["ro"] for one in nodes if one["node-name"] == "secondary"] != [read_only]:
            when = "before" if read_only else "after"
            text = f"{when} the start a secondary disk that was read-only is not as it should be"
            raise Broken(Verdict.PROTOCOL, text, "a secondary disk that was read-only")
        if read_only:
            machine.call("xen-set-replication", START)


def disks_in_use(machine: CaseMachine) -> None:
    """Starting is refused while another user of the hidden or of the secondary disk lets nothing be
    written to it; and it starts when that has gone.
    """
    machine.remove_client("primary")
    machine.add_export("secondary", "reader")
    for disk in ("hidden", "secondary"):
        machine.add_null("nowhere", machine.shape.size)
        machine.add_filter("other", disk, "nowhere")
        machine.fails("xen-set-replication", START)
        machine.remove_client("other")
        for name in ("other", "nowhere"):
            machine.call("blockdev-del", {"node-name": name})
    machine.add_client("secondary", "primary")
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    _expect(machine, "guest", 0, COUNT, 1, "the view after starts that were refused")


def filtered_disk(machine: CaseMachine) -> None:
    """Starting is refused while a mirror's filter is between the active disk and replication's, as
    a filter cannot be emptied; and it starts when that has gone.
    """
    machine.add_null("nowhere", machine.shape.size)
    machine.add_export("hidden", "reader")  # which is taken for the secondary disk then
    machine.remove_client("guest")
    machine.call("blockdev-del", {"node-name": "top"})
    mirror = {"device": "active", "target": "nowhere", "sync": "none"}
    names = {"job-id": "mirror", "filter-node-name": "between"}
    machine.call("blockdev-mirror", {**mirror, **names})
    machine.call("blockdev-add", {**_FILTER, "top-id": "top", "file": "between"})
    machine.add_client("top", "guest")
    machine.fails("xen-set-replication", START)
    machine.call("block-job-cancel", {"device": "mirror", "force": True})
    machine.comes(lambda: not machine.call("query-block-jobs"), "the end of a mirror")
    machine.call("xen-set-replication", START)
    machine.written("primary", 2, 0, COUNT)
    _expect(machine, "guest", 0, COUNT, 1, "the view after starts that were refused")


def _reopen(machine: CaseMachine, name: str, driver: str, **options: object) -> None:
    file = {**machine.gate.blockdev(name), "discard": "unmap"}
    words = {"driver": driver, "node-name": name, "discard": "unmap", "file": file}
    machine.call("blockdev-add", {**words, **options})


def _expect(
    machine: CaseMachine, side: str, start: int, count: int, number: int, what: str
) -> None:
    machine.shows(side, number, start, count, what, Verdict.CONTENT)
