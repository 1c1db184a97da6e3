"""A guest on every kind of disk sees what the model predicts, and so do the three images."""

from __future__ import annotations

import pytest
from guest_rigs import MiB, at_work, run_workload, the_build

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.guest_work import GuestWork
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
        Attachment(direct=True, aio="native"),
        ChainSpec(R, 8 * MiB),
    ),
    "virtio-blk, aio=io_uring": (Attachment(aio="io_uring"), ChainSpec(R, 8 * MiB)),
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


def test_both_sides_at_once_end_as_one_after_the_other(
    image: GuestImage, workspace: Workspace
) -> None:
    async def scenario(work: GuestWork) -> Divergence | None:
        found = None
        for start in range(0, 8 * MiB // 512, 1024):
            found = found or work.primary(Kind.WRITE, start, 512)
        found = found or await work.command(Kind.START)
        for turn in range(3):
            # The guest's operations and the primary's meet in the same 2 MiB.
            beside = [(Kind.WRITE, (turn * 37 + n * 61) % 4000, 1 + n % 96) for n in range(60)]
            found = found or work.random(turn, 60, 0, 4096, beside)
            found = found or await work.check()
            found = found or await work.command(Kind.CHECKPOINT)
        found = found or work.random(9, 40, 0, 4096)
        found = found or await work.command(Kind.FAILOVER)
        return found or await work.check()

    assert (found := at_work(image, workspace, scenario)) is None, str(found)


def test_reboots_and_pauses_lose_nothing(image: GuestImage, workspace: Workspace) -> None:
    async def scenario(work: GuestWork) -> Divergence | None:
        guest, execute = work.rig.machine, work.rig.qemu.execute
        found = work.primary(Kind.WRITE, 0, 2048) or await work.command(Kind.START)
        found = found or work.random(1, 40, 0, 4096)
        guest.send("reboot -f")
        found = found or work.primary(Kind.WRITE, 1024, 64)  # while there is no guest to speak of
        guest.wait_for_prompt()
        found = found or work.random(2, 40, 0, 4096) or await work.check()
        work.begin(3, 200, 0, 4096)
        for turn in range(5):  # the guest is paused in the middle of its work
            await execute("stop")
            found = found or work.primary(Kind.WRITE, 1100 + 100 * turn, 64)
            await execute("cont")
        found = work.end() or found or await work.check()
        return found or await work.command(Kind.CHECKPOINT)

    assert (found := at_work(image, workspace, scenario)) is None, str(found)


def test_an_iothread_under_an_nbd_client_that_leaves_aborts_7_2(
    image: GuestImage, workspace: Workspace
) -> None:
    """known/directed/iothread-client-leaves.json, with a guest; Debian 12's QEMU has it."""
    result = run_workload(image, workspace, Attachment(iothread=True))
    if result.divergence is not None:
        assert result.divergence.verdict is Verdict.CRASH
        assert "nbd_blockdev_client_closed: Assertion" in result.divergence.observed
