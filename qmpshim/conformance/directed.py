"""Directed cases: sequences of commands at which QEMU's error paths are looked at, one by one.

Where no interleaving is needed, a few commands on a fresh chain are enough. Each case says what
QEMU promises; what it does instead is a :class:`RealViolation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmpshim.conformance import pattern
from qmpshim.conformance.real_judge import RealViolation
from qmpshim.conformance.real_stage import base_content
from qmpshim.errors import CommandFailed, MachineDied, MachineError, MachineHung
from qmpshim.machine.builds import Build
from qmpshim.machine.gate import HeldIO
from qmpshim.machine.gated_chain import Form, GatedMachine, Shape
from qmpshim.machine.nbd_proto import Op as Nbd
from qmpshim.machine.qcow2 import Qcow2
from qmpshim.machine.wire import WireNbd
from qmpshim.model.verdict import Verdict

_SIZE, _CLUSTER = 256 * 512, 128 * 512
_PATIENCE = 1.0  # seconds within which an answered request has to end
_START = {"enable": True, "primary": False}
_FAILOVER = {"enable": False, "primary": False, "failover": True}


@dataclass(frozen=True, slots=True)
class Directed:
    """One case.

    :ivar about: what is done, and what QEMU's documents promise of it
    """

    name: str
    about: str
    contract: bool
    run: Callable[[GatedMachine], RealViolation | None]
    reconnect: int = 0  # seconds that QEMU waits for a broken connection to its disks


class Broken(Exception):
    """What a case found."""

    def __init__(self, verdict: Verdict, text: str, cause: str) -> None:
        super().__init__(text)
        self.violation = RealViolation(verdict, text, cause=cause)


def run_directed(case: Directed, build: Build) -> RealViolation | None:
    """Run one case on a fresh QEMU, and end that in its own way.

    :raises BuildError: the build cannot build the chain
    """
    machine = GatedMachine(build, Shape(Form.REPLICATION, _SIZE, _CLUSTER, case.reconnect))
    try:
        machine.stores["secondary"].restore(base_content(_SIZE // 512))
        found = case.run(machine)
        if found is None:
            machine.gate.open()
            machine.gate.release_all()
            machine.quit()
        return found
    except Broken as broken:
        return broken.violation
    except MachineHung as error:
        return RealViolation(Verdict.HANG, str(error), cause=f"{case.name}: hang")
    except MachineError as error:
        if isinstance(error, MachineDied) or not machine.alive():
            text = str(machine.died())
            return RealViolation(Verdict.CRASH, text, cause=f"{case.name}: crash")
        return RealViolation(Verdict.PROTOCOL, str(error), cause=f"{case.name}: error")
    finally:
        machine.close()


def _fails(machine: GatedMachine, command: str, arguments: dict[str, Any]) -> str:
    """The error that a command must end with."""
    try:
        machine.call(command, arguments)
    except CommandFailed as error:
        return error.desc
    text = f"{command} says success where it cannot have had any"
    raise Broken(Verdict.ERROR_CONTRACT, text, f"{command} fails silently")


def _write(machine: GatedMachine, side: str, number: int, start: int, count: int) -> int:
    data = bytes(pattern.data_of(number, start, count))
    return machine.clients[side].call(Nbd.WRITE, start * 512, 0, data).errno


def _status(machine: GatedMachine) -> str | None:
    told = machine.call("query-xen-replication-status")
    return str(told.get("desc", "")) if told["error"] else None


def _busy_start(machine: GatedMachine) -> None:
    """Replication cannot start: the secondary disk belongs to another job. Then again."""
    machine.batch([("blockdev-add", {"driver": "null-co", "node-name": "nowhere", "size": _SIZE})])
    job = {"job-id": "other", "device": "secondary", "target": "nowhere", "sync": "none"}
    machine.call("blockdev-backup", job)
    _fails(machine, "xen-set-replication", _START)
    _fails(machine, "xen-set-replication", _START)


def _bad_top(machine: GatedMachine) -> None:
    """A filter whose top-id names nothing: starting fails, and fails again."""
    machine.clients.pop("guest").close()
    machine.call("block-export-del", {"id": "guest", "mode": "hard"})
    machine.reactor.until(lambda: len(machine.call("query-block-exports")) == 1, 5.0)
    machine.call("blockdev-del", {"node-name": "top"})
    words = {"driver": "replication", "node-name": "top", "mode": "secondary", "file": "active"}
    machine.call("blockdev-add", {**words, "top-id": "nobody"})
    _fails(machine, "xen-set-replication", _START)
    _fails(machine, "xen-set-replication", _START)


def _failed_copy(machine: GatedMachine) -> None:
    """Copying fails (3. of the seven failures): it is to be reported to the FT/HA manager."""
    _failing(machine, "hidden", Nbd.WRITE, "Backup failed (writing the hidden disk)")


def _failed_old_read(machine: GatedMachine) -> None:
    """The secondary disk fails (4. of the seven): it is to be reported to the FT/HA manager."""
    _failing(machine, "secondary", Nbd.READ, "I/O error on the secondary disk (reading old data)")


def _failed_new_write(machine: GatedMachine) -> None:
    """The same with the new data."""
    _failing(machine, "secondary", Nbd.WRITE, "I/O error on the secondary disk (new data)")


def _failing(machine: GatedMachine, image: str, op: Nbd, what: str) -> None:
    machine.call("xen-set-replication", _START)
    machine.settle()

    def hold(io: HeldIO) -> bool:
        return io.image == image and io.op is op and io.length >= 512

    machine.gate.hold(hold)
    client = machine.clients["primary"]
    cookie = client.send(Nbd.WRITE, 0, 0, bytes(pattern.data_of(2, 0, 128)))
    machine.settle()
    for io in machine.gate.held:
        machine.gate.fail(io, 5)
    machine.gate.open()
    if not machine.reactor.until(lambda: cookie in client.answers, 5.0):
        raise MachineHung("a primary write whose I/O failed is not answered")
    machine.settle()
    if client.answers[cookie].errno != 5:
        text = f"{what}: the primary's write says {client.answers[cookie].errno}, not EIO"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what}: no EIO")
    if _status(machine) is None:
        text = (
            f"{what}: query-xen-replication-status reports no error, though the document says "
            "it is reported to the FT/HA manager"
        )
        raise Broken(Verdict.ERROR_CONTRACT, text, f"{what}: not in the status")


def _failed_empty(machine: GatedMachine) -> None:
    """Emptying the hidden disk fails (6.): reported, and the next checkpoint makes all well."""
    machine.call("xen-set-replication", _START)
    assert _write(machine, "primary", 2, 0, 128) == 0
    assert _write(machine, "guest", 3, 128, 128) == 0
    machine.settle()
    machine.gate.hold(lambda io: io.image == "hidden" and io.op is not Nbd.READ)
    number = machine.qmp.send("xen-colo-do-checkpoint")
    machine.settle()
    while held := machine.gate.held:
        machine.gate.fail(held[0], 5)
        machine.settle()
    machine.gate.open()
    machine.qmp.wait("checkpoint", number, 5.0)
    try:
        machine.qmp.take("checkpoint", number)
    except CommandFailed:
        return
    text = "emptying the hidden disk fails, and the checkpoint says success"
    raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent")


def _failed_start(machine: GatedMachine) -> None:
    """Starting fails while it empties the hidden disk: then replication does not run."""
    machine.settle()
    machine.gate.hold(lambda io: io.image == "hidden" and io.op is not Nbd.READ)
    number = machine.qmp.send("xen-set-replication", _START)
    machine.settle()
    while held := machine.gate.held:
        machine.gate.fail(held[0], 5)
        machine.settle()
    machine.gate.open()
    machine.qmp.wait("start", number, 5.0)
    try:
        machine.qmp.take("start", number)
    except CommandFailed:
        if _status(machine) is None:
            text = "starting replication fails, and its status says that it runs without error"
            raise Broken(
                Verdict.ERROR_CONTRACT, text, "a failed start leaves replication running"
            ) from None
        return
    text = "emptying the hidden disk fails, and starting says success"
    raise Broken(Verdict.ERROR_CONTRACT, text, "make_empty's failure is silent at the start")


def _quit_running(machine: GatedMachine) -> None:
    """Quit while replication runs: QEMU ends with status 0."""
    machine.call("xen-set-replication", _START)
    assert _write(machine, "primary", 2, 0, 128) == 0


def _failed_failover(machine: GatedMachine) -> None:
    """The commit fails (7.): the guest goes on reading what it wrote, and its writes arrive."""
    machine.call("xen-set-replication", _START)
    assert _write(machine, "primary", 2, 0, 128) == 0
    assert _write(machine, "guest", 3, 16, 8) == 0
    machine.settle()
    machine.gate.hold(lambda io: io.image == "secondary" and io.op is Nbd.WRITE)
    machine.call("xen-set-replication", _FAILOVER)
    machine.settle()
    for io in machine.gate.held:
        machine.gate.fail(io, 5)
    machine.gate.open()
    machine.settle()
    if _status(machine) is None:
        text = "failover's commit fails, and the status reports no error"
        raise Broken(Verdict.ERROR_CONTRACT, text, "failed failover is not in the status")
    for start, number in ((0, 4), (128, 5), (20, 6)):
        if _write(machine, "guest", number, start, 8):
            text = "after a failed failover a guest write fails"
            raise Broken(Verdict.ERROR_CONTRACT, text, "guest write after failed failover fails")
    for start, number in ((0, 4), (128, 5), (20, 6), (16, 3)):
        data = machine.clients["guest"].call(Nbd.READ, start * 512, 4 * 512).data
        if data != bytes(pattern.data_of(number, start, 4)):
            text = f"after a failed failover the guest's write to sector {start} is lost"
            raise Broken(Verdict.LOST_WRITE, text, "guest write after failed failover is lost")


def _client_of_iothread(machine: GatedMachine) -> None:
    """A client of an export that an iothread serves comes and goes, as any backup program does."""
    machine.batch(
        [
            ("object-add", {"qom-type": "iothread", "id": "io"}),
            ("blockdev-add", {"driver": "null-co", "node-name": "nowhere", "size": _SIZE}),
        ]
    )
    export = {"type": "nbd", "id": "threaded", "name": "threaded", "node-name": "nowhere"}
    machine.call("block-export-add", {**export, "iothread": "io"})
    WireNbd(machine.reactor, machine.workspace.path / "nbd", "threaded").close()
    machine.reactor.until(lambda: not machine.alive(), 1.0)
    machine.call("query-status")


def _stop_flushes_all(machine: GatedMachine) -> None:
    """Stop flushes all disks (do_vm_stop()), those that nobody but the monitor owns as well."""
    machine.call("xen-set-replication", _START)
    assert _write(machine, "guest", 2, 0, 128) == 0
    machine.call("xen-set-replication", _FAILOVER)
    machine.reactor.until(lambda: _status(machine) is None, 5.0)
    machine.call("stop")
    machine.settle()
    if not Qcow2.parse(memoryview(machine.stores["active"].snapshot())).allocation():
        text = (
            "after failover and stop the active disk's file has no cluster, though the guest "
            "wrote one: its metadata is still in QEMU's memory"
        )
        raise Broken(Verdict.ALLOCATION, text, "stop does not flush every node")


def _answer_waits(machine: GatedMachine) -> None:
    """Two reads are in flight on one NBD connection: the first is done when its answer is there."""
    machine.settle()
    machine.gate.hold(lambda io: io.image == "secondary" and io.op is Nbd.READ)
    client = machine.clients["primary"]
    first = client.send(Nbd.READ, 0, 512)
    machine.settle()
    second = client.send(Nbd.READ, _CLUSTER, 512)
    machine.settle()
    one, other = machine.gate.held
    machine.gate.release(one)
    done = machine.reactor.until(lambda: first in client.answers, _PATIENCE)
    machine.gate.release(other)
    machine.reactor.until(lambda: second in client.answers, 5.0)
    if not done:
        text = (
            f"a read of an NBD node does not end within {_PATIENCE:g} s of its answer, but only "
            "when the answer of another one comes"
        )
        raise Broken(Verdict.HANG, text, "an NBD request waits for another one's answer")


def _cut_while_writing(machine: GatedMachine) -> int:
    """Break the connection to the secondary disk under a primary write; its cookie."""
    machine.call("xen-set-replication", _START)
    machine.settle()
    machine.gate.hold(lambda io: io.image == "secondary" and io.op is Nbd.WRITE)
    cookie = machine.clients["primary"].send(Nbd.WRITE, 0, 0, bytes(pattern.data_of(2, 0, 128)))
    machine.settle()
    machine.gate.refuse("secondary")
    machine.gate.cut("secondary")
    machine.gate.open()
    machine.settle()
    return cookie


def _back_in_time(machine: GatedMachine) -> None:
    """The disk is back within reconnect-delay: the write is sent again, nobody notices."""
    client, cookie = machine.clients["primary"], _cut_while_writing(machine)
    if machine.reactor.until(lambda: cookie in client.answers, 0.5):
        text = "a write fails although reconnect-delay is not over"
        raise Broken(Verdict.ERROR_CONTRACT, text, "reconnect-delay is not kept")
    machine.gate.refuse("secondary", False)
    if not machine.reactor.until(lambda: cookie in client.answers, 20.0):
        raise MachineHung("a write does not end although its disk is back")
    _expect_content(machine, client.answers[cookie].errno, "its disk came back in time")


def _back_too_late(machine: GatedMachine) -> None:
    """It is not: the write fails when the delay is over, and the next one works again."""
    client, cookie = machine.clients["primary"], _cut_while_writing(machine)
    if not machine.reactor.until(lambda: cookie in client.answers, 20.0):
        raise MachineHung("a write does not end although reconnect-delay is over")
    if client.answers[cookie].errno != 5:
        text = f"the write says {client.answers[cookie].errno}, not EIO"
        raise Broken(Verdict.ERROR_CONTRACT, text, "no EIO after reconnect-delay")
    machine.gate.refuse("secondary", False)
    errnos = []
    until = time.monotonic() + 20.0
    while time.monotonic() < until:  # the connection is made beside the requests, which do not wait
        errnos.append(_write(machine, "primary", 2, 0, 128))
        if not errnos[-1]:
            break
        machine.reactor.poll(0.05)
    _expect_content(machine, errnos[-1], "its disk is back")


def _expect_content(machine: GatedMachine, errno: int, when: str) -> None:
    if errno:
        text = f"a write fails with errno {errno} although {when}"
        raise Broken(Verdict.ERROR_CONTRACT, text, f"a write fails although {when}")
    if machine.gate.store("secondary").read(0, 128 * 512) != bytes(pattern.data_of(2, 0, 128)):
        raise Broken(Verdict.LOST_WRITE, f"a write is lost although {when}", f"lost, {when}")
    view = machine.clients["guest"].call(Nbd.READ, 0, 128 * 512)
    if view.errno or view.data != bytes(pattern.data_of(1, 0, 128)):
        text = f"the guest does not see the old data although {when}"
        raise Broken(Verdict.ISOLATION, text, f"not the old data, {when}")


def _case(
    name: str, contract: bool, run: Callable[[GatedMachine], None], reconnect: int = 0
) -> Directed:
    def go(machine: GatedMachine) -> RealViolation | None:
        run(machine)
        return None

    about = " ".join((run.__doc__ or "").split())
    return Directed(name, about, contract, go, reconnect)


DIRECTED: tuple[Directed, ...] = (
    _case("start-busy-twice", False, _busy_start),
    _case("start-bad-top-twice", False, _bad_top),
    _case("copy-fails", True, _failed_copy),
    _case("old-read-fails", True, _failed_old_read),
    _case("new-write-fails", True, _failed_new_write),
    _case("empty-fails", True, _failed_empty),
    _case("start-fails", True, _failed_start),
    _case("failover-fails", True, _failed_failover),
    _case("quit-running", True, _quit_running),
    _case("iothread-client-leaves", True, _client_of_iothread),
    _case("stop-leaves-nodes-unflushed", True, _stop_flushes_all),
    _case("nbd-answer-waits", True, _answer_waits),
    _case("disk-back-in-time", True, _back_in_time, 10),
    _case("disk-back-too-late", True, _back_too_late, 1),
)
