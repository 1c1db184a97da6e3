"""A run of a pair: what both kinds of run share, and the choice between them."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.pair_autopsy import Autopsy
from qmpshim.conformance.pair_judge import PairJudge
from qmpshim.conformance.pair_model import PairModel
from qmpshim.conformance.pair_plan import PairFinding, PairOutcome, PairPlan
from qmpshim.errors import MachineError
from qmpshim.machine.builds import Build, read_version
from qmpshim.machine.nbd_proto import Request
from qmpshim.machine.pair import Pair
from qmpshim.machine.pair_member import Member
from qmpshim.model.behaviour import behaviour_of

log = logging.getLogger(__name__)

#: Told now and then what is being done.
Progress = Callable[[PairOutcome, str], None]


class Stuck(MachineError):
    """A step of the pair did not end as it must: time for an autopsy.

    :param where: the step
    :param predicted: what should have come
    """

    def __init__(self, where: str, predicted: str) -> None:
        super().__init__(f"{where}: {predicted} did not come")
        self.where = where
        self.predicted = predicted


class Diverged(Exception):
    """Enough was found; the run ends here."""


class PairRun(ABC):
    """One run; :meth:`run` does it.

    :param directory: an empty one for the pair, with a short path
    :param make: makes the pair; sabotage comes in here
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
        self.model = PairModel(
            plan.spec.initial(), plan.cluster, behaviour_of(versions[1][0], strict=True)
        )
        self.judge = PairJudge(self.model)
        self.pair = make(plan.spec, builds, directory, self._passed, plan.limit)
        self._began = time.monotonic()
        self.doing = "joining the pair"
        self._mirroring = False
        self._writes_before = 0

    def _passed(self, request: Request, error: int) -> None:
        if not self._mirroring:
            self.model.passed(request, error)

    async def _resume(self, survivor: Member) -> None:
        """A new secondary, as COLO-FT.txt has it: mirror, stop, attach again; a new model for it.

        The survivor stays stopped.
        """
        self.doing = "resuming replication"
        self._writes_before += self.model.writes
        self._mirroring = True
        await self.pair.renew(survivor, self.pair.secondary.build, self._passed)
        self._mirroring = False
        self.model = PairModel(survivor.disk.read_bytes(), self.plan.cluster, self.model.behaviour)
        self.judge.model = self.model
        self.found(self.judge.disks(survivor, self.pair.secondary))
        self.step(f"the disk of the {survivor.name} is mirrored to a new secondary, and equal")

    def step(self, text: str) -> None:
        """Note what is being done."""
        self.outcome.steps.append(f"{time.monotonic() - self._began:8.3f} s  {text}")
        self.tell(text)

    def tell(self, text: str) -> None:
        """Report progress."""
        self.outcome.seconds = time.monotonic() - self._began
        if self._progress is not None:
            self._progress(self.outcome, text)

    def found(
        self,
        divergences: Iterable[Divergence],
        cause: str = "",
        contract: bool = True,
        autopsy: Iterable[str] = (),
    ) -> None:
        """Note divergences, if there are any.

        :raises Diverged: there were some
        """
        some = list(divergences)
        for divergence in some:
            self.outcome.findings.append(
                PairFinding(
                    divergence,
                    cause or f"{divergence.verdict}: {divergence.where}",
                    contract,
                    autopsy=tuple(autopsy),
                )
            )
            self.step(f"FOUND {divergence}")
        if some:
            raise Diverged

    async def run(self) -> PairOutcome:
        """Do it; QEMUs are gone afterwards, their files are not.

        :raises BuildError: a build cannot take part in a pair at all
        """
        self._began = time.monotonic()
        try:
            await self.pair.build()
            self.step("both QEMUs run and are joined")
            await self._act()
        except Diverged:
            log.debug("the run ends with a divergence")
        except Stuck as stuck:
            await self._stuck(stuck.where, stuck.predicted)
        except MachineError as error:
            await self._stuck(self.doing, f"success, but {error}")
        finally:
            await self.pair.close()
            outcome = self.outcome
            outcome.seconds = time.monotonic() - self._began
            outcome.writes = self._writes_before + self.model.writes
            outcome.compared = self.judge.compared
            outcome.checks = self.judge.checks
        return outcome

    async def _stuck(self, where: str, predicted: str) -> None:
        autopsy = Autopsy(self.pair)
        await autopsy.perform()
        divergence = autopsy.divergence(where, self.model.checkpoints, predicted)
        for line in autopsy.lines:
            self.step(line)
        try:
            self.found([divergence], autopsy.cause()[1], autopsy=autopsy.lines)
        except Diverged:
            log.debug("stuck: %s", divergence)

    @abstractmethod
    async def _act(self) -> None:
        """What this kind of run does with the built pair."""
