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
from qmpshim.conformance.pointintime.rotation import Rotation
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
from qmpshim.model.pointintime.sectors import Sectors
from qmpshim.model.units import SECTOR

_MOST = AT_ONCE // SECTOR
_LARGE = (1 << 30) // SECTOR  # sectors: more are not read where there is nothing
#: Checks after which all of a disk was read, at most.
PARTS = 8
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
    :ivar rotation: what checks read
    :ivar comparers: by export
    """

    setup: PointsSetup
    chain: PointsChain
    model: PointInTime
    result: PointsResult = field(default_factory=PointsResult)
    rotation: Rotation = field(init=False)
    comparers: defaultdict[str, Comparer] = field(
        default_factory=lambda: defaultdict(lambda: Comparer(keep=_KEPT))
    )

    def __post_init__(self) -> None:
        disks, size = self.model.disks, self.model.disks[0].size
        # Of large ones all is read each time: that is where there is something.
        parts = 1 if size > _LARGE else PARTS
        self.rotation = Rotation(size, disks[0].cluster, len(disks), parts)

    def compare(
        self, verdict: Verdict, where: str, export: str, contents: Contents, part: Sectors
    ) -> None:
        """Read a part of an export and compare it with what is predicted.

        Of a large disk what is read is all that block status does not call zeroes, what is
        predicted to be something else, and what was written to any disk.

        :raises Diverged: it differs
        """
        cluster = self.setup.spec.cluster
        self.result.clusters += sum(-(-count * SECTOR // cluster) for _, count in part.runs())
        ranges = self._ranges(export, contents, part)
        for offset, found in self.chain.read_ahead(export, ranges):
            first = offset // SECTOR
            self.chain.steps.append(RequestSent(export, Verb.READ, first, len(found) // SECTOR))
            evidence = partial(Returned, export, first)
            compare_data(verdict, where, found, contents, first, evidence, self.comparers[export])

    def read_disk(self, disk: int, part: Sectors) -> None:
        """Compare a part of a disk.

        :raises Diverged: it differs
        """
        name, now = f"disk{disk}", self.model.disks[disk].now
        self.compare(Verdict.CONTENT, name, name, now, part)

    def _ranges(self, export: str, contents: Contents, part: Sectors) -> Iterator[tuple[int, int]]:
        """What is read of a part: (offset, length) in bytes, no more than a MiB at once."""
        if part and part.last - part.first > _LARGE:
            pages = pages_of(self.chain.data_extents(export))
            pages.update(contents.pages, *(disk.now.pages for disk in self.model.disks))
            yield from pieces(pages, self.setup.spec.size, AT_ONCE)
            return
        for start, count in part.runs():
            end = start + count
            while start < end:
                # Up to where the comparer's next MiB begins.
                stop = min(end, start - start % _MOST + _MOST)
                yield start * SECTOR, (stop - start) * SECTOR
                start = stop
