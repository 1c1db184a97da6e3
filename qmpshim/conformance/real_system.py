"""A real QEMU as a system that can be explored: steps are starting an operation, letting go an I/O.

Implements :class:`qmpshim.model.system.System`, so the model's explorer drives it. A choice is
``("start", operation)`` or ``("io", operation, what, nth)``, with faults also ``("fail", operation,
what, nth, errno)``. After each the machine runs until it is still, and what became visible is
looked at: requests at the gate, answers to clients and commands.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qmpshim.conformance import pattern
from qmpshim.conformance.real_faults import judge_faulty
from qmpshim.conformance.real_io import GARBAGE, Named, Names, owners
from qmpshim.conformance.real_judge import Judge, RealViolation, Seen
from qmpshim.conformance.real_scenarios import (
    BASE,
    COMMANDS,
    FLUSHES,
    PRIMARY,
    READS,
    RealScenario,
    words,
)
from qmpshim.conformance.real_stage import Stage
from qmpshim.errors import CommandFailed, MachineDied, MachineError, MachineHung
from qmpshim.machine.gate import HeldIO
from qmpshim.machine.gated_chain import Form, GatedMachine
from qmpshim.machine.nbd_proto import Op as Nbd
from qmpshim.machine.qcow2 import ImageError, Qcow2, Severity
from qmpshim.machine.secondary import SECTOR
from qmpshim.model.behaviour import behaviour_of
from qmpshim.model.disk import Alloc
from qmpshim.model.scenario import Op
from qmpshim.model.system import NOTHING, Choice, Footprint
from qmpshim.model.verdict import Verdict

PATIENCE = 1.0  # seconds until an operation that nothing holds up counts as hung
CUT = 0  # in place of an errno: the connection breaks, with all that waits on it
PROBE = 4000  # the operation whose data the aftermath writes

_NBD = {
    "read": Nbd.READ,
    "write": Nbd.WRITE,
    "zero": Nbd.WRITE_ZEROES,
    "discard": Nbd.TRIM,
    "flush": Nbd.FLUSH,
}
_ALL = (1 << 60) - 1  # the footprint of what touches everything

Release = Callable[[GatedMachine, Named], None]


def honestly(machine: GatedMachine, named: Named) -> None:
    """Let a request go as it should: its effect, then its answer."""
    machine.gate.release(named.io)


@dataclass(slots=True)
class Running:
    """An operation under way."""

    kind: str  # "primary", "guest" or "qmp"
    key: int


@dataclass(slots=True)
class Execution:
    """What happened since the reset.

    :ivar lines: the trace, a line a step and what it made visible
    """

    steps: list[Choice] = field(default_factory=list)
    running: dict[int, Running] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    data: list[tuple[int, ...] | None] = field(default_factory=list)
    precedence: list[frozenset[int]] = field(default_factory=list)
    over: set[int] = field(default_factory=set)
    started: set[int] = field(default_factory=set)
    held: dict[Choice, Named] = field(default_factory=dict)
    failed: list[Named] = field(default_factory=list)
    saved: set[int] = field(default_factory=set)  # clusters whose old data the hidden disk has
    lines: list[str] = field(default_factory=list)
    lost: bool = False  # the schedule could not be followed


@dataclass(slots=True)
class Found:
    """A violation with the shortest schedule it was seen in, and how often it was seen."""

    violation: RealViolation
    schedule: tuple[Choice, ...]
    lines: tuple[str, ...]
    count: int


class RealSystem:
    """One scenario on one build (a :class:`~qmpshim.model.system.System`).

    :param stage: where the QEMU comes from
    :param errnos: errors a held I/O may be ended with instead, :data:`CUT` among them; empty: no
        faults
    :param most_faults: of them in one execution
    :param plan: by name, I/Os that end with an error in every execution; the first only. Partial
        order reduction knows steps, not ways for one step to end: so faults are planned, not chosen
    :ivar names: of all held I/Os seen so far
    :param everything: hold the overlays' metadata, too
    :param release: how a request is let go; sabotage comes in here
    :param probe: after the end, write everything once more and see that the view stands
    :ivar found: what went wrong so far, by verdict and cause
    :param each_step: called after every step with this system (crash points, for one)
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
        self.each_step = each_step
        self.violation: RealViolation | None = None
        self.now = Execution()
        self._judge = judge
        self._numbers = [scenario.number(index) for index in range(len(scenario.ops))]
        self._primaries = {
            self._numbers[i] for i, op in enumerate(scenario.ops) if op.do == "primary_write"
        }
        self._quiet_commands = not any(
            op.do in ("checkpoint", "failover", "stop", "start") for op in scenario.ops
        )
        self.derailed = 0  # executions that could not be followed
        self.finished = 0
        self.found: dict[tuple[Verdict, str], Found] = {}

    # -- System ------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        return len(self.scenario.ops)

    def thread(self, choice: Choice) -> int:
        assert isinstance(choice[1], int)
        return choice[1]

    def movers(self, thread: int) -> Sequence[Choice] | None:
        return None

    def fingerprint(self) -> Hashable | None:
        return None

    def reset(self) -> None:
        self.violation = None
        count = len(self.scenario.ops)
        now = self.now = Execution()
        now.answers = ["?"] * count
        now.data = [None] * count
        now.precedence = [frozenset()] * count
        machine = self.machine = self.stage.prepare(self.scenario)
        if self._judge is None:
            self._judge = Judge(self.scenario, behaviour_of(machine.version))
        self._names = Names(self.scenario.ops, self._numbers, self.everything)
        self._mover = 0
        self._live = False
        machine.gate.hold(self._arrives)
        for number, op in enumerate(self.scenario.setup, BASE + 1):
            self._alone(op, number)
        machine.settle()
        self._live = True

    def enabled(self) -> Sequence[Choice]:
        now = self.now
        if self.violation is not None or now.lost:
            return ()
        found: list[Choice] = [
            ("start", index)
            for index, op in enumerate(self.scenario.ops)
            if index not in now.started and (op.after is None or op.after in now.over)
        ]
        if self.plan and not now.failed:
            found += [
                ("fail", *name[1:], self.plan[name]) if name in self.plan else name
                for name in now.held
            ]
            return found
        found += now.held
        if self.errnos and len(now.failed) < self.most_faults:
            for name in now.held:
                found += [("fail", *name[1:], errno) for errno in self.errnos]
        return found

    def take(self, choice: Choice) -> Footprint:
        now = self.now
        if now.lost or self.violation is not None:
            return NOTHING
        if choice not in self.enabled():
            now.lost = True
            self.derailed += 1
            now.lines.append(f"cannot {choice}: there are {list(self.enabled())}")
            self.stage.discard()
            return NOTHING
        now.steps.append(choice)
        before = set(now.over)
        footprint = self._footprint(choice)
        try:
            self._do(choice)
            self._settle()
        except MachineError as error:
            self._failed(error)
            return Footprint(_ALL, _ALL)
        if self.violation is None and self.each_step is not None:
            self.violation = self.each_step(self)
        if now.over - before - {self.thread(choice)}:
            return Footprint(_ALL, _ALL)  # it ended somebody else, too
        return footprint

    def finish(self) -> Hashable:
        if self.now.lost:
            return "lost"
        if self.violation is None:
            try:
                self._finish()
            except MachineError as error:
                self._failed(error)
        self.finished += 1
        if self.violation is not None:
            self._keep(self.violation)
            self.stage.discard()
            return str(self.violation.kind), self.violation.cause
        if self.now.failed:
            self.stage.discard()
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

    def _footprint(self, choice: Choice) -> Footprint:
        """Which clusters a step is about; steps about different ones may change places.

        Two reads that are let go may, too, even of one cluster; everything else on one cluster
        counts as dependent, and commands and flushes depend on everything.
        """
        op = self.scenario.ops[self.thread(choice)]
        if (op.do in COMMANDS and op.do != "status") or op.do in FLUSHES:
            return Footprint(_ALL, _ALL)
        if op.do == "status":
            return Footprint(1 << 59, 1 << 59)
        cluster = self.scenario.cluster
        places = 0
        for n in range(op.start // cluster, -(-(op.start + op.count) // cluster)):
            places |= 1 << n
        if choice[0] == "io" and self.now.held[choice].verb == "read":
            return Footprint(places, 0)
        if choice[0] == "fail":
            return Footprint(_ALL, _ALL)
        return Footprint(places, places)

    def _do(self, choice: Choice) -> None:
        now = self.now
        if choice[0] == "start":
            index = self.thread(choice)
            self._mover = index
            now.started.add(index)
            # Failover goes on after its answer: the commit runs. It comes before nobody for sure.
            now.precedence[index] = frozenset(
                i for i in now.over if self.scenario.ops[i].do != "failover"
            )
            op = self.scenario.ops[index]
            now.lines.append(f"start {index}: {words(op)}")
            now.running[index] = self._begin(op, self._numbers[index])
            self._names.flushing = any(self.scenario.ops[i].do in FLUSHES for i in now.running)
            return
        if choice[0] == "fail":
            name: Choice = ("io", *choice[1:-1])
            named = now.held.pop(name)
            self._mover = named.op
            now.failed.append(named)
            errno = choice[-1]
            assert isinstance(errno, int)
            if errno == CUT:
                now.lines.append(f"fail {_say(name)} by cutting the connection")
                self.machine.gate.cut(named.io)
            else:
                now.lines.append(f"fail {_say(name)} with errno {errno}")
                self.machine.gate.fail(named.io, errno)
            return
        named = now.held.pop(choice)
        self._mover = named.op
        now.lines.append(f"complete {_say(choice)}")
        self.release(self.machine, named)
        if named.io.image == "hidden" and named.verb == "write":
            cluster = self.scenario.cluster
            first = -(-named.start // cluster)
            now.saved.update(range(first, (named.start + named.count) // cluster))

    def _begin(self, op: Op, number: int) -> Running:
        machine, do = self.machine, op.do
        if do in COMMANDS:
            return Running("qmp", machine.qmp.send(*self._command(do)))
        side, verb = do.split("_")
        data = bytes(pattern.data_of(number, op.start, op.count)) if verb == "write" else b""
        key = machine.clients[side].send(_NBD[verb], op.start * SECTOR, op.count * SECTOR, data)
        return Running(side, key)

    def _command(self, do: str) -> tuple[str, dict[str, Any]]:
        replication = self.scenario.form is Form.REPLICATION
        off = {"enable": False, "primary": False}
        if do in ("failover", "stop"):
            self.stage.stopped()
        if do == "unexport":
            self.stage.stopped()
            return "block-export-del", {"id": "primary", "mode": "hard"}
        if do == "checkpoint":
            return "xen-colo-do-checkpoint", {}
        if do == "failover":
            return "xen-set-replication", {**off, "failover": True}
        if do == "start":
            return "xen-set-replication", {"enable": True, "primary": False}
        if do == "stop":
            if replication:
                return "xen-set-replication", {**off, "failover": False}
            return "block-job-cancel", {"device": "backup"}
        if replication:
            return "query-xen-replication-status", {}
        return "query-block-jobs", {}

    def _arrives(self, io: HeldIO) -> bool:
        """The gate's policy: what to hold. Also where what must never be asked for is seen."""
        names = self._names
        data = names.is_data(io)
        if data and self._live and self.violation is None:
            self._check_order(io)
        elif data and not self._live and io.image == "hidden" and io.op is Nbd.WRITE:
            start = names._guest(io) or 0
            first = -(-start // self.scenario.cluster)
            end = (start + io.length // SECTOR) // self.scenario.cluster
            self.now.saved.update(range(first, end))
        return data and self._live

    def _check_order(self, io: HeldIO) -> None:
        """New data comes to the secondary disk: the hidden disk must have the old."""
        if not self._quiet_commands or self.scenario.form is not Form.REPLICATION:
            return
        cluster = self.scenario.cluster
        if io.image == "secondary" and io.op in (Nbd.WRITE, Nbd.WRITE_ZEROES, Nbd.TRIM):
            start, end = io.offset // SECTOR, -(-(io.offset + io.length) // SECTOR)
            for n in range(start // cluster, -(-end // cluster)):
                if n not in self.now.saved:
                    text = "new data is sent to the secondary disk before the old is saved"
                    self.violation = RealViolation(
                        Verdict.ORDER, text, cluster=n, cause="new data before old is saved"
                    )
        elif io.image == "hidden" and io.op is Nbd.WRITE:
            start = self._names._guest(io) or 0
            found = owners(io.data, start)
            if any(owner in self._primaries for owner in found):
                self.violation = RealViolation(
                    Verdict.CONTENT,
                    "the copy that goes to the hidden disk holds new data",
                    cluster=start // cluster,
                    cause="the copy holds new data",
                )

    def _settle(self) -> None:
        machine, now = self.machine, self.now
        machine.settle()
        self._look()
        if not now.held and not self._startable() and len(now.over) < len(now.started):
            self._wait()

    def _startable(self) -> bool:
        return any(
            index not in self.now.started and (op.after is None or op.after in self.now.over)
            for index, op in enumerate(self.scenario.ops)
        )

    def _wait(self) -> None:
        """Nothing is held, and yet somebody is not done: perhaps a timer has to fire."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.machine.reactor.poll(0.02)
            self.machine.settle()
            self._look()
            if self.now.held or len(self.now.over) == len(self.now.started):
                return

    def _look(self) -> None:
        """What became visible: new requests, and answers."""
        machine, now = self.machine, self.now
        if machine.qmp.lost:
            raise machine.died()
        known = {named.io.seq for named in now.held.values()}
        unfinished = [i for i in now.running if i not in now.over]
        for index, running in list(now.running.items()):
            if index not in now.over:
                self._answered(index, running)
        held = machine.gate.held
        if len(held) < len(known):  # a connection of QEMU's went away with what it had asked for
            alive = {io.seq for io in held}
            now.held = {n: named for n, named in now.held.items() if named.io.seq in alive}
        for io in held:
            if io.seq not in known:
                named = self._names.name(io, self._mover, unfinished)
                now.held[named.choice] = named
                self.names.add(named.choice)
                now.lines.append(f"    {_say(named.choice)}")

    def _answered(self, index: int, running: Running) -> None:
        machine, now = self.machine, self.now
        op = self.scenario.ops[index]
        if running.kind == "qmp":
            if running.key not in machine.qmp.answers:
                return
            try:
                value = machine.qmp.take(op.do, running.key)
                answer = "ok"
                if op.do == "status" and isinstance(value, dict) and value.get("error"):
                    answer = str(value.get("desc", "error"))
            except CommandFailed as error:
                answer = error.desc
        else:
            client = machine.clients[running.kind]
            found = client.answers.pop(running.key, None)
            if found is None:
                if not client.lost:
                    return
                answer = "gone"
            else:
                answer = f"errno {found.errno}" if found.errno else "ok"
                if not found.errno and op.do in READS:
                    now.data[index] = tuple(owners(found.data, op.start))
        now.answers[index] = answer
        now.over.add(index)
        now.lines.append(f"    {index} ends: {answer}")
        if answer == "ok" and op.do in FLUSHES and self._quiet_commands and not now.failed:
            self._check_flushed(index, op.do == "primary_flush")

    def _check_flushed(self, flush: int, primary: bool) -> None:
        """What had been written before the flush began is on the disk when the flush ends."""
        now, scenario = self.now, self.scenario
        verb, name = ("primary_write", "secondary") if primary else ("guest_write", "active")
        if name not in self.machine.images:
            return
        before = [i for i in now.precedence[flush] if scenario.ops[i].do == verb]
        if not before:
            return
        if primary:
            found: Sequence[int | None] = owners(self.machine.gate.snapshot(name), 0)
        else:
            found = self._image(name)[0]
        for index in before:
            op = scenario.ops[index]
            # Whoever came later may have written over it.
            allowed = {self._numbers[i] for i in now.started} | {0}
            for sector in range(op.start, op.start + op.count):
                if found[sector] not in allowed and self.violation is None:
                    self.violation = RealViolation(
                        Verdict.LOST_WRITE,
                        f"{words(op)} is not on the {name} disk when the flush after it ends",
                        index,
                        sector // scenario.cluster,
                        f"{verb} not on disk after {scenario.ops[flush].do}",
                    )
                    return

    def _failed(self, error: MachineError) -> None:
        """QEMU died or is stuck."""
        if isinstance(error, MachineDied) or not self.machine.alive():
            text = str(self.machine.died())
            telling = text.split(": ", 1)[-1]
            self.violation = RealViolation(Verdict.CRASH, text, cause=_stable(telling))
        else:
            self.violation = RealViolation(Verdict.HANG, str(error), cause=_stable(str(error)))
        self.now.lines.append(f"{self.violation.kind}: {self.violation.text}")

    def _alone(self, op: Op, number: int) -> None:
        """Do an operation of the setup, from beginning to end."""
        running = self._begin(op, number)
        machine = self.machine
        if running.kind == "qmp":
            machine.qmp.wait(op.do, running.key)
            machine.qmp.take(op.do, running.key)
            return
        client = machine.clients[running.kind]
        if not machine.reactor.until(lambda: running.key in client.answers, 10.0):
            raise MachineHung(f"{words(op)} of the setup was not answered")
        answer = client.answers.pop(running.key)
        if answer.errno:
            raise MachineError(f"{words(op)} of the setup failed with errno {answer.errno}")

    # -- the end -----------------------------------------------------------------------------------

    def _finish(self) -> None:
        now, machine = self.now, self.machine
        stuck = [i for i in sorted(now.started) if i not in now.over]
        if stuck:
            op = self.scenario.ops[stuck[0]]
            text = f"{words(op)} does not end although nothing is held"
            self.violation = RealViolation(Verdict.HANG, text, stuck[0], cause=f"{op.do} hangs")
            return
        machine.gate.open()
        if any(op.do == "failover" for op in self.scenario.ops):
            self._await_commit()
        seen = self._final()
        if self.violation is None:
            self.violation = self._verdict(seen)
        cut = any(step[0] == "fail" and step[-1] == CUT for step in now.steps)
        if self.violation is None and self.probe and not cut:
            self._aftermath(seen)

    def _verdict(self, seen: Seen) -> RealViolation | None:
        assert self._judge is not None
        if self.now.failed:
            return judge_faulty(self.scenario, seen, self.now.failed)
        return self._judge.judge(seen, self.now.precedence)

    def _await_commit(self) -> None:
        """Wait for the commit that failover leaves running."""
        if not self.machine.reactor.until(self._committed, 10.0):
            self.violation = RealViolation(
                Verdict.HANG, "failover's commit does not end", cause="failover's commit hangs"
            )

    def _committed(self) -> bool:
        machine = self.machine
        machine.settle()
        status = machine.call("query-xen-replication-status")
        graph = machine.call("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        jobs = [n for n in graph["nodes"] if n["type"] == "block-job"]
        under = {names[edge["child"]] for edge in graph["edges"] if names[edge["parent"]] == "top"}
        # Done: the filter is on the secondary disk alone. Failed: the status says so, no job runs.
        return under == {"secondary"} or (bool(status["error"]) and not jobs)

    def _final(self) -> Seen:
        """Everything that can be seen at the end."""
        machine, scenario = self.machine, self.scenario
        size = scenario.size
        view: tuple[int, ...] | None = None
        answer = machine.clients["guest"].call(Nbd.READ, 0, size * SECTOR)
        if not answer.errno:
            view = tuple(owners(answer.data, 0))
        self._flush()
        status: str | None = None
        if scenario.form is Form.REPLICATION:
            told = machine.call("query-xen-replication-status")
            status = told.get("desc", "") if told["error"] else None
        secondary = tuple(owners(machine.gate.snapshot("secondary"), 0))
        content: list[tuple[int | None, ...]] = [(None,) * size] * 2
        kinds: list[tuple[int, ...]] = [(0,) * -(-size // scenario.cluster)] * 2
        for place, name in enumerate(machine.images[1:]):
            content[place], kinds[place] = self._image(name)
        answers, data = tuple(self.now.answers), tuple(self.now.data)
        hidden, active = content
        return Seen(answers, data, secondary, hidden, active, view, tuple(kinds), status)

    def _flush(self) -> None:
        """Put qcow2's tables where we can read them; only a flush of the very node does it.

        The filter of replication flushes all its disks. Copy-before-write flushes its source only,
        and QEMU 10.0's ``stop`` does not reach a target that nobody else uses.
        """
        machine = self.machine
        through = self.scenario.form is Form.REPLICATION and not machine.clients["guest"].lost
        if through and machine.version >= (6, 0):  # before, a filter's flush reached one child only
            machine.clients["guest"].call(Nbd.FLUSH)
            return
        for name in machine.images[1:]:
            line = {"command-line": f"qemu-io {name} flush"}
            machine.call("human-monitor-command", line)

    def _image(self, name: str) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
        """Owners and allocation of an overlay, read by our own reader."""
        scenario = self.scenario
        clusters = range(-(-scenario.size // scenario.cluster))
        content: list[int | None] = [None] * scenario.size
        try:
            image = self.machine.gate.snapshot(name)
            qcow2 = Qcow2.parse(image)
            found = qcow2.clusters()
            faults = [str(f) for f in qcow2.check() if f.severity is Severity.CORRUPTION]
        except ImageError as error:
            faults, found = [str(error)], None
        if faults or found is None:
            text = f"{name} disk: {'; '.join(faults[:3])}"
            self.violation = self.violation or RealViolation(
                Verdict.CORRUPTION, text, cause=f"{name} disk: {_stable(faults[0])}"
            )
            return tuple(content), (0,) * len(clusters)
        kinds = [0] * len(clusters)
        for index, kind, host in zip(
            found.index.tolist(), found.kind.tolist(), found.host.tolist(), strict=True
        ):
            kinds[index] = kind
            start = index * scenario.cluster
            end = min(start + scenario.cluster, scenario.size)
            if kind == Alloc.DATA:
                piece = image[host : host + (end - start) * SECTOR]
                piece += bytes((end - start) * SECTOR - len(piece))
                content[start:end] = owners(piece, start)
            else:
                content[start:end] = [0] * (end - start)
        return tuple(content), tuple(kinds)

    def _aftermath(self, seen: Seen) -> None:
        """One more primary write everywhere: what the guest's end sees must not change by it.

        So a bitmap that forgot or invented a copy is found out, and replication proved to live.
        """
        ops = self.scenario.ops
        over = any(op.do in ("failover", "stop", "unexport", "guest_discard") for op in ops)
        if over or seen.view is None:
            return
        machine, size = self.machine, self.scenario.size
        data = bytes(pattern.data_of(PROBE, 0, size))
        answer = machine.clients["primary"].call(Nbd.WRITE, 0, 0, data)
        self.now.lines.append("afterwards: primary write of everything")
        if answer.errno:
            text = f"a primary write afterwards fails with errno {answer.errno}"
            self.violation = RealViolation(
                Verdict.ERROR_CONTRACT, text, cause="a primary write afterwards fails"
            )
            return
        found = machine.clients["guest"].call(Nbd.READ, 0, size * SECTOR)
        view = tuple(owners(found.data, 0)) if not found.errno else None
        if view == seen.view:
            return
        if view is None:
            text = f"a read afterwards fails with errno {found.errno}"
            self.violation = RealViolation(
                Verdict.ERROR_CONTRACT, text, cause="a read afterwards fails"
            )
            return
        sector = next(i for i in range(size) if view[i] != seen.view[i])
        leaked = view[sector] == PROBE
        text = (
            f"after one more primary write the guest's view of sector {sector} changes from "
            f"{_whose(seen.view[sector])} to {_whose(view[sector])}"
        )
        self.violation = RealViolation(
            Verdict.ISOLATION if leaked else Verdict.CONTENT,
            text,
            cluster=sector // self.scenario.cluster,
            cause="the view changes with the next primary write",
        )


def _whose(owner: int) -> str:
    if owner == GARBAGE:
        return "garbage"
    return "the new data" if owner == PROBE else pattern.describe_owner(owner)


def _say(choice: Choice) -> str:
    """``hidden write 0+128 (of 0)``."""
    _, op, what, nth = choice[:4]
    again = f" #{int(nth) + 1}" if nth else ""
    return f"{what}{again} (of {op})"


def _stable(text: str) -> str:
    """A text without what differs between runs and builds: numbers, programs, source lines."""
    text = re.sub(r"^[\w-]*qemu[\w-]*: |(?:\.\./)*[\w/-]+\.[ch]:\d+: ", "", text)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text)[:160]


__all__ = ["PRIMARY", "Execution", "RealSystem", "honestly"]
