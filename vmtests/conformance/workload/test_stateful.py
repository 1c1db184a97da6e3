"""Hypothesis invents the operations, a real QEMU does them, and the model says what must come."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from qmpshim.conformance.workload.session import Result, Setup, WorkloadRun, open_rig
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Operation, Side, Verb
from qmpshim.model.units import SECTOR
from vmtests.support.chains import AroundQemu, NoCheckpoint, Torn

CLUSTER = 16384
CLUSTERS = 12  # with 64 KiB as backup's granularity: three copies' worth, and a short one
SIZE = CLUSTERS * CLUSTER + 5 * SECTOR
SECTORS = SIZE // SECTOR

# Where requests begin and end: at the edges of clusters and just beside them, for that is where
# they meet. A range is one draw, short ones first: so Hypothesis has little to shrink.
EDGES = [
    at
    for cluster in (0, 1, 3, 4, 5, 8, CLUSTERS)
    for at in (cluster * CLUSTER // SECTOR + off for off in (-1, 0, 1, 5))
    if 0 <= at <= SECTORS
]
RANGES = sorted(
    ([start, end] for start in EDGES for end in EDGES if start < end), key=lambda r: r[1] - r[0]
)
ranges = st.sampled_from(RANGES)
changes = st.sampled_from([Verb.WRITE, Verb.ZERO, Verb.DISCARD])


class ChainMachine(RuleBasedStateMachine):
    """A real chain, and next to it the model; what differs is an assertion that fails."""

    setup: ClassVar[Setup]
    last: ClassVar[list[Operation]]  # what the latest machine did: at the end, the minimal case

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="stateful-"))
        self.runner = asyncio.Runner()
        self.rig = self.runner.run(open_rig(self.setup, self.directory))
        self.session = WorkloadRun(self.rig)
        self.done: list[Operation] = []
        ChainMachine.last = self.done

    @property
    def replication(self) -> bool:
        return self.setup.spec.workflow == Workflow.REPLICATION

    @property
    def idle(self) -> bool:
        return self.rig.oracle.chain.job is None

    def do(self, side: Side, kind: Verb, ends: list[int] | None = None) -> None:
        start, end = ends or (0, 0)
        operation = Operation(side, kind, start, end - start, number=len(self.done) + 1)
        self.done.append(operation)
        self.judge(self.runner.run(self.session.run([operation])))

    def judge(self, result: Result) -> None:
        found = result.divergence
        assert found is None, str(found)

    # -- I/O -------------------------------------------------------------------------------------

    @rule(ends=ranges)
    def primary_writes(self, ends: list[int]) -> None:
        self.do(Side.PRIMARY, Verb.WRITE, ends)

    @rule(kind=changes, ends=ranges)
    def primary_changes(self, kind: Verb, ends: list[int]) -> None:
        self.do(Side.PRIMARY, kind, ends)

    @precondition(lambda self: self.replication)
    @rule(kind=changes, ends=ranges)
    def guest_changes(self, kind: Verb, ends: list[int]) -> None:
        self.do(Side.GUEST, kind, ends)

    @rule(ends=ranges)
    def guest_reads(self, ends: list[int]) -> None:
        self.do(Side.GUEST, Verb.READ, ends)

    @rule(side=st.sampled_from([Side.PRIMARY, Side.GUEST]), whole=st.booleans())
    def reads_or_flushes(self, side: Side, whole: bool) -> None:
        self.do(side, Verb.READ, [0, SECTORS]) if whole else self.do(side, Verb.FLUSH)

    # -- commands, in any state that the interface allows ----------------------------------------

    @precondition(lambda self: self.replication or self.idle)
    @rule()
    def start(self) -> None:
        self.do(Side.CHAIN, Verb.START)

    @rule()
    def stop(self) -> None:
        self.do(Side.CHAIN, Verb.STOP)

    @precondition(lambda self: self.replication)
    @rule()
    def checkpoint(self) -> None:
        self.do(Side.CHAIN, Verb.CHECKPOINT)

    @precondition(lambda self: self.replication)
    @rule()
    def failover(self) -> None:
        self.do(Side.CHAIN, Verb.FAILOVER)

    @precondition(lambda self: self.replication)
    @rule()
    def status(self) -> None:
        self.do(Side.CHAIN, Verb.STATUS)

    @precondition(lambda self: self.idle and len(self.done) > 5)
    @rule()
    def rebuild(self) -> None:
        self.do(Side.CHAIN, Verb.REBUILD)

    @rule()
    def check(self) -> None:
        self.do(Side.CHAIN, Verb.CHECK)

    @invariant()
    def qemu_lives(self) -> None:
        assert self.rig.qemu.alive()
        assert self.rig.qemu.stderr() == ""

    def teardown(self) -> None:
        judged = self.session.result.divergence is not None
        try:
            if not judged:
                self.runner.run(self.session.finish())
        finally:
            self.runner.run(self.session.close())
            self.runner.run(self.rig.close())
            self.runner.close()
            shutil.rmtree(self.directory, ignore_errors=True)
        if not judged:
            self.judge(self.session.result)


def explore(
    setup_: Setup, examples: int, steps: int, repeatable: bool = True
) -> type[ChainMachine]:
    """Let Hypothesis try; gives the class, with what the last machine did.

    :raises AssertionError: something differed; :attr:`ChainMachine.last` is minimal then
    """

    class Machine(ChainMachine):
        setup = setup_

    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=repeatable,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        print_blob=False,
    )
    run_state_machine_as_test(Machine, settings=chosen)
    return Machine


@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
@pytest.mark.parametrize("workflow", Workflow)
def test_qemu_does_what_is_predicted(workflow: Workflow, secondary: str, qemu_build: Build) -> None:
    spec = ChainSpec(workflow, SIZE, CLUSTER, secondary)
    explore(setup_for(qemu_build, spec), 10, 25)


@pytest.mark.full
@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
@pytest.mark.parametrize("workflow", Workflow)
def test_qemu_does_what_is_predicted_long(
    workflow: Workflow, secondary: str, qemu_build: Build
) -> None:
    spec = ChainSpec(workflow, SIZE, CLUSTER, secondary)
    explore(setup_for(qemu_build, spec), 200, 60, repeatable=False)


@pytest.mark.parametrize(
    ("mutant", "workflow", "needed", "most"),
    [
        (AroundQemu, Workflow.BACKUP, [Verb.START, Verb.WRITE], 3),
        pytest.param(Torn, Workflow.BACKUP, [Verb.WRITE], 2, marks=pytest.mark.full),
        pytest.param(
            NoCheckpoint, Workflow.REPLICATION, [Verb.CHECKPOINT], 2, marks=pytest.mark.full
        ),
    ],
)
def test_a_mutant_is_killed_and_its_case_shrunk(
    mutant: type, workflow: Workflow, needed: list[Verb], most: int, qemu_build: Build
) -> None:
    spec = ChainSpec(workflow, SIZE, CLUSTER)
    with pytest.raises(AssertionError, match="predicted"):
        explore(replace(setup_for(qemu_build, spec), chain=mutant), 80, 5)
    kinds = [operation.verb for operation in ChainMachine.last]
    assert set(needed) <= set(kinds)
    assert len(kinds) <= most, [str(operation) for operation in ChainMachine.last]
