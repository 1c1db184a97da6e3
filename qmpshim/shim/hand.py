"""The hand on a gated chain: which I/O is held, what is held, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qmpshim.conformance.real_io import VERBS, Named
from qmpshim.errors import InputError
from qmpshim.machine.gate import Gate, HeldIO
from qmpshim.shim.schedule import Schedule, say


@dataclass(frozen=True, slots=True)
class Rule:
    """Holds the I/O of a *disk* (None: any) that is an *operation* (None: any).

    :ivar metadata: qcow2's own, too
    """

    disk: str | None = None
    operation: str | None = None
    metadata: bool = False

    def __str__(self) -> str:
        words = [self.disk or "any disk", self.operation or "any I/O"]
        return " ".join([*words, "with metadata"] if self.metadata else words)

    def meets(self, io: HeldIO, data: bool) -> bool:
        """Whether *io* is to be held."""
        return (
            self.disk in (None, io.image)
            and self.operation in (None, VERBS[io.op])
            and (data or self.metadata)
        )


@dataclass(frozen=True, slots=True)
class Held:
    """One I/O that waits.

    :ivar number: what a person calls it
    :ivar named: its name in the schedule; None for qcow2's metadata
    """

    number: int
    io: HeldIO
    named: Named | None

    def __str__(self) -> str:
        io = self.io
        if self.named is None:
            return f"{io.image} {VERBS[io.op]} of metadata, {io.length} bytes at {io.offset}"
        return say(self.named)


class Hand:
    """Leads a gate by rules and by hand.

    :param schedule: takes down what happens
    :param tell: told of each I/O when it is held
    """

    def __init__(self, gate: Gate, schedule: Schedule, tell: Callable[[Held], None]) -> None:
        self.schedule = schedule
        self.rules: list[Rule] = []
        self.gate = gate
        self._tell = tell
        self._number = 0
        self._held: dict[int, Held] = {}
        self._aside = False
        gate.hold(self._arrives)

    @property
    def held(self) -> list[Held]:
        """What waits, in order of arrival."""
        waiting = {io.seq for io in self.gate.held}  # a lost connection takes its own with it
        self._held = {n: held for n, held in self._held.items() if held.io.seq in waiting}
        return list(self._held.values())

    def _arrives(self, io: HeldIO) -> bool:
        data = self.schedule.is_data(io)
        if self._aside:
            return False
        named = self.schedule.comes(io) if data else None
        if not any(rule.meets(io, data) for rule in self.rules):
            if named is not None:
                self.schedule.goes(named)
            return False
        self._number += 1
        held = self._held[self._number] = Held(self._number, io, named)
        if named is not None:
            self.schedule.held(named)
        self._tell(held)
        return True

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let everything pass, and take nothing down: the shim itself looks at the disks."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def release(self, number: int) -> Held:
        """Let one go.

        :raises InputError: there is no such number
        """
        held = self._take(number)
        if held.named is not None:
            self.schedule.goes(held.named)
        self.gate.release(held.io)
        return held

    def fail(self, number: int, errno: int) -> Held:
        """End one with an error instead.

        :raises InputError: there is no such number
        """
        held = self._take(number)
        if held.named is not None:
            self.schedule.fails(held.named, errno)
        self.gate.fail(held.io, errno)
        return held

    def _take(self, number: int) -> Held:
        held = self.held
        if number not in self._held:
            there = ", ".join(str(one.number) for one in held) or "nothing"
            raise InputError(f"{number} is not held; held: {there}")
        return self._held.pop(number)

    def let_go(self) -> None:
        """Hold nothing any more, and let go what is held."""
        self.rules.clear()
        for held in self.held:
            self.release(held.number)
