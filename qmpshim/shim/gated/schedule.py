"""Records the commands on a gated chain as an explorer's schedule, so that it can be replayed.

Operations come one after another; from the first that overlaps with another, or has an I/O held, on
they are the concurrent ones of a :class:`~qmpshim.conformance.explore.scenarios.RealScenario`. What
is before is its setup. An I/O that was not held is a step of its own the moment it came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qmpshim.conformance.explore.harness.choices import Complete, Fail, IoId, RealChoice, Start
from qmpshim.conformance.explore.harness.events import (
    Arrived,
    Completed,
    Ended,
    Event,
    Failed,
    Note,
    Started,
    What,
)
from qmpshim.conformance.explore.harness.io_naming import IoNames, NamedIo
from qmpshim.conformance.explore.scenarios import BASE, RealScenario
from qmpshim.errors import InputError
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.model.answers import UNANSWERED, Answer
from qmpshim.model.operations import Operation, Verb, operation

MOST = 6  # concurrent operations: their every order is tried when the end is judged


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the record: an operation's start or end, or an I/O's coming, going or failing."""

    what: What
    op: int
    named: NamedIo | None = None
    answer: Answer = UNANSWERED
    errno: int = 0


class Schedule:
    """Takes down what happens.

    :param size: of the disks, in sectors
    :param cluster: of the overlays, in sectors
    """

    def __init__(self, form: str, size: int, cluster: int) -> None:
        self._form = form
        self._size = size
        self._cluster = cluster
        self._ops: list[Operation] = []
        self._names = IoNames(self._ops, ())
        self._lines: list[_Line] = []
        self._running: list[int] = []
        self._mover = 0
        self._first: int | None = None  # operation from which on they are concurrent

    @property
    def next_number(self) -> int:
        """The number under which the next operation should write."""
        return BASE + 1 + len(self._ops)

    @property
    def in_flight(self) -> list[str]:
        """The operations under way, in words."""
        return [str(self._ops[index]) for index in self._running]

    def forget(self) -> None:
        """What was done so far was the chain's beginning."""
        self._ops.clear()
        self._lines.clear()

    # -- what happens ------------------------------------------------------------

    def begins(self, do: str, start: int = 0, count: int = 0) -> int:
        """An operation begins; positions in sectors. Gives its index, for :meth:`ends`."""
        index = len(self._ops)
        self._ops.append(operation(do, start, count))
        self._names.joined(BASE + 1 + index)
        if self._running:
            self._concurrent(min(self._running))
        self._running.append(index)
        self._mover = index
        self._set_flushing()
        self._lines.append(_Line(What.START, index))
        return index

    def ends(self, index: int, answer: Answer) -> None:
        """An operation was answered."""
        self._running.remove(index)
        self._set_flushing()
        self._lines.append(_Line(What.ENDS, index, answer=answer))

    def is_data(self, io: HeldIO) -> bool:
        """Whether an I/O is about data, and so a step; qcow2's metadata is none."""
        return self._names.holds(io)

    def comes(self, io: HeldIO) -> NamedIo:
        """An I/O about data has come; gives its name."""
        named = self._names.name(io, self._mover, self._running)
        self._lines.append(_Line(What.ARRIVES, named.op, named))
        return named

    def held(self, named: NamedIo) -> None:
        """It is held."""
        self._concurrent(named.op)

    def goes(self, named: NamedIo) -> None:
        """It is let go."""
        self._mover = named.op
        self._lines.append(_Line(What.COMPLETE, named.op, named))

    def fails(self, named: NamedIo, errno: int) -> None:
        """It is ended with an error."""
        self._mover = named.op
        self._lines.append(_Line(What.FAIL, named.op, named, errno=errno))

    def _concurrent(self, index: int) -> None:
        self._first = index if self._first is None else min(self._first, index)

    def _set_flushing(self) -> None:
        self._names.flushing = any(self._ops[i].makes_durable for i in self._running)

    # -- events to record --------------------------------------------------------

    @property
    def _setup(self) -> int:
        """How many operations are over before the concurrent ones begin."""
        return max(0, len(self._ops) - 1) if self._first is None else self._first

    def events(self) -> Iterator[Event]:
        """What happened, as the explorer notes it; the setup's operations come first."""
        setup = self._setup
        for done in self._ops[:setup]:
            yield Note(f"before: {done}")
        for line in self._lines:
            if line.op < setup:
                continue
            if line.named is not None:
                io = _shifted(line.named, setup)
                match line.what:
                    case What.FAIL:
                        yield Failed(io, line.errno)
                    case What.COMPLETE:
                        yield Completed(io)
                    case _:
                        yield Arrived(io)
            elif line.what is What.START:
                yield Started(line.op - setup, self._ops[line.op])
            else:
                yield Ended(line.op - setup, line.answer)

    def case(self, dead: bool = False) -> tuple[RealScenario, tuple[RealChoice, ...]]:
        """The scenario and the schedule that was taken.

        :param dead: QEMU did not survive it, so that something may be in flight for ever
        :raises InputError: something is in flight, or was done that the explorer has no word for
        """
        setup = self._setup
        before, ops = tuple(self._ops[:setup]), tuple(self._ops[setup:])
        if self._running and not dead:
            raise InputError(f"{', '.join(self.in_flight)} still in flight: release what is held")
        if not ops:
            raise InputError("nothing was done so far")
        if len(ops) > MOST:
            raise InputError(
                f"{len(ops)} operations since the first I/O was held: at most {MOST} can be judged"
            )
        for op in self._ops:
            if op.disconnects or (op.is_guest and op.verb is Verb.ZERO):
                raise InputError(f"the explorer knows no {op}")
        commands = {op.verb for op in ops if op.reconfigures}
        data = [op for op in ops if op.is_request]
        guest_only = all(op.is_guest for op in data)
        contract = not commands or not data or (commands == {Verb.FAILOVER} and guest_only)
        scenario = RealScenario(
            "by-hand", ops, before, self._form, self._size, self._cluster, contract
        )
        return scenario, tuple(self._choices(setup))

    def _choices(self, setup: int) -> Iterator[RealChoice]:
        for line in self._lines:
            if line.op < setup or not line.what.is_step:
                continue
            if line.named is None:
                yield Start(line.op - setup)
                continue
            io = _shifted(line.named, setup)
            yield Fail(io, line.errno) if line.what is What.FAIL else Complete(io)


def _shifted(named: NamedIo, setup: int) -> IoId:
    """What an I/O is called, with *setup* operations before the first concurrent one."""
    return named.id._replace(op=named.op - setup)


def describe(named: NamedIo) -> str:
    """``hidden write 0+128 (of 0)``."""
    return str(Arrived(named.id)).strip()
