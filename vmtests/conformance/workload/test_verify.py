"""QEMU does what is predicted, on every shape of chain; and what is reported."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.workload.session import Result, Rig, Setup, run_case
from qmpshim.conformance.workload.verification import VerifyOutcome, verify
from qmpshim.conformance.workload.verify import ChainSubject, setup_for, split
from qmpshim.conformance.workload.workload import Workload
from qmpshim.errors import BuildError, InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.workspace import Workspace
from qmpshim.machine.images.qcow2 import Qcow2Reader
from qmpshim.machine.images.qcow2_check import check
from qmpshim.model.chain.behaviour import KnownDefect
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb
from vmtests.support.chains import FlippedByte

MiB = 1 << 20
R, B = Workflow.REPLICATION, Workflow.BACKUP

PATIENT = 120.0  # seconds for making a case small: how busy the host is decides nothing


def run(
    setup: Setup, count: int, seed: int, workspace: Workspace, keep: Path | None = None
) -> VerifyOutcome[Operation, Result, Rig]:
    lines: list[str] = []
    bundles = workspace.path / "bundles"
    outcome = asyncio.run(
        verify(
            ChainSubject(setup),
            list(Workload(setup.spec, seed).take(count)),
            setup.command[0],
            seed,
            workspace,
            bundles,
            lines.append,
            keep,
            shrinking=PATIENT,
        )
    )
    assert all(text.startswith(f"{setup.spec.workflow}: ") for text in lines)
    return outcome


def agrees(build: Build, spec: ChainSpec, count: int, seed: int, workspace: Workspace) -> None:
    outcome = run(setup_for(build, spec), count, seed, workspace)
    found = outcome.result.divergence
    assert found is None, "\n    ".join([str(found), *map(str, outcome.operations)])
    assert outcome.result.done == count
    assert outcome.result.checks > 5
    assert outcome.result.clusters > 0


SHAPES = {
    "usual": (64 * MiB, 65536, "raw"),
    "qcow2 secondary": (8 * MiB, 65536, "qcow2"),
    "small clusters, qcow2, cut": (2 * MiB + 1536, 4096, "qcow2"),
    "large clusters, cut": (5 * MiB + 512, 2 * MiB, "raw"),
    "less than a cluster": (1536, 65536, "raw"),
}


def test_many_small_clusters_are_slow_and_no_hang(workspace: Workspace, qemu_build: Build) -> None:
    """An overlay whose L1 table is too long is emptied cluster by cluster."""
    small, large = ChainSpec(R, 506 * MiB, 512), ChainSpec(R, 512 * MiB, 512)
    assert not small.emptying and large.emptying > 20.0
    setup = setup_for(qemu_build, large, limit=0.5)
    operations = [Operation(Side.CHAIN, Verb.START, number=1)]  # it empties them, too
    result = asyncio.run(run_case(setup, operations, workspace.subdirectory("large")))
    assert result.divergence is None and result.done == 1


@pytest.mark.parametrize("workflow", Workflow)
@pytest.mark.parametrize("shape", SHAPES)
def test_qemu_does_what_is_predicted(
    shape: str, workflow: Workflow, workspace: Workspace, qemu_build: Build
) -> None:
    spec = ChainSpec(workflow, *SHAPES[shape])
    for seed in (1, 2):
        agrees(qemu_build, spec, 900 if spec.cluster < MiB else 300, seed, workspace)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("workflow", Workflow)
def test_qemu_does_what_is_predicted_long(
    workflow: Workflow, seed: int, workspace: Workspace, qemu_build: Build
) -> None:
    """20,000 operations over both workflows for each seed."""
    agrees(qemu_build, ChainSpec(workflow), 10_000, seed, workspace)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
@pytest.mark.parametrize("cluster", [512, 4096, 16384, 65536, 2 * MiB])
@pytest.mark.parametrize("workflow", Workflow)
def test_every_shape_long(
    workflow: Workflow,
    cluster: int,
    secondary: str,
    seed: int,
    workspace: Workspace,
    qemu_build: Build,
) -> None:
    size = 40 * cluster + 512 * seed
    agrees(qemu_build, ChainSpec(workflow, size, cluster, secondary), 3000, seed, workspace)


P, C = Side.PRIMARY, Side.CHAIN


@pytest.mark.parametrize(
    ("workflow", "operations"),
    [
        # block_copy_block_status() is asked for a whole task: the granule that the disk's end cuts
        # short is zero, too, when a task that begins before it is; alone it is copied as data.
        (B, [Operation(C, Verb.START, number=1), Operation(P, Verb.WRITE, 256, 160, number=2)]),
        # qmp_xen_set_replication() gives replication_stop_all() no Error when failover is asked
        # for: whatever is wrong, it says nothing.
        (R, [Operation(C, Verb.FAILOVER, number=1)]),
    ],
    ids=["zero tail after a zero granule", "failover says nothing"],
)
def test_what_the_model_once_did_not_know(
    workflow: Workflow, operations: list[Operation], workspace: Workspace, qemu_build: Build
) -> None:
    spec = ChainSpec(workflow, 13 * 16384 + 1536, 16384)
    setup = setup_for(qemu_build, spec)
    result = asyncio.run(run_case(setup, operations, workspace.subdirectory("gap")))
    assert result.divergence is None, str(result.divergence)


# -- what is reported ----------------------------------------------------------------------------


def test_an_outcome_as_data(workspace: Workspace, tmp_path: Path, qemu_build: Build) -> None:
    setup = setup_for(qemu_build, ChainSpec(R, 4 * MiB))
    outcome = run(setup, 300, 3, workspace, tmp_path / "kept")
    document = outcome.to_json()
    assert (document["workflow"], document["seed"], document["size"]) == ("replication", 3, 4 * MiB)
    assert document["command"] == list(setup.command)
    assert sum(document["operations"].values()) == 300
    assert set(document["operations"]) == {
        f"{o.side} {o.verb}" for o in Workload(setup.spec, 3).take(300)
    }
    assert (document["divergence"], document["minimal"], document["bundle"]) == (None, [], None)
    assert document["seconds"] > 0
    # What is kept is whole and can be looked at.
    kept = tmp_path / "kept" / "replication"
    names = {path.name for path in kept.iterdir()}
    assert names >= {"secondary.raw", "hidden.qcow2", "active.qcow2", "qmp.log", "stderr"}
    assert not [path for path in kept.iterdir() if path.is_socket()]
    assert check(Qcow2Reader.parse((kept / "hidden.qcow2").read_bytes())) == []


def test_nothing_is_left_in_the_workspace(workspace: Workspace, qemu_build: Build) -> None:
    run(setup_for(qemu_build, ChainSpec(B, 4 * MiB)), 80, 1, workspace)
    assert list(workspace.path.iterdir()) == []


def test_a_divergence_as_data(workspace: Workspace, qemu_build: Build) -> None:
    setup = replace(setup_for(qemu_build, ChainSpec(B, 4 * MiB)), chain=FlippedByte)
    outcome = run(setup, 300, 1, workspace)
    again = run(setup, 300, 1, workspace)
    document = outcome.to_json()
    assert document["divergence"]["verdict"] == "content"
    assert document["minimal"] == [str(operation) for operation in outcome.operations]
    assert 0 < len(document["minimal"]) <= 3
    assert outcome.bundle is not None and again.bundle is not None
    assert outcome.bundle.name == "backup-content-seed1"
    assert again.bundle.name == "backup-content-seed1-2"  # nothing is overwritten
    assert sorted(path.name for path in workspace.path.iterdir()) == ["bundles"]


def test_a_known_defect_is_predicted_unless_that_is_forbidden(
    workspace: Workspace, qemu_build: Build
) -> None:
    """QEMU 5.2 to 10.0: a stop of replication without failover says that it failed."""
    spec = ChainSpec(R, 4 * MiB)
    if KnownDefect.STOP_ALWAYS_FAILS not in setup_for(qemu_build, spec).behaviour.known:
        pytest.skip("this QEMU is not known to have the defect")
    for seed in range(1, 9):  # until a workload stops while replication runs
        outcome = run(setup_for(qemu_build, spec), 200, seed, workspace)
        assert outcome.result.divergence is None
        if outcome.result.known:
            break
    assert outcome.result.known[KnownDefect.STOP_ALWAYS_FAILS] > 0
    strict = run(setup_for(qemu_build, spec, strict=True), 200, seed, workspace)
    found = strict.result.divergence
    assert found is not None
    assert (found.verdict, found.where) == (Verdict.ERROR_CONTRACT, "stop")
    assert "Backup job was cancelled unexpectedly" in found.observed
    assert [str(operation.verb) for operation in strict.operations] == ["start", "stop"]


def test_shares() -> None:
    assert split(101, [B, R]) == {B: 51, R: 50}
    assert split(7, [R]) == {R: 7}


@pytest.mark.parametrize(
    ("size", "cluster", "secondary", "say"),
    [
        (1000, 65536, "raw", "size 1000 is no positive multiple of 512 bytes; the nearest is 1024"),
        (0, 65536, "raw", "size 0 is no positive multiple of 512 bytes; the nearest is 512"),
        (-512, 65536, "raw", "no positive multiple"),
        (512, 1000, "raw", "cluster size 1000 is no power of two from 512 to 2M"),
        (512, 4 * MiB, "raw", "no power of two"),
        (512, 65536, "vmdk", "neither raw nor qcow2"),
    ],
)
def test_impossible_shapes(size: int, cluster: int, secondary: str, say: str) -> None:
    with pytest.raises(InputError, match=say):
        ChainSpec(B, size, cluster, secondary)


def test_a_build_that_cannot(workspace: Workspace, qemu_build: Build) -> None:
    """A machine QEMU does not have: it ends before it answers."""
    setup = setup_for(qemu_build, ChainSpec(B, MiB), "no-such-machine")
    with pytest.raises(
        BuildError, match=r"did not answer QMP \(exit status 1\): .*unsupported machine type"
    ):
        run(setup, 50, 1, workspace)
    assert [p.name for p in workspace.path.iterdir()] in ([], ["backup"])
