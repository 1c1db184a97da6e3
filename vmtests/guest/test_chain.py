"""A guest on every kind of disk sees what the model predicts, and so do the three images."""

from __future__ import annotations

import asyncio

import pytest
from guest_rigs import MiB, at_work, run_workload, the_build

from qmpshim.conformance.guest.checks import run_scenario
from qmpshim.conformance.guest.rig import ProgramChain
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.guest.work import GuestWork
from qmpshim.conformance.workload import Kind
from qmpshim.machine.guest_chain import Attachment
from qmpshim.machine.guest_image import GuestImage
from qmpshim.machine.secondary import ChainSpec
from qmpshim.machine.workspace import Workspace
from qmpshim.model.chain import Workflow
from qmpshim.model.verdict import Verdict

OTHERS = ["debian:bullseye", "debian:trixie", "debian:sid"]
B, R = Workflow.BACKUP, Workflow.REPLICATION

SHAPES = {
    "virtio-blk": (Attachment(), ChainSpec(R, 8 * MiB)),
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
    "virtio-scsi": (Attachment("virtio-scsi"), ChainSpec(R, 8 * MiB)),
    "ide": (Attachment("ide"), ChainSpec(R, 8 * MiB)),
    "ide, backup, small clusters": (Attachment("ide"), ChainSpec(B, 2 * MiB, 4096)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_guest_on_the_chain_sees_what_is_predicted(
    shape: str, image: GuestImage, workspace: Workspace
) -> None:
    attachment, spec = SHAPES[shape]
    result = run_workload(image, workspace, attachment, spec=spec)
    assert result.divergence is None, str(result.divergence)
    assert result.operations["guest read"] > 30
    assert result.operations["chain rebuild"] == 1  # the disk was unplugged and came back
    assert result.checks > 5


@pytest.mark.parametrize("build", OTHERS)
@pytest.mark.parametrize("device", ["virtio-blk", "virtio-scsi"])
def test_other_builds_do_so_too(
    build: str, device: str, image: GuestImage, workspace: Workspace
) -> None:
    attachment = Attachment(device)  # type: ignore[arg-type]
    result = run_workload(image, workspace, attachment, build=the_build(build))
    assert result.divergence is None, str(result.divergence)


@pytest.mark.parametrize("build", ["debian:trixie", "debian:sid"])
@pytest.mark.parametrize("device", ["virtio-blk", "virtio-scsi"])
def test_a_disk_with_an_iothread_does_so_too(
    build: str, device: str, image: GuestImage, workspace: Workspace
) -> None:
    attachment = Attachment(device, iothread=True)  # type: ignore[arg-type]
    result = run_workload(image, workspace, attachment, build=the_build(build))
    assert result.divergence is None, str(result.divergence)


class DriveBackup(ProgramChain):
    """The job is the seed's ``drive-backup``, which opens the hidden disk's file itself."""

    _node = ""  # what it called the node

    def named(self, name: str) -> str:
        return self._node if name == "hidden" and self._node else super().named(name)

    async def start(self) -> None:
        await self._unplug()
        await self._unexport("guest")
        await self.qemu.execute("blockdev-del", {"node-name": "hidden"})
        target = {"target": str(self.image("hidden")), "format": "qcow2", "mode": "existing"}
        await self.qemu.execute(
            "drive-backup", {"job-id": "backup", "device": "secondary", "sync": "none", **target}
        )
        nodes = await self.qemu.execute("query-named-block-nodes")
        self._node = next(node["node-name"] for node in nodes if node["drv"] == "qcow2")
        await self._export("guest", "hidden", writable=False)
        await self._plug()
        self._take_over()


def test_drive_backup_copies_as_blockdev_backup_does(
    image: GuestImage, workspace: Workspace
) -> None:
    async def run(work: GuestWork) -> None:
        for start in range(0, 4096, 512):
            work.primary(Kind.WRITE, start, 400)
        await work.command(Kind.START)
        for number in range(40):
            work.primary(Kind.WRITE, number * 97, 1 + number * 7)
            work.primary(Kind.ZERO, 4000 - number * 31, 9)
            work.read(number * 61, 200)
        await work.check()

    found = at_work(image, workspace, run, spec=ChainSpec(B, 8 * MiB), chain=DriveBackup)
    assert found is None, str(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_predicted(name: str, image: GuestImage, workspace: Workspace) -> None:
    scenario = SCENARIOS[name]

    async def run(work: GuestWork) -> None:
        await scenario.run(work, 1)
        assert work.number > 30
        assert work.clusters > 100

    attachment = Attachment(log=scenario.log)
    found = at_work(image, workspace, run, attachment, spec=ChainSpec(R, scenario.size))
    assert found is None, str(found)


@pytest.mark.full
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("build", OTHERS)
def test_a_scenario_goes_as_predicted_on_other_builds(
    build: str, name: str, image: GuestImage, workspace: Workspace
) -> None:
    outcome = asyncio.run(run_scenario(SCENARIOS[name], the_build(build), image, Attachment()))
    assert outcome.divergence is None, str(outcome.divergence)


def test_an_iothread_under_an_nbd_client_that_leaves_aborts_7_2(
    image: GuestImage, workspace: Workspace
) -> None:
    """known/directed/iothread-client-leaves.json, with a guest; Debian 12's QEMU has it."""
    result = run_workload(image, workspace, Attachment(iothread=True))
    if result.divergence is not None:
        assert result.divergence.verdict is Verdict.CRASH
        assert "nbd_blockdev_client_closed: Assertion" in result.divergence.observed
