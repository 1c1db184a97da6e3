"""`qmpshim verify`: a seeded workload on a real chain, compared with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.chain import ChainCase, save
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.workload.session import Result, Rig, Setup, run_case
from qmpshim.conformance.workload.setup import run_by
from qmpshim.conformance.workload.verification import (
    IMPATIENT,
    Progress,
    Subject,
    replay_operations,
)
from qmpshim.conformance.workload.workload import all_kinds
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.process import COMMAND_LIMIT
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import behaviour_of, snapshot_defects
from qmpshim.model.operations import Operation

_SHORTEST_SILENCE = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class ChainSubject(Subject[Operation, Result, Rig]):
    """A chain of disks with its backup or its replication."""

    setup: Setup

    @property
    def workflow(self) -> str:
        return self.setup.spec.workflow

    def nothing(self) -> Result:
        return Result()

    async def run(
        self,
        operations: Sequence[Operation],
        directory: Path,
        progress: Callable[[Result, str], None] | None = None,
        at_end: Callable[[Rig | None, Result], None] | None = None,
    ) -> Result:
        return await run_case(self.setup, operations, directory, progress, at_end)

    def impatient(self, whole: Result) -> ChainSubject:
        # A hang must not cost the full limit at each try: QEMU does nothing for many times as long
        # as any of these operations took.
        silence = min(self.setup.silence, max(_SHORTEST_SILENCE, 10 * whole.slowest))
        limit = min(self.setup.limit, IMPATIENT)
        return ChainSubject(replace(self.setup, limit=limit, silence=silence))

    def save(
        self,
        target: Path,
        operations: tuple[Operation, ...],
        divergence: Divergence,
        seed: int,
        version: str,
        run: Rig | None,
    ) -> Path:
        setup = self.setup
        build = setup.to_json(version)
        case = ChainCase(setup.spec, setup.behaviour, operations, divergence, seed, build)
        return save(target, case, run)

    def never(self, result: Result) -> list[str]:
        kinds = {f"{side} {kind}" for side, kind in all_kinds(self.setup.spec.topology)}
        return sorted(kinds - result.operations.keys())

    def members(self, result: Result) -> dict[str, Any]:
        spec = self.setup.spec
        return {
            "command": list(self.setup.command),
            "size_bytes": spec.size,
            "cluster_bytes": spec.cluster,
            "size": spec.size,  # the two as they were called before their unit was in the name
            "cluster": spec.cluster,
            "secondary": spec.secondary,
            "options": [list(one) for one in spec.options],
        }

    def side_and_verb(self, operation: Operation) -> tuple[str, str]:
        return operation.side.value, operation.verb.value


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
    return Setup(spec, behaviour, **run_by(build, machine, limit))


async def replay(case: ChainCase, setup: Setup, workspace: Workspace, progress: Progress) -> Result:
    """Run a bundle's operations again, on whatever build *setup* names."""
    subject = ChainSubject(replace(setup, behaviour=case.behaviour))
    return await replay_operations(subject, case.operations, workspace, progress)


def split(count: int, workflows: Sequence[str]) -> dict[str, int]:
    """Share *count* operations out among the workflows."""
    share, rest = divmod(count, len(workflows))
    return {workflow: share + (index < rest) for index, workflow in enumerate(workflows)}
