"""The Linux guest as a pair's workload.

The secondary's guest is observed, not predicted: a ``blklogwrites`` node above its replication
filter tells the model what it wrote. What either guest read, and that nothing acknowledged is lost,
is checked against the lines that the guest's own program printed.
"""

from __future__ import annotations

import asyncio
import re
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.pair.judge import PairJudge
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.pair.workload import Stuck, Workload
from qmpshim.conformance.pattern import expected
from qmpshim.machine.blklog import BlkLog, Entry
from qmpshim.machine.linux_guest import LinuxGuest
from qmpshim.machine.pair import Pair
from qmpshim.machine.pair_member import Member
from qmpshim.machine.secondary import SECTOR
from qmpshim.model.disk import owned
from qmpshim.model.verdict import Verdict

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LINE = re.compile(
    rb"(?m)^(?:\[ready\] guest# )?(\d+) (write|zero|read|flush) (\d+) (\d+) (\S+)\r?\n"
)
_PANIC = b"Kernel panic - not syncing"
_RUN = re.compile(rb"(\d+)x(\d+)")
_BOOT_LIMIT = 240.0  # seconds


class _Told(NamedTuple):
    """A line of the guest's program."""

    number: int
    kind: bytes
    start: int
    sectors: int
    answer: bytes


@dataclass(slots=True)
class _Console:
    """One guest's words: what the other had said when its state was taken over, and its own."""

    member: Member
    before: bytes = b""
    since: int = 0

    def text(self) -> bytes:
        return self.before + self.member.said(self.since)

    def state(self) -> str:
        """What to say of a guest that does not go on."""
        return "had its kernel panic" if _PANIC in self.text() else "stands still"

    def lines(self) -> Iterator[_Told]:
        for number, kind, start, count, answer in _LINE.findall(self.text()):
            yield _Told(int(number), kind, int(start), int(count), answer)


class LinuxWorkload(Workload):
    """The guest's program in both machines."""

    def __init__(self, plan: PairPlan, pair: Pair, model: PairModel, judge: PairJudge) -> None:
        super().__init__(plan, pair, model, judge)
        guest = pair.spec.guest
        assert isinstance(guest, LinuxGuest)
        self.guest = guest
        self._consoles: dict[str, _Console] = {}
        self._terminal: asyncio.Task[None] | None = None
        self._last: Entry | None = None  # of the secondary's write log, that the model was told
        self._cut = 0
        self._begun = False

    async def join(self) -> None:
        for member in self.pair.members:
            self._consoles.setdefault(member.name, _Console(member))
        self._last, self._cut = None, 0

    async def prepare(self) -> None:
        if self.guest.booting or self._begun:
            return
        primary = self.pair.primary
        await primary.qemu.execute("cont")
        await self.guest.prompt(primary.console, _BOOT_LIMIT)

    def _entries(self) -> list[Entry]:
        """What the secondary's guest has written and the model was not told."""
        log = BlkLog(self.pair.secondary.log.read_bytes())
        return list(log.entries(after=self._last, live=True))

    def secondary_stopped(self) -> None:
        self._cut = len(self.pair.secondary.said())
        for entry in self._entries():
            self._last = entry

    def taken_over(self) -> None:
        there = self._consoles[self.pair.secondary.name]
        there.before = self._consoles[self.pair.primary.name].text()
        there.since = self._cut

    async def write(self, member: Member, count: int, seconds: float = 0.0) -> None:
        if not self._begun:
            self._begun = True
            console_file = self.pair.primary.console
            await self.guest.prompt(console_file, _BOOT_LIMIT)
            self._terminal = await self.guest.begin(console_file)
        console = self._consoles[member.name]
        target = _written(console) + count
        deadline = time.monotonic() + max(seconds, self.plan.limit)
        while _written(console) < target:
            if time.monotonic() > deadline or not member.qemu.alive():
                raise Stuck(
                    f"guest of the {member.name}",
                    f"{count} more writes ({target} in all)",
                    f"the guest of the {member.name} {console.state()}",
                )
            await asyncio.sleep(0.02)

    async def write_both(self, count: int) -> None:
        await self.write(self.pair.primary, count)
        if _LINE.search(self._consoles[self.pair.secondary.name].before):  # it has taken over
            await self.write(self.pair.secondary, 1)

    def tell_model(self) -> None:
        for entry in self._entries():
            if entry.is_write:
                self.model.guest_wrote(entry.offset, bytes(entry.data))
            self._last = entry

    def complaints(self) -> Iterable[Divergence]:
        for console in self._consoles.values():
            yield from self._replay(console)[1]

    def _replay(self, console: _Console) -> tuple[Ints, list[Divergence], int]:
        """Who owns each sector by the guest's words, and where it was told otherwise."""
        owners = np.zeros(self.guest.sectors, dtype=np.int64)
        wrong: list[Divergence] = []
        last = 0
        for line in console.lines():
            last, span = line.number, slice(line.start, line.start + line.sectors)
            if line.kind == b"read":
                told = [
                    np.full(int(count), int(owner)) for owner, count in _RUN.findall(line.answer)
                ]
                found = np.concatenate(told) if told else np.zeros(0, dtype=np.int64)
                if not np.array_equal(found, np.maximum(owners[span], 0)):
                    wrong.append(
                        self._divergence(
                            Verdict.CONTENT, console, line, "reads what was written last"
                        )
                    )
            elif line.answer != b"ok":
                wrong.append(self._divergence(Verdict.ERROR_CONTRACT, console, line, "succeeds"))
            elif line.kind != b"flush":
                owners[span] = line.number if line.kind == b"write" else -line.number
        return owners, wrong[:1], last

    def _divergence(
        self, verdict: Verdict, console: _Console, line: _Told, predicted: str
    ) -> Divergence:
        what = f"operation {line.number} ({line.kind.decode()} {line.start}+{line.sectors})"
        return Divergence(
            verdict,
            f"guest of the {console.member.name}",
            self.model.checkpoints,
            f"{what} {predicted}",
            f"it was told {line.answer.decode()[:80]}",
        )

    async def promoted(self) -> None:
        """Nothing: the guest goes on by itself."""

    def acknowledged(self, member: Member, promised: int) -> Iterable[Divergence]:
        owners, wrong, last = self._replay(self._consoles[member.name])
        yield from wrong
        disk = member.disk.read_bytes()[: self.guest.end]
        have = np.frombuffer(disk, dtype=np.uint64).reshape(-1, SECTOR // 8)
        self.judge.compared += len(disk)
        want = np.concatenate(
            [expected(_array(owners[at : at + 4096]), at) for at in range(0, len(owners), 4096)]
        )
        # The operation after the last may be under way: done, or not, or a part of it.
        under_way = np.concatenate(
            [
                expected(owned(last + 1, min(4096, len(owners) - at)), at)
                for at in range(0, len(owners), 4096)
            ]
        )
        good = (have == want).all(axis=1) | (have == under_way).all(axis=1)
        good |= ~have.any(axis=1) & self._may_be_zero(owners, good)
        if not good.all():
            lost = np.flatnonzero(~good)
            yield Divergence(
                Verdict.LOST_WRITE,
                f"acknowledged writes on the disk of the {member.name}",
                self.model.checkpoints,
                f"sector {lost[0]} as operation {abs(int(owners[lost[0]]))} left it, of {last}",
                f"{len(lost)} sectors are not as they were acknowledged",
            )

    @staticmethod
    def _may_be_zero(owners: Ints, good: Mask) -> Mask:
        """Zeroes that an operation under way may have made: one run of at most 256 sectors."""
        bad = np.flatnonzero(~good)
        may = np.zeros(len(owners), dtype=bool)
        if len(bad) and bad[-1] - bad[0] < 256:
            may[bad[0] : bad[-1] + 1] = True
        return may

    def close(self) -> None:
        if self._terminal is not None:
            self._terminal.cancel()


def _written(console: _Console) -> int:
    return sum(line.kind == b"write" for line in console.lines())


def _array(owners: Ints) -> array[int]:
    made: array[int] = array("q")
    made.frombytes(owners.astype(np.int64).tobytes())
    return made
