"""Mutants of a pair, and the check that must kill each."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.evidence import (
    AcknowledgedAlone,
    Answered,
    DiskLeft,
    DisksDiffer,
    Evidence,
    GuestSees,
    MigrationStatus,
    ReplicationStatus,
    Unsound,
)
from qmpshim.conformance.known.folder import known_pairs
from qmpshim.conformance.pair.plan import Failover, PairOutcome, PairPlan
from qmpshim.conformance.pair.run_plan import run_plan
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.colo.pair import NEVER, Pair
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.nbd.protocol.transmission import NbdCommand, Request
from qmpshim.model.check.verdict import Verdict


class LostWrite(Pair):
    """The seventh write is acknowledged to the primary and never arrives."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        seen = 0

        def lose(request: Request) -> bool:
            nonlocal seen
            seen += request.type == NbdCommand.WRITE.value
            return request.type == NbdCommand.WRITE.value and seen == 7

        self.link.lose = lose


class CheckpointNotSent(Pair):
    """The primary takes its checkpoint; the secondary never gets the command."""

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
            if request.type != NbdCommand.WRITE.value:
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
    """COLO's checkpoint is asked for, and the command is not passed on."""

    async def set_delay(self, delay: int) -> None:
        if self.primary.events_of("RESUME"):
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


def _put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


class HiddenChanged(Pair):
    """A byte of old data is not as it was copied."""

    async def pause(self) -> None:
        await super().pause()
        self._change(self.secondary.image("hidden"))

    @staticmethod
    def _change(overlay: Path) -> None:
        for run in Qcow2Reader.parse(overlay.read_bytes()).runs():
            if run.host_offset is not None:
                _put(overlay, run.host_offset + 1234, b"X")
                return


class ActiveChanged(HiddenChanged):
    """A byte of the secondary's guest's is not as it wrote it."""

    async def pause(self) -> None:
        await Pair.pause(self)
        self._change(self.secondary.image("active"))


class HiddenBroken(Pair):
    """The hidden disk's refcounts are gone."""

    async def pause(self) -> None:
        await super().pause()
        hidden = self.secondary.image("hidden")
        head = Qcow2Reader.parse(hidden.read_bytes()).header
        _put(hidden, head.reftable_offset, bytes(8))


class SeenOtherwise(Pair):
    """The files are as they must be; when the secondary's guest reads, one is not any more."""

    changing: asyncio.Task[None] | None = None

    async def pause(self) -> None:
        await super().pause()
        self.changing = asyncio.ensure_future(self._change())

    async def _change(self) -> None:
        """Has its turn when the checks have looked at the files, and waits for the first read."""
        hidden, active = (
            Qcow2Reader.parse(path.read_bytes()).allocation()
            for path in (self.secondary.image("hidden"), self.secondary.image("active"))
        )
        cluster = self.spec.cluster
        clusters = range(self.spec.size // 2 // cluster, self.spec.size // cluster)
        bare = next(index for index in clusters if index not in hidden.keys() | active.keys())
        _put(self.secondary.disk, bare * cluster, b"not the checkpoint's")


class MirrorForgets(Pair):
    """The new secondary's disk is not what the survivor's is."""

    async def renew(self, *words: Any) -> None:
        await super().renew(*words)
        _put(self.secondary.disk, 1 << 20, b"not mirrored")


class AnswerChanged(Pair):
    """QMP answers of one side to ``query-xen-replication-status`` are changed on their way."""

    misbehaving = "secondary"
    answer: Mapping[str, Any] = {"error": True, "desc": "made up"}

    async def build(self) -> None:
        await super().build()
        qemu = self.secondary.qemu if self.misbehaving == "secondary" else self.primary.qemu
        original = qemu.execute

        async def execute(command: str, arguments: Mapping[str, Any] | None = None) -> Any:
            answer = await original(command, arguments)
            return self.answer if command == "query-xen-replication-status" else answer

        qemu.execute = execute  # type: ignore[method-assign]


class SaysAllIsWell(AnswerChanged):
    """The primary does not report that its writes do not arrive."""

    misbehaving = "primary"
    answer: Mapping[str, Any] = {"error": False}


class StallAcknowledges(Pair):
    """A link that has fallen silent, with something in it that says yes to every write."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)

        def stall() -> None:
            self.link.lose = lambda request: request.type == NbdCommand.WRITE.value
            self.link.waiting += 1

        self.link.stall = stall  # type: ignore[method-assign]


class Dies(Pair):
    """The secondary aborts in a checkpoint."""

    async def checkpoint_disks(self) -> None:
        os.kill(self.secondary.qemu.pid, signal.SIGABRT)
        await super().checkpoint_disks()


class Deaf(Pair):
    """The secondary answers nothing any more in a checkpoint."""

    async def checkpoint_disks(self) -> None:
        os.kill(self.secondary.qemu.pid, signal.SIGSTOP)
        await super().checkpoint_disks()


class Refused(Pair):
    """QEMU refuses a command."""

    async def start_replication(self) -> None:
        await super().start_replication()
        await super().start_replication()


class NeverCommits(Pair):
    """The secondary never gets the command to fail over."""

    async def promote_secondary(self) -> None:
        await self.until_promoted()


class Nowhere(Pair):
    """The primary migrates to where nothing listens."""

    async def start_colo(self, delay: int = NEVER) -> None:
        self.channel.path = self.directory / "nowhere"
        await super().start_colo(delay)


def colo_works(build: Build, guest: str = "none", accel: str = "tcg") -> bool:
    """Whether COLO has a chance on a build (the known findings say where it has none)."""
    version = read_version(build)[0]
    plan = PairPlan(guest=guest, accel=accel)
    return not any(
        known.contract and known.may_come(plan, (version, version)) for known in known_pairs()
    )


def go(
    plan: PairPlan, build: Build, bundles: Path, make: type[Pair] = Pair
) -> tuple[PairOutcome, Path | None]:
    return asyncio.run(run_plan(plan, (build, build), bundles, known=known_pairs(), make=make))


@dataclass(frozen=True)
class Mutant:
    """One mutant, the verdict it must get, and where.

    :ivar cause: what the post-mortem must report, a regular expression
    :ivar evidence: what a script of it has to look for; None: that is not known as data
    """

    pair: type[Pair]
    verdict: Verdict
    where: str
    failover: Failover = Failover.NONE
    colo: bool = False
    limit: float = 30.0
    cause: str = ".*"
    resume: bool = False
    evidence: Evidence | None = None


STATUS = "query-xen-replication-status of the"
MUTANTS = [
    Mutant(LostWrite, Verdict.LOST_WRITE, "secondary disk against primary disk",
           evidence=DisksDiffer()),
    Mutant(CheckpointNotSent, Verdict.ALLOCATION, "hidden disk"),
    Mutant(WrittenBehindItsBack, Verdict.CONTENT, "secondary disk", evidence=DisksDiffer()),
    Mutant(CopiedNothing, Verdict.ALLOCATION, "hidden disk"),
    Mutant(HiddenChanged, Verdict.ISOLATION, "hidden disk", evidence=GuestSees()),
    Mutant(ActiveChanged, Verdict.CONTENT, "active disk", evidence=GuestSees()),
    Mutant(HiddenBroken, Verdict.CORRUPTION, "hidden disk", evidence=Unsound("hidden")),
    Mutant(SeenOtherwise, Verdict.ISOLATION, "secondary guest's view", evidence=GuestSees()),
    Mutant(AnswerChanged, Verdict.ERROR_CONTRACT, f"{STATUS} secondary",
           evidence=ReplicationStatus("secondary", False)),
    Mutant(SaysAllIsWell, Verdict.ERROR_CONTRACT, f"{STATUS} primary", Failover.CUT,
           evidence=ReplicationStatus("primary", True)),
    Mutant(StallAcknowledges, Verdict.ERROR_CONTRACT, "guest of the primary", Failover.STALL,
           evidence=AcknowledgedAlone()),
    Mutant(WrongDisk, Verdict.LOST_WRITE, "promoted secondary's disk", Failover.PRIMARY,
           evidence=DiskLeft("secondary")),
    Mutant(PrimaryForgets, Verdict.LOST_WRITE, "surviving primary's disk", Failover.SECONDARY,
           evidence=DiskLeft("primary")),
    Mutant(MirrorForgets, Verdict.CONTENT, "secondary disk", Failover.SECONDARY, resume=True,
           evidence=DisksDiffer()),
    Mutant(Dies, Verdict.CRASH, "checkpoint 1", cause="secondary ended by SIGABRT: no last words"),
    Mutant(Deaf, Verdict.HANG, "checkpoint 1", limit=3.0, cause="secondary does not answer QMP"),
    Mutant(Refused, Verdict.ERROR_CONTRACT, "start of replication",
           cause="xen-set-replication: Block replication .*",
           evidence=Answered(None, "Block replication is running or done")),
    Mutant(NeverCommits, Verdict.HANG, "failover (primary)", Failover.PRIMARY, limit=2.0,
           cause="secondary: the failover of the disks did not end in 2 s"),
    Mutant(LostWrite, Verdict.LOST_WRITE, "secondary disk against primary disk", colo=True,
           evidence=DisksDiffer()),
    Mutant(NoCheckpoint, Verdict.HANG, "checkpoint 1", colo=True, limit=3.0),
    Mutant(NotEmptied, Verdict.ALLOCATION, "active disk", colo=True),
    Mutant(LeakedWrites, Verdict.LOST_WRITE, "promoted secondary's disk", Failover.PRIMARY,
           colo=True, evidence=DiskLeft("secondary")),
    Mutant(Nowhere, Verdict.PROTOCOL, "start of COLO", colo=True,
           cause=r"primary: migration is failed \(Failed to connect .*\) instead of colo",
           evidence=MigrationStatus("primary", "failed")),
]  # fmt: skip
