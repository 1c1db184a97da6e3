"""Chains are values: what follows from them, and what a real QEMU makes of one."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from qmpshim.errors import CommandFailed
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.build import closing, drive, opening, removals
from qmpshim.machine.chain.chains import DISKS, TOPOLOGIES, topology_of
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.chain.parts import DirtyBitmap, ImageSpec, Node, Part, QemuDevice
from qmpshim.machine.chain.qmp_commands import actions_of
from qmpshim.machine.chain.variants import (
    CHAIN,
    FROZEN,
    GROUPED,
    INDIVIDUAL,
    TWO_DISKS,
    prefixed,
    with_image,
    with_options,
    with_parts,
)
from qmpshim.machine.colo.topologies import COLO_SECONDARY, exported
from qmpshim.machine.guest.chain import Attachment
from qmpshim.machine.images.qcow2 import Qcow2Reader

MiB = 1 << 20


def storage(node: Node) -> dict[str, object]:
    return {"driver": "file", "filename": node.name}


@pytest.mark.parametrize(
    ("chain", "operations", "kept"),
    [
        ("replication", ("primary_write", "guest_read"), True),
        ("replication", ("checkpoint", "stop"), True),
        ("replication", ("checkpoint", "status", "stop"), True),
        ("replication", ("failover", "guest_write", "guest_flush"), True),
        ("primary", ("failover", "guest_zero"), True),
        ("replication", ("failover", "primary_write"), False),
        ("replication", ("failover", "guest_vanish"), False),
        ("replication", ("checkpoint", "guest_read"), False),
        ("replication", ("failover", "checkpoint", "guest_read"), False),
        ("backup", ("stop", "primary_write"), False),
        ("fleecing", ("unexport", "guest_read"), False),
    ],
)
def test_what_the_contract_allows(chain: str, operations: tuple[str, ...], kept: bool) -> None:
    assert TOPOLOGIES[chain].keeps_contract(operations) is kept


@pytest.mark.parametrize(
    ("chain", "again"),
    [
        ("replication", ["hidden", "active", "top", "guest"]),
        ("backup", ["hidden", "guest"]),
        ("fleecing", ["hidden", "filter", "snapshot", "primary", "guest"]),
        ("primary", []),
    ],
)
def test_fresh_overlays_need_all_above_them_again(chain: str, again: list[str]) -> None:
    assert [part.name for part in TOPOLOGIES[chain].renewed] == again


def test_it_is_taken_apart_from_its_exports_down() -> None:
    exports, nodes = removals(TOPOLOGIES["fleecing"].parts)
    assert [export.name for export in exports] == ["guest", "primary"]
    closed = [command.arguments["node-name"] for command in nodes]
    assert closed == ["snapshot", "filter", "hidden", "secondary"]


def test_a_prefix_is_before_each_name_and_no_other_word() -> None:
    topology = prefixed(TOPOLOGIES["primary"], "x-")
    forward, top = (opening(node, storage).arguments for node in topology.nodes[2:])
    assert (forward["node-name"], forward["mode"], forward["file"]) == (
        *("x-forward", "primary", "x-secondary"),
    )
    assert top["children"] == ["x-primary", "x-forward"]
    backup = prefixed(TOPOLOGIES["backup"], "x-")
    assert backup.begins is not None and backup.begins.arguments == {
        **{"job-id": "x-backup", "device": "x-secondary", "target": "x-hidden", "sync": "none"},
    }
    assert backup.job == backup.commands["stop"].arguments["device"] == "x-backup"
    assert backup.commands["unexport"].arguments == {"id": "x-primary", "mode": "hard"}


def test_what_there_is_not() -> None:
    with pytest.raises(KeyError):
        topology_of("backup", options=(("no-such-node", "read-only", True),))
    with pytest.raises(KeyError):
        with_image(TOPOLOGIES["fleecing"], "filter", cluster=4096)


def test_an_image_has_a_cluster_size_of_its_own(qemu_build: Build) -> None:
    topology = with_image(TOPOLOGIES["replication"], "hidden", cluster=4096)
    topology = with_image(topology, "active", create=(("lazy_refcounts", "on"),))
    machine = GatedMachine(qemu_build, Shape(topology, MiB, 65536))
    try:
        machine.start()
        hidden, active = (Qcow2Reader.parse(machine.gate.snapshot(n)) for n in topology.overlays)
        assert (hidden.header.cluster_bits, active.header.cluster_bits) == (12, 16)
        nodes = {n["node-name"]: n for n in machine.call("query-named-block-nodes")}
        made = {n: nodes[n]["image"]["format-specific"]["data"] for n in topology.overlays}
        assert made["active"]["lazy-refcounts"] and not made["hidden"]["lazy-refcounts"]
    finally:
        machine.close()


def test_a_pairs_chain_is_opened_by_the_same_builder_on_the_gate(qemu_build: Build) -> None:
    """What ``-drive`` opens in a pair is the same value: nested nodes, and more above them."""
    topology = with_options(COLO_SECONDARY, {"filter": {"top-id": "throttle"}})
    top = Node("throttle", "throttle", {"file": "quorum", "throttle-group": "group"})
    group = QemuDevice("group", "throttle-group", is_object=True)
    topology = with_parts(exported(topology), group, top)
    machine = GatedMachine(qemu_build, Shape(topology, MiB, 65536))
    try:
        machine.start()
        nodes = {n["node-name"]: n for n in machine.call("query-named-block-nodes")}
        assert {"secondary", "hidden", "active", "filter", "quorum", "throttle"} <= set(nodes)
        assert set(machine.clients) == {"parent0", "guest"}
        machine.do("checkpoint")
        with contextlib.suppress(CommandFailed):  # it is done; the error is a known defect
            machine.do("stop")
        machine.tear_down()
        left = {n["node-name"] for n in machine.call("query-named-block-nodes")}
        assert left.isdisjoint(nodes)
    finally:
        machine.close()


def test_drive_has_what_is_nested_and_doubles_commas() -> None:
    below = Node("below", "raw", {"read-only": True}, ImageSpec())
    node = Node("top", "quorum", {"vote-threshold": 1, "children": [below]}, backend="disk")
    assert drive(node, lambda one: {"driver": "file", "filename": f"a,{one.name}"}) == (
        "if=none,id=disk,driver=quorum,node-name=top,vote-threshold=1,children.0.driver=raw,"
        "children.0.node-name=below,children.0.read-only=on,children.0.file.driver=file,"
        "children.0.file.filename=a,,below,children.0.file.discard=unmap"
    )


def test_a_guests_disk_is_more_parts_of_the_same_chain() -> None:
    """What goes away with the overlays, and what the commands are."""
    attachment = Attachment("virtio-scsi", iothread=True, log=True)
    topology = prefixed(attachment.attached_to(TOPOLOGIES["backup"]), "x-")
    assert [part.name for part in topology.renewed] == ["x-hidden", "x-guest", "x-log", "x-disk"]
    opened = [opening(part, storage) for part in topology.parts[-4:]]
    assert [command.name for command in opened] == [
        *("blockdev-add", "object-add", "device_add", "device_add"),
    ]
    assert opened[2].arguments["iothread"] == "x-io"
    assert (opened[3].arguments["bus"], opened[3].arguments["drive"]) == ("x-scsi.0", "x-log")
    assert closing(topology.parts[-1]).arguments == {"id": "x-disk"}
    logged = Attachment(log=True).attached_to(TOPOLOGIES["replication"])
    assert logged.node("top").options["top-id"] == "log"
    ide = Attachment("ide").attached_to(TOPOLOGIES["replication"])
    assert ide.node("top").options["top-id"] == "ide"
    back = closing(ide.parts[-1])
    assert back.name == "blockdev-reopen"
    assert back.arguments["options"] == [{"driver": "raw", "node-name": "ide", "file": "nothing"}]


def test_several_chains_are_on_one_qemu_and_go(qemu_build: Build) -> None:
    """The second chain's parts are other nodes, whose options name each other."""
    first = TOPOLOGIES["backup"]
    machine = GatedMachine(qemu_build, Shape(first, MiB, 65536))
    try:
        second = prefixed(first, "next-")
        nodes = (
            replace(node, driver="null-co", options={"size": MiB}, image=None)
            for node in second.nodes
        )
        parts: list[Part] = [*nodes, *second.exports]
        machine.batch([opening(part, storage) for part in parts])
        assert second.begins is not None
        machine.send(second.begins)
        machine.start()
        jobs = {job["device"] for job in machine.call("query-block-jobs")}
        assert jobs == {"backup", "next-backup"}
        machine.send(second.commands["stop"])
        machine.do("stop")
        machine.event_loop.until(lambda: not machine.call("query-block-jobs"), 10.0)
        assert machine.call("query-block-jobs") == []
    finally:
        machine.close()


def test_one_transaction_begins_on_two_disks() -> None:
    """With all that is done on one of them done on the other one, too; grouped jobs are alone."""
    one = TOPOLOGIES["pull"]
    two, grouped = (
        topology_of("pull", options=((CHAIN, TWO_DISKS, how),)) for how in (INDIVIDUAL, GROUPED)
    )
    assert [part.name for part in two.parts[len(one.parts) :]] == [
        part.name if isinstance(part, DirtyBitmap) else f"other-{part.name}" for part in one.parts
    ]
    done, of_one = (list(actions_of(chain.commands["start"])) for chain in (two, one))
    assert done[: len(of_one)] == of_one and len(done) == 2 * len(of_one)
    for (kind, data), (other, renamed) in zip(of_one, done[len(of_one) :], strict=True):
        assert kind == other and renamed != data and renamed.keys() == data.keys()
        assert renamed.get("name") == data.get("name")
    assert two.jobs == grouped.jobs == ("backup", "other-backup")
    assert not grouped.bitmaps and not grouped.offering
    start = grouped.commands["start"]
    assert [kind for kind, _ in actions_of(start)] == ["blockdev-backup"] * 2
    assert start.arguments["properties"] == {"completion-mode": "grouped"}


def test_a_pull_begins_with_a_transaction_and_offers_what_is_frozen_then() -> None:
    pull = topology_of("backup", options=(("guest", FROZEN, ((0, 512),)),))
    assert pull.begins is not None
    done = list(actions_of(pull.begins))
    assert [kind for kind, _ in done] == [
        "block-dirty-bitmap-disable",
        "block-dirty-bitmap-add",
        "blockdev-backup",
    ]
    plain = TOPOLOGIES["backup"].begins
    assert plain is not None and done[-1][1] == plain.arguments
    (late,) = pull.offering
    assert opening(late, storage).arguments["bitmaps"] == [done[0][1]["name"]]
    assert late.name == "guest" and late not in pull.first
    assert pull.frozen is not None and pull.frozen.name == done[0][1]["name"] != done[1][1]["name"]
    assert pull.operations - TOPOLOGIES["backup"].operations == {"guest_dirty_bitmap"}
    assert TOPOLOGIES["fleecing"].frozen is None
    for chain, reader in (("fleecing", "guest"), ("push", "primary"), ("backup", "nobody")):
        with pytest.raises(KeyError):
            topology_of(chain, options=((reader, FROZEN, ()),))


def test_the_disks_that_vote_are_the_children_of_a_quorum_that_reads_all() -> None:
    votes = TOPOLOGIES["votes"]
    assert votes.voters == votes.images == DISKS and votes.threshold == 2
    assert not any(one.voters for name, one in TOPOLOGIES.items() if name != "votes")
    overlays = {name for one in TOPOLOGIES.values() for name in one.overlays}
    assert {name for one in TOPOLOGIES.values() for name in one.images} == overlays | {*DISKS}
