"""How the guest tests run something on a chain with a guest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.guest.rig import GuestOpener, ProgramChain
from qmpshim.conformance.guest.work import GuestDiverged, GuestWork
from qmpshim.conformance.workload.session import Result, run_case
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.guest.chain import Attachment
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.operations import Operation, Side, Verb

MiB = 1 << 20
SPEC = ChainSpec(Workflow.REPLICATION, size=8 * MiB)


def run_workload(
    build: Build,
    image: GuestImage,
    workspace: Workspace,
    attachment: Attachment | None = None,
    *,
    spec: ChainSpec = SPEC,
    count: int = 200,
    seed: int = 1,
    chain: Callable[..., ProgramChain] = ProgramChain,
    operations: Sequence[Operation] = (),
) -> Result:
    """A session's workload, or these operations, with the guest's program as its guest."""
    attachment = attachment or Attachment()
    setup = setup_for(build, spec)
    wanted = [
        operation
        for operation in operations or Workload(spec, seed).take(count)
        # Whether a disk can discard is virtio-blk's to say; the others have their own ideas.
        if attachment.device == "virtio-blk"
        or (operation.side, operation.verb) != (Side.GUEST, Verb.DISCARD)
    ]
    opener = GuestOpener(build, image, attachment, chain)
    return asyncio.run(run_case(setup, wanted, workspace.path, opener=opener))


def at_work(
    build: Build,
    image: GuestImage,
    workspace: Workspace,
    scenario: Callable[[GuestWork], Awaitable[None]],
    attachment: Attachment | None = None,
    *,
    spec: ChainSpec = SPEC,
    chain: Callable[..., ProgramChain] = ProgramChain,
) -> Divergence | None:
    """Run *scenario* on a fresh chain under a guest; the divergence it ends with, if any."""
    setup = setup_for(build, spec)
    opener = GuestOpener(build, image, attachment or Attachment(), chain)

    async def run() -> Divergence | None:
        rig = await opener(setup, workspace.path)
        work = GuestWork(rig, setup.qemu_img)
        try:
            await scenario(work)
            return None
        except GuestDiverged as diverged:
            return diverged.divergence
        finally:
            await work.close()
            await rig.close()

    return asyncio.run(run())
