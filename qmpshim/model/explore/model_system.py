"""The model as a system to explore: a scenario under a serialization protocol, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from qmpshim.model.chain.drain import Drain
from qmpshim.model.chain.protocols import SerializationProtocol
from qmpshim.model.chain.secondary import Chain, Stage
from qmpshim.model.check.linearizability import Linearizations
from qmpshim.model.check.observables import Aspect, Observable, Observations
from qmpshim.model.check.online import StepChecker
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.backup_job import BACKUP_CLUSTER_SIZE_DEFAULT, BackupJob
from qmpshim.model.disks.image import Alloc
from qmpshim.model.explore.system import Choice, Footprint, Violation
from qmpshim.model.operations import Operation
from qmpshim.model.runtime.coroutines import Co, Io, OperationError, run_sequentially
from qmpshim.model.runtime.instrumented import InstrumentedMemory
from qmpshim.model.runtime.scheduler import Scheduler
from qmpshim.model.scenario import Scenario


class InstrumentedChain(Chain):
    """A chain whose own state (stage, job) is kept in cells, too."""

    memory: InstrumentedMemory

    def _get(self, name: str) -> Any:
        self.memory.read(self.memory.number(name, 0))
        return self.__dict__[name]

    def _set(self, name: str, value: Any) -> None:
        self.memory.write(self.memory.number(name, 0), value if name != "_job" else bool(value))
        self.__dict__[name] = value

    job: BackupJob | None = property(  # type: ignore[assignment]
        lambda self: self._get("_job"), lambda self, value: self._set("_job", value)
    )
    stage: Stage = property(  # type: ignore[assignment]
        lambda self: self._get("_stage"), lambda self, value: self._set("_stage", value)
    )
    failed_over: bool = property(  # type: ignore[assignment]
        lambda self: self._get("_over"), lambda self, value: self._set("_over", value)
    )
    error: bool = property(  # type: ignore[assignment]
        lambda self: self._get("_error"), lambda self, value: self._set("_error", value)
    )


class ModelSystem:
    """A scenario under a protocol (a :class:`~qmpshim.model.explore.system.System`).

    :param reference: the correct protocol, whose sequential execution gives what is allowed;
        ``None``: final states are not checked
    :param drained: make commands run alone; ``None``: as the scenario's contract requires
    :param late_wakes: a wake-up is a step of its own
    :param drain: what makes commands run alone
    :param chain: what the operations are methods of
    """

    def __init__(
        self,
        scenario: Scenario,
        protocol: Callable[[], SerializationProtocol],
        reference: Callable[[], SerializationProtocol] | None = None,
        drained: bool | None = None,
        late_wakes: bool = False,
        drain: type[Drain] = Drain,
        chain: type[InstrumentedChain] = InstrumentedChain,
    ) -> None:
        self.scenario = scenario
        self._drain = drain
        self._chain = chain
        self.protocol = protocol
        self.drained = scenario.contract if drained is None else drained
        self.cells = InstrumentedMemory(
            edges_of(scenario), min(scenario.cluster, 128), len(scenario.ops)
        )
        self.allowed: Linearizations | None = None
        heeds: Sequence[Sequence[int]] = [range(len(scenario.ops))] * len(scenario.ops)
        if reference is not None:
            self.allowed = Linearizations(scenario, lambda changed: ModelSystem(changed, reference))
            heeds = self.allowed.rivals
        self.scheduler = Scheduler(
            [self._starter(index, op) for index, op in enumerate(scenario.ops)],
            [op.after for op in scenario.ops],
            heeds,
            self.cells,
            self,
            late_wakes,
        )
        self.steps: list[Choice] = []

    # -- the operations ----------------------------------------------------------------------------

    def _starter(self, index: int, op: Operation) -> Callable[[], Co[Any]]:
        def start() -> Co[Any]:
            self.watch.started(index)
            co = self._coroutine(op, self.scenario.number(index))
            if not self.drained:
                return co
            guard = self.drain.command if op.is_command else self.drain.request
            return guard(index, co)

        return start

    def _coroutine(self, op: Operation, number: int) -> Co[Any]:
        method = getattr(self.chain, op.name)
        if op.is_command:
            co: Co[Any] = method()
        elif op.reads:
            co = method(op.start, op.count)
        else:
            co = method(op.start, op.count, number)
        return co

    def pending(self, choice: Choice) -> Io | None:
        """The I/O that *choice* would perform."""
        return self.scheduler.pending(choice)

    # -- System --------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        return len(self.scenario.ops)

    @property
    def violation(self) -> Violation | None:
        return self.watch.violation

    def reset(self) -> None:
        cells, scenario = self.cells, self.scenario
        self.scheduler.reset()
        cells.begin()
        protocol = self.protocol()
        self.chain = self._chain(
            scenario.workflow,
            scenario.size,
            scenario.cluster,
            scenario.secondary,
            protocol,
            protocol.behaviour,
            cells,
        )
        self.drain = self._drain(cells)
        self.watch = StepChecker(scenario, self.chain, cells)
        for number, op in enumerate(scenario.setup, 1):
            run_sequentially(self._coroutine(op, number))
            if op.is_command:
                self.watch.new_base()
        self.precedence: list[frozenset[int]] = [frozenset()] * len(scenario.ops)
        self.steps.clear()

    def enabled(self) -> Sequence[Choice]:
        return self.scheduler.enabled()

    def take(self, choice: Choice) -> Footprint:
        if choice[0] == "start":
            op, over = choice[1], self.scheduler.over
            assert isinstance(op, int)
            self.precedence[op] = frozenset(i for i in self.scheduler.heeds[op] if over[i])
        self.steps.append(choice)
        return self.scheduler.take(choice)

    def thread(self, choice: Choice) -> int:
        assert isinstance(choice[1], int)
        return choice[1]

    def movers(self, thread: int) -> Sequence[Choice] | None:
        return self.scheduler.movers(thread)

    def fingerprint(self) -> Hashable:
        return (
            tuple(self.cells.values),
            self.scheduler.state(),
            self.watch.state(),
            tuple(self.precedence),
        )

    def finish(self) -> Hashable:
        watch = self.watch
        outcome = self.observations()
        if watch.violation is None and not all(self.scheduler.over):
            watch.violation = self._hang()
        if watch.violation is None:
            watch.violation = self._leftover()
        if watch.violation is None and self.allowed is not None:
            watch.violation = self.allowed.judge(outcome, self.precedence, watch.failed)
        return outcome

    def observations(self) -> Observations:
        """Answers, what was read, contents and allocation of all images, the bitmap, the stage."""
        chain, job, found = self.chain, self.chain.job, Observations()
        for index, answer in enumerate(self.watch.answers):
            found[Observable(Aspect.ANSWER, index)] = answer
        found[Observable(Aspect.STAGE)] = chain.stage.value
        found[Observable(Aspect.STATUS)] = chain.error
        for cell, edge in enumerate(self.cells.edges[:-1]):
            for index, op in enumerate(self.scenario.ops):
                data = self.watch.data[index]
                if data is not None and edge in op.sectors:
                    first = self.cells.pieces(op.start, op.count).start
                    found[Observable(Aspect.DATA, index, cell)] = data[cell - first]
            owner = chain.secondary.contents.read(edge, 1)[0]
            found[Observable(Aspect.DISK, "secondary", cell)] = owner
            for name, image in (("hidden", chain.hidden), ("active", chain.active)):
                kind = image.alloc.get(edge // image.cluster)
                if image is chain.hidden and job and not job.owes(edge // job.cluster_size):
                    kind = None  # what may not be read is not observed
                if kind is not None:
                    owner = image.contents.read(edge, 1)[0]
                    found[Observable(Aspect.DISK, name, cell)] = owner
                there = Alloc.UNALLOCATED if kind is None else kind
                found[Observable(Aspect.ALLOCATION, name, cell)] = int(there)
            if job is not None:
                copied = job.is_copied(edge // job.cluster_size)
                found[Observable(Aspect.COPIED, "", cell)] = copied
        return found

    # -- Listener ----------------------------------------------------------------------------------

    def before_io(self, op: int, io: Io) -> None:
        self.watch.before_io(op, io)

    def after_io(self, op: int, io: Io) -> None:
        self.watch.after_io(op, io)

    def ended(self, op: int, result: Any, error: OperationError | None) -> None:
        self.watch.ended(op, result, error)

    # -- when it is over -------------------------------------------------------------------------

    def _hang(self) -> Violation:
        over = self.scheduler.over
        lines = []
        lost = False
        sleepers = self.scheduler.sleepers()
        for task in sleepers:
            assert task.queue is not None
            owner = task.queue.owner
            waker = owner if isinstance(owner, int) and owner >= 0 else None
            lost = lost or (waker is not None and over[waker])
            text = f"op {task.op} waits for {task.queue.label}"
            lines.append(text + (f" of op {waker}" if waker is not None else ""))
        op = sleepers[0].op if sleepers else None
        how = "lost wake-up" if lost else "deadlock"
        return Violation(Verdict.HANG, f"{how}: {'; '.join(lines)}", op)

    def _leftover(self) -> Violation | None:
        job = self.chain.job
        if job is None:
            return None
        for name in ("inflight_reqs", "reqs", "frozen_read_reqs", "tracked"):
            for req in getattr(job, name, ()):
                text = f"{req.wait_queue.label} stays in the list: who comes next waits for ever"
                return Violation(Verdict.HANG, text)
        return None

    def sequential(self, order: Sequence[int]) -> Observations | None:
        """The outcome when operations run one after another, each to its end; None: one cannot."""
        self.reset()
        for op in order:
            if not self.run_alone(op):
                return None
        return self.observations()

    def run_alone(self, op: int) -> bool:
        """Run one operation from its start to its end; whether it reached it."""
        while not self.scheduler.over[op]:
            own = [choice for choice in self.enabled() if choice[1] == op]
            if not own:
                return False
            self.take(own[0])
        return True


def edges_of(scenario: Scenario) -> list[int]:
    """Every sector at which an operation, a cluster or the disk begins or ends, in order."""
    edges = {0, scenario.size}
    for op in (*scenario.setup, *scenario.ops):
        edges |= {op.start, op.start + op.count}
    step = min(scenario.cluster, BACKUP_CLUSTER_SIZE_DEFAULT)
    edges |= set(range(0, scenario.size, step))
    return sorted(edges)
