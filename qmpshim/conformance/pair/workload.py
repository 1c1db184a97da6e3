"""The writers to a pair's disks: a guest in both machines, or this process without one."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import GuestSees
from qmpshim.conformance.pair.checker import PairChecker, describe_sector, first_difference
from qmpshim.conformance.pair.console import GuestAccount
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.workload.pattern import data_of
from qmpshim.errors import MachineError
from qmpshim.machine.chain.parts import Export
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.nbd.client import NbdClient
from qmpshim.machine.nbd.uri import nbd_uri
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.units import SECTOR

_LONGEST = 256  # sectors a write

Account = TypeVar("Account", bound=GuestAccount)


class Stuck(MachineError):
    """A step of the pair did not end as it must: time for a post-mortem.

    :param where: the step
    :param predicted: what should have come
    :param cause: what is seen instead, unless the post-mortem finds a better reason
    """

    def __init__(self, where: str, predicted: str, cause: Cause | None = None) -> None:
        super().__init__(f"{where}: {predicted} did not come")
        self.where = where
        self.predicted = predicted
        self.cause = cause


class PairWorkload(ABC):
    """Writes on both sides, and knows what was acknowledged.

    What has nothing to do at a step leaves out its method.

    :ivar model: fed with what the secondary's guest writes; another one after a failover
    """

    def __init__(self, plan: PairPlan, pair: Pair, model: PairModel, checker: PairChecker) -> None:
        self.plan = plan
        self.pair = pair
        self.model = model
        self.checker = checker

    @abstractmethod
    async def join(self) -> None:
        """Both sides are there (again): find the way to their disks."""

    async def prepare(self) -> None:  # noqa: B027
        """COLO is about to begin: what the primary's guest does before."""

    def secondary_stopped(self) -> None:  # noqa: B027
        """The secondary's guest stands still, its state is about to be overwritten."""

    def taken_over(self) -> None:  # noqa: B027
        """The secondary has the primary's state now."""

    @abstractmethod
    async def write(self, member: ColoNode, count: int, seconds: float = 0.0) -> None:
        """Have the guest of one side write so many times more, at least.

        :param seconds: how long that may take, if not the plan's limit
        :raises Stuck: it does not
        """

    @abstractmethod
    async def write_both(self, count: int) -> None:
        """Have the primary's guest write so often, and the secondary's, too."""

    def update_model(self) -> None:  # noqa: B027
        """Feed the model with the secondary's guest's writes; both sides stand still."""

    def complaints(self) -> Iterable[Divergence]:
        """What the guests themselves found wrong."""
        return ()

    async def promoted(self) -> None:  # noqa: B027
        """The secondary has taken over."""

    @abstractmethod
    def acknowledged(self, member: ColoNode, promised: int) -> Iterable[Divergence]:
        """Whether the disk of the side that is left has all that was acknowledged to its guest.

        :param promised: what :attr:`at_checkpoint` was
        """

    @property
    def at_checkpoint(self) -> int:
        """What the last checkpoint promised to keep."""
        return 0

    def close(self) -> None:  # noqa: B027
        """Let go of everything."""


class GuestWorkload(PairWorkload, Generic[Account]):
    """A guest in both machines; what it wrote is read off its console."""

    def __init__(self, plan: PairPlan, pair: Pair, model: PairModel, checker: PairChecker) -> None:
        super().__init__(plan, pair, model, checker)
        self._accounts: dict[str, Account] = {}
        self._cut = 0  # bytes that the secondary's guest had printed when it was stopped

    @abstractmethod
    def account_of(self, member: ColoNode) -> Account:
        """What the guest of one side reports, from its beginning on."""

    @property
    def here(self) -> Account:
        """What the primary's guest reported."""
        return self._accounts[self.pair.primary.name]

    @property
    def there(self) -> Account:
        """What the secondary's guest reported."""
        return self._accounts[self.pair.secondary.name]

    async def join(self) -> None:
        for member in self.pair.members:
            self._accounts.setdefault(member.name, self.account_of(member))
        self._cut = 0

    def secondary_stopped(self) -> None:
        self._cut = self.pair.secondary.output_size()

    def taken_over(self) -> None:
        self.there.take_over(self.here, self._cut)

    async def write(self, member: ColoNode, count: int, seconds: float = 0.0) -> None:
        guest = self._accounts[member.name]
        guest.read()
        target = guest.writes + count
        deadline = time.monotonic() + max(seconds, self.plan.limit)
        while guest.writes < target:
            if time.monotonic() > deadline or not member.qemu.alive():
                raise Stuck(
                    f"guest of the {member.name}",
                    f"{count} more writes ({target} in all)",
                    Cause(CauseKind.PAIR_GUEST_STOPS, self.pair.role(member), guest.state()),
                )
            await asyncio.sleep(0.01)
            guest.read()


class ExportWorkload(PairWorkload):
    """Ours: seeded writes over NBD into the quorum of either side, one after the other."""

    def __init__(self, plan: PairPlan, pair: Pair, model: PairModel, checker: PairChecker) -> None:
        super().__init__(plan, pair, model, checker)
        self._random = random.Random(plan.seed)
        self._number = 0
        self._clients: dict[str, NbdClient] = {}
        self._expected = bytearray(model.disk)  # what the primary's disk must hold

    async def join(self) -> None:
        primary, secondary = self.pair.members
        if primary.name not in self._clients:
            self._clients[primary.name] = self._client(self.pair.directory / "guest.sock")
        self._clients[secondary.name] = self._client(secondary.directory / "nbd.sock")
        self._expected = bytearray(primary.disk.read_bytes())

    def _client(self, socket: Path, export: str = "guest") -> NbdClient:
        return NbdClient(nbd_uri(export, socket), self.plan.limit, plain=True)

    def _places(self, count: int) -> Iterator[tuple[int, int]]:
        """Ranges (first sector, sectors): some sectors, some clusters, some at odd places."""
        sectors = self.plan.size // SECTOR
        cluster = self.plan.cluster // SECTOR
        for _ in range(count):
            length = self._random.choice((1, 8, cluster, self._random.randint(1, _LONGEST)))
            grid = self._random.choice((1, 8, cluster))
            yield self._random.randrange(0, sectors - length + 1) // grid * grid, length

    async def write(self, member: ColoNode, count: int, seconds: float = 0.0) -> None:
        for start, length in self._places(count):
            self._number += 1
            data = bytes(data_of(self._number, start, length))
            client = self._clients[member.name]
            # In a thread: our own relay must run meanwhile.
            await asyncio.to_thread(
                lambda c=client, d=data, at=start * SECTOR: c.wait(c.submit_write(d, at))  # type: ignore[misc]
            )
            if member is self.pair.secondary:
                self.model.guest_wrote(start * SECTOR, data)
            else:
                self._expected[start * SECTOR : start * SECTOR + len(data)] = data

    async def write_both(self, count: int) -> None:
        await self.write(self.pair.primary, count)
        await self.write(self.pair.secondary, max(1, count // 4))

    async def promoted(self) -> None:
        # Its NBD server was stopped with the primary's link: the guest has to come in again.
        member, path = self.pair.secondary, self.pair.secondary.directory / "again.sock"
        self._clients.pop(member.name).close()
        await member.serve(path, [Export("again", "quorum", True)])
        self._clients[member.name] = self._client(path, "again")

    def acknowledged(self, member: ColoNode, promised: int) -> Iterable[Divergence]:
        if member is self.pair.secondary:
            return ()  # the model has it all
        return self.checker.disk_alone(
            member.disk, self._expected, "surviving primary's disk", "primary"
        )

    async def view(self) -> list[Divergence]:
        """What the secondary's guest reads, everywhere, against the model."""
        secondary = self._clients[self.pair.secondary.name]
        step = 1 << 20
        for offset in range(0, self.plan.size, step):
            length = min(step, self.plan.size - offset)
            data = await asyncio.to_thread(secondary.read, length, offset)
            expected = self.model.view(offset, length)
            self.checker.compared += length
            if wrong := first_difference(data, expected):
                at = wrong[0] * SECTOR
                return [
                    self.checker.divergence(
                        Verdict.ISOLATION,
                        "secondary guest's view",
                        f"{describe_sector(expected[at : at + SECTOR])} at byte {offset + at}",
                        f"{describe_sector(data[at : at + SECTOR])} ({wrong[1]} sectors differ)",
                        GuestSees(),
                    )
                ]
        return []

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
