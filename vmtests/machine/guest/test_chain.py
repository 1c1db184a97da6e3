"""A guest on every kind of disk sees what the model predicts, and so do the three images."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from qmpshim.conformance.guest.rig import ProgramChain
from qmpshim.conformance.guest.run import known_cause, refuse, run_scenario
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.guest.work import GuestWork
from qmpshim.conformance.known.folder import known_directed
from qmpshim.conformance.workload.session import Result
from qmpshim.errors import BuildError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.parts import QemuDevice
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.chain.topology import Topology
from qmpshim.machine.guest.chain import Attachment
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Verb
from vmtests.support.guest_rigs import SPEC, MiB, at_work, run_workload

B, R = Workflow.BACKUP, Workflow.REPLICATION

SHAPES = {
    "virtio-blk, backup": (Attachment(), ChainSpec(B, 8 * MiB)),
    "virtio-blk, qcow2 secondary": (Attachment(), ChainSpec(R, 8 * MiB, secondary="qcow2")),
    "virtio-blk, cache=none, aio=native": (
        Attachment(cache="none", aio="native"),
        ChainSpec(R, 8 * MiB),
    ),
    "virtio-blk, cache=writethrough": (Attachment(cache="writethrough"), ChainSpec(R, 8 * MiB)),
    "virtio-scsi, cache=directsync": (
        Attachment("virtio-scsi", cache="directsync"),
        ChainSpec(R, 8 * MiB),
    ),
    "virtio-blk, cache=writeback, aio=io_uring": (
        Attachment(cache="writeback", aio="io_uring"),
        ChainSpec(R, 8 * MiB),
    ),
    "virtio-blk, write log": (Attachment(log=True), ChainSpec(R, 8 * MiB)),
    "ide": (Attachment("ide"), ChainSpec(R, 8 * MiB)),
    "ide, backup, small clusters": (Attachment("ide"), ChainSpec(B, 2 * MiB, 4096)),
}


#: What 7.2 says; blockdev-reopen finds the node drained less often than it thinks.
REOPENED = "bdrv_parent_drained_end_single_no_poll: Assertion `c->parent_quiesce_counter > 0'"


def agrees(result: Result, spec: ChainSpec = SPEC) -> None:
    if result.divergence is not None and REOPENED in result.divergence.observed:
        pytest.xfail("7.2 aborts when an IDE disk leaves a chain whose replication was stopped")
    assert result.divergence is None, str(result.divergence)
    assert result.operations["guest read"] > 30
    rebuilds = 3 if spec.workflow == R else 1
    assert result.operations["chain rebuild"] == rebuilds  # the disk was unplugged and came back
    assert result.checks > 5


@pytest.mark.parametrize("device", ["virtio-blk", "virtio-scsi"])
def test_a_guest_on_the_chain_sees_what_is_predicted(
    device: str, each_build: Build, image: GuestImage, workspace: Workspace
) -> None:
    agrees(run_workload(each_build, image, workspace, Attachment(device)))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_does_so_on_every_kind_of_disk(
    shape: str, qemu_build: Build, image: GuestImage, workspace: Workspace
) -> None:
    attachment, spec = SHAPES[shape]
    try:
        result = run_workload(qemu_build, image, workspace, attachment, spec=spec)
    except BuildError as error:
        pytest.skip(str(error))
    agrees(result, spec)


@pytest.mark.parametrize("device", ["virtio-blk", "virtio-scsi"])
def test_a_disk_with_an_iothread_does_so_too(
    device: str, each_build: Build, image: GuestImage, workspace: Workspace
) -> None:
    """Or it dies as known, and does so for sure: a client that leaves aborts some of 7.2."""
    attachment = Attachment(device, iothread=True)  # type: ignore[arg-type]
    try:
        refuse(each_build, attachment)
    except BuildError as error:
        pytest.skip(str(error))
    found = run_workload(each_build, image, workspace, attachment).divergence
    directed = known_directed()
    known = directed["iothread-client-leaves"]
    dies = known.concerns(read_version(each_build)[0])
    assert (found is not None) == dies, str(found)
    assert found is None or known_cause(found, each_build, directed) == known.id, str(found)


class DriveBackup(ProgramChain):
    """The job is the seed's ``drive-backup``, which opens the hidden disk's file itself."""

    _node = ""  # what it called the node

    @property
    def topology(self) -> Topology:
        topology = super().topology
        if not self._node:
            return topology
        parts = (part for part in topology.parts if part.name not in ("hidden", "disk", "guest"))
        guest, disk = topology.export("guest"), topology.parts[-1]
        assert isinstance(disk, QemuDevice)
        disk = replace(disk, options={**disk.options, "drive": self._node})
        return replace(topology, parts=(*parts, replace(guest, node=self._node), disk))

    async def start(self) -> None:
        await self.close_parts(self.topology.renewed)
        target = {"target": str(self.image("hidden")), "format": "qcow2", "mode": "existing"}
        await self.qemu.execute(
            "drive-backup", {"job-id": "backup", "device": "secondary", "sync": "none", **target}
        )
        nodes = await self.qemu.execute("query-named-block-nodes")
        self._node = next(node["node-name"] for node in nodes if node["drv"] == "qcow2")
        await self.open_parts(self.topology.parts[-2:])
        self.take_over()


def test_drive_backup_copies_as_blockdev_backup_does(
    qemu_build: Build, image: GuestImage, workspace: Workspace
) -> None:
    async def run(work: GuestWork) -> None:
        for start in range(0, 4096, 512):
            work.primary(Verb.WRITE, start, 400)
        await work.command(Verb.START)
        for number in range(40):
            work.primary(Verb.WRITE, number * 97, 1 + number * 7)
            work.primary(Verb.ZERO, 4000 - number * 31, 9)
            work.read(number * 61, 200)
        await work.check()

    found = at_work(
        qemu_build, image, workspace, run, spec=ChainSpec(B, 8 * MiB), chain=DriveBackup
    )
    assert found is None, str(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_predicted(
    name: str, qemu_build: Build, image: GuestImage, workspace: Workspace
) -> None:
    scenario = SCENARIOS[name]

    async def run(work: GuestWork) -> None:
        await scenario.run(work, 1)
        assert work.number > 30
        assert work.clusters > 100

    attachment = Attachment(log=scenario.log)
    found = at_work(qemu_build, image, workspace, run, attachment, spec=ChainSpec(R, scenario.size))
    assert found is None, str(found)


@pytest.mark.full
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_predicted_on_each_build(
    name: str, each_build: Build, image: GuestImage
) -> None:
    running = run_scenario(SCENARIOS[name], each_build, image, Attachment(), known={})
    outcome = asyncio.run(running)
    assert outcome.divergence is None, str(outcome.divergence)
