"""The two sides of a run: the real disks, the model that predicts them, and what was compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from qmpshim.conformance.compare.crosscheck import pages_of, pieces
from qmpshim.conformance.compare.evidence import Returned
from qmpshim.conformance.pointintime.comparisons import compare_data
from qmpshim.conformance.pointintime.operations import Action
from qmpshim.conformance.workload.pattern import Comparer
from qmpshim.conformance.workload.result import WorkloadResult
from qmpshim.conformance.workload.setup import RunSetup
from qmpshim.machine.chain.points import PointsChain, PointsSpec
from qmpshim.machine.chain.record import RequestSent
from qmpshim.machine.nbd.client import AT_ONCE
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.disks.image import Contents
from qmpshim.model.operations import Verb
from qmpshim.model.pointintime.jobs import Copying, JobSpec
from qmpshim.model.pointintime.points import PointDefect, PointInTime
from qmpshim.model.units import SECTOR

_MOST = AT_ONCE // SECTOR
_LARGE = (1 << 30) // SECTOR  # sectors: more are not read where there is nothing
_KEPT = 16  # MiB of an export of which what they are to hold is kept


@dataclass(frozen=True, slots=True)
class PointsSetup(RunSetup):
    """What to run on, and how.

    :ivar known: defects of this version: a transaction that meets one is left out
    :ivar manual: a job that has concluded lets go of its target before it is dismissed; where not,
        all jobs dismiss themselves
    :ivar perf: there is ``x-perf``; where not, jobs copy as QEMU chooses
    :ivar granules: how much is copied at once can be chosen
    :ivar chain: the class of the real disks; mutants come in here
    :ivar model: the class that predicts; and here
    """

    spec: PointsSpec
    chain: type[PointsChain] = PointsChain
    model: type[PointInTime] = PointInTime
    known: frozenset[PointDefect] = frozenset()
    manual: bool = True
    perf: bool = True
    granules: bool = True

    def possible(self, action: Action) -> Action:
        """An action without what this version does not have."""
        if not isinstance(action, JobSpec):
            return action
        copying = action.copying if self.perf else Copying(action.copying.compress)
        if not self.granules:
            copying = replace(copying, granule=0)
        return replace(action, manual=action.manual and self.manual, copying=copying)


@dataclass(slots=True)
class PointsResult(WorkloadResult[PointDefect]):
    """How a run ended; of the known defects, how many transactions were left out.

    :ivar targets: how many targets were judged, by how their job ended
    """

    targets: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Sides:
    """Both sides of a run.

    :ivar chain: the real disks
    :ivar result: what was done and compared so far
    """

    setup: PointsSetup
    chain: PointsChain
    model: PointInTime
    result: PointsResult = field(default_factory=PointsResult)
    _comparers: defaultdict[str, Comparer] = field(  # by export
        default_factory=lambda: defaultdict(lambda: Comparer(keep=_KEPT))
    )

    def compare(
        self, verdict: Verdict, where: str, export: str, contents: Contents, start: int, count: int
    ) -> None:
        """Read a part of an export, in sectors, and compare it with what is predicted.

        Of a large part what is read is all that block status does not call zeroes, what is
        predicted to be something else, and what was written to any disk.

        :raises Diverged: it differs
        """
        self.result.clusters += -(-count * SECTOR // self.setup.spec.cluster)
        ranges = self._ranges(export, contents, start, count)
        for offset, found in self.chain.read_ahead(export, ranges):
            first = offset // SECTOR
            self.chain.steps.append(RequestSent(export, Verb.READ, first, len(found) // SECTOR))
            evidence, comparer = partial(Returned, export, first), self._comparers[export]
            compare_data(verdict, where, found, contents, first, evidence, comparer)

    def read_disk(self, disk: int, start: int, count: int) -> None:
        """Compare a part of a disk, in sectors.

        :raises Diverged: it differs
        """
        name, now = f"disk{disk}", self.model.disks[disk].now
        self.compare(Verdict.CONTENT, name, name, now, start, count)

    def _ranges(
        self, export: str, contents: Contents, start: int, count: int
    ) -> Iterator[tuple[int, int]]:
        """What is read of a part: (offset, length) in bytes."""
        if count > _LARGE:
            pages = pages_of(self.chain.data_extents(export))
            pages.update(contents.pages, *(disk.now.pages for disk in self.model.disks))
            yield from pieces(pages, (start + count) * SECTOR, AT_ONCE)
            return
        for at in range(start, start + count, _MOST):
            yield at * SECTOR, min(_MOST, start + count - at) * SECTOR
