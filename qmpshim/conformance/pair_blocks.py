"""Block replication alone: a seeded workload on both ends of a pair without virtual machines.

The primary's writes go through its quorum, the way a guest's would; they reach the secondary by
QEMU's own NBD client. The secondary's guest writes go through its quorum into the active disk.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.pair_judge import first_difference, in_words
from qmpshim.conformance.pair_plan import Failover
from qmpshim.conformance.pair_run import PairRun
from qmpshim.conformance.pattern import data_of
from qmpshim.machine.nbd_client import NbdClient
from qmpshim.machine.secondary import SECTOR
from qmpshim.model.verdict import Verdict

_LONGEST = 256  # sectors a write


class BlockRun(PairRun):
    """Replicates, checks before and after each checkpoint, fails over."""

    async def _act(self) -> None:
        self._random = random.Random(self.plan.seed)
        self._number = 0
        pair, plan = self.pair, self.plan
        here = self._client(pair.directory / "guest.sock")
        there = self._client(pair.secondary.directory / "nbd.sock")
        with closing(here), closing(there):
            await self._round(here, there)
            if plan.failover is Failover.NONE:
                return
            await self._write(here, there)
            await self._fail_over(here)
        if plan.resume:
            await self._resumed()

    async def _resumed(self) -> None:
        """Whoever is left is the primary now, with a new secondary."""
        pair = self.pair
        promoted = self.plan.failover is Failover.PRIMARY
        survivor = pair.secondary if promoted else pair.primary
        if promoted:  # its NBD server was stopped; its guest has to come in again
            await survivor.start_server(pair.directory / "again.sock")
            await survivor.export("again", "quorum")
        await self._resume(survivor)
        await survivor.qemu.execute("cont")
        name = "again" if promoted else "guest"
        here = self._client(pair.directory / f"{name}.sock", name)
        there = self._client(pair.secondary.directory / "nbd.sock")
        with closing(here), closing(there):
            await self._round(here, there)

    async def _round(self, primary: NbdClient, secondary: NbdClient) -> None:
        """Replication from its start, and its checkpoints."""
        pair = self.pair
        self.doing = "start of replication"
        await pair.start_replication()
        self.model.start()
        self.step("replication runs")
        for number in range(1, self.plan.checkpoints + 1):
            self.doing = f"checkpoint {number}"
            await self._write(primary, secondary)
            await pair.pause()
            self.found(self.judge.all(pair.primary, pair.secondary))
            self.found(await self._view(secondary))
            await pair.checkpoint_disks()
            self.model.checkpoint()
            await pair.pause()  # QEMU writes qcow2's tables when it stops
            self.found(self.judge.all(pair.primary, pair.secondary))
            self.found(await self._errors())
            self.outcome.checkpoints += 1
            self.tell(f"checkpoint {number} of {self.plan.checkpoints}")
            await pair.resume()
        self.step(f"{self.plan.checkpoints} checkpoints taken and judged")

    def _client(self, socket: Path, export: str = "guest") -> NbdClient:
        return NbdClient(f"nbd+unix:///{export}?socket={socket}", self.plan.limit, plain=True)

    def _places(self, count: int) -> Iterator[tuple[int, int]]:
        """Ranges (first sector, sectors): some sectors, some clusters, some at odd places."""
        sectors = self.plan.size // SECTOR
        cluster = self.plan.cluster // SECTOR
        for _ in range(count):
            length = self._random.choice((1, 8, cluster, self._random.randint(1, _LONGEST)))
            grid = self._random.choice((1, 8, cluster))
            yield self._random.randrange(0, sectors - length + 1) // grid * grid, length

    async def _write(self, primary: NbdClient, secondary: NbdClient) -> None:
        """Both guests write, in turns."""
        for start, count in self._places(self.plan.writes):
            await self._one(primary, start, count)
        for start, count in self._places(max(1, self.plan.writes // 4)):
            self.model.guest_wrote(start * SECTOR, await self._one(secondary, start, count))

    async def _one(self, client: NbdClient, start: int, count: int) -> bytes:
        self._number += 1
        data = bytes(data_of(self._number, start, count))
        # In a thread: our own relay must run meanwhile.
        await asyncio.to_thread(lambda: client.wait(client.submit_write(data, start * SECTOR)))
        return data

    async def _view(self, secondary: NbdClient) -> list[Divergence]:
        """What the secondary's guest reads, everywhere."""
        found = []
        step = 1 << 20
        for offset in range(0, self.plan.size, step):
            length = min(step, self.plan.size - offset)
            data = await asyncio.to_thread(secondary.read, length, offset)
            expected = self.model.view(offset, length)
            self.judge.compared += length
            if wrong := first_difference(data, expected):
                at = wrong[0] * SECTOR
                found.append(
                    Divergence(
                        Verdict.ISOLATION,
                        "secondary guest's view",
                        self.model.checkpoints,
                        f"{in_words(expected[at : at + SECTOR])} at byte {offset + at}",
                        f"{in_words(data[at : at + SECTOR])} ({wrong[1]} sectors differ)",
                    )
                )
                break
        return found

    async def _errors(self) -> list[Divergence]:
        """Neither side may report an error of replication."""
        return [
            Divergence(
                Verdict.ERROR_CONTRACT,
                f"query-xen-replication-status of the {member.name}",
                self.model.checkpoints,
                "no error",
                error,
            )
            for member in self.pair.members
            if (error := await member.replication_error()) is not None
        ]

    async def _fail_over(self, primary: NbdClient) -> None:
        pair, kind = self.pair, self.plan.failover
        self.doing = f"failover ({kind})"
        if kind is Failover.PRIMARY:
            pair.primary.qemu.kill()
            self.step("the primary was killed")
            await pair.promote_secondary()
            self.model.failover()
            await pair.secondary.qemu.execute("stop")
            self.found(
                self.judge.disk_alone(
                    pair.secondary.disk, self.model.disk, "promoted secondary's disk"
                )
            )
            self.step("the secondary took over with the right disk")
            return
        expected = bytearray(pair.primary.disk.read_bytes())
        if kind is Failover.SECONDARY:
            pair.secondary.qemu.kill()
            self.step("the secondary was killed")
        elif kind is Failover.CUT:
            pair.link.cut()
            self.step("the link was cut")
        else:
            pair.link.stall()
            self.step("the link fell silent")
        waiting = asyncio.ensure_future(self._alone(primary, expected))
        if kind is Failover.STALL:
            await asyncio.sleep(0.2)  # the write is on its way, or about to be
            if not await pair.yank():
                pair.link.cut()
        await waiting
        if kind is not Failover.STALL:
            self.found(await self._reported())
        await pair.carry_on()
        await self._alone(primary, expected)
        await pair.primary.qemu.execute("stop")
        self.found(self.judge.disk_alone(pair.primary.disk, expected, "surviving primary's disk"))
        self.step("the primary goes on alone with the right disk")

    async def _alone(self, primary: NbdClient, expected: bytearray) -> None:
        """The primary's guest goes on writing, though nobody takes its writes over there."""
        for start, count in self._places(5):
            at = start * SECTOR
            expected[at : at + count * SECTOR] = await self._one(primary, start, count)

    async def _reported(self) -> list[Divergence]:
        """The primary must tell that its writes no longer arrive."""
        error = await self.pair.primary.replication_error()
        if error is not None:
            return []
        return [
            Divergence(
                Verdict.ERROR_CONTRACT,
                "query-xen-replication-status of the primary",
                self.model.checkpoints,
                "an error, since writes did not reach the secondary",
                "no error",
            )
        ]
