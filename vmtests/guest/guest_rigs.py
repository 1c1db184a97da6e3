"""How the guest tests run something on a chain with a guest, on a build that may not be here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from qmpshim.conformance.divergence import Divergence
from qmpshim.conformance.guest.rig import GuestOpener, ProgramChain
from qmpshim.conformance.guest.work import Diverged, GuestWork
from qmpshim.conformance.session import Result, run_case
from qmpshim.conformance.verify import setup_for
from qmpshim.conformance.workload import Kind, Operation, Side, Workload
from qmpshim.machine import builds, registry
from qmpshim.machine.builds import Build
from qmpshim.machine.guest_chain import Attachment
from qmpshim.machine.guest_image import GuestImage
from qmpshim.machine.secondary import ChainSpec
from qmpshim.machine.workspace import Workspace
from qmpshim.model.chain import Workflow

MiB = 1 << 20
SPEC = ChainSpec(Workflow.REPLICATION, size=8 * MiB)


def the_build(name: str | None) -> Build:
    """A build by name, the system's for None; a test on one that is not fetched is skipped."""
    if name is not None and not registry.has(name):
        pytest.skip(f"{name} is not fetched")
    return builds.resolve(name)


def run_workload(
    image: GuestImage,
    workspace: Workspace,
    attachment: Attachment | None = None,
    *,
    spec: ChainSpec = SPEC,
    count: int = 200,
    seed: int = 1,
    build: Build | None = None,
    chain: Callable[..., ProgramChain] = ProgramChain,
    operations: Sequence[Operation] = (),
) -> Result:
    """A session's workload, or these operations, with the guest's program as its guest."""
    build = build or builds.resolve(None)
    attachment = attachment or Attachment()
    setup = setup_for(build, spec)
    wanted = [
        operation
        for operation in operations or Workload(spec, seed).take(count)
        # Whether a disk can discard is virtio-blk's to say; the others have their own ideas.
        if attachment.device == "virtio-blk"
        or (operation.side, operation.kind) != (Side.GUEST, Kind.DISCARD)
    ]
    opener = GuestOpener(build, image, attachment, chain)
    return asyncio.run(run_case(setup, wanted, workspace.path, opener=opener))


def at_work(
    image: GuestImage,
    workspace: Workspace,
    scenario: Callable[[GuestWork], Awaitable[None]],
    attachment: Attachment | None = None,
    *,
    spec: ChainSpec = SPEC,
    build: Build | None = None,
    chain: Callable[..., ProgramChain] = ProgramChain,
) -> Divergence | None:
    """Run *scenario* on a fresh chain under a guest; the divergence it ends with, if any."""
    build = build or builds.resolve(None)
    setup = setup_for(build, spec)
    opener = GuestOpener(build, image, attachment or Attachment(), chain)

    async def run() -> Divergence | None:
        rig = await opener(setup, workspace.path)
        work = GuestWork(rig, setup.qemu_img)
        try:
            await scenario(work)
            return None
        except Diverged as diverged:
            return diverged.divergence
        finally:
            await work.close()
            await rig.close()

    return asyncio.run(run())
