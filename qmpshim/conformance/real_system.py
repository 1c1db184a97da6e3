"""A real QEMU as a system that can be explored: steps are starting an operation, letting go an I/O.

Implements :class:`qmpshim.model.system.System`, so the model's explorer drives it. A choice is
``("start", operation)`` or ``("io", operation, what, nth)``, with faults also ``("fail", operation,
what, nth, errno)``. After each the machine runs until it is still, and what became visible is
looked at: requests at the gate, answers to clients and commands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence

from qmpshim.conformance import real_end, real_ops
from qmpshim.conformance.real_execution import CUT, RECONNECT, Execution, Found, say, stable
from qmpshim.conformance.real_faults import FaultyJudge
from qmpshim.conformance.real_footprints import EVERYTHING, Footprints
from qmpshim.conformance.real_images import places_of
from qmpshim.conformance.real_io import Named, Names
from qmpshim.conformance.real_judge import Judge, RealViolation
from qmpshim.conformance.real_scenarios import BASE, FLUSHES, RealScenario, words
from qmpshim.conformance.real_stage import Stage
from qmpshim.conformance.real_state import StateOf
from qmpshim.conformance.real_straight import Hit, Seen
from qmpshim.conformance.real_watch import Watch
from qmpshim.errors import MachineDied, MachineError, MachineHung
from qmpshim.machine.gate import HeldIO
from qmpshim.machine.gated_chain import GatedMachine
from qmpshim.model.behaviour import behaviour_of
from qmpshim.model.linearise import fits
from qmpshim.model.system import NOTHING, Choice, Footprint
from qmpshim.model.verdict import Verdict

EIO = 5
_COMES_BACK = 20  # seconds that QEMU waits for a connection to its disks
PATIENCE = 1.0  # seconds until an operation that nothing holds up counts as hung

Release = Callable[[GatedMachine, Named], None]


def honestly(machine: GatedMachine, named: Named) -> None:
    """Let a request go as it should: its effect, then its answer."""
    machine.gate.release(named.io)


class RealSystem:
    """One scenario on one build (a :class:`~qmpshim.model.system.System`).

    :param stage: where the QEMU comes from
    :param errnos: errors a held I/O may be ended with instead, :data:`CUT` and :data:`RECONNECT`
        among them; empty: no faults
    :param most_faults: of them in one execution
    :param plan: by name, I/Os that end with an error in every execution; the first only. Partial
        order reduction knows steps, not ways for one step to end: so faults are planned, not chosen
    :param everything: hold the overlays' metadata, too
    :param release: how a request is let go; sabotage comes in here
    :param probe: after the end, write everything once more and see that the view stands
    :param watching: judge requests as they arrive, too (False: only what comes of them)
    :param keeping: leave QEMU as it is after a violation, to be looked at
    :param each_step: called after every step with this system (crash points, for one)
    :ivar names: of all held I/Os seen so far
    :ivar found: what went wrong so far, by verdict and cause
    :ivar finished: executions so far, :ivar derailed: those that could not be followed
    """

    def __init__(
        self,
        stage: Stage,
        scenario: RealScenario,
        *,
        judge: Judge | None = None,
        errnos: Sequence[int] = (),
        most_faults: int = 1,
        plan: Mapping[Choice, int] | None = None,
        everything: bool = False,
        release: Release = honestly,
        probe: bool = True,
        watching: bool = True,
        keeping: bool = False,
        each_step: Callable[[RealSystem], RealViolation | None] | None = None,
    ) -> None:
        self.stage = stage
        self.scenario = scenario
        self.errnos = tuple(errnos)
        self.most_faults = most_faults
        self.plan = dict(plan or {})
        self.names: set[Choice] = set()
        self.everything = everything
        self.release = release
        self.probe = probe
        self.watching = watching
        self.keeping = keeping
        self.each_step = each_step
        self.violation: RealViolation | None = None
        self.now = Execution()
        self.derailed = 0
        self.finished = 0
        self.found: dict[tuple[Verdict, str], Found] = {}
        self._judge = judge
        self._faulty: FaultyJudge | None = None
        self._footprints = Footprints(scenario)
        self._numbers = [scenario.number(index) for index in range(len(scenario.ops))]

    # -- System ------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        return len(self.scenario.ops)

    def thread(self, choice: Choice) -> int:
        assert isinstance(choice[1], int)
        return choice[1]

    def movers(self, thread: int) -> Sequence[Choice] | None:
        own = [choice for choice in self.enabled() if self.thread(choice) == thread]
        return own if own and self._footprints.alone(thread) else None

    def fingerprint(self) -> Hashable | None:
        if self.violation is not None:
            return self.violation
        return self._state.fingerprint(self.now)

    def reset(self) -> None:
        self.violation = None
        self.now = Execution.of(len(self.scenario.ops))
        again = RECONNECT in (*self.errnos, *self.plan.values())
        machine = self.machine = self.stage.prepare(self.scenario, _COMES_BACK if again else 0)
        if self._judge is None:
            self._judge = Judge(self.scenario, behaviour_of(machine.version))
        if self._faulty is None:
            self._faulty = FaultyJudge(self._judge)
        machine.gate.trace.clear()
        places = None if self.scenario.secondary == "raw" else places_of(machine, "secondary")
        self._names = Names(self.scenario.ops, self._numbers, self.everything, places)
        self.watch = Watch(self.scenario, machine, self._names)
        self._state = StateOf(self.scenario)
        self._mover = 0
        self._live = False
        self._passing: list[HeldIO] = []
        if not self.scenario.contract:
            self.stage.doubt()
        machine.gate.hold(self._arrives)
        for number, op in enumerate(self.scenario.setup, BASE + 1):
            self.stage.will(op.do)
            real_ops.do_alone(machine, op, number)
        machine.settle()
        self._live = True

    def enabled(self) -> Sequence[Choice]:
        now = self.now
        if self.violation is not None or now.lost:
            return ()
        found: list[Choice] = [("start", index) for index in self._startable()]
        if self.plan and not now.faults:
            found += [
                ("fail", *name[1:], self.plan[name]) if name in self.plan else name
                for name in now.held
            ]
            return found
        found += now.held
        if self.errnos and now.faults < self.most_faults:
            for name in now.held:
                found += [("fail", *name[1:], errno) for errno in self.errnos]
        return found

    def take(self, choice: Choice) -> Footprint:
        now = self.now
        if now.lost or self.violation is not None:
            return NOTHING
        if choice not in self.enabled():
            now.lines.append(f"cannot {choice}: there are {list(self.enabled())}")
            now.lost = True
            self.derailed += 1
            self.stage.discard()
            return NOTHING
        now.steps.append(choice)
        before = set(now.over)
        named, known = now.held.get(choice), set(now.held)
        try:
            self._do(choice)
            self._settle()
        except MachineError as error:
            self._failed(error)
            return EVERYTHING
        if self.violation is None and self.each_step is not None:
            self.violation = self.each_step(self)
        thread = self.thread(choice)
        if now.over - before - {thread}:
            return EVERYTHING  # it ended somebody else, too
        fresh = {now.held[name].op for name in now.held.keys() - known}
        more = thread not in now.over and thread not in fresh
        return self._footprints.step(choice, thread, named, more)

    def finish(self) -> Hashable:
        if not self.now.lost and self.violation is None:
            try:
                self.violation = self._end()
            except MachineError as error:
                self._failed(error)
        if self.now.lost:
            return "lost"
        self.finished += 1
        if self.violation is not None:
            self._keep(self.violation)
            over = self.violation.kind in (Verdict.CRASH, Verdict.HANG)
            if over and not self.keeping:
                self.stage.discard()
            self.stage.doubt()
            return str(self.violation.kind), self.violation.cause
        return tuple(self.now.answers), tuple(self.now.data)

    def _keep(self, violation: RealViolation) -> None:
        key = (violation.kind, violation.cause)
        steps, lines = tuple(self.now.steps), tuple(self.now.lines)
        if key not in self.found:
            self.found[key] = Found(violation, steps, lines, 1)
            return
        best = self.found[key]
        best.count += 1
        if len(steps) < len(best.schedule):
            best.violation, best.schedule, best.lines = violation, steps, lines

    # -- steps -------------------------------------------------------------------------------------

    def _startable(self) -> list[int]:
        """Operations that may be started now."""
        now = self.now
        return [
            index
            for index, op in enumerate(self.scenario.ops)
            if index not in now.started and (op.after is None or op.after in now.over)
        ]

    def _do(self, choice: Choice) -> None:
        self._state.step(choice, self.now)
        if choice[0] == "start":
            self._start(self.thread(choice))
        elif choice[0] == "fail":
            name: Choice = ("io", *choice[1:-1])
            assert isinstance(choice[-1], int)
            self._fail(name, choice[-1])
        else:
            named = self.now.held.pop(choice)
            self._mover = named.op
            self.now.lines.append(f"complete {say(choice)}")
            self._state.completing(named, self._stored(named))
            self.release(self.machine, named)
            self.watch.answered(named.io)

    def _stored(self, named: Named) -> bytes:
        """What a read will return."""
        if named.verb != "read":
            return b""
        return self.machine.gate.store(named.io.image).read(named.io.offset, named.io.length)

    def _start(self, index: int) -> None:
        now, op = self.now, self.scenario.ops[index]
        self._mover = index
        now.started.add(index)
        # Failover goes on after its answer: the commit runs. It comes before nobody for sure.
        now.precedence[index] = frozenset(
            i for i in now.over if self.scenario.ops[i].do != "failover"
        )
        now.lines.append(f"start {index}: {words(op)}")
        self.stage.will(op.do)
        now.running[index] = real_ops.begin(self.machine, op, self._numbers[index])
        self._names.flushing = any(self.scenario.ops[i].do in FLUSHES for i in now.running)

    def _fail(self, name: Choice, errno: int) -> None:
        now = self.now
        named = now.held.pop(name)
        self._mover = named.op
        now.faults += 1
        self.stage.doubt()
        gate = self.machine.gate
        if errno == RECONNECT:
            now.lines.append(f"cut the connection of {say(name)}; it may be made again")
            gate.cut(named.io)
            image = named.io.image
            self.machine.reactor.until(lambda: bool(gate.connections(image)), PATIENCE)
            return
        gone = errno == CUT
        # Failover's commit goes on after its answer.
        over = frozenset(i for i in now.over if self.scenario.ops[i].do != "failover")
        unstarted = frozenset(range(self.threads)) - now.started
        hit = Hit(
            named.io.image, named.verb, named.start, named.count, EIO if gone else errno, gone,
            over, unstarted,
        )  # fmt: skip
        now.failed.append((named, hit))
        if gone:
            now.lines.append(f"cut the connection of {say(name)} for good")
            gate.refuse(named.io.image)
            gate.cut(named.io.image)
        else:
            now.lines.append(f"fail {say(name)} with errno {errno}")
            gate.fail(named.io, errno)

    def _arrives(self, io: HeldIO) -> bool:
        """The gate's policy: what to hold. Also where what must never be asked for is seen.

        What is not to be held as a choice passes at once as long as one operation is alone. With
        several, how QEMU goes on may depend on how fast an answer comes (whether a coroutine yields
        or not), so such a request waits until QEMU is still, see :meth:`_settle`.
        """
        data = self._names.is_data(io)
        if not self._live:
            if data:
                self.watch.answered(io)
            return False
        if data:
            if self.watching and self.violation is None:
                self.violation = self.watch.arrived(io)
            return True
        if len(self.now.running) - len(self.now.over) < 2:
            return False
        self._passing.append(io)
        return True

    def _settle(self) -> None:
        now = self.now
        self._be_still()
        self._look()
        if not now.held and not self._startable() and len(now.over) < len(now.started):
            self._wait()
        self._state.settled(now)

    def _be_still(self) -> None:
        """Let pass what need not wait, one by one, until QEMU asks for no more of that."""
        machine = self.machine
        machine.settle()
        while self._passing:
            self._passing.sort(key=lambda io: (io.image, io.seq))
            io = self._passing.pop(0)
            if machine.gate.holds(io):  # its connection may have broken meanwhile
                machine.gate.release(io)
                machine.settle()

    def _wait(self) -> None:
        """Nothing is held, and yet somebody is not done: perhaps a timer has to fire."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.machine.reactor.poll(0.02)
            self._be_still()
            self._look()
            if self.now.held or len(self.now.over) == len(self.now.started):
                return

    def _look(self) -> None:
        """What became visible: new requests, and answers."""
        machine, now = self.machine, self.now
        if machine.qmp.lost:
            raise machine.died()
        known = {named.io.seq for named in now.held.values()}
        known |= {io.seq for io in self._passing}
        unfinished = [i for i in now.running if i not in now.over]
        for index in unfinished:
            self._answered(index)
        held = machine.gate.held
        alive = {io.seq for io in held}
        # A connection of QEMU's went away with what it had asked for, which it may ask for again.
        dead = [named for named in now.held.values() if named.io.seq not in alive]
        if dead:
            now.held = {n: named for n, named in now.held.items() if named not in dead}
        for io in held:
            if io.seq not in known:
                again = (io.image, io.op, io.offset, io.length)
                mover = next((one.op for one in dead if one.request == again), self._mover)
                named = self._names.name(io, mover, unfinished)
                now.held[named.choice] = named
                self.names.add(named.choice)
                now.lines.append(f"    {say(named.choice)}")

    def _answered(self, index: int) -> None:
        """Take an operation's answer, if it is there."""
        now, op = self.now, self.scenario.ops[index]
        found = real_ops.answer(self.machine, op, now.running[index])
        if found is None:
            return
        now.answers[index], now.data[index] = found
        now.over.add(index)
        now.lines.append(f"    {index} ends: {found[0]}")
        if op.do in FLUSHES and found[0] == "ok" and self.violation is None:
            self.violation = self.watch.flushed(now, index)

    def _failed(self, error: MachineError) -> None:
        """QEMU died or is stuck."""
        if self.machine.qmp.lost or not self.machine.alive():
            text = str(self.machine.died())
            telling = text.split(": ", 1)[-1]
            self.violation = RealViolation(Verdict.CRASH, text, cause=stable(telling))
        elif not isinstance(error, MachineHung | MachineDied):  # it is we who went wrong
            self.now.lines.append(f"cannot go on: {error}")
            self.now.lost = True
            self.derailed += 1
            self.stage.discard()
            return
        else:
            self.violation = RealViolation(Verdict.HANG, str(error), cause=stable(str(error)))
        self.now.lines.append(f"{self.violation.kind}: {self.violation.text}")

    # -- the end -----------------------------------------------------------------------------------

    def _end(self) -> RealViolation | None:
        """Look at everything and judge it."""
        now, machine, scenario = self.now, self.machine, self.scenario
        wrong = real_end.stuck(scenario, now)
        if wrong is not None:
            return wrong
        machine.gate.open()
        if any(op.do == "failover" for op in scenario.ops):
            wrong = real_end.await_commit(machine)
        seen, broken = real_end.look(machine, scenario, now)
        now.seen = seen
        wrong = wrong or broken or self._verdict(seen)
        if wrong is None and self.probe and not now.gone():
            wrong = real_end.aftermath(machine, scenario, now, seen)
        return wrong

    def _verdict(self, seen: Seen) -> RealViolation | None:
        assert self._judge is not None and self._faulty is not None
        if self.now.failed:
            return self._faulty.judge(seen, self.now.precedence, self.now.failed)
        return self._judge.judge(seen, self.now.precedence)

    def disks(self) -> Seen:
        """What is on the disks at this moment, QEMU alive or not; for reports."""
        return real_end.disks(self.machine, self.scenario, self.now)

    def predictions(self) -> list[Seen]:
        """The straight ends that the order of starts and ends leaves possible."""
        assert self._judge is not None
        straight = self._judge.straight.items()
        return [end for order, end in straight if fits(order, self.now.precedence)]


__all__ = ["CUT", "PATIENCE", "RECONNECT", "RealSystem", "Release", "honestly"]
