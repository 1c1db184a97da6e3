"""When are two executions at the same place: so the explorer need not go on from both.

A real QEMU does not show its state; but what it does next depends only on what it was sent, and the
order matters only where two meet. What is taken down here is no less than that:

* by operation: its I/Os that were let go, and what those that read returned; its answer;
* the precedence of operations: the unfinished ones in the order in which they started, those of
  them that wait in the order in which they began to, and which had ended before each started;
* what waits at the gate, and what it carries;
* the images: for each sector the write that was last there; where qcow2's own I/O is held, the
  order of all that was written to its tables, and where in the file each cluster is;
* what failed, and which operations had begun and ended then;
* for commands, which do things that are not held (a checkpoint empties tables and resets a bitmap):
  all of this as it was when the command began, and every step until it ended.

A test holds the outcomes against those of an exploration that knows nothing of states.
"""

from __future__ import annotations

from collections.abc import Hashable

from qmpshim.conformance.explore.harness.choices import IoId, RealChoice, Start
from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.harness.io_naming import CHANGE_NOTHING, NamedIo
from qmpshim.conformance.explore.scenarios import RealScenario


class StateOf:
    """Follows one execution of *scenario*.

    :param all_io: qcow2's own I/O is held, too
    """

    def __init__(self, scenario: RealScenario, all_io: bool = False) -> None:
        self._all_io = all_io
        self._tables: dict[str, int] = {}  # by image, all that was written to them, in order
        self._commands = {i for i, op in enumerate(scenario.ops) if scenario.changes_chain(op)}
        self._during: dict[int, list[Hashable]] = {}  # by command: where it began, and the steps
        self._size = scenario.size
        self._done: list[dict[IoId, int]] = [{} for _ in scenario.ops]
        self._content: dict[str, list[int]] = {}
        self._order: list[int] = []  # operations as they started
        self._waiting: list[int] = []  # operations as they began to wait

    def step(self, choice: RealChoice, now: History) -> None:
        """A step is about to be taken."""
        for command in self._during:
            if command not in now.over:
                self._during[command].append(choice)
        if isinstance(choice, Start):
            if choice.op in self._commands:
                self._during[choice.op] = [hash(self.fingerprint(now))]
            self._order.append(choice.op)

    def completing(self, named: NamedIo, before: bytes) -> None:
        """A request is being let go; a read will return *before*."""
        carried = hash(before if named.verb == "read" else named.io.data)
        if self._all_io:
            carried = hash((carried, named.io.offset))
        self._done[named.op][named.id] = carried
        if named.verb in CHANGE_NOTHING:
            return
        if named.meta:
            image = named.io.image
            self._tables[image] = hash((self._tables.get(image), named.id, carried))
        else:
            sectors = self._content.setdefault(named.io.image, [0] * self._size)
            mark = hash((named.id, carried))
            sectors[named.start : named.start + named.count] = [mark] * named.count

    def settled(self, now: History) -> None:
        """QEMU is still again."""
        busy = {named.op for named in now.held.values()} | now.over
        self._waiting = [op for op in self._waiting if op not in busy]
        self._waiting += [op for op in self._order if op not in busy and op not in self._waiting]

    def fingerprint(self, now: History) -> Hashable:
        """Equal for two executions at the same place."""
        return (
            frozenset(now.started),
            tuple(op for op in self._order if op not in now.over),
            tuple(self._waiting),
            tuple(now.precedence),
            tuple(now.answers),
            tuple(now.data),
            tuple(frozenset(done.items()) for done in self._done),
            frozenset(self._waits(name, named) for name, named in now.held.items()),
            tuple(hash(tuple(sectors)) for _, sectors in sorted(self._content.items())),
            tuple(sorted(self._tables.items())),
            now.faults,
            tuple(fault for _, fault in now.failed),
            tuple((command, *steps) for command, steps in self._during.items()),
        )

    def _waits(self, name: IoId, named: NamedIo) -> Hashable:
        return name, named.io.data, named.io.offset if self._all_io else None
