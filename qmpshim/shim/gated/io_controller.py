"""The I/O controller of a gated chain: which I/O is held, and how it ends.

As in the explorer one step is taken at a time: an I/O that no rule holds is let go, too, only when
QEMU is quiescent, so that a recorded schedule can be replayed in the same order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qmpshim.conformance.explore.harness.io_naming import VERBS, NamedIo
from qmpshim.errors import InputError
from qmpshim.machine.chain.quiescence import Quiescence
from qmpshim.machine.nbd.gate.events import HeldIO
from qmpshim.machine.nbd.gate.gate import Gate
from qmpshim.shim.gated.schedule import Schedule, describe

_NAP = 0.0005  # seconds between two looks whether QEMU is still
_MOST_NAPS = 2000  # then it counts as still, or it would never be our turn
_ROUNDS = 5  # of the event loop, until what QEMU sent has been seen by all it concerns


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
    named: NamedIo | None

    def __str__(self) -> str:
        io = self.io
        if self.named is None:
            return f"{io.image} {VERBS[io.op]} of metadata, {io.length} bytes at {io.offset}"
        return describe(self.named)


class IoController:
    """Controls a gate by rules and by single commands.

    :param pid: QEMU's
    :param schedule: takes down what happens
    :param on_held: called with each I/O when it is held
    :ivar failed: an I/O was ended with an error
    """

    def __init__(
        self, gate: Gate, pid: int, schedule: Schedule, on_held: Callable[[Held], None]
    ) -> None:
        self.failed = False
        self.gate = gate
        self.schedule = schedule
        self.rules: list[Rule] = []
        self._on_held = on_held
        self._quiescence = Quiescence(pid)
        self._number = 0
        self._new: deque[tuple[HeldIO, bool]] = deque()  # came, and whether it is about data
        self._held: dict[int, Held] = {}
        self._decided: deque[tuple[int, int]] = deque()  # number and errno of what may end
        self._passing: deque[Held] = deque()  # no rule holds it
        self._aside = False
        self._wake = asyncio.Event()
        self._task = asyncio.ensure_future(self._lead())
        gate.hold(self._arrives)

    @property
    def held(self) -> list[Held]:
        """What waits for a decision, in order of arrival."""
        waiting = {io.seq for io in self.gate.held}  # a lost connection takes its own with it
        self._held = {n: held for n, held in self._held.items() if held.io.seq in waiting}
        decided = {number for number, _ in self._decided}
        return [held for number, held in self._held.items() if number not in decided]

    def _arrives(self, io: HeldIO) -> bool:
        data = self.schedule.is_data(io)
        if self._aside or not (data or any(rule.meets(io, data) for rule in self.rules)):
            return False
        self._new.append((io, data))
        self._wake.set()
        return True

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let everything pass, and take nothing down: the shim itself looks at the disks."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    # -- step by step ------------------------------------------------------------

    async def _lead(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._still()
            self._look()
            if self._step():
                self._wake.set()

    async def _still(self) -> None:
        """Wait until QEMU has done all it can do before the next step."""
        for _ in range(_MOST_NAPS):
            clock = self.gate.clock
            asleep = self._quiescence.asleep() if self._quiescence.known else True
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
            if asleep and self.gate.clock == clock:
                return
            await asyncio.sleep(_NAP)

    def _look(self) -> None:
        """Give what has come its name, and hold it or not."""
        while self._new:
            io, data = self._new.popleft()
            named = self.schedule.comes(io) if data else None
            if not any(rule.meets(io, data) for rule in self.rules):
                self._passing.append(Held(0, io, named))
                continue
            self._number += 1
            held = self._held[self._number] = Held(self._number, io, named)
            if named is not None:
                self.schedule.held(named)
            self._on_held(held)

    def _step(self) -> bool:
        """Let one I/O go, decided ones first; False: there is none."""
        there = {io.seq for io in self.gate.held}
        while self._decided:
            number, errno = self._decided.popleft()
            held = self._held.pop(number, None)
            if held is not None and held.io.seq in there:
                self._end(held, errno)
                return True
        while self._passing:
            held = self._passing.popleft()
            if held.io.seq in there:
                self._end(held, 0)
                return True
        return False

    def _end(self, held: Held, errno: int) -> None:
        if errno:
            self.failed = True
            if held.named is not None:
                self.schedule.fails(held.named, errno)
            self.gate.fail(held.io, errno)
            return
        if held.named is not None:
            self.schedule.goes(held.named)
        self.gate.release(held.io)

    # -- decisions ------------------------------------------------------------

    def release(self, number: int, errno: int = 0) -> None:
        """Let one go, as soon as QEMU is still; with *errno*: as failed.

        :raises InputError: there is no such number
        """
        held = [one.number for one in self.held]
        if number not in held:
            there = ", ".join(map(str, held)) or "nothing"
            raise InputError(f"{number} is not held; held: {there}")
        self._decided.append((number, errno))
        self._wake.set()

    def let_go(self) -> None:
        """Hold nothing any more, and let go what is held."""
        self.rules.clear()
        for held in self.held:
            self.release(held.number)

    async def close(self) -> None:
        """Remove all rules: everything passes."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._quiescence.close()
        self.gate.open()
        self.gate.release_all()
