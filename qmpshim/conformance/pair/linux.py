"""The Linux guest as a pair's workload.

The secondary's guest is observed, not predicted: a ``blklogwrites`` node above its replication
filter has what it wrote, for the model. What either guest read, and that nothing acknowledged is
lost, is checked against the lines that the guest's own program printed; what it does follows from
its seed, so a line must be of the very operation that is due.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import DiskLeft, GuestReports
from qmpshim.conformance.guest.program import (
    GuestMisreported,
    ProgramReport,
    random_operations,
    read_lines,
)
from qmpshim.conformance.pair.checker import PairChecker
from qmpshim.conformance.pair.console import GuestAccount
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.pair.workload import GuestWorkload
from qmpshim.conformance.workload.pattern import describe_owner, expected, mismatches
from qmpshim.errors import errno_words
from qmpshim.machine.colo.linux_guest import LinuxGuest
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.images.write_log import LogEntry, WriteLog
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import owned
from qmpshim.model.operations import Operation, Verb
from qmpshim.model.units import SECTOR

Ints = npt.NDArray[np.int64]

_PANIC = b"Kernel panic - not syncing"
_BOOT_LIMIT = 240.0  # seconds
_PIECE = 4096  # sectors whose expected bytes are made at once


class _Program:
    """The operations that the guest's program does, one after the other, for ever."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._coming = random_operations(guest.seed, sys.maxsize, 1, guest.sectors)
        self._known: list[Operation] = []

    def operation(self, number: int) -> Operation:
        """Operation *number*, from 1 on."""
        self._known += itertools.islice(self._coming, max(0, number - len(self._known)))
        return self._known[number - 1]


class _Account(GuestAccount):
    """What one side's program reported, and what its disk must hold by that.

    :ivar last: the number of the last operation that it reported
    :ivar inherited: the same when it took over the other's state; 0: it never did
    :ivar owners: by sector, the writer of it; negative where that was a zeroing
    :ivar wrong: the first thing that was otherwise: verdict, predicted, observed
    """

    def __init__(self, member: ColoNode, program: _Program, sectors: int) -> None:
        super().__init__(member)
        self.last = self.inherited = self._writes = 0
        self.owners: Ints = np.zeros(sectors, dtype=np.int64)
        self.wrong: tuple[Verdict, str, str] | None = None
        self._program = program

    @property
    def writes(self) -> int:
        return self._writes

    def read(self) -> None:
        try:
            for report in read_lines(self.console.whole_lines().decode(errors="replace")):
                self._take(report)
        except GuestMisreported as error:
            self._differs(Verdict.PROTOCOL, self._program.operation(self.last + 1), str(error))

    def take_over(self, other: _Account, at: int) -> None:
        super().take_over(other, at)
        self.last = self.inherited = other.last
        self._writes, self.owners, self.wrong = other.writes, other.owners.copy(), other.wrong

    def state(self) -> str:
        return "had its kernel panic" if _PANIC in self.console.text() else super().state()

    def following(self) -> Operation:
        """The operation after the last that was reported: it may be under way."""
        return self._program.operation(self.last + 1)

    def _take(self, report: ProgramReport) -> None:
        due, operation = self.following(), report.operation
        self.last = operation.number
        self._writes += operation.verb is Verb.WRITE
        if operation != due:
            self._differs(Verdict.PROTOCOL, due, f"it told of {operation}")
        elif report.errno:
            self._differs(Verdict.ERROR_CONTRACT, due, f"it was told {errno_words(report.errno)}")
        elif operation.verb is Verb.READ:
            owners = _array(self.owners[operation.start : operation.start + operation.count])
            if wrong := mismatches(report.data, owners, operation.start):
                self._differs(Verdict.CONTENT, due, f"it read {wrong[0].found}", str(wrong[0]))
        elif operation.verb is not Verb.FLUSH:
            number = operation.number if operation.verb is Verb.WRITE else -operation.number
            self.owners[operation.start : operation.start + operation.count] = number

    def _differs(
        self, verdict: Verdict, due: Operation, observed: str, predicted: str = ""
    ) -> None:
        if self.wrong is None:
            self.wrong = verdict, predicted or f"operation {due} succeeds", observed


class LinuxWorkload(GuestWorkload[_Account]):
    """The guest's program in both machines."""

    def __init__(self, plan: PairPlan, pair: Pair, model: PairModel, checker: PairChecker) -> None:
        super().__init__(plan, pair, model, checker)
        guest = pair.spec.guest
        assert isinstance(guest, LinuxGuest)
        self.guest = guest
        self._program = _Program(guest)
        self._terminal: asyncio.Task[None] | None = None
        self._last: LogEntry | None = None  # of the secondary's write log, that the model has
        #: The last before the guest was stopped to be replaced.
        self._stopped: LogEntry | None = None
        self._begun = False

    def account_of(self, member: ColoNode) -> _Account:
        return _Account(member, self._program, self.guest.sectors)

    async def join(self) -> None:
        await super().join()
        self._last = self._stopped = None

    async def prepare(self) -> None:
        if self.guest.booting or self._begun:
            return
        primary = self.pair.primary
        await primary.qemu.execute("cont")
        await self.guest.prompt(primary.console, _BOOT_LIMIT)

    def _entries(self) -> list[LogEntry]:
        """What the secondary's guest has written and the model does not have."""
        log = WriteLog(self.pair.secondary.image("logged").read_bytes())
        return list(log.entries(after=self._last, live=True))

    def secondary_stopped(self) -> None:
        super().secondary_stopped()
        # Whether it is replaced is not sure yet: the primary may die now.
        self._stopped = self._last
        for entry in self._entries():
            self._stopped = entry

    def taken_over(self) -> None:
        self._last = self._stopped  # a state that was given up wrote what came before
        super().taken_over()

    async def write(self, member: ColoNode, count: int, seconds: float = 0.0) -> None:
        if not self._begun:
            self._begun = True
            console_file = self.pair.primary.console
            await self.guest.prompt(console_file, _BOOT_LIMIT)
            self._terminal = await self.guest.begin(console_file)
        await super().write(member, count, seconds)

    async def write_both(self, count: int) -> None:
        await self.write(self.pair.primary, count)
        if self.there.inherited:
            await self.write(self.pair.secondary, 1)

    def update_model(self) -> None:
        for entry in self._entries():
            if entry.is_write:
                self.model.guest_wrote(entry.offset, bytes(entry.data))
            self._last = entry

    def complaints(self) -> Iterable[Divergence]:
        for account in self._accounts.values():
            account.read()
            if account.wrong is not None:
                verdict, predicted, observed = account.wrong
                where = f"guest of the {account.member.name}"
                evidence = GuestReports(self.pair.role(account.member))
                yield self.checker.divergence(verdict, where, predicted, observed, evidence)

    def acknowledged(self, member: ColoNode, promised: int) -> Iterable[Divergence]:
        yield from self.complaints()
        account = self._accounts[member.name]
        owners, last, following = account.owners, account.last, account.following()
        disk = member.disk.read_bytes()[: self.guest.end]
        self.checker.compared += len(disk)
        have = np.frombuffer(disk, dtype=np.uint64).reshape(-1, SECTOR // 8)
        good = np.concatenate(
            [
                (have[at : at + _PIECE] == expected(_array(owners[at : at + _PIECE]), at)).all(1)
                for at in range(0, len(owners), _PIECE)
            ]
        )
        if following.verb in (Verb.WRITE, Verb.ZERO):  # done, or not, or a part of it
            owner = following.number if following.verb is Verb.WRITE else -following.number
            span = slice(following.start, following.start + following.count)
            done = expected(owned(owner, following.count), following.start)
            good[span] |= (have[span] == done).all(1)
        if not good.all():
            lost = np.flatnonzero(~good)
            yield self.checker.divergence(
                Verdict.LOST_WRITE,
                f"acknowledged writes on the disk of the {member.name}",
                f"{describe_owner(int(owners[lost[0]]))} in sector {lost[0]}, "
                f"after operation {last}",
                f"{len(lost)} sectors are not as they were acknowledged",
                DiskLeft(self.pair.role(member)),
            )

    def close(self) -> None:
        if self._terminal is not None:
            self._terminal.cancel()


def _array(owners: Ints) -> array[int]:
    made: array[int] = array("q")
    made.frombytes(owners.astype(np.int64).tobytes())
    return made
