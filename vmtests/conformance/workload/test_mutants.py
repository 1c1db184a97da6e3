"""Each sabotage of the real side gets the right verdict and a minimal case; without one: none."""

from __future__ import annotations

import asyncio

import pytest

from qmpshim.conformance.bundles import bundle
from qmpshim.conformance.workload.session import run_case
from qmpshim.conformance.workload.verification import Minimizing
from qmpshim.conformance.workload.verify import ChainSubject, replay, setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.workspace import Workspace
from vmtests.support.chains import SABOTAGES, Sabotage

CASES = [
    pytest.param(one, id=str(one), marks=[] if one.quick else pytest.mark.full) for one in SABOTAGES
]


@pytest.mark.parametrize("sabotage", CASES)
def test_sabotage_is_convicted(sabotage: Sabotage, qemu_build: Build, workspace: Workspace) -> None:
    asyncio.run(convict(sabotage, qemu_build, workspace))


async def convict(sabotage: Sabotage, build: Build, workspace: Workspace) -> None:
    setup = sabotage.setup(build)
    # A short workload need not contain what is sabotaged, or lets another one notice it first.
    for seed in range(1, 9):
        operations = [o for o in Workload(setup.spec, seed).take(100) if sabotage.of(o)]
        whole = await run_case(setup, operations, workspace.subdirectory("all"))
        found = whole.divergence
        if found is not None and found.where == sabotage.where:
            break
    assert found is not None, "nobody noticed"
    assert (found.verdict, found.where) == (sabotage.verdict, sabotage.where), str(found)
    runs: list[str] = []
    bundles = workspace.path / "bundles"
    minimizing = Minimizing(ChainSubject(setup), build.name, seed, workspace, bundles, runs.append)
    await minimizing.run(operations, whole, 60.0)
    minimal, found, saved = minimizing.operations, minimizing.found, minimizing.saved
    assert found is not None and saved is not None
    assert (found.verdict, found.where) == (sabotage.verdict, sabotage.where), str(found)
    assert len(minimal) <= sabotage.most, [str(operation) for operation in minimal]
    # The bundle shows it again, as long as the sabotage is there, and an honest QEMU does not.
    assert saved is not None
    case = bundle.load(saved)
    assert case.operations == tuple(minimal)
    again = await replay(case, setup, workspace, runs.append)
    assert again.divergence is not None
    assert again.divergence.signature == found.signature
    honest = setup_for(build, setup.spec)
    assert (await replay(case, honest, workspace, runs.append)).divergence is None
