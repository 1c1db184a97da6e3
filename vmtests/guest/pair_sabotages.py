"""Pairs that are wrong on purpose, and who must notice: what the pair's judge is worth."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmpshim.conformance.pair.plan import Failover
from qmpshim.machine.nbd_proto import Op, Request
from qmpshim.machine.pair import Pair
from qmpshim.model.verdict import Verdict


class LostWrite(Pair):
    """The seventh write is acknowledged to the primary and never arrives."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        seen = 0

        def lose(request: Request) -> bool:
            nonlocal seen
            seen += request.type == Op.WRITE.value
            return request.type == Op.WRITE.value and seen == 7

        self.link.lose = lose


class CheckpointNotSent(Pair):
    """The primary takes its checkpoint; the secondary is never told."""

    async def checkpoint_disks(self) -> None:
        await self.primary.qemu.execute("xen-colo-do-checkpoint")


class WrittenBehindItsBack(Pair):
    """Somebody writes into the secondary disk's file, past QEMU."""

    async def checkpoint_disks(self) -> None:
        await super().checkpoint_disks()
        with self.secondary.disk.open("r+b") as file:
            file.seek(4096)
            file.write(b"not the primary's")


class CopiedNothing(Pair):
    """The secondary's writes bypass copy-before-write: straight into the file."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        observer: Callable[[Request, int], None] = words[3]

        def around(request: Request) -> bool:
            if request.type != Op.WRITE.value:
                return False
            with self.secondary.disk.open("r+b") as file:
                os.pwrite(file.fileno(), request.data, request.offset)
            observer(request, 0)
            return True

        self.link.lose = around


class WrongDisk(Pair):
    """The secondary goes on with its disk as the primary left it, and forgets its own guest."""

    async def promote_secondary(self) -> None:
        await self.secondary.qemu.execute("nbd-server-stop")
        await self.secondary.qemu.execute("stop")


class PrimaryForgets(Pair):
    """After the failover the primary's disk is not the one it wrote to."""

    async def carry_on(self) -> None:
        await super().carry_on()
        with self.primary.disk.open("r+b") as file:
            file.write(bytes(1 << 20))


class NoCheckpoint(Pair):
    """COLO's checkpoint is asked for, and nobody passes that on."""

    async def set_delay(self, delay: int) -> None:
        if self.primary.heard("RESUME"):
            return
        await super().set_delay(delay)


class LeakedWrites(Pair):
    """After the failover the secondary has what the primary wrote after the checkpoint."""

    async def promote_secondary(self) -> None:
        await super().promote_secondary()
        with self.primary.disk.open("rb") as there, self.secondary.disk.open("r+b") as here:
            here.write(there.read())


class NotEmptied(Pair):
    """The secondary goes into the checkpoint with a write that its model does not know."""

    async def stop_secondary(self) -> None:
        await super().stop_secondary()
        await self.secondary.human('qemu-io quorum "write -P 0x5a 1M 64k"')
        await super().stop_secondary()


@dataclass(frozen=True)
class Sabotage:
    """One way to be wrong, and the verdict it must get: where the judge must see it."""

    pair: type[Pair]
    verdict: Verdict
    where: str
    failover: Failover = Failover.NONE
    colo: bool = False
    limit: float = 30.0


SABOTAGES = [
    Sabotage(LostWrite, Verdict.LOST_WRITE, "secondary disk against primary disk"),
    Sabotage(CheckpointNotSent, Verdict.ALLOCATION, "hidden disk"),
    Sabotage(WrittenBehindItsBack, Verdict.CONTENT, "secondary disk"),
    Sabotage(CopiedNothing, Verdict.ALLOCATION, "hidden disk"),
    Sabotage(WrongDisk, Verdict.LOST_WRITE, "promoted secondary's disk", Failover.PRIMARY),
    Sabotage(LostWrite, Verdict.LOST_WRITE, "secondary disk against primary disk", colo=True),
    Sabotage(NoCheckpoint, Verdict.HANG, "checkpoint 1", colo=True, limit=3.0),
    Sabotage(NotEmptied, Verdict.ALLOCATION, "active disk", colo=True),
    Sabotage(
        LeakedWrites, Verdict.LOST_WRITE, "promoted secondary's disk", Failover.PRIMARY, colo=True
    ),
    Sabotage(PrimaryForgets, Verdict.LOST_WRITE, "surviving primary's disk", Failover.SECONDARY),
]
