"""The boot-sector guest as a workload: what it acknowledged is read off its console."""

from __future__ import annotations

from collections.abc import Iterable

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import DiskLeft, GuestReports
from qmpshim.conformance.pair.checker import PairChecker
from qmpshim.conformance.pair.console import GuestAccount
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.pair.workload import GuestWorkload
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.guest.boot_sector import BLOCK, BootGuest, ConsoleLine, console_lines
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR


class GuestLog(GuestAccount):
    """What one side's guest acknowledged, and complained of.

    :ivar written: the numbers of the writes that were acknowledged
    :ivar complaints: blocks that were not as they had been written, and writes that failed
    """

    def __init__(self, member: ColoNode) -> None:
        super().__init__(member)
        self.written: list[int] = []
        self.complaints: list[ConsoleLine] = []

    @property
    def writes(self) -> int:
        return len(self.written)

    def read(self) -> None:
        for line in console_lines(self.console.whole_lines()):
            if line.kind == "W":
                self.written.append(line.number)
            else:
                self.complaints.append(line)

    def take_over(self, other: GuestLog, at: int) -> None:
        super().take_over(other, at)
        self.written, self.complaints = [], []


class BootWorkload(GuestWorkload[GuestLog]):
    """The boot-sector guest in both machines."""

    def __init__(self, plan: PairPlan, pair: Pair, model: PairModel, checker: PairChecker) -> None:
        super().__init__(plan, pair, model, checker)
        guest = pair.spec.guest
        assert isinstance(guest, BootGuest)
        self.guest: BootGuest = guest
        self._first = 1  # the first number that the secondary's guest writes anew
        self._fed = 0  # how many of its writes the model has

    def account_of(self, member: ColoNode) -> GuestLog:
        return GuestLog(member)

    def taken_over(self) -> None:
        super().taken_over()
        last = max(self.here.written, default=0)
        # A write can be on the disks before its guest has the answer: then it is not written again.
        done = last + 1 if self._on_disk(self.model.disk, last + 1) else last
        self._first = done + 1
        self._fed = 0

    async def write_both(self, count: int) -> None:
        await self.write(self.pair.primary, count)

    def update_model(self) -> None:
        # And the next write, if it is there: it was under way when the guest stopped.
        self.there.read()
        written = [number for number in self.there.written if number >= self._first]
        following = written[-1] + 1 if written else self._first
        for number in written[self._fed :]:
            self._wrote(number)
        self._fed = len(written)
        if self._reached(following):
            self._wrote(following)
            self._fed += 1  # when it is acknowledged it is not counted again

    def _wrote(self, number: int) -> None:
        self.model.guest_wrote(self.guest.place(number) * SECTOR, self.guest.block(number))

    def _reached(self, number: int) -> bool:
        """Whether write *number* of the secondary's guest is where it goes to."""
        secondary = self.pair.secondary
        if self.model.overlaid:
            return self._on_disk(secondary.disk.read_bytes(), number)
        return self.checker.holds(
            secondary.image("active"), self.guest.place(number) * SECTOR, self.guest.block(number)
        )

    def _on_disk(self, disk: bytes | bytearray, number: int) -> bool:
        """Whether a disk holds what write *number* writes."""
        at = self.guest.place(number) * SECTOR
        return disk[at : at + BLOCK] == self.guest.block(number)

    def complaints(self) -> Iterable[Divergence]:
        for log in self._accounts.values():
            log.read()
            for line in log.complaints:
                wrong = line.kind == "E"
                yield self.checker.divergence(
                    Verdict.CONTENT if wrong else Verdict.ERROR_CONTRACT,
                    f"guest of the {log.member.name}",
                    f"write {line.number} reads back as written" if wrong else "writes succeed",
                    "it read something else" if wrong else f"write {line.number} failed",
                    GuestReports(self.pair.role(log.member)),
                )

    @property
    def at_checkpoint(self) -> int:
        return self._first - 1

    def acknowledged(self, member: ColoNode, promised: int) -> Iterable[Divergence]:
        log = self._accounts[member.name]
        log.read()
        last = max([promised, *log.written])
        disk = member.disk.read_bytes()
        if self._on_disk(disk, last + 1):
            last += 1
        newest = {self.guest.place(number): number for number in range(1, last + 1)}
        lost = [number for number in newest.values() if not self._on_disk(disk, number)]
        self.checker.compared += len(newest) * BLOCK
        if lost:
            yield self.checker.divergence(
                Verdict.LOST_WRITE,
                f"acknowledged writes on the disk of the {member.name}",
                f"write {lost[0]} of {last}, promised up to {promised}",
                f"{len(lost)} of {len(newest)} blocks are not as they were acknowledged",
                DiskLeft(self.pair.role(member)),
            )
