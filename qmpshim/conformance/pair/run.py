"""A run of a pair: what both kinds of run share, and the choice between them."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from qmpshim.conformance.compare.divergence import Divergence, verdict_of
from qmpshim.conformance.compare.evidence import (
    AcknowledgedAlone,
    Answered,
    Evidence,
    ReplicationStatus,
)
from qmpshim.conformance.compare.exchange import check_space
from qmpshim.conformance.pair.checker import PairChecker
from qmpshim.conformance.pair.guest_log import BootWorkload
from qmpshim.conformance.pair.linux import LinuxWorkload
from qmpshim.conformance.pair.model import PairModel
from qmpshim.conformance.pair.plan import Failover, PairFinding, PairOutcome, PairPlan
from qmpshim.conformance.pair.post_mortem import PostMortem
from qmpshim.conformance.pair.workload import ExportWorkload, PairWorkload, Stuck
from qmpshim.errors import CommandFailed, IOFailed, MachineError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.colo.node import ColoNode
from qmpshim.machine.colo.pair import Pair
from qmpshim.machine.guest.boot_sector import BootGuest
from qmpshim.machine.nbd.protocol.transmission import Request
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict

_AHEAD = 15  # writes by which the side that is going to die is ahead

log = logging.getLogger(__name__)

#: Called now and then with what is being done.
Progress = Callable[[PairOutcome, str], None]


class PairDiverged(Exception):
    """Enough was found; the run ends here."""


class PairRun(ABC):
    """One run; :meth:`run` does it.

    :param directory: an empty one for the pair, with a short path
    :param make: makes the pair; mutants come in here
    """

    def __init__(
        self,
        plan: PairPlan,
        builds: tuple[Build, Build],
        directory: Path,
        progress: Progress | None = None,
        make: Callable[..., Pair] = Pair,
    ) -> None:
        self.plan = plan
        self.directory = directory
        self._progress = progress
        versions = [read_version(build) for build in builds]
        self.outcome = PairOutcome(plan, (versions[0][1], versions[1][1]))
        numbers = [version[0] for version in versions]
        self._alike = numbers[0][:2] == numbers[1][:2]
        spec = plan.spec
        if spec.guest is not None and not self._alike:  # "pc" means another machine to each
            oldest = min(numbers)
            spec = replace(spec, machine=f"pc-i440fx-{oldest[0]}.{oldest[1]}")
        self.model = PairModel(
            spec.initial(), plan.cluster, behaviour_of(versions[1][0], strict=True)
        )
        self.checker = PairChecker(self.model)
        self.pair = make(spec, builds, directory, self._passed, plan.limit)
        kind: type[PairWorkload] = ExportWorkload
        if spec.guest is not None:
            kind = BootWorkload if isinstance(spec.guest, BootGuest) else LinuxWorkload
        self.workload = kind(plan, self.pair, self.model, self.checker)
        self._began = time.monotonic()
        self.doing = "joining the pair"
        self._mirroring = False
        self._writes_before = 0

    def _passed(self, request: Request, error: int) -> None:
        if not self._mirroring:
            self.model.passed(request, error)

    async def _resume(self, survivor: ColoNode) -> None:
        """A new secondary, as COLO-FT.txt has it: mirror, stop, attach again; a new model for it.

        The survivor stays stopped.
        """
        self.doing = "resuming replication"
        self._writes_before += self.model.writes
        self._mirroring = True
        await self.pair.renew(survivor, self.pair.secondary.build, self._passed)
        self._mirroring = False
        self.model = PairModel(survivor.disk.read_bytes(), self.plan.cluster, self.model.behaviour)
        self.checker.model = self.workload.model = self.model
        self.found(self.checker.disks(survivor, self.pair.secondary))
        self.step(f"the disk of the {survivor.name} is mirrored to a new secondary, and equal")

    def step(self, text: str) -> None:
        """Note what is being done."""
        self.outcome.steps.append(f"{time.monotonic() - self._began:8.3f} s  {text}")
        self.report(text)

    def report(self, text: str) -> None:
        """Report progress."""
        self.outcome.seconds = time.monotonic() - self._began
        if self._progress is not None:
            self._progress(self.outcome, text)

    def found(
        self,
        divergences: Iterable[Divergence],
        cause: Cause | None = None,
        contract: bool = True,
        post_mortem: Iterable[str] = (),
    ) -> None:
        """Note divergences, if there are any.

        :param cause: empty: what was compared differs
        :raises PairDiverged: there were some
        """
        some = list(divergences)
        for divergence in some:
            self.outcome.findings.append(
                PairFinding(
                    divergence,
                    cause
                    or Cause(CauseKind.PAIR_DIVERGES, divergence.where, divergence.verdict.value),
                    contract,
                    post_mortem=tuple(post_mortem),
                )
            )
            self.step(f"FOUND {divergence}")
        if some:
            raise PairDiverged

    async def run(self) -> PairOutcome:
        """Do it; QEMUs are gone afterwards, their files are not.

        :raises BuildError: a build cannot take part in a pair at all
        :raises HostError: this host's disk is full
        """
        self._began = time.monotonic()
        try:
            await self.pair.build()
            self.step("both QEMUs run and are joined")
            await self._act()
        except PairDiverged:
            log.debug("the run ends with a divergence")
        except Stuck as stuck:
            await self._stuck(stuck.where, stuck.predicted, stuck.cause)
        except MachineError as error:
            cause = Cause(CauseKind.PAIR_FAILS, detail=str(error))
            await self._stuck(self.doing, "success", cause, verdict_of(error), _refusal(error))
        finally:
            self.workload.close()
            await self.pair.close()
            outcome = self.outcome
            outcome.seconds = time.monotonic() - self._began
            outcome.writes = self._writes_before + self.model.writes
            outcome.compared = self.checker.compared
            outcome.checks = self.checker.checks
        return outcome

    async def _stuck(
        self,
        where: str,
        predicted: str,
        seen: Cause | None,
        verdict: Verdict = Verdict.HANG,
        evidence: Evidence | None = None,
    ) -> None:
        check_space(self.directory)  # QEMU stops a guest whose write finds no room
        post_mortem = PostMortem(self.pair)
        await post_mortem.perform()
        verdict, cause, evidence = post_mortem.cause(seen, verdict, evidence)
        checkpoint = self.model.checkpoints
        divergence = Divergence(
            *(verdict, where, checkpoint, predicted, str(cause)),
            ending=post_mortem.ending(),
            evidence=evidence,
        )
        for line in post_mortem.lines:
            self.step(line)
        try:
            # x-colo is experimental: between two versions it is not promised.
            self.found([divergence], cause, self._alike, post_mortem.lines)
        except PairDiverged:
            log.debug("stuck: %s", divergence)

    async def _act(self) -> None:
        """What is done with the built pair."""
        plan = self.plan
        await self.play_round()
        if plan.failover is Failover.NONE:
            return
        survivor = await self._fail_over()
        if plan.resume:
            await self._resume(survivor)
            await self.play_round()

    @abstractmethod
    async def play_round(self) -> None:
        """Replication from its start, with all its checkpoints."""

    async def _fail_over(self) -> ColoNode:
        """What the plan takes away; the survivor is stopped in the end."""
        kind = self.plan.failover
        self.doing = f"failover ({kind})"
        await self.workload.write_both(3)
        if kind is Failover.PRIMARY:
            await self._secondary_takes_over()
            return self.pair.secondary
        await self._primary_goes_on(kind)
        return self.pair.primary

    async def _secondary_takes_over(self) -> None:
        pair, workload = self.pair, self.workload
        await self._kill_primary()
        promised = workload.at_checkpoint
        await pair.promote_secondary()
        self.model.failover()
        # Twice: at once, since its guest will write again what the primary's wrote and lost; then
        # after it has gone on.
        await self._let_run(pair.secondary)
        await pair.secondary.qemu.execute("stop")
        self._check_promoted()
        await workload.promoted()
        await pair.secondary.qemu.execute("cont")
        await self._goes_on(pair.secondary)
        self._check_promoted()
        self.found(workload.acknowledged(pair.secondary, promised))
        self.step("the secondary took over; nothing acknowledged before the checkpoint is lost")

    async def _kill_primary(self) -> None:
        pair, workload = self.pair, self.workload
        await pair.stop_secondary()  # it lags behind, as a loaded host does
        workload.update_model()
        await workload.write(pair.primary, _AHEAD)
        pair.primary.kill()
        self.step("the primary was killed, ahead of its secondary")

    def _check_promoted(self) -> None:
        self.workload.update_model()
        self.found(
            self.checker.disk_alone(
                self.pair.secondary.disk, self.model.disk, "promoted secondary's disk", "secondary"
            )
        )

    @abstractmethod
    async def _let_run(self, member: ColoNode) -> None:
        """Wait until the side that is left runs."""

    async def _goes_on(self, member: ColoNode) -> None:
        """The side that is left runs alone, writes on, and is stopped to be judged."""
        await self._let_run(member)
        await self.workload.write(member, self.plan.writes)
        await member.qemu.execute("stop")
        self.found(self.workload.complaints())

    async def _primary_goes_on(self, kind: Failover) -> None:
        pair, workload = self.pair, self.workload
        if kind is Failover.SECONDARY:
            pair.secondary.kill()
            self.step("the secondary was killed")
        elif kind is Failover.CUT:
            pair.link.cut()
            self.step("the link was cut")
            await workload.write(pair.primary, 3)
            self.found(await self._reported())
        else:
            pair.link.stall()
            self.step("the link fell silent")
            write = asyncio.ensure_future(workload.write(pair.primary, 1))
            try:
                await self._stalls(write)
                if not await pair.yank():
                    pair.link.cut()
                await write
            finally:
                write.cancel()
        await pair.carry_on()
        await self._goes_on(pair.primary)
        self.found(workload.acknowledged(pair.primary, 0))
        self.step("the primary goes on alone; nothing it acknowledged is lost")

    async def _stalls(self, write: asyncio.Future[None]) -> None:
        """A write cannot end while the link is silent: the guest waits."""
        deadline = time.monotonic() + self.plan.limit
        while not self.pair.link.waiting:
            if time.monotonic() > deadline:
                raise Stuck("stalled link", "a write of the primary's guest")
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        if write.done():
            wrong = self.checker.divergence(
                Verdict.ERROR_CONTRACT,
                "guest of the primary",
                "no write is acknowledged while the secondary does not have it",
                "one was",
                AcknowledgedAlone(),
            )
            self.found([wrong])

    async def _reported(self) -> list[Divergence]:
        """The primary must report that its writes no longer arrive."""
        if await self.pair.primary.replication_error() is not None:
            return []
        return [
            self.checker.divergence(
                Verdict.ERROR_CONTRACT,
                "query-xen-replication-status of the primary",
                "an error, since writes did not reach the secondary",
                "no error",
                ReplicationStatus("primary", error=True),
            )
        ]

    async def _errors(self) -> list[Divergence]:
        """Neither side may report an error of replication."""
        return [
            self.checker.divergence(
                Verdict.ERROR_CONTRACT,
                f"query-xen-replication-status of the {member.name}",
                "no error",
                error,
                ReplicationStatus(self.pair.role(member), error=False),
            )
            for member in self.pair.members
            if (error := await member.replication_error()) is not None
        ]


def _refusal(error: MachineError) -> Evidence | None:
    """What QEMU answered, if it refused a QMP command or a write."""
    match error:
        case CommandFailed(error_class=of_qmp) if of_qmp:
            return Answered(None, error.desc)
        case IOFailed():
            return Answered(None, error.errno)
    return None
