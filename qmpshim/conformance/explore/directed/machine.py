"""What directed cases are made of: a chain of a few clusters, and a way to report what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qmpshim.conformance.explore.harness.io_naming import owners, tags
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, MachineDied, MachineHung, OptionMissing
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.images import blank_qcow2
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.store import MemoryStore
from qmpshim.machine.nbd.nonblocking import NbdAnswer
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


def content(number: int, start: int, count: int) -> bytes:
    """The data that operation *number* writes to *count* sectors from *start*."""
    return bytes(pattern.data_of(number, start, count))


def io_of(image: str, op: Nbd) -> Callable[[HeldIO], bool]:
    """Which I/O to hold: that of a kind at an image."""
    return lambda io: io.image == image and io.op is op


def copies_to(image: str) -> Callable[[HeldIO], bool]:
    """The same: writes of data to an image."""
    return lambda io: io.image == image and len(tags(io.data)) > 0


def any_of(*ops: Nbd) -> Callable[[HeldIO], bool]:
    """The same: that of these kinds at all images."""
    return lambda io: io.op in ops


def clusters_in_words(found: Mapping[int, Alloc]) -> str:
    """What the clusters of an image are, those that it has."""
    kinds = ((kind, [n for n, one in sorted(found.items()) if one is kind]) for kind in Alloc)
    parts = [f"{kind.name.lower()} in {', '.join(map(str, ns))}" for kind, ns in kinds if ns]
    return " and ".join(parts) or "nothing"


class Broken(Exception):
    """What a case found."""

    def __init__(self, verdict: Verdict, text: str, promise: str) -> None:
        """:param promise: the name of what does not hold, for write-ups to match"""
        super().__init__(text)
        cause = Cause(CauseKind.DIRECTED, detail=promise)
        self.violation = RealViolation(verdict, text, cause=cause)


#: What a backup job is called, and is about, in the chains that have one.
BACKUP = {"job-id": "backup", "device": "secondary", "target": "hidden"}


class CaseMachine(GatedMachine):
    """A chain of a few clusters that a directed case does things to."""

    def add_image(
        self,
        name: str,
        size: int,
        cluster: int = CLUSTER,
        create: tuple[tuple[str, str], ...] = (),
        **options: Any,
    ) -> None:
        """Open one more qcow2 image, which is empty.

        :param name: of its node, and of the image at the gate
        :param size: bytes of its disk
        :param cluster: bytes of one of its clusters
        :param create: more options of ``qemu-img create -o``
        :param options: more of the node
        :raises OptionMissing: this build cannot make such an image
        """
        self.stores[name] = MemoryStore(blank_qcow2(self.build, size, cluster, create))
        self.gate.add(name, self.stores[name])
        self.open_image(name, **options)

    def open_image(self, name: str, **options: Any) -> None:
        """Open a qcow2 image that :meth:`add_image` made, after its node was closed.

        :param options: more of the node
        """
        file = {**self.gate.blockdev(name), "discard": "unmap"}
        words = {"driver": "qcow2", "node-name": name, "discard": "unmap", "file": file}
        self.call("blockdev-add", {**words, **options})

    def add_disk(self, name: str) -> None:
        """Open one more raw disk, which holds the data of operation 1.

        :param name: of its node, and of the image at the gate
        """
        self.stores[name] = store = MemoryStore(SIZE)
        store.write(0, content(1, 0, SIZE // SECTOR))
        self.gate.add(name, store)
        file = {**self.gate.blockdev(name), "discard": "unmap"}
        words = {"driver": "raw", "node-name": name, "discard": "unmap", "file": file}
        self.call("blockdev-add", words)

    def add_null(self, name: str, size: int = SIZE, **options: Any) -> None:
        """Open a disk that keeps nothing.

        :param size: bytes
        :param options: more of the node
        """
        words = {"driver": "null-co", "node-name": name, "size": size}
        self.call("blockdev-add", {**words, **options})

    def adds_drive(self, name: str, options: str) -> bool:
        """Whether QEMU makes a drive with these options, as its command line has them."""
        words = f"if=none,id={name},{options}"
        self.call("human-monitor-command", {"command-line": f"drive_add 0 {words}"})
        return any(one["device"] == name for one in self.call("query-block"))

    def add_client(self, node: str, export: str = "") -> None:
        """Export a node, writable, and connect to it.

        :param export: its name; by default the node's
        """
        self.add_export(node, export, writable=True)
        self.connect(export or node)

    def add_export(self, node: str, export: str = "", **options: Any) -> None:
        """Export a node, by default read-only.

        :param export: its name; by default the node's
        :param options: more of the export
        """
        name = export or node
        names = {"type": "nbd", "id": name, "name": name, "node-name": node}
        self.call("block-export-add", {**names, **options})

    def add_filter(self, name: str, disk: str, target: str) -> None:
        """Open a copy-before-write, export it, writable, and connect to it.

        :raises OptionMissing: this QEMU has none
        """
        words = {"driver": "copy-before-write", "node-name": name, "file": disk, "target": target}
        words["discard"] = "unmap"
        if self.schema.lacking("blockdev-add", words):
            raise OptionMissing("this QEMU has no copy-before-write")
        self.call("blockdev-add", words)
        self.add_client(name)

    def has_snapshots(self) -> bool:
        """Whether this QEMU has the driver snapshot-access (7.0 on)."""
        return not self.schema.lacking("blockdev-add", _snapshot_of("secondary"))

    def add_snapshot(self, node: str) -> None:
        """Open a snapshot-access, ``snapshot``, on a node, and connect to its export.

        :raises OptionMissing: this QEMU has no such driver
        """
        if not self.has_snapshots():
            raise OptionMissing("this QEMU has no snapshot-access")
        self.call("blockdev-add", _snapshot_of(node))
        self.add_client("snapshot")

    def remove_client(self, export: str) -> None:
        """Close the connection to an export, and remove that."""
        self.clients.pop(export).close()
        self.call("block-export-del", {"id": export, "mode": "hard"})

        def gone() -> bool:
            return all(one["id"] != export for one in self.call("query-block-exports"))

        self.comes(gone, "block-export-del")

    def flushed_image(self, node: str) -> bytes:
        """The bytes of an image once its node is flushed."""
        self.flush(node)
        return bytes(self.gate.snapshot(node))

    def allocation(self, node: str) -> dict[int, Alloc]:
        """What the clusters of an image are, once it is flushed."""
        return Qcow2Reader.parse(self.flushed_image(node)).allocation()

    def fails(self, command: str, arguments: dict[str, Any]) -> str:
        """The error that a command must end with."""
        try:
            self.call(command, arguments)
        except CommandFailed as error:
            return error.desc
        text = f"{command} says success where it cannot have had any"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{command} fails silently")

    def io(self, side: str, op: Nbd, start: int, count: int, number: int = 2) -> NbdAnswer:
        """Do a request of *count* sectors from *start* to its end; the answer.

        :param number: of the operation whose data is written
        """
        return self.clients[side].call(op, *_words(op, start, count, number))

    def sent(self, side: str, op: Nbd, start: int, count: int, number: int = 2) -> int:
        """Send such a request; its cookie, once QEMU rests."""
        cookie = self.clients[side].send(op, *_words(op, start, count, number))
        self.settle()
        return cookie

    def begun(self, side: str, hold: Callable[[HeldIO], bool], op: Nbd, *where: int) -> int:
        """The same; *hold* is which I/O waits at the gate from now on."""
        self.settle()
        self.gate.hold(hold)
        return self.sent(side, op, *where)

    def write(self, side: str, number: int, start: int, count: int) -> int:
        """Write data of operation *number* to *count* sectors from *start*; the errno."""
        return self.io(side, Nbd.WRITE, start, count, number).errno

    def written(self, side: str, number: int, start: int, count: int) -> None:
        """Write as :meth:`write` does, where nothing is in the way of it.

        :raises Broken: it fails
        """
        if errno := self.write(side, number, start, count):
            text = f"a {side} write fails with errno {errno}, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} write fails")

    def read(self, side: str, start: int, count: int) -> bytes:
        """What *count* sectors from *start* hold to a side.

        :raises Broken: the read fails
        """
        answer = self.clients[side].call(Nbd.READ, start * SECTOR, count * SECTOR)
        if answer.errno:
            text = f"a {side} read fails with errno {answer.errno}, though all disks are well"
            raise Broken(Verdict.ERROR_CONTRACT, text, f"{side} read fails")
        return answer.data

    def shows(
        self,
        side: str,
        number: int,
        start: int,
        count: int,
        promise: str,
        verdict: Verdict = Verdict.ISOLATION,
    ) -> None:
        """A side reads the data of operation *number* in *count* sectors from *start*.

        :raises Broken: it reads something else, or the read fails
        """
        data = self.read(side, start, count)
        if data != content(number, start, count):
            there = sorted(set(owners(data, start)))
            text = f"{promise}: {side} reads data of {there}, not {number}, from sector {start} on"
            raise Broken(verdict, text, promise)

    def held(self, doing: str, count: int | None = None) -> list[HeldIO]:
        """The I/O that waits at the gate now.

        :param doing: what makes QEMU do it
        :param count: how many there must be; by default some
        :raises Broken: there are others
        """
        waiting = self.gate.held
        if len(waiting) == count or (count is None and waiting):
            return waiting
        there = ", ".join(f"{io.image} {io.op.name.lower()}" for io in waiting) or "nothing"
        text = f"{doing}: {there} reaches the disks, not {count or 'any'} I/O that could be held"
        raise Broken(Verdict.ORDER, text, f"{doing}: other I/O than predicted")

    def caught(self, doing: str, count: int | None = None) -> list[HeldIO]:
        """The same; what comes later is not held any more."""
        waiting = self.held(doing, count)
        self.gate.open()
        return waiting

    def answered(self, side: str, cookie: int, what: str, patience: float = PATIENCE) -> int:
        """The errno of a request in flight, which ends by itself.

        :param what: it is, for the error
        :param patience: seconds
        :raises MachineHung: it does not end
        :raises MachineDied: the connection ended
        """
        client = self.clients[side]
        self.comes(lambda: cookie in client.answers or client.lost, what, patience)
        if cookie not in client.answers:
            raise MachineDied(f"the NBD connection broke during {what}")
        return client.answers[cookie].errno

    def succeeds(self, side: str, cookie: int, promise: str) -> None:
        """A request in flight ends without an error.

        :raises Broken: it does not; beside that as :meth:`answered`
        """
        if errno := self.answered(side, cookie, f"a request of {side}"):
            text = f"a request of {side} fails with errno {errno}, where nothing is in its way"
            raise Broken(Verdict.ERROR_CONTRACT, text, promise)

    def ends_beside(self, cookie: int, start: int, reader: str = "primary") -> bool:
        """Whether a request of the primary ends while another one is held at the gate.

        Reads come after it: up to 11.1 an NBD node may see an answer only when the next one comes
        (the known defect ``nbd-answer-waits``), which would look as if the request waited.

        :param start: the first of the two sectors that are read: they must be in the way of neither
        :param reader: the side that reads
        """
        for _ in range(_READS):
            self.settle()
            if cookie in self.clients["primary"].answers:
                return True
            self.clients[reader].send(Nbd.READ, start * SECTOR, 2 * SECTOR)
        return False

    def comes(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Wait for what has to come by itself, *patience* seconds.

        :raises MachineHung: it does not
        """
        if not self.event_loop.until(condition, patience):
            raise MachineHung(f"{what} does not end within {patience:g} s")

    def fail_over(self) -> list[HeldIO]:
        """Begin a failover; the writes of its commit, which wait."""
        self.settle()
        self.gate.hold(io_of("secondary", Nbd.WRITE))
        self.call("xen-set-replication", FAILOVER)
        self.settle()
        return self.held("failover")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The data of the events of a name that QEMU has sent by now."""
        self.settle()
        self.call("query-version")  # what was sent before its answer is here
        return [event["data"] for event in self.qmp.events if event.get("event") == name]

    def job_ended(self) -> list[dict[str, Any]]:
        """Wait until there is no job; what QEMU reports of each that completed or failed so far.

        :raises MachineHung: it does not end
        """
        self.comes(lambda: not self.call("query-block-jobs"), "the backup job")
        return self.events("BLOCK_JOB_COMPLETED")

    def expect_bitmaps(self, node: str, counts: list[int], when: str, size: int = SIZE) -> None:
        """Each bitmap of a node names so many bytes.

        :param size: of the node, bytes
        :raises Broken: it does not
        """
        self.settle()
        there = self.node(node)["image"]["virtual-size"]
        found = [one["count"] for one in self.bitmaps(node)]
        if (there, found) != (size, counts):
            text = f"{when} the disk has {there} bytes, its bitmaps {found}, not {size}, {counts}"
            raise Broken(Verdict.PROTOCOL, text, f"a bitmap {when}")

    def node(self, name: str) -> dict[str, Any]:
        """A node as the monitor shows it."""
        nodes = self.call("query-named-block-nodes", {"flat": True})
        return dict(next(one for one in nodes if one["node-name"] == name))

    def bitmaps(self, node: str) -> list[dict[str, Any]]:
        """The dirty bitmaps of a node as the monitor shows them."""
        return list(self.node(node).get("dirty-bitmaps", []))

    def status(self) -> str | None:
        """The error that replication reports."""
        status = self.call("query-xen-replication-status")
        return str(status.get("desc", "")) if status["error"] else None


def _words(op: Nbd, start: int, count: int, number: int) -> tuple[Any, ...]:
    if op is Nbd.WRITE:
        return start * SECTOR, 0, content(number, start, count)
    return start * SECTOR, count * SECTOR


def _snapshot_of(node: str) -> dict[str, Any]:
    words = {"driver": "snapshot-access", "node-name": "snapshot", "file": node}
    return {**words, "discard": "unmap"}
