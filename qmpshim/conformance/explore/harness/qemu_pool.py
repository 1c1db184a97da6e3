"""Brings a real QEMU to the beginning of a scenario, in the cheapest way that is safe.

Four ways to the start, from cheap to dear:

* *checkpoint*: replication still runs and nothing odd happened. The bytes of the secondary disk
  are put back behind QEMU's back and a checkpoint empties the overlays and the bitmap: that is just
  what starting replication does. A raw node keeps no data, but since 6.2 the last block status it
  got; with that it sends fewer requests, and the same schedule goes another way. So in the
  beginning it gets one again, whichever way was taken: all is data. The primary has no overlays,
  and nothing to empty, nor have disks that vote: there the bytes of all disks are put back.
* *rebuild*: the chain is taken apart and opened again in the same process, over fresh images. Also
  where a command came while I/O was in flight, which may have broken what QEMU has in memory.
* *reshape*: another scenario has another chain. The one before was taken apart at its end.
* *fresh*: another process.

That nothing is an artefact of the reuse is proved afterwards: each finding is run again in fresh
processes (see :mod:`qmpshim.conformance.explore.report.findings`).

A QEMU that ends on the way back shows a defect of what it did before (see :meth:`QemuPool.back`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Sequence

from qmpshim.conformance.compare.divergence import BROKEN
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.conformance.workload import pattern
from qmpshim.errors import CommandFailed, MachineError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.chains import DISKS
from qmpshim.machine.chain.gated import GatedMachine, Shape
from qmpshim.machine.chain.images import KEPT, filled_qcow2
from qmpshim.machine.chain.parts import disk_of, first_of
from qmpshim.machine.nbd.protocol.transmission import NbdCommand as Nbd
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import SECTOR

log = logging.getLogger(__name__)


@functools.lru_cache(KEPT)
def base_content(sectors: int, first: int = 0) -> bytes:
    """What the secondary disk holds at the beginning: the data of operation 1.

    :param first: the number of its first sector
    """
    return bytes(pattern.data_of(BASE, first, sectors))


@functools.lru_cache(KEPT)
def base_image(
    build: Build,
    sectors: int,
    cluster: int,
    image_format: str,
    create: tuple[tuple[str, str], ...] = (),
    first: int = 0,
) -> bytes:
    """An image whose disk holds :func:`base_content`; *cluster* in sectors.

    :param create: more options of a qcow2 image
    :param first: the number of the disk's first sector
    """
    content = base_content(sectors, first)
    if image_format == "raw":
        return content
    return filled_qcow2(build, content, cluster * SECTOR, create)


class QemuPool:
    """One build's QEMU, kept as long as it is fit to be used again.

    :param reuse: False starts a fresh process each time
    :param deadline: of all that is done on it, by time.monotonic(): then OutOfBudget is raised
        wherever QEMU is waited for, and the process is not fit for use any more
    :ivar resets: how often each way was taken
    :ivar reported_errors: kinds of errors that this process has sent an event about
    """

    def __init__(self, build: Build, reuse: bool = True, deadline: float | None = None) -> None:
        self.build = build
        self.reuse = reuse
        self.deadline = deadline
        self.machine: GatedMachine | None = None
        self.resets: Counter[str] = Counter()
        self._running = False  # replication or backup was started and never stopped
        self.tainted = False  # what QEMU has in memory may be broken
        self.base: tuple[bytes, ...] = ()  # images at the beginning, of no overlays, by disk
        self._at_start = False  # nothing happened since the beginning
        self._apart = False  # there is no chain
        self.reported_errors: set[str] = set()

    def prepare(self, scenario: RealScenario, reconnect: int = 0) -> GatedMachine:
        """Bring QEMU to the start: the chain open over fresh images, replication or backup running.

        What an earlier scenario did shows in :meth:`back`, called before; what goes wrong now is of
        this one's beginning, in a process that was used before as in a fresh one.

        :param reconnect: seconds that QEMU waits for a broken connection to its disks

        :raises BuildError: this build cannot do the scenario
        :raises MachineError: QEMU misbehaved before the scenario even began
        """
        sizes = scenario.disk_size * SECTOR, scenario.cluster * SECTOR
        apart = scenario.apart * SECTOR
        shape = Shape(scenario.topology, *sizes, reconnect, scenario.leaves_holes, apart)
        machine = self.machine
        other = machine is not None and machine.shape != shape
        if not self.reuse or (other and not self._apart):
            self.discard()
        self.base = tuple(
            base_image(
                self.build,
                scenario.disk_size,
                scenario.cluster,
                scenario.secondary,
                scenario.topology.image("secondary").create,
                disk * scenario.apart,
            )
            for disk in range(scenario.disks)
        )
        if self.machine is not None and other:
            self._reshape(self.machine, shape)
        else:
            self.back()
        machine = self.machine or self._fresh(shape)
        self._at_start = False
        return machine

    def _fresh(self, shape: Shape) -> GatedMachine:
        self.resets["fresh"] += 1
        machine = self.machine = GatedMachine(self.build, shape, self.deadline)
        self._begin(machine)
        return machine

    def _reshape(self, machine: GatedMachine, shape: Shape) -> None:
        self.resets["reshape"] += 1
        try:
            machine.reshape(shape)
        except BaseException:
            self.discard()
            raise
        self._apart = False
        self._begin(machine)

    def _begin(self, machine: GatedMachine) -> None:
        """What follows when the chain was opened over images that are empty."""
        if machine.topology.node("secondary").driver == "raw":
            self._put_back(machine, self.base)
            self.start_scenario(machine)
        else:  # QEMU has read the tables of the empty one
            self._rebuild(machine, self.base)

    def back(self, apart: bool = False) -> None:
        """Let the QEMU that was used come to rest and go back to the beginning, if there is one.

        What goes wrong there comes of what was done before: a use after free or a count that is
        wrong often shows only when the chain is taken apart, or at the next checkpoint. Then the
        process is still there, to be looked at, but no longer fit for use.

        :param apart: in the end take the chain apart, also where a checkpoint would do
        :raises MachineDied: QEMU ended
        :raises MachineHung: it does not come to rest or does not let go
        :raises ProtocolBroken: what its monitor sends is not QMP
        :raises CommandFailed: it refuses, though nothing was done that might be a reason
        """
        machine = self.machine
        if machine is None:
            return
        reasons = self.tainted
        try:
            if not self._at_start and not (apart and self._apart):
                self._again(machine, self.base)
                self._at_start = True
            if apart and not self._apart:
                self._take_apart(machine)
        except MachineError as error:
            root = machine.root_error(error)
            if isinstance(root, BROKEN):
                raise root from error
            if isinstance(error, CommandFailed) and not reasons:
                raise
            log.info("QEMU is not used again: %s", root)
            self.discard()

    def _again(self, machine: GatedMachine, base: Sequence[bytes]) -> None:
        for name in machine.images:
            machine.gate.refuse(name, False)
        machine.gate.open()
        machine.gate.release_all()
        machine.settle()
        topology = machine.topology
        again = topology.has("replication") or topology.voters
        simple = again and topology.node("secondary").driver == "raw"
        if simple and self._running and not self.tainted:
            for name, client in machine.clients.items():
                if client.lost:
                    machine.connect(name)
            self._put_back(machine, base)
            if machine.topology.overlays:
                machine.do("checkpoint")
            else:  # up to 5.2 what was written before decides how a quorum is flushed
                machine.clients["guest"].call(Nbd.FLUSH)
            self._teach_block_status(machine)
            self.resets["checkpoint"] += 1
            return
        self._rebuild(machine, base)

    def _take_apart(self, machine: GatedMachine) -> None:
        self._end(machine)
        machine.tear_down()
        self._running, self._at_start, self._apart = False, False, True

    def _rebuild(self, machine: GatedMachine, base: Sequence[bytes]) -> None:
        if not self._apart:
            self._take_apart(machine)
        self._put_back(machine, base)
        for name, store in machine.stores.items():
            if name in machine.topology.overlays:
                store.restore(machine.blank(name))
        machine.build_chain()
        self._apart = False
        self.resets["rebuild"] += 1
        self.start_scenario(machine)

    @staticmethod
    def _put_back(machine: GatedMachine, base: Sequence[bytes]) -> None:
        """Give the disk its bytes back; where there are several, all of them: they begin as equals.

        Two secondary disks have their own each.
        """
        for name, store in machine.stores.items():
            if first_of(name) in DISKS:
                store.restore(base[disk_of(name)])

    @staticmethod
    def _teach_block_status(machine: GatedMachine) -> None:
        copies = bool(machine.topology.overlays)  # else nothing needs it
        if (
            copies
            and machine.topology.node("secondary").driver == "raw"
            and machine.features.remembers_data
        ):
            machine.learn_block_status()

    def start_scenario(self, machine: GatedMachine) -> None:
        """Start what the scenario begins with: the job, replication."""
        machine.start()
        self._running, self.tainted = True, False
        self._teach_block_status(machine)
        machine.settle()
        machine.gate.trace.clear()

    def _end(self, machine: GatedMachine) -> None:
        topology = machine.topology
        if not self._running and not topology.backs_up and topology.job is None:
            return
        if topology.begins is None and not topology.begins_late:
            return
        # A job that is paused is not cancelled by ``block-job-cancel``.
        ways = ("job_cancel",) if topology.backs_up else ("job_resume", "stop")
        for do in ways:
            if do in topology.commands:
                with contextlib.suppress(CommandFailed):  # an operation did it; or replication's
                    machine.do(do)
        for job in topology.jobs[1:]:
            with contextlib.suppress(CommandFailed):
                machine.call("block-job-cancel", {"device": job})
        machine.event_loop.until(lambda: not machine.call("query-block-jobs"), 5.0)

    def note_command(self, op: Operation) -> None:
        """This operation is about to be done; some end what :meth:`prepare` started."""
        if op.verb in (Verb.FAILOVER, Verb.STOP):
            self._running = False

    def mark_tainted(self) -> None:
        """Commands were done at moments when they should not be, or I/O failed."""
        self.tainted = True

    def discard(self) -> None:
        """The process is not fit to be used again."""
        if self.machine is not None:
            self.machine.close()
            self.machine = None
            self.reported_errors.clear()
        self._running = self._at_start = self._apart = False

    def close(self) -> None:
        """End QEMU."""
        self.discard()
