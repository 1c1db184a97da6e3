"""`qmpshim verify`: a seeded workload on a real chain, shrunk and bundled when it diverges."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles import bundle
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.workload.session import Result, Rig, Setup, run_case
from qmpshim.conformance.workload.shrink import shrink
from qmpshim.conformance.workload.workload import Operation, Workload, all_kinds
from qmpshim.errors import HostError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.files import copy_tree
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.machine.host.programs import need_program
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import behaviour_of, snapshot_defects
from qmpshim.model.units import SECTOR

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
SHRINK_SECONDS = 20.0
_EVIDENCE = 10.0  # seconds that the run for the bundle may take longer than all of the workload
_SHORTEST_SILENCE = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class VerifyOutcome:
    """How the verification of one workflow ended.

    :ivar bundle: where the replay bundle is, if there is one
    :ivar operations: of the shrunk case
    :ivar interrupted: this is what there was until somebody ended it
    :ivar unsaved: why there is no bundle of a divergence, or ``""``
    """

    setup: Setup
    seed: int
    result: Result
    version: str
    bundle: Path | None = None
    operations: tuple[Operation, ...] = ()
    interrupted: bool = False
    unsaved: str = ""

    @property
    def never(self) -> list[str]:
        """Kinds of operation that the chain can do and that did not occur, ``side kind``."""
        kinds = {f"{side} {kind}" for side, kind in all_kinds(self.setup.spec.topology)}
        return sorted(kinds - self.result.operations.keys())

    def to_json(self) -> dict[str, Any]:
        """The summary as data."""
        spec, result = self.setup.spec, self.result
        found = result.divergence
        return {
            "workflow": spec.workflow,
            "build": self.version,
            "command": list(self.setup.command),
            "size_bytes": spec.size,
            "cluster_bytes": spec.cluster,
            "size": spec.size,  # the two as they were called before their unit was in the name
            "cluster": spec.cluster,
            "secondary": spec.secondary,
            "seed": self.seed,
            "operations": dict(sorted(result.operations.items())),
            "never": self.never,
            "checks": result.checks,
            "clusters_compared": result.clusters,
            "seconds": round(result.seconds, 3),
            "known": {known.value: count for known, count in sorted(result.known.items())},
            "divergence": found.to_json() if found else None,
            "minimal": [str(operation) for operation in self.operations],
            "minimal_operations": [_operation(operation) for operation in self.operations],
            "bundle": str(self.bundle) if self.bundle else None,
            "interrupted": self.interrupted,
        }


def _operation(operation: Operation) -> dict[str, Any]:
    """An operation in a document: positions in bytes, where bundles have sectors."""
    return {
        "number": operation.number,
        "side": operation.side.value,
        "do": operation.kind.value,
        "offset_bytes": operation.start * SECTOR,
        "length_bytes": operation.count * SECTOR,
    }


def setup_for(
    build: Build,
    spec: ChainSpec,
    machine: str = "none",
    strict: bool = False,
    limit: float = COMMAND_LIMIT,
) -> Setup:
    """How to run *spec* on *build*.

    :param strict: predict no known defect, so that they are reported as divergences
    """
    version, _ = read_version(build)
    behaviour = behaviour_of(version, strict)
    if spec.topology.has("snapshot-access") and not strict:
        behaviour = replace(behaviour, known=behaviour.known | snapshot_defects(version))
    qemu_img = build.tool("qemu-img")
    if build.env:
        variables = (f"{name}={value}" for name, value in build.env.items())
        qemu_img = [need_program("env", "coreutils"), *variables, *qemu_img]
    return Setup(
        spec,
        tuple(build.command()),
        dict(build.env),
        tuple(qemu_img),
        machine,
        behaviour,
        limit,
    )


async def verify(
    setup: Setup,
    version: str,
    count: int,
    seed: int,
    workspace: Workspace,
    bundles: Path,
    progress: Progress,
    keep: Path | None = None,
    shrinking: float = SHRINK_SECONDS,
    diverged: Callable[[Divergence], None] = lambda divergence: None,
    interrupted: Callable[[VerifyOutcome], None] = lambda outcome: None,
) -> VerifyOutcome:
    """Run *count* operations of workload *seed*; shrink and bundle the first divergence.

    :param version: the build's version in words, for the report
    :param bundles: directory for bundles
    :param progress: is told what is going on, now and then
    :param keep: copy images and logs there when all went as predicted
    :param shrinking: seconds that making a case small may take
    :param diverged: told of a divergence at once, before it is made small
    :param interrupted: at a cancellation, which is passed on, told what there is by then
    """
    operations = list(Workload(setup.spec, seed).take(count))
    workflow = setup.spec.workflow
    so_far = Result()

    def tell(result: Result, doing: str) -> None:
        nonlocal so_far
        so_far = result
        rate = result.done / result.seconds if result.seconds else 0
        progress(f"{workflow}: {result.done}/{count} operations, {rate:,.0f}/s, {doing}")

    def at_end(rig: Rig | None, result: Result) -> None:
        if keep is not None and rig is not None and result.divergence is None:
            copy_tree(rig.directory, keep / workflow, "*.sock", "*.copy")

    directory = workspace.subdirectory(workflow)
    try:
        result = await run_case(setup, operations, directory, tell, at_end)
    except asyncio.CancelledError:
        interrupted(VerifyOutcome(setup, seed, so_far, version, interrupted=True))
        raise
    if result.divergence is None:
        return VerifyOutcome(setup, seed, result, version)
    diverged(result.divergence)
    minimising = Minimising(setup, version, seed, workspace, bundles, progress)
    try:
        await minimising.run(operations, result, shrinking)
    except asyncio.CancelledError:
        minimising.save_as_it_is()
        interrupted(minimising.outcome(result, interrupted=True))
        raise
    return minimising.outcome(result)


class Minimising:
    """Makes a diverging case small and saves its bundle.

    :ivar operations: the smallest case so far, :ivar found: what it shows
    :ivar saved: where the bundle is, once there is one, :ivar unsaved: why there is none
    """

    def __init__(
        self,
        setup: Setup,
        version: str,
        seed: int,
        workspace: Workspace,
        bundles: Path,
        progress: Progress,
    ) -> None:
        self.setup, self.version, self.seed = setup, version, seed
        self._workspace, self._bundles, self._progress = workspace, bundles, progress
        self.operations: list[Operation] = []
        self.found: Divergence | None = None
        self.saved: Path | None = None
        self.unsaved = ""

    async def run(
        self, operations: Sequence[Operation], result: Result, seconds: float = SHRINK_SECONDS
    ) -> None:
        """Do it.

        :param result: what the operations showed
        :param seconds: for making the case small
        """
        first = self.found = result.divergence
        assert first is not None
        self.operations = [one for one in operations if one.number <= first.operation]
        # A hang must not cost the full limit at each try: QEMU does nothing for many times as long
        # as any of these operations took.
        silence = min(self.setup.silence, max(_SHORTEST_SILENCE, 10 * result.slowest))
        quick = replace(self.setup, limit=min(self.setup.limit, 5.0), silence=silence)

        async def reproduce(candidate: Sequence[Operation]) -> Divergence | None:
            directory = self._workspace.subdirectory("shrink")
            try:
                return (await run_case(quick, candidate, directory)).divergence
            finally:
                shutil.rmtree(directory, ignore_errors=True)

        minimal, self.found = await shrink(operations, first, reproduce, seconds, self._smaller)
        self.operations = minimal
        directory = self._workspace.subdirectory("bundle")
        try:
            async with asyncio.timeout(result.seconds + _EVIDENCE):
                await run_case(quick, minimal, directory, at_end=self._save)
        except TimeoutError:
            self.save_as_it_is()

    def _smaller(self, operations: Sequence[Operation], found: Divergence, runs: int) -> None:
        self.operations, self.found = list(operations), found
        left = len(operations)
        workflow = self.setup.spec.workflow
        self._progress(f"{workflow}: shrinking, {left} operations left after {runs} runs")

    def save_as_it_is(self) -> None:
        """Save the case without another run of it, if it is not saved yet."""
        if self.saved is None and self.found is not None:
            self._save(None, Result(self.found))

    def _save(self, rig: Rig | None, result: Result) -> None:
        assert self.found is not None
        setup, seed = self.setup, self.seed
        build = {"version": self.version, "command": list(setup.command), "machine": setup.machine}
        case = bundle.WorkloadCase(
            setup.spec,
            setup.behaviour,
            tuple(self.operations),
            result.divergence or self.found,
            seed,
            build,
        )
        target = self._bundles / f"{setup.spec.workflow}-{self.found.verdict}-seed{seed}"
        try:
            self.saved = bundle.save(target, case, rig, setup)
        except HostError as error:  # what was found is not lost with it
            self.unsaved = str(error)

    def outcome(self, result: Result, interrupted: bool = False) -> VerifyOutcome:
        """The outcome of a verification whose whole workload had this result."""
        result.divergence = self.found
        return VerifyOutcome(
            self.setup,
            self.seed,
            result,
            self.version,
            self.saved,
            tuple(self.operations),
            interrupted,
            self.unsaved,
        )


async def replay(
    case: bundle.WorkloadCase, setup: Setup, workspace: Workspace, progress: Progress
) -> Result:
    """Run a bundle's operations again, on whatever build *setup* names."""

    def tell(result: Result, doing: str) -> None:
        progress(f"replay: {result.done}/{len(case.operations)} operations, {doing}")

    return await run_case(
        replace(setup, behaviour=case.behaviour),
        case.operations,
        workspace.subdirectory("replay"),
        tell,
    )


def split(count: int, workflows: Sequence[str]) -> dict[str, int]:
    """Share *count* operations out among the workflows."""
    share, rest = divmod(count, len(workflows))
    return {workflow: share + (index < rest) for index, workflow in enumerate(workflows)}
