"""The seed of a random workload decides what its disks are like; what is given is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.bundles import chain
from qmpshim.conformance.bundles.workload_case import CASE
from qmpshim.conformance.compare.oracle import Oracle
from qmpshim.conformance.explore.space.values import node_options
from qmpshim.conformance.workload.geometry import Given, chain_by_seed, points_by_seed
from qmpshim.conformance.workload.session import run_case
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import Behaviour
from vmtests.support.bundles import loaded

KiB, MiB = 1 << 10, 1 << 20
SEEDS = range(200)


def chains(workflow: str, **given: int | str) -> Iterator[ChainSpec]:
    for seed in SEEDS:
        yield chain_by_seed(workflow, seed, Given(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize("workflow", ["backup", "replication", "fleecing"])
def test_every_value_comes(workflow: str) -> None:
    found = list(chains(workflow))
    assert found == list(chains(workflow))
    assert {one.cluster for one in found} == {512, 4 * KiB, 64 * KiB, 256 * KiB, 2 * MiB}
    assert {one.secondary for one in found} == {"raw", "qcow2"}
    assert {one.options for one in found} == set(node_options(workflow).values())
    granules = [max(one.cluster, 64 * KiB) for one in found]
    ends = [one.size % granule for one, granule in zip(found, granules, strict=True)]
    assert {0, 512, 1536} <= set(ends)
    assert any(end == granule - 512 for end, granule in zip(ends, granules, strict=True))
    assert all(one.size // granule >= 8 for one, granule in zip(found, granules, strict=True))
    assert max(one.size for one in found) <= 66 * MiB


def test_disks_of_jobs_and_bitmaps() -> None:
    found = [points_by_seed("push", seed, Given()) for seed in SEEDS]
    assert {one.cluster for one in found} == {512, 4 * KiB, 64 * KiB, 256 * KiB, 2 * MiB}
    assert {0, 512, 1536} <= {one.size % (64 * KiB) for one in found}
    assert points_by_seed("push", 7, Given(MiB, 512)).size == MiB


def test_what_is_given_is_kept() -> None:
    for one in chains("replication", size=MiB + 512, secondary="qcow2"):
        assert (one.size, one.secondary, one.options) == (MiB + 512, "qcow2", ())
    assert {one.cluster for one in chains("backup", cluster=4096)} == {4096}


class Unequipped(Oracle):
    """A model that knows nothing of its nodes' options."""

    def __init__(self, spec: ChainSpec, behaviour: Behaviour) -> None:
        super().__init__(replace(spec, options=()), behaviour)


@pytest.mark.parametrize(
    ("workflow", "options"),
    [
        ("replication", "detect-zeroes-below"),
        ("backup", "secondary-keeps"),
        ("fleecing", "filter-unmap"),
    ],
)
def test_options_are_predicted(
    workflow: str, options: str, qemu_build: Build, workspace: Workspace
) -> None:
    """They change what QEMU does, as the model has it: without them it predicts something else."""
    spec = ChainSpec(workflow, MiB + 512, 4096, "qcow2", node_options(workflow)[options])
    setup = setup_for(qemu_build, spec)
    operations = list(Workload(spec, 1).take(400))
    with_them = asyncio.run(run_case(setup, operations, workspace.subdirectory("with")))
    assert with_them.divergence is None, str(with_them.divergence)
    unequipped = replace(setup, oracle=Unequipped)
    without = asyncio.run(run_case(unequipped, operations, workspace.subdirectory("without")))
    assert without.divergence is not None


def test_a_bundle_keeps_the_options(tmp_path: Path) -> None:
    spec = ChainSpec("replication", MiB, options=node_options("replication")["filter-unmap"])
    case = chain.ChainCase(spec, Behaviour(), (), None, 1, {})
    (tmp_path / CASE).write_text(json.dumps(case.to_json()))
    assert loaded(tmp_path, chain.ChainCase).spec == spec
