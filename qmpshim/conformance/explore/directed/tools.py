"""What directed cases are made of: a chain of a few clusters, and a way to report what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, MachineDied, MachineHung, OptionMissing
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.images import blank_qcow2
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Alloc
from qmpshim.model.units import SECTOR

SIZE, CLUSTER = 256 * SECTOR, 128 * SECTOR
COUNT = CLUSTER // SECTOR  # sectors of a cluster
PATIENCE = 10.0  # seconds for what has to come by itself, also on a host that is busy
_READS = 10  # more than the I/Os of a write that copies
START = {"enable": True, "primary": False}
FAILOVER = {"enable": False, "primary": False, "failover": True}


class Broken(Exception):
    """What a case found."""

    def __init__(self, verdict: Verdict, text: str, promise: str) -> None:
        """:param promise: the name of what does not hold, for write-ups to match"""
        super().__init__(text)
        cause = Cause(CauseKind.DIRECTED, detail=promise)
        self.violation = RealViolation(verdict, text, cause=cause)


def add_image(
    machine: GatedMachine, name: str, size: int, cluster: int = CLUSTER, **options: Any
) -> None:
    """Open one more qcow2 image, which is empty.

    :param name: of its node, and of the image at the gate
    :param size: bytes of its disk
    :param cluster: bytes of one of its clusters
    :param options: more of the node
    """
    machine.stores[name] = MemoryStore(blank_qcow2(machine.build, size, cluster))
    machine.gate.add(name, machine.stores[name])
    open_image(machine, name, **options)


def open_image(machine: GatedMachine, name: str, **options: Any) -> None:
    """Open a qcow2 image that :func:`add_image` made, after its node was closed.

    :param options: more of the node
    """
    file = {**machine.gate.blockdev(name), "discard": "unmap"}
    words = {"driver": "qcow2", "node-name": name, "discard": "unmap", "file": file}
    machine.call("blockdev-add", {**words, **options})


def add_disk(machine: GatedMachine, name: str, size: int = SIZE) -> None:
    """Open one more raw disk, which holds the data of operation 1.

    :param name: of its node, and of the image at the gate
    :param size: bytes
    """
    machine.stores[name] = store = MemoryStore(size)
    store.write(0, bytes(pattern.data_of(1, 0, size // SECTOR)))
    machine.gate.add(name, store)
    file = {**machine.gate.blockdev(name), "discard": "unmap"}
    words = {"driver": "raw", "node-name": name, "discard": "unmap", "file": file}
    machine.call("blockdev-add", words)


def add_client(machine: GatedMachine, node: str, export: str = "") -> None:
    """Export a node, writable, and connect to it.

    :param export: its name; by default the node's
    """
    name = export or node
    names = {"type": "nbd", "id": name, "name": name, "node-name": node}
    machine.call("block-export-add", {**names, "writable": True})
    machine.connect(name)


def add_reader(machine: GatedMachine, node: str) -> None:
    """Export a node, read-only, as ``reader``."""
    names = {"type": "nbd", "id": "reader", "name": "reader", "node-name": node}
    machine.call("block-export-add", names)


def add_filter(machine: GatedMachine, name: str, disk: str, target: str) -> None:
    """Open a copy-before-write, export it, writable, and connect to it.

    :raises OptionMissing: this QEMU has none
    """
    words = {"driver": "copy-before-write", "node-name": name, "file": disk, "target": target}
    words["discard"] = "unmap"
    if machine.schema.lacking("blockdev-add", words):
        raise OptionMissing("this QEMU has no copy-before-write")
    machine.call("blockdev-add", words)
    add_client(machine, name)


def has_snapshots(machine: GatedMachine) -> bool:
    """Whether this QEMU has the driver snapshot-access (7.0 on)."""
    return not machine.schema.lacking("blockdev-add", _snapshot_of("secondary"))


def add_snapshot(machine: GatedMachine, node: str) -> None:
    """Open a snapshot-access, ``snapshot``, on a node, and connect to its export.

    :raises OptionMissing: this QEMU has no such driver
    """
    if not has_snapshots(machine):
        raise OptionMissing("this QEMU has no snapshot-access")
    machine.call("blockdev-add", _snapshot_of(node))
    add_client(machine, "snapshot")


def _snapshot_of(node: str) -> dict[str, Any]:
    words = {"driver": "snapshot-access", "node-name": "snapshot", "file": node}
    return {**words, "discard": "unmap"}


def remove_client(machine: GatedMachine, export: str) -> None:
    """Close the connection to an export, and remove that."""
    machine.clients.pop(export).close()
    machine.call("block-export-del", {"id": export, "mode": "hard"})

    def gone() -> bool:
        return all(one["id"] != export for one in machine.call("query-block-exports"))

    comes(machine, gone, "block-export-del")


def flushed_image(machine: GatedMachine, node: str) -> bytes:
    """The bytes of an image once its node is flushed."""
    machine.flush(node)
    return bytes(machine.gate.snapshot(node))


def allocation(machine: GatedMachine, node: str) -> dict[int, Alloc]:
    """What the clusters of an image are, once it is flushed."""
    return Qcow2Reader.parse(flushed_image(machine, node)).allocation()


def fails(machine: GatedMachine, command: str, arguments: dict[str, Any]) -> str:
    """The error that a command must end with."""
    try:
        machine.call(command, arguments)
    except CommandFailed as error:
        return error.desc
    text = f"{command} says success where it cannot have had any"
    raise Broken(Verdict.ERROR_CONTRACT, text, f"{command} fails silently")


def write(machine: GatedMachine, side: str, number: int, start: int, count: int) -> int:
    """Write data of operation *number* to *count* sectors from *start*; the errno."""
    data = bytes(pattern.data_of(number, start, count))
    return machine.clients[side].call(Nbd.WRITE, start * SECTOR, 0, data).errno


def written(machine: GatedMachine, side: str, number: int, start: int, count: int) -> None:
    """Write as :func:`write` does, where nothing is in the way of it.

    :raises Broken: it fails
    """
    if errno := write(machine, side, number, start, count):
        text = f"a {side} write fails with errno {errno}, though all disks are well"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} write fails")


def begun(machine: GatedMachine, side: str, count: int, hold: Callable[[HeldIO], bool]) -> int:
    """Send a write of operation 2 to the first *count* sectors; its cookie, once QEMU rests.

    :param hold: which I/O waits at the gate from now on
    """
    machine.settle()
    machine.gate.hold(hold)
    data = bytes(pattern.data_of(2, 0, count))
    cookie = machine.clients[side].send(Nbd.WRITE, 0, 0, data)
    machine.settle()
    return cookie


def read(machine: GatedMachine, side: str, start: int, count: int) -> bytes:
    """What *count* sectors from *start* hold to a side.

    :raises Broken: the read fails
    """
    answer = machine.clients[side].call(Nbd.READ, start * SECTOR, count * SECTOR)
    if answer.errno:
        text = f"a {side} read fails with errno {answer.errno}, though all disks are well"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} read fails")
    return answer.data


def held(machine: GatedMachine, doing: str, count: int | None = None) -> list[HeldIO]:
    """The I/O that waits at the gate now.

    :param doing: what makes QEMU do it
    :param count: how many there must be; by default some
    :raises Broken: there are others
    """
    waiting = machine.gate.held
    if len(waiting) == count or (count is None and waiting):
        return waiting
    there = ", ".join(f"{io.image} {io.op.name.lower()}" for io in waiting) or "nothing"
    text = f"{doing}: {there} reaches the disks, not {count or 'any'} I/O that could be held"
    raise Broken(Verdict.ORDER, text, f"{doing}: other I/O than predicted")


def answered(
    machine: GatedMachine, side: str, cookie: int, what: str, patience: float = PATIENCE
) -> int:
    """The errno of a request in flight, which ends by itself.

    :param what: it is, for the error
    :param patience: seconds
    :raises MachineHung: it does not end
    :raises MachineDied: the connection ended
    """
    client = machine.clients[side]
    comes(machine, lambda: cookie in client.answers or client.lost, what, patience)
    if cookie not in client.answers:
        raise MachineDied(f"the NBD connection broke during {what}")
    return client.answers[cookie].errno


def ends_beside(
    machine: GatedMachine, cookie: int, start: int, reader: str = "primary", side: str = "primary"
) -> bool:
    """Whether a request of a side ends while another one is held at the gate.

    Reads come after it: up to 11.1 an NBD node may see an answer only when the next one comes (the
    known defect ``nbd-answer-waits``), which would look as if the request waited.

    :param start: the first of the two sectors that are read, which must be in the way of neither
    :param reader: the side that reads
    """
    for _ in range(_READS):
        machine.settle()
        if cookie in machine.clients[side].answers:
            return True
        machine.clients[reader].send(Nbd.READ, start * SECTOR, 2 * SECTOR)
    return False


def comes(
    machine: GatedMachine, condition: Callable[[], bool], what: str, patience: float = PATIENCE
) -> None:
    """Wait for what has to come by itself, *patience* seconds.

    :raises MachineHung: it does not
    """
    if not machine.event_loop.until(condition, patience):
        raise MachineHung(f"{what} does not end within {patience:g} s")


def events(machine: GatedMachine, name: str) -> list[dict[str, Any]]:
    """The data of the events of a name that QEMU has sent by now."""
    machine.settle()
    machine.call("query-version")  # what was sent before its answer is here
    return [event["data"] for event in machine.qmp.events if event.get("event") == name]


def job_ended(machine: GatedMachine) -> list[dict[str, Any]]:
    """Wait until there is no job; what QEMU reports of each that completed or failed so far.

    :raises MachineHung: it does not end
    """
    comes(machine, lambda: not machine.call("query-block-jobs"), "the backup job")
    return events(machine, "BLOCK_JOB_COMPLETED")


def expect_bitmaps(
    machine: GatedMachine, node: str, counts: list[int], when: str, size: int = SIZE
) -> None:
    """Each bitmap of a node names so many bytes.

    :param size: of the node, bytes
    :raises Broken: it does not
    """
    machine.settle()
    nodes = machine.call("query-named-block-nodes", {"flat": True})
    (shown,) = (one for one in nodes if one["node-name"] == node)
    found = shown["image"]["virtual-size"], [one["count"] for one in shown.get("dirty-bitmaps", [])]
    if found != (size, counts):
        text = f"{when} the disk has {found[0]} bytes, its bitmaps {found[1]}, not {size}, {counts}"
        raise Broken(Verdict.PROTOCOL, text, f"a bitmap {when}")


def status(machine: GatedMachine) -> str | None:
    """The error that replication reports."""
    status = machine.call("query-xen-replication-status")
    return str(status.get("desc", "")) if status["error"] else None
