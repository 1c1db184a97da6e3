"""The deterministic scheduler: tasks, what each waits for, and one step at a time (run 2).

A step starts an operation or performs one I/O, then runs coroutines until each of them waits for an
I/O or in a queue.  Coroutines that are woken run within the step, in the order in which QEMU enters
them: first in, first out, and one woken by a woken one comes before the rest
(``qemu_aio_coroutine_enter``, util/qemu-coroutine.c, QEMU 7.2).  With *late_wakes* a wake-up is a
step of its own, as it is when the coroutines belong to different threads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from qmpshim.model.explore.system import Choice, Footprint
from qmpshim.model.runtime.coroutines import (
    OWN,
    Co,
    CoQueue,
    Io,
    ModelIOError,
    OperationError,
    Spawn,
)
from qmpshim.model.runtime.instrumented import InstrumentedMemory


class Task:
    """One coroutine of one operation.

    :ivar name: which of its operation's coroutines: 0 for the first, then in order of spawning
    :ivar io: the I/O it waits for
    :ivar queue: the queue it sleeps in
    :ivar woken: it was woken and has not gone on yet
    :ivar past: a number for all it has seen so far that still counts; equal numbers, equal past
    """

    __slots__ = ("co", "done", "io", "ios", "name", "op", "past", "queue", "wakes", "woken")

    def __init__(self, op: int, name: int, co: Co[Any]) -> None:
        self.op = op
        self.name = name
        self.co = co
        self.io: Io | None = None
        self.ios = 0
        self.queue: CoQueue | None = None
        self.woken = False
        self.wakes = 0
        self.past = [0]
        self.done = False

    @property
    def choice(self) -> Choice:
        """The step with which this task goes on."""
        kind, nth = ("io", self.ios) if self.io is not None else ("wake", self.wakes)
        return (kind, self.op, f"{self.name}.{nth}" if self.name else nth)


class StepObserver(Protocol):
    """The callbacks for what happens in a step."""

    def before_io(self, op: int, io: Io) -> None:
        """An I/O is about to be performed; raise ModelIOError to let it fail."""

    def after_io(self, op: int, io: Io) -> None:
        """An I/O was performed."""

    def ended(self, op: int, result: Any, error: OperationError | None) -> None:
        """An operation returned or raised."""


class Scheduler:
    """Runs operations against each other, one chosen step at a time.

    :param ops: makes each operation's coroutine when it starts
    :param after: the operation that has to end before each may start, or ``None``
    :param heeds: the operations whose end before its start each has to take note of
    """

    def __init__(
        self,
        ops: Sequence[Callable[[], Co[Any]]],
        after: Sequence[int | None],
        heeds: Sequence[Sequence[int]],
        cells: InstrumentedMemory,
        listener: StepObserver,
        late_wakes: bool = False,
    ) -> None:
        self.ops = ops
        self.after = after
        self.heeds = heeds
        self.cells = cells
        self.listener = listener
        self.late_wakes = late_wakes
        self.tasks: list[list[Task]] = []
        self._pasts: dict[Hashable, int] = {}

    def reset(self) -> None:
        """Nothing has started."""
        self.close()
        self.tasks = [[] for _ in self.ops]
        self.over = [False] * len(self.ops)
        self._woken: list[Task] = []
        self._sleepers: dict[CoQueue, list[tuple[int, int]]] = {}

    def close(self) -> None:
        """End the coroutines that are left, now: what they clean up belongs to this execution."""
        for tasks in self.tasks:
            for task in tasks:
                if not task.done:
                    task.co.close()

    # -- what can be done ------------------------------------------------------------------------

    def enabled(self) -> list[Choice]:
        """The steps there are, in the order of operations."""
        choices: list[Choice] = []
        for op, tasks in enumerate(self.tasks):
            if tasks:  # some may go on when the operation has returned already
                choices += [t.choice for t in tasks if t.io is not None or t.woken]
            elif self.after[op] is None or self.over[self.after[op] or 0]:
                choices.append(("start", op))
        return choices

    def movers(self, op: int) -> list[Choice] | None:
        """Steps without one of which *op* does not go on; ``None`` if that is not known."""
        found: list[Choice] = []
        todo, seen = [op], {op}
        while todo:
            op = todo.pop()
            if not self.tasks[op]:
                before = self.after[op]
                if before is None or self.over[before]:
                    found.append(("start", op))
                elif before not in seen:
                    seen.add(before)
                    todo.append(before)
            for task in self.tasks[op]:
                if task.io is not None or task.woken:
                    found.append(task.choice)
                elif task.queue is not None:
                    owner = task.queue.owner
                    if callable(owner):
                        owner = owner()
                    if owner is None:
                        return None
                    if owner != OWN and owner not in seen:
                        seen.add(owner)
                        todo.append(owner)
        return found

    def pending(self, choice: Choice) -> Io | None:
        """The I/O that an enabled *choice* would perform."""
        op = choice[1]
        assert isinstance(op, int)
        return None if choice[0] == "start" else self._find(op, choice).io

    def sleepers(self) -> list[Task]:
        """The tasks that sleep in a queue."""
        return [t for tasks in self.tasks for t in tasks if t.queue is not None and not t.done]

    def state(self) -> Hashable:
        """Where every operation stands; with the cells' values, all there is to know."""
        return tuple(
            tuple(
                (t.name, t.past[0], t.ios, t.wakes, t.woken)
                for t in tasks
                if not t.done or not over
            )
            if tasks
            else None
            for over, tasks in zip(self.over, self.tasks, strict=True)
        )

    # -- doing it --------------------------------------------------------------------------------

    def take(self, choice: Choice) -> Footprint:
        """Take a step."""
        cells = self.cells
        cells.reads = cells.writes = 0
        cells.seen.clear()
        op = choice[1]
        assert isinstance(op, int)
        if choice[0] == "start":
            task = Task(op, 0, self.ops[op]())
            self.tasks[op].append(task)
            for other in self.heeds[op]:
                cells.reads |= 1 << cells.number("ended", other)
            self._enter(task, None)
        else:
            task = self._find(op, choice)
            if task.io is None:
                task.woken = False
                self._enter(task, None)
            else:
                self._perform(task, task.io)
        return Footprint(cells.reads, cells.writes)

    def _find(self, op: int, choice: Choice) -> Task:
        for task in self.tasks[op]:
            if (task.io is not None or task.woken) and task.choice == choice:
                return task
        raise KeyError(choice)

    def _perform(self, task: Task, io: Io) -> None:
        task.io = None
        task.ios += 1
        cells = self.cells
        cells.task = task.op
        try:
            self.listener.before_io(task.op, io)
            result = io.perform()
        except ModelIOError as error:
            cells.seen.append(error.errno)
            self._enter(task, error)
        else:
            self.listener.after_io(task.op, io)
            self._enter(task, result)

    def _enter(self, task: Task, value: Any) -> None:
        """Run *task* until it waits or ends, then those it woke."""
        outer, self._woken = self._woken, []
        self._run(task, value)
        woken, self._woken = self._woken, outer
        if not self.late_wakes:
            for other in woken:
                other.woken = False
                self._enter(other, None)

    def _run(self, task: Task, value: Any) -> None:
        cells = self.cells
        cells.task, cells.past = task.op, task.past
        try:
            event = task.co.throw(value) if isinstance(value, Exception) else task.co.send(value)
            while isinstance(event, Spawn):
                self._remember(task)
                child = Task(task.op, len(self.tasks[task.op]), event.co)
                self.tasks[task.op].append(child)
                self._enter(child, None)
                cells.task, cells.past = task.op, task.past
                event = task.co.send(None)
            if isinstance(event, Io):
                task.io = event
            else:
                self._sleep(task, event.queue)
        except StopIteration as stop:
            self._end(task, stop.value, None)
        except OperationError as error:
            self._end(task, None, error)
        self._remember(task)

    def _remember(self, task: Task) -> None:
        seen = (task.past[0], tuple(self.cells.seen))
        task.past[0] = self._pasts.setdefault(seen, len(self._pasts) + 1)
        self.cells.seen.clear()

    def _sleep(self, task: Task, queue: CoQueue) -> None:
        task.queue = queue
        sleepers = self._sleepers.setdefault(queue, [])
        sleepers.append((task.op, task.name))
        self.cells.queued(queue, tuple(sleepers))

        def wake() -> None:
            task.queue = None
            task.woken = True
            task.wakes += self.late_wakes  # otherwise a wake-up needs no name
            if self._sleepers.pop(queue, None):
                self.cells.queued(queue, None)
            self._woken.append(task)

        queue.waiters.append(wake)

    def _end(self, task: Task, result: Any, error: OperationError | None) -> None:
        task.done = True
        if task.name == 0:
            self.over[task.op] = True
            self.cells.write(self.cells.number("ended", task.op), True)
            self.listener.ended(task.op, result, error)
