"""One execution on a real QEMU: operations are begun, I/Os held and let go, and what comes is seen.

After each step the machine runs until it is still, and what became visible is looked at: requests
at the gate, answers to clients and commands.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EIO

from qmpshim.conformance.compare.divergence import BROKEN, verdict_of
from qmpshim.conformance.explore.checkers.online import OnlineChecker
from qmpshim.conformance.explore.faults import METADATA, InjectedFault
from qmpshim.conformance.explore.harness import operations as real_ops
from qmpshim.conformance.explore.harness.choices import Complete, Cut, Fail, IoId, RealChoice, Start
from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Completed,
    Ended,
    Failed,
    JobPaused,
    Note,
    Started,
)
from qmpshim.conformance.explore.harness.history import (
    History,
    ended,
    ended_by,
    failed_setup,
    how_it_ended,
)
from qmpshim.conformance.explore.harness.io_naming import CHANGE_NOTHING, IoNames, NamedIo
from qmpshim.conformance.explore.harness.overlays import places_of
from qmpshim.conformance.explore.harness.push import paused_by_error
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.state import StateOf
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import MachineDied, MachineError, ReplyOverrun
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.chain.parts import disk_of, first_of, on_disk
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.model.answers import DISCONNECTED, OK
from qmpshim.model.check.cause import Phase
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.system import Choice
from qmpshim.model.operations import Operation, Verb

log = logging.getLogger(__name__)

_RECONNECTS = 10.0  # seconds until a broken connection is made again, mostly a few milliseconds
_AT_ONCE = 128 << 10  # bytes of a reply that a socket takes at once
_HEADER = 28  # bytes before the data of a structured reply: its head (20) and the offset (8)
PATIENCE = 1.0  # seconds for which an operation that nothing holds up may wait for a timer

Release = Callable[[GatedMachine, NamedIo], None]


def faithfully(machine: GatedMachine, named: NamedIo) -> None:
    """Let a request go as it should: its effect, then its answer.

    A large answer to a read comes in two parts. QEMU's NBD client lets a read that found all its
    data there wait for the next reply, if another request of the connection is under way
    (``nbd_recv_coroutines_wake`` takes ``receive_mutex``, which that one holds: block/nbd.c, 7.2
    and 10.0). Whether it finds all of what no socket takes at once is chance; so it never does.
    """
    gate, io = machine.gate, named.io
    if named.verb != "read" or io.length <= _AT_ONCE:
        gate.release(io)
        return
    gate.apply(io)
    gate.begin_reply(io, _HEADER)
    machine.settle()
    if gate.holds(io):  # its connection may have broken meanwhile
        gate.reply(io)


@dataclass(slots=True)
class _Execution:
    """What follows one execution, beside its history.

    :ivar last_moved: the operation of the latest step
    :ivar setup_done: the scenario has begun; before, nothing is held
    :ivar passing: what is answered as soon as QEMU is still: it is not held as a choice
    """

    namer: IoNames
    watch: OnlineChecker
    state: StateOf
    last_moved: int = 0
    setup_done: bool = False
    passing: list[HeldIO] = field(default_factory=list)


class RealRun:
    """Executions of one scenario, one after another.

    :param all_io: hold every request, qcow2's own, flushes and block status among them
    :param release: how a request is let go; mutants replace it
    :param online: check requests as they arrive, too (False: only what comes of them)
    :ivar violation: what is wrong with the present one, :ivar now: what happened in it
    :ivar ios: the names of all held I/Os so far, in whatever execution
    :ivar derailed: executions that could not be followed
    :ivar machine: since :meth:`begin`: on what the present execution runs
    """

    machine: GatedMachine
    _execution: _Execution

    def __init__(
        self,
        pool: QemuPool,
        scenario: RealScenario,
        all_io: bool = False,
        release: Release = faithfully,
        online: bool = True,
    ) -> None:
        self.pool = pool
        self.scenario = scenario
        self.all_io = all_io
        self.release = release
        self.online = online
        self.ios: set[IoId] = set()
        self.violation: RealViolation | None = None
        self.now = History()
        self.derailed = 0
        self._numbers = [scenario.number(index) for index in range(len(scenario.ops))]
        self._preparing: Operation | None = None  # of the setup, under way

    @property
    def watch(self) -> OnlineChecker:
        """The checker of what arrives in the present execution."""
        return self._execution.watch

    @property
    def threads(self) -> int:
        """How many operations there are."""
        return len(self.scenario.ops)

    def thread(self, choice: Choice) -> int:
        """The operation whose step this is."""
        assert isinstance(choice, Start | Complete | Fail)
        return choice.op

    def begin(self, reconnect: int) -> None:
        """Go to the beginning of the scenario.

        :param reconnect: seconds that QEMU waits for a broken connection to its disks
        """
        self.violation = self._preparing = None
        self.now = History.of(len(self.scenario.ops))
        machine = self.machine = self.pool.prepare(self.scenario, reconnect)
        machine.gate.trace.clear()
        machine.qmp.events.clear()
        namer = IoNames(
            self.scenario.ops, self._numbers, self.all_io, self._places(), self.scenario.apart
        )
        self._execution = _Execution(
            namer,
            OnlineChecker(self.scenario, machine, namer),
            StateOf(self.scenario, self.all_io),
        )
        if not self.scenario.contract:
            self.pool.mark_tainted()
        machine.gate.hold(self._arrives)
        for number, op in enumerate(self.scenario.setup, BASE + 1):
            self.pool.note_command(op)
            self._preparing = op
            real_ops.do_alone(machine, op, number)
            self._preparing = None
        topology = self.scenario.topology
        for export in {
            real_ops.status_export(machine, op)
            for op in self.scenario.ops
            if op.queries_status and not real_ops.offers_late(topology, op)
        }:
            machine.connect_status(export)
        machine.settle()
        machine.gate.keep_journals()
        self._execution.setup_done = True

    def _places(self) -> dict[str, dict[int, int]] | None:
        """Where the sectors of each secondary disk in qcow2 are in its file; None: they are raw."""
        scenario = self.scenario
        if scenario.secondary == "raw":
            return None
        names = (on_disk("secondary", disk) for disk in range(scenario.disks))
        return {
            name: places_of(self.machine, name, disk * scenario.apart)
            for disk, name in enumerate(names)
        }

    def _startable(self) -> list[int]:
        """Operations that may be started now."""
        now = self.now
        return [
            index
            for index, op in enumerate(self.scenario.ops)
            if index not in now.started and (op.after is None or op.after in now.over)
        ]

    def _do(self, choice: RealChoice) -> None:
        self._execution.state.step(choice, self.now)
        match choice:
            case Start(op):
                self.start_operation(op)
            case Complete(io):
                self._complete(self.now.held.pop(io))
            case Fail(io, fault):
                self.fail_io(io, fault)

    def _complete(self, named: NamedIo) -> None:
        self._execution.last_moved = named.op
        self.now.events.append(Completed(named.id))
        self._execution.state.completing(named, self._stored(named))
        if named.verb not in CHANGE_NOTHING:
            self.now.wrote[named.io.seq] = named.op
        self.release(self.machine, named)
        self.watch.answered(named.io)

    def _stored(self, named: NamedIo) -> bytes:
        """What a read will return."""
        if named.verb != "read":
            return b""
        return self.machine.gate.store(named.io.image).read(named.io.offset, named.io.length)

    def start_operation(self, index: int) -> None:
        """Start an operation of the scenario; its answer and its requests come later."""
        now, op = self.now, self.scenario.ops[index]
        self._execution.last_moved = index
        now.precedence[index] = self.scenario.preceding(index, now.over, now.started)
        now.started.add(index)
        if self.scenario.stops and paused_by_error(self.machine, self.scenario, now):
            now.paused.add(index)
            now.events.append(JobPaused())
        now.events.append(Started(index, op))
        self.pool.note_command(op)
        now.running[index] = real_ops.begin(self.machine, op, self._numbers[index])
        self._execution.namer.flushing = any(
            self.scenario.ops[i].makes_durable for i in now.running
        )

    def fail_io(self, name: IoId, errno: int) -> None:
        """End a held I/O with an error.

        :param errno: or a :class:`Cut`
        """
        now = self.now
        named = now.held.pop(name)
        self._execution.last_moved = named.op
        now.faults += 1
        self.pool.mark_tainted()
        gate = self.machine.gate
        if errno == Cut.RECONNECT:
            now.events.append(Failed(name, errno))
            gate.cut(named.io)
            image = named.io.image
            # If QEMU does not connect again, what waits for the disk hangs, and that is found.
            self.machine.event_loop.until(lambda: bool(gate.connections(image)), _RECONNECTS)
            return
        gone = errno == Cut.FOR_GOOD
        # Failover's commit goes on after its answer, and a request after its client is gone.
        over = frozenset(
            i
            for i in now.over
            if self.scenario.ops[i].verb is not Verb.FAILOVER and now.answers[i] != DISCONNECTED
        )
        by_reader = self.scenario.ops[named.op].reads and not named.meta
        fault = InjectedFault(
            image=first_of(named.io.image),
            verb=METADATA if named.meta else named.verb,
            start=named.start,
            count=0 if named.meta else named.count,
            errno=EIO if gone else errno,
            gone=gone,
            over=over,
            unstarted=frozenset(range(self.threads)) - now.started,
            reader=named.op if by_reader else None,
            tables=first_of(named.io.image) in self.scenario.topology.qcow2,
            disk=disk_of(named.io.image),
        )
        now.failed.append((named, fault))
        self.watch.failed(named, fault)
        now.events.append(Failed(name, errno))
        if gone:
            gate.refuse(named.io.image)
            gate.cut(named.io.image)
        else:
            gate.fail(named.io, errno)

    def _arrives(self, io: HeldIO) -> bool:
        """Whether the gate holds this request; the online checker sees it here, too.

        What is not to be held as a choice passes at once where nothing else waits for the same
        connection. Else, how QEMU goes on may depend on how fast an answer comes (whether a
        coroutine yields or not), so such a request waits until QEMU is still: :meth:`_be_still`.
        """
        held = self._execution.namer.holds(io)
        if not self._execution.setup_done:
            if held:
                self.watch.answered(io)
            return False
        if held:
            if self.online and self.violation is None:
                self.violation = self.watch.arrived(io)
            return True
        if self._alone(io.image):
            return False
        self._execution.passing.append(io)
        return True

    def _alone(self, image: str) -> bool:
        """Whether nothing else waits for an answer from this image, and no command is under way."""
        now, ops = self.now, self.scenario.ops
        under_way = now.running.keys() - now.over
        if len(under_way) < 2 and not any(ops[op].backs_up for op in now.started):
            return True
        if any(self.scenario.changes_chain(ops[op]) for op in under_way) or self._execution.passing:
            return False
        return all(io.image != image for io in self.machine.gate.held)

    def _settle(self) -> None:
        now = self.now
        self._be_still()
        self.observe()
        if not now.held and not self._startable() and len(now.over) < len(now.started):
            self._wait()
        self._execution.state.settled(now)

    def _be_still(self) -> None:
        """Answer what need not wait, one by one, until QEMU sends no more of that."""
        machine = self.machine
        machine.settle()
        while self._execution.passing:
            self._execution.passing.sort(key=lambda io: (io.image, io.seq))
            io = self._execution.passing.pop(0)
            if machine.gate.holds(io):  # its connection may have broken meanwhile
                machine.gate.release(io)
                machine.settle()

    def _wait(self) -> None:
        """Nothing is held, and yet an operation is not done: a hang, unless a timer has to fire."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            if self.machine.stalled(left):
                return
            self.machine.event_loop.poll(0.02)
            self._be_still()
            self.observe()
            if self.now.held or len(self.now.over) == len(self.now.started):
                return

    def observe(self) -> None:
        """Take what became visible: answers, and new requests."""
        if self.machine.qmp.over:
            raise self.machine.monitor_error()
        unfinished = [i for i in self.now.running if i not in self.now.over]
        for index in unfinished:
            self.take_answer(index)
        self._take_requests(unfinished, self._drop_disconnected())

    def _drop_disconnected(self) -> list[NamedIo]:
        """Forget held I/Os whose connection is gone, and return them: QEMU may send them again."""
        alive = {io.seq for io in self.machine.gate.held}
        gone = {n: named for n, named in self.now.held.items() if named.io.seq not in alive}
        if gone:
            self.now.held = {n: named for n, named in self.now.held.items() if n not in gone}
        return list(gone.values())

    def _take_requests(self, unfinished: Sequence[int], gone: Sequence[NamedIo]) -> None:
        """Name the requests that came.

        :param unfinished: operations that were under way before they came
        :param gone: what was held on a connection that broke
        """
        now = self.now
        known = {named.io.seq for named in now.held.values()} | {
            io.seq for io in self._execution.passing
        }
        jobs = [i for i in now.over if self.scenario.ops[i].backs_up]
        still = [*(i for i in unfinished if i not in now.over), *jobs]
        # Each image has a connection of its own; which of them was read first is our doing.
        for io in sorted(self.machine.gate.held, key=lambda io: (io.image, io.seq)):
            if io.seq in known:
                continue
            mover = next(
                (one.op for one in gone if one.io.request == io.request), self._execution.last_moved
            )
            named = self._execution.namer.name(io, mover, still if jobs else unfinished, still)
            now.held[named.id] = named
            self.ios.add(named.id)
            now.events.append(Arrived(named.id))

    def take_answer(self, index: int) -> None:
        """Take an operation's answer, if it is there."""
        now, op = self.now, self.scenario.ops[index]
        running = now.running[index]
        kind, found = running.kind, real_ops.answer(self.machine, op, running)
        if found is None and running.kind != kind:  # it has sent more
            self._be_still()
            found = real_ops.answer(self.machine, op, running)
        if found is None:
            return
        now.answers[index], now.data[index] = found
        now.over.add(index)
        now.events.append(Ended(index, found[0]))
        if op.verb is Verb.START and found[0] == OK and self.scenario.topology.begins_late:
            self.watch.pull_has_begun()
        if op.makes_durable and found[0] == OK and self.violation is None:
            self.violation = self.watch.made_durable(now, index)

    def _machine_failed(self, error: MachineError) -> None:
        """QEMU died or is stuck."""
        if self.machine.qmp.lost or not self.machine.alive():
            died = self.machine.exit_error()
            self.violation = RealViolation(
                Verdict.CRASH, str(died), cause=ended_by(died), ending=died.exit
            )
        elif not isinstance(error, BROKEN):  # the fault is ours
            why = f"cannot go on: {error}"
            log.warning("%s: %s", self.scenario.name, why)
            self.now.events.append(Note(why))
            self.now.lost = True
            self.derailed += 1
            self.pool.discard()
            return
        else:
            # It lives: what went away is a client's connection.
            kind = Verdict.HANG if isinstance(error, MachineDied) else verdict_of(error)
            overrun = isinstance(error, ReplyOverrun)
            cause = ended_by(error) if overrun else ended(str(error))
            self.violation = RealViolation(kind, str(error), cause=cause)
        self.now.events.append(Note(f"{self.violation.kind}: {self.violation.text}"))

    def _never_began(self, error: MachineError) -> None:
        """QEMU died, is stuck or refuses to work in the setup: that is no less a finding."""
        if self.pool.machine is not None:
            self.machine = self.pool.machine
            if self.machine.qmp.lost or not self.machine.alive():
                error = self.machine.exit_error()
        verdict, text = verdict_of(error), f"before the scenario begins: {error}"
        cause = ended_by(error, Phase.SETUP)
        if self._preparing is not None and verdict is not Verdict.CRASH:
            cause = failed_setup(self._preparing, error)
        self.violation = RealViolation(verdict, text, cause=cause, ending=how_it_ended(error))
        self.now.events.append(Note(f"{verdict}: {self.violation.text}"))
