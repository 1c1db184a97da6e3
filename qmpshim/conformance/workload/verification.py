"""A random workload on a real QEMU: run it, make its first divergence small, keep a bundle of that.

What the workload is of (a chain, disks with bitmaps) is a :class:`Subject`.
"""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.workload.result import MetDefect, WorkloadResult
from qmpshim.conformance.workload.shrink import Shrinkable, shrink
from qmpshim.errors import HostError
from qmpshim.machine.host.files import copy_tree
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.units import SECTOR

Progress = Callable[[str], None]
SHRINK_SECONDS = 20.0
IMPATIENT = 5.0  # seconds that a command may take while a case is made small
_EVIDENCE = 10.0  # seconds that the run for the bundle may take longer than all of the workload


class PlacedOperation(Shrinkable, Protocol):
    """An operation of a workload, with the sectors that it touches."""

    @property
    def start(self) -> int:
        """The first sector."""

    @property
    def count(self) -> int:
        """How many; 0: it touches none."""


class SomeRun(Protocol):
    """What a divergence is seen on: QEMU, its disks, the model."""

    @property
    def directory(self) -> Path:
        """Where its images and logs are."""


Op = TypeVar("Op", bound=PlacedOperation)
Res = TypeVar("Res", bound=WorkloadResult[Any])
Run = TypeVar("Run", bound=SomeRun)


class Subject(ABC, Generic[Op, Res, Run]):
    """What a workload is done on, and the model that it is compared with."""

    @property
    @abstractmethod
    def workflow(self) -> str:
        """The name of the workflow, of its directories and of its bundles."""

    @abstractmethod
    def nothing(self) -> Res:
        """The result of a run that has done nothing yet."""

    @abstractmethod
    async def run(
        self,
        operations: Sequence[Op],
        directory: Path,
        progress: Callable[[Res, str], None] | None = None,
        at_end: Callable[[Run | None, Res], None] | None = None,
    ) -> Res:
        """Run operations on fresh disks in *directory*.

        :param progress: called now and then with the result so far and what is being done
        :param at_end: called before everything is taken down; without a run where QEMU did not
            survive being set up
        """

    @abstractmethod
    def impatient(self, whole: Res) -> Self:
        """The same, so that a hang costs little at each of many tries.

        :param whole: the result of the whole workload
        """

    @abstractmethod
    def save(
        self,
        target: Path,
        operations: tuple[Op, ...],
        divergence: Divergence,
        seed: int,
        version: str,
        run: Run | None,
    ) -> Path:
        """Write a bundle.

        :returns: where it is; a number is added to *target* where that is taken
        :raises HostError: it cannot be written
        """

    @abstractmethod
    def never(self, result: Res) -> list[str]:
        """Kinds of operation that can be done here and that did not occur."""

    @abstractmethod
    def members(self, result: Res) -> dict[str, Any]:
        """What a document has of this kind of workload beyond what it has of all."""

    @abstractmethod
    def side_and_verb(self, operation: Op) -> tuple[str, str]:
        """Where an operation is done, and what it does."""

    def operation_object(self, operation: Op) -> dict[str, Any]:
        """An operation in a document: positions in bytes, where bundles have sectors."""
        side, verb = self.side_and_verb(operation)
        return {
            "number": operation.number,
            "side": side,
            "do": verb,
            "offset_bytes": operation.start * SECTOR,
            "length_bytes": operation.count * SECTOR,
        }


async def replay_operations(
    subject: Subject[Op, Res, Any],
    operations: Sequence[Op],
    workspace: Workspace,
    progress: Progress,
) -> Res:
    """Run a bundle's operations again."""

    def report(result: Res, doing: str) -> None:
        progress(f"replay: {result.done}/{len(operations)} operations, {doing}")

    return await subject.run(operations, workspace.subdirectory("replay"), report)


@dataclass(frozen=True, slots=True)
class VerifyOutcome(Generic[Op, Res, Run]):
    """How the verification of one workflow ended.

    :ivar version: the build's, in words
    :ivar bundle: where the replay bundle is, if there is one
    :ivar operations: of the minimal case
    :ivar interrupted: this is what there was until it was interrupted
    :ivar unsaved: why there is no bundle of a divergence, or ``""``
    """

    subject: Subject[Op, Res, Run]
    seed: int
    result: Res
    version: str
    bundle: Path | None = None
    operations: tuple[Op, ...] = ()
    interrupted: bool = False
    unsaved: str = ""

    @property
    def never(self) -> list[str]:
        """Kinds of operation that can be done here and that did not occur."""
        return self.subject.never(self.result)

    def to_json(self) -> dict[str, Any]:
        """The summary as data."""
        result, found = self.result, self.result.divergence
        return {
            "workflow": self.subject.workflow,
            "build": self.version,
            **self.subject.members(result),
            "seed": self.seed,
            "operations": dict(sorted(result.operations.items())),
            "never": self.never,
            "checks": result.checks,
            "clusters_compared": result.clusters,
            "seconds": round(result.seconds, 3),
            "known": {known.value: count for known, count in sorted(result.known.items())},
            "divergence": found.to_json() if found else None,
            "minimal": [str(operation) for operation in self.operations],
            "minimal_operations": [self.subject.operation_object(one) for one in self.operations],
            "bundle": str(self.bundle) if self.bundle else None,
            "interrupted": self.interrupted,
        }


async def verify(
    subject: Subject[Op, Res, Run],
    operations: Sequence[Op],
    version: str,
    seed: int,
    workspace: Workspace,
    bundles: Path,
    progress: Progress,
    keep: Path | None = None,
    shrinking: float = SHRINK_SECONDS,
    diverged: Callable[[Divergence], None] = lambda divergence: None,
    interrupted: Callable[[VerifyOutcome[Op, Res, Run]], None] = lambda outcome: None,
) -> VerifyOutcome[Op, Res, Run]:
    """Run the operations of workload *seed*; minimize and bundle the first divergence.

    :param version: the build's version in words, for the report
    :param bundles: directory for bundles
    :param progress: called now and then with what is going on
    :param keep: copy images and logs there when all went as predicted
    :param shrinking: seconds that making a case small may take
    :param diverged: called with a divergence at once, before it is made small
    :param interrupted: called with what there is at a cancellation, which is passed on
    """
    workflow, count = subject.workflow, len(operations)
    so_far = subject.nothing()

    def report(result: Res, doing: str) -> None:
        nonlocal so_far
        so_far = result
        rate = result.done / result.seconds if result.seconds else 0
        progress(f"{workflow}: {result.done}/{count} operations, {rate:,.0f}/s, {doing}")

    def at_end(run: Run | None, result: Res) -> None:
        if keep is not None and run is not None and result.divergence is None:
            copy_tree(run.directory, keep / workflow, "*.sock", "*.copy")

    try:
        result = await subject.run(operations, workspace.subdirectory(workflow), report, at_end)
    except asyncio.CancelledError:
        interrupted(VerifyOutcome(subject, seed, so_far, version, interrupted=True))
        raise
    if result.divergence is None:
        return VerifyOutcome(subject, seed, result, version)
    diverged(result.divergence)
    minimizing = Minimizing(subject, version, seed, workspace, bundles, progress)
    try:
        await minimizing.run(operations, result, shrinking)
    except asyncio.CancelledError:
        minimizing.save_as_it_is()
        interrupted(minimizing.outcome(result, interrupted=True))
        raise
    return minimizing.outcome(result)


class Minimizing(Generic[Op, Res, Run]):
    """Makes a diverging case small and saves its bundle.

    :ivar operations: the smallest case so far, :ivar found: what it shows
    :ivar saved: where the bundle is, once there is one, :ivar unsaved: why there is none
    """

    def __init__(
        self,
        subject: Subject[Op, Res, Run],
        version: str,
        seed: int,
        workspace: Workspace,
        bundles: Path,
        progress: Progress,
    ) -> None:
        self.subject, self.version, self.seed = subject, version, seed
        self._workspace, self._bundles, self._progress = workspace, bundles, progress
        self.operations: list[Op] = []
        self.found: Divergence | None = None
        self.saved: Path | None = None
        self.unsaved = ""
        self._met: list[MetDefect] | None = None  # by the smallest case

    async def run(
        self, operations: Sequence[Op], result: Res, seconds: float = SHRINK_SECONDS
    ) -> None:
        """Do it.

        :param result: what the operations showed
        :param seconds: for making the case small
        """
        first = self.found = result.divergence
        assert first is not None
        self.operations = [one for one in operations if one.number <= first.operation]
        quick = self.subject.impatient(result)

        async def reproduce(candidate: Sequence[Op]) -> Divergence | None:
            directory = self._workspace.subdirectory("shrink")
            try:
                return (await quick.run(candidate, directory)).divergence
            finally:
                shutil.rmtree(directory, ignore_errors=True)

        minimal, self.found = await shrink(operations, first, reproduce, seconds, self._smaller)
        self.operations = minimal
        directory = self._workspace.subdirectory("bundle")
        try:
            async with asyncio.timeout(result.seconds + _EVIDENCE):
                await quick.run(minimal, directory, at_end=self._at_end)
        except TimeoutError:
            self.save_as_it_is()

    def _smaller(self, operations: Sequence[Op], found: Divergence, runs: int) -> None:
        self.operations, self.found = list(operations), found
        left, workflow = len(operations), self.subject.workflow
        self._progress(f"{workflow}: shrinking, {left} operations left after {runs} runs")

    def save_as_it_is(self) -> None:
        """Save the case without another run of it, if it is not saved yet."""
        if self.saved is None and self.found is not None:
            self._save(None, self.found)

    def _at_end(self, run: Run | None, result: Res) -> None:
        assert self.found is not None
        self._met = result.met
        self._save(run, result.divergence or self.found)

    def _save(self, run: Run | None, divergence: Divergence) -> None:
        assert self.found is not None
        name = f"{self.subject.workflow}-{self.found.verdict}-seed{self.seed}"
        operations, version = tuple(self.operations), self.version
        try:
            self.saved = self.subject.save(
                self._bundles / name, operations, divergence, self.seed, version, run
            )
        except HostError as error:  # what was found is not lost with it
            self.unsaved = str(error)

    def outcome(self, result: Res, interrupted: bool = False) -> VerifyOutcome[Op, Res, Run]:
        """The outcome of a verification whose whole workload had this result."""
        result.divergence = self.found
        result.met = result.met if self._met is None else self._met
        return VerifyOutcome(
            self.subject,
            self.seed,
            result,
            self.version,
            self.saved,
            tuple(self.operations),
            interrupted,
            self.unsaved,
        )
