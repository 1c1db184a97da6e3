"""Random workloads of an assessment: operations one after another, on several disks at once, too.

What no order of I/O decides shows itself here: transactions, chains of increments, bitmaps over a
restart. Each is a case of `qmpshim check`, in a process of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qmpshim.conformance.bundles.again import on_build
from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.run.case_process import Order, carry_out
from qmpshim.conformance.check.run.identity import Identity, identify
from qmpshim.conformance.check.runners.kinds import name_of
from qmpshim.conformance.cluster import Cluster, spread
from qmpshim.conformance.pointintime.verify import SIZE
from qmpshim.conformance.pointintime.workload import PointsWorkflow
from qmpshim.conformance.uses import Use, uses_of
from qmpshim.errors import WorkerLost
from qmpshim.machine.builds.build import Build

_LIMIT = 30.0  # seconds for each; it takes two or three
_SEED = 1


@dataclass(frozen=True, slots=True)
class UseWorkload:
    """Operations of `qmpshim verify` that stand for some uses.

    :ivar kind: of the case
    :ivar workflow: as ``verify --workflow`` has it
    :ivar operations: how many
    :ivar disks: ``size`` and ``cluster`` in bytes, ``secondary``, by the options of `verify`
    """

    kind: str
    workflow: str
    operations: int
    uses: tuple[Use, ...]
    disks: Mapping[str, int | str]

    @property
    def case(self) -> Case:
        """As `qmpshim check` does it."""
        words = {"workflow": self.workflow, "operations": self.operations, "seed": _SEED}
        arguments = {**words, **self.disks, "shrink": 5}
        return Case(self.kind, f"{self.kind}/{self.workflow}", arguments, _LIMIT)

    def command(self, build: Build) -> str:
        """The command that does it again."""
        words = ["--workflow", self.workflow, "--ops", str(self.operations), "--seed", str(_SEED)]
        for option, value in self.disks.items():
            words += [f"--{option}", str(value)]
        return shlex.join(["qmpshim", "verify", *words, *on_build(build)])


_CLUSTER = 64 << 10  # bytes
_OF_CHAINS: Mapping[str, int | str] = {"size": 64 << 20, "cluster": _CLUSTER, "secondary": "raw"}
_OF_POINTS: Mapping[str, int | str] = {"size": SIZE, "cluster": _CLUSTER}

WORKLOADS = (
    *(
        UseWorkload("verify", chain, 2000, uses_of(chain), _OF_CHAINS)
        for chain in ("replication", "backup")
    ),
    *(UseWorkload("points", one.value, 300, one.uses, _OF_POINTS) for one in PointsWorkflow),
)


@dataclass(frozen=True, slots=True)
class WorkloadTrial:
    """A workload, and what came of it."""

    workload: UseWorkload
    outcome: CaseOutcome

    @property
    def operations(self) -> int:
        """How many were done."""
        return int(self.outcome.figures.get("operations", 0))


def run_workloads(
    build: Build, uses: Sequence[Use], jobs: int, cluster: Cluster | None = None
) -> list[WorkloadTrial]:
    """Run those that stand for *uses*.

    :param jobs: processes at a time
    :param cluster: run them there, with all its workers
    :raises ExecutorLost: the cluster went away
    """
    wanted = [one for one in WORKLOADS if set(one.uses) & set(uses)]
    identity = identify(build)
    calls = [lambda one=one: (build, identity, one) for one in wanted]
    ran: dict[int, WorkloadTrial] = {}
    for place, result in spread(carry_out_workload, calls, jobs, cluster):
        try:
            ran[place] = result()
        except WorkerLost as error:
            ran[place] = WorkloadTrial(wanted[place], CaseOutcome(Status.BROKEN, str(error)))
    return [ran[place] for place in sorted(ran)]


def carry_out_workload(
    build: Build,
    identity: Identity,
    workload: UseWorkload,
    cancelled: Callable[[], bool] = lambda: False,
) -> WorkloadTrial:
    """Run a workload in a process of its own; once more, where it shows something new.

    What it does not show again is not confirmed.
    """
    order = Order(build, identity, workload.case, name_of(workload.kind))
    outcome = carry_out(order, cancelled).outcome
    if all(found.known for found in outcome.findings):
        return WorkloadTrial(workload, outcome)
    again = {found.key for found in carry_out(order, cancelled).outcome.findings}
    findings = (
        replace(found, confirmed=bool(found.known) or found.key in again)
        for found in outcome.findings
    )
    return WorkloadTrial(workload, replace(outcome, findings=tuple(findings)))
