"""Each mutant of the real side gets the right verdict and a minimal case; without one: none."""

from __future__ import annotations

import asyncio

import pytest

from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.workload.session import run_case
from qmpshim.conformance.workload.verification import Minimizing
from qmpshim.conformance.workload.verify import ChainSubject, replay, setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.workspace import Workspace
from vmtests.support.bundles import loaded
from vmtests.support.chains import MUTANTS, Mutant

CASES = [
    pytest.param(one, id=str(one), marks=[] if one.quick else pytest.mark.full) for one in MUTANTS
]


@pytest.mark.parametrize("mutant", CASES)
def test_a_mutant_is_killed(mutant: Mutant, qemu_build: Build, workspace: Workspace) -> None:
    asyncio.run(kill(mutant, qemu_build, workspace))


async def kill(mutant: Mutant, build: Build, workspace: Workspace) -> None:
    setup = mutant.setup(build)
    # A short workload need not contain what is changed, or lets another one notice it first.
    for seed in range(1, 9):
        operations = [o for o in Workload(setup.spec, seed).take(100) if mutant.of(o)]
        whole = await run_case(setup, operations, workspace.subdirectory("all"))
        found = whole.divergence
        if found is not None and found.where == mutant.where:
            break
    assert found is not None, "no check found it"
    assert (found.verdict, found.where) == (mutant.verdict, mutant.where), str(found)
    runs: list[str] = []
    bundles = workspace.path / "bundles"
    minimizing = Minimizing(ChainSubject(setup), build.name, seed, workspace, bundles, runs.append)
    await minimizing.run(operations, whole, 60.0)
    minimal, found, saved = minimizing.operations, minimizing.found, minimizing.saved
    assert found is not None and saved is not None
    assert (found.verdict, found.where) == (mutant.verdict, mutant.where), str(found)
    assert len(minimal) <= mutant.most, [str(operation) for operation in minimal]
    # The bundle shows it again, with the mutant, and not on the reference.
    assert saved is not None
    case = loaded(saved, ChainCase)
    assert case.operations == tuple(minimal)
    again = await replay(case, setup, workspace, runs.append)
    assert again.divergence is not None
    assert again.divergence.signature == found.signature
    reference = setup_for(build, setup.spec)
    assert (await replay(case, reference, workspace, runs.append)).divergence is None
