"""Another chain, or another option of a node, is a value: verified as it is on a real QEMU."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from qmpshim.conformance.workload.session import Result, Setup, run_case
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.conformance.workload.workload import Workload, all_kinds
from qmpshim.errors import BuildError, InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.machine.chain.parts import Export, Node
from qmpshim.machine.chain.secondary import ChainSpec, SecondaryChain
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import KnownDefect
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb
from vmtests.support.chains import Data, FlippedByte, Meddled, Meddler

MiB = 1 << 20
MISREADS = KnownDefect.SNAPSHOT_READS_NEW_DATA


def run(setup: Setup, workspace: Workspace, count: int = 2000, seed: int = 1) -> Result:
    operations = Workload(setup.spec, seed).take(count)
    return asyncio.run(run_case(setup, operations, workspace.subdirectory("chain")))


def fleecing(build: Build, strict: bool = False, secondary: str = "raw") -> Setup:
    """Of a build that has ``snapshot-access``."""
    if read_version(build)[0] < (7, 0):
        pytest.skip("this QEMU has no snapshot-access")
    return setup_for(build, ChainSpec("fleecing", 4 * MiB, secondary=secondary), strict=strict)


@pytest.mark.parametrize("secondary", ["raw", "qcow2"])
def test_a_snapshot_is_what_is_predicted(
    secondary: str, workspace: Workspace, qemu_build: Build
) -> None:
    setup = fleecing(qemu_build, secondary=secondary)
    result = run(setup, workspace)
    assert result.divergence is None, str(result.divergence)
    every = {f"{side} {kind}" for side, kind in all_kinds(setup.spec.topology)}
    assert result.operations.keys() == every
    assert result.operations["guest read"] > 500 and result.checks > 3
    assert (result.known[MISREADS] > 0) == (read_version(qemu_build)[0] < (8, 0))


def test_a_misread_snapshot_is_reported_where_that_is_wanted(
    workspace: Workspace, qemu_build: Build
) -> None:
    """QEMU 7.2: a read over a copied and an uncopied cluster returns new data."""
    setup = fleecing(qemu_build, strict=True)
    one, two = Operation(Side.PRIMARY, Verb.WRITE, 0, 64, number=2), 128 * 512 * 2
    reads = [Operation(Side.GUEST, Verb.READ, 0, two // 512, number=n) for n in (1, 3)]
    found = asyncio.run(
        run_case(setup, [reads[0], one, reads[1]], workspace.subdirectory("chain"))
    ).divergence
    if read_version(qemu_build)[0] >= (8, 0):
        assert found is None, str(found)
        return
    assert found is not None
    assert (found.verdict, found.where) == (Verdict.ISOLATION, "guest read")


class PastTheFilter(Meddled):
    """The primary's writes do not pass copy-before-write: nothing is copied before them."""

    class meddler(Meddler):
        def submit_write(self, data: Data, offset: int, fua: bool = False) -> int:
            if self.export != "primary":
                return super().submit_write(data, offset, fua)
            with self.chain.image("secondary").open("r+b") as file:
                file.seek(offset)
                file.write(data)
            return self.submit_flush()


class StaleSnapshot(SecondaryChain):
    """A rebuild that rebuilds nothing: the snapshot stays the one before."""

    async def rebuild(self) -> None:
        await self.settle()


@pytest.mark.parametrize("kind", [PastTheFilter, StaleSnapshot, FlippedByte])
def test_a_broken_snapshot_is_reported(
    kind: type[SecondaryChain], workspace: Workspace, qemu_build: Build
) -> None:
    found = run(replace(fleecing(qemu_build), chain=kind), workspace).divergence
    assert found is not None
    allowed = {Verdict.ISOLATION, Verdict.CONTENT, Verdict.ALLOCATION, Verdict.LOST_WRITE}
    assert found.verdict in allowed


@pytest.mark.parametrize("workflow", ["backup", "replication", "fleecing"])
def test_another_option_of_a_node_is_a_value(
    workflow: str, workspace: Workspace, qemu_build: Build
) -> None:
    if workflow == "fleecing":
        fleecing(qemu_build)
    options = (("secondary", "detect-zeroes", "on"),)
    spec = ChainSpec(workflow, 4 * MiB, options=options)
    seen: list[str] = []

    class Asking(SecondaryChain):
        async def build(self) -> None:
            await super().build()
            nodes = await self.qemu.execute("query-named-block-nodes")
            seen.extend(n["detect_zeroes"] for n in nodes if n.get("node-name") == "secondary")

    result = run(replace(setup_for(qemu_build, spec), chain=Asking), workspace, 1000)
    assert seen == ["on"]
    assert result.divergence is None, str(result.divergence)


def test_another_chain_is_a_value(
    workspace: Workspace, qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup with a throttled primary: one more node, below the primary's export."""
    plain = TOPOLOGIES["backup"]
    throttled = Node(
        "throttled", "throttle", {"throttle-group": "tg", "file": "secondary", "discard": "unmap"}
    )
    primary = Export("primary", "throttled", True)
    parts = tuple(
        more
        for part in plain.parts
        for more in ((throttled, primary) if part.name == "primary" else (part,))
    )
    chain = replace(plain, name="throttled-backup", parts=parts)
    monkeypatch.setitem(TOPOLOGIES, chain.name, chain)

    class Grouped(SecondaryChain):
        async def build(self) -> None:
            group = {"qom-type": "throttle-group", "id": "tg"}
            await self.qemu.execute("object-add", group)
            await super().build()
            drivers = [n["drv"] for n in await self.qemu.execute("query-named-block-nodes")]
            assert "throttle" in drivers

    setup = replace(setup_for(qemu_build, ChainSpec(chain.name, 4 * MiB)), chain=Grouped)
    result = run(setup, workspace, 1000)
    assert result.divergence is None, str(result.divergence)
    assert result.operations["chain start"] and result.operations["guest read"]


def test_which_chains_cannot_be_verified(qemu_build: Build, workspace: Workspace) -> None:
    with pytest.raises(InputError, match="no primary's export"):
        ChainSpec("primary")
    with pytest.raises(InputError, match="no chain 'nonsense'"):
        ChainSpec("nonsense")
    with pytest.raises(InputError, match="no-such-node"):
        ChainSpec("backup", options=(("no-such-node", "read-only", True),))
    if read_version(qemu_build)[0] < (7, 0):
        with pytest.raises(BuildError):
            run(setup_for(qemu_build, ChainSpec("fleecing", MiB)), workspace, 100)
