"""The promise, watched while a scenario runs: order, content and isolation, at every single step.

What can only be judged when all is over (results, errors, final contents) is judged by
:mod:`qmpshim.model.check.linearizability`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from qmpshim.model.answers import OK, UNANSWERED, Answer, ReportedError
from qmpshim.model.chain.secondary import Chain, Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.system import Violation
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.runtime.coroutines import Io, ModelAssertion, ModelIOError, OperationError
from qmpshim.model.runtime.instrumented import InstrumentedMemory
from qmpshim.model.scenario import Fault, Scenario


class StepChecker:
    """Lets I/Os fail as the scenario has it, and sees every I/O and every end of an operation.

    :ivar answers: by operation
    :ivar data: by operation, the owner of each piece that it read; ``None``: it read nothing
    :ivar violation: the first thing that went wrong
    :ivar failed: the I/Os that did fail, each as a fault that fits it alone
    """

    def __init__(self, scenario: Scenario, chain: Chain, cells: InstrumentedMemory) -> None:
        self.scenario = scenario
        self.chain = chain
        self.cells = cells
        self.answers: list[Answer] = [UNANSWERED] * len(scenario.ops)
        self.data: list[tuple[int, ...] | None] = [None] * len(scenario.ops)
        self.violation: Violation | None = None
        self.fits = cells.table("faults")
        self.failed: tuple[Fault, ...] = ()
        self._done: list[tuple[tuple[str | None, str, int], ...]] = [()] * len(scenario.ops)
        self._bases: list[tuple[int, ...]] = []
        # For each operation under way the base at its start.
        self._born: list[int | None] = [None] * len(scenario.ops)
        self._primaries = {
            number for number, op in enumerate(scenario.setup, 1) if op.is_primary
        } | {scenario.number(i) for i, op in enumerate(scenario.ops) if op.is_primary}
        self.new_base()

    def state(self) -> Hashable:
        """What the watch knows and a fingerprint has to know, too."""
        faults = (self.failed, tuple(self._done)) if self.scenario.faults else None
        # An operation under way may still see any base since its start; and what is wrong already
        # keeps what comes after it from being reported.
        first = min((b for b in self._born if b is not None), default=len(self._bases) - 1)
        wrong = self.violation and (self.violation.kind, self.violation.op)
        ended = tuple(self.answers), tuple(self.data)
        return ended, tuple(self._bases[first:]), tuple(self._born), faults, wrong

    def new_base(self) -> None:
        """What the secondary disk holds now is what readers see from now on."""
        cells = self.cells
        secondary = self.chain.secondary.contents
        self._bases.append(tuple(secondary.read(edge, 1)[0] for edge in cells.edges[:-1]))
        cells.write(cells.number("base", 0), len(self._bases))

    def started(self, op: int) -> None:
        """An operation starts."""
        self._born[op] = len(self._bases) - 1

    # -- Listener ----------------------------------------------------------------------------------

    def before_io(self, op: int, io: Io) -> None:
        if not self.scenario.faults:
            return
        # Where a read falls through to depends on the order of operations, so any disk's will do.
        this = (None if io.op == "read" else io.disk, io.op, io.start)
        self._done[op] = (*self._done[op], this)
        for index, fault in enumerate(self.scenario.faults):
            if (
                fault.disk in (None, io.disk)
                and fault.op in (None, io.op)
                and fault.by in (None, op)
                and (fault.sector is None or io.start <= fault.sector < io.start + io.count)
            ):
                nth = self.fits[index] = (self.fits.get(index) or 0) + 1
                if nth == fault.nth:
                    again = self._done[op].count(this)
                    exact = Fault(*this, by=op, nth=again, errno=fault.errno)
                    self.failed = (*self.failed, exact)
                    raise ModelIOError(fault.errno)

    def after_io(self, op: int, io: Io) -> None:
        if io.disk == "hidden" and io.op == "empty":
            self.new_base()
        if not self.scenario.ops[op].is_primary:
            return
        if io.disk == "secondary" and io.op in ("write", "zero", "discard"):
            self._check_order(op, io)
        elif io.disk == "hidden" and io.op in ("write", "zero"):
            self._check_copy(op, io)

    def ended(self, op: int, result: Any, error: OperationError | None) -> None:
        what = self.scenario.ops[op]
        if isinstance(error, ModelAssertion):
            self._wrong(Verdict.CRASH, f"QEMU aborts: {error}", op)
        if error is not None:
            self.answers[op] = ReportedError(str(error))
        elif what.reads:
            seen = tuple(result[edge - what.start] for edge in self._edges(what))
            self.answers[op], self.data[op] = OK, seen
            self._check_isolation(op, what, seen)
        else:
            self.answers[op] = OK
        self._born[op] = None
        if what.verb is Verb.START and self.scenario.workflow is Workflow.BACKUP:
            self.new_base()

    # -- the checks --------------------------------------------------------------------------------

    def _wrong(self, kind: Verdict, text: str, op: int, sector: int | None = None) -> None:
        if self.violation is None:
            cluster = None if sector is None else sector // max(128, self.scenario.cluster)
            self.violation = Violation(kind, text, op, cluster)

    def _edges(self, op: Operation) -> list[int]:
        pieces = self.cells.pieces(op.start, op.count)
        return self.cells.edges[pieces.start : pieces.stop]

    def _check_order(self, op: int, io: Io) -> None:
        job, hidden = self.chain.job, self.chain.hidden
        if job is None:
            return
        for cluster in hidden.clusters(io.start, io.count):
            sector = cluster * hidden.cluster
            if job.owes(sector // job.cluster_size) and cluster not in hidden.alloc:
                text = "new data reaches the secondary disk before the old is in the hidden disk"
                self._wrong(Verdict.ORDER, text, op, sector)

    def _check_copy(self, op: int, io: Io) -> None:
        cells = self.cells
        cells.read(cells.number("base", 0))
        copied = self.chain.hidden.contents
        for piece in cells.pieces(io.start, io.count):
            found, base = copied.read(cells.edges[piece], 1)[0], self._bases[-1][piece]
            if found != base:
                text = f"the copy holds {owner(found)}; at the checkpoint it was {owner(base)}"
                self._wrong(Verdict.CONTENT, text, op, cells.edges[piece])

    def _check_isolation(self, op: int, what: Operation, seen: tuple[int, ...]) -> None:
        if self.chain.job is None:
            return
        cells = self.cells
        cells.read(cells.number("base", 0))
        bases = self._bases[self._born[op] or 0 :]
        for piece, found in zip(cells.pieces(what.start, what.count), seen, strict=True):
            if abs(found) in self._primaries and all(base[piece] != found for base in bases):
                text = f"the reader sees {owner(found)}, which is not in the last checkpoint"
                self._wrong(Verdict.ISOLATION, text, op, cells.edges[piece])


def owner(number: int) -> str:
    """An owner in words."""
    if number == 0:
        return "untouched zeroes"
    return f"data {number}" if number > 0 else f"zeroes {-number}"
