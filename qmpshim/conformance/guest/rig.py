"""A chain under a real guest, with the model beside it: what a session runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qmpshim.conformance.guest.disk import GuestDisk
from qmpshim.conformance.workload.session import Rig, Setup
from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest import saved_state
from qmpshim.machine.guest.chain import Attachment, GuestChain
from qmpshim.machine.guest.guest import Guest, GuestSpec
from qmpshim.machine.guest.image import GuestImage


class ProgramChain(GuestChain):
    """A chain whose guest's end is the guest's own program."""

    async def build(self) -> None:
        await super().build()
        self.take_over()

    async def rebuild(self) -> None:
        await super().rebuild()
        self.take_over()

    def take_over(self) -> None:
        """Make the guest's program the client of the guest's end."""
        self.guest.close()  # the export stays, for the cross-check
        self.guest = GuestDisk(self.machine, self.disk)


@dataclass(slots=True)
class GuestRig(Rig):
    """A rig whose QEMU runs a guest."""

    machine: Guest

    async def close(self) -> None:
        self.machine.disconnect()
        await Rig.close(self)


@dataclass(frozen=True, slots=True)
class GuestOpener:
    """Opens rigs with a guest: what a session's ``opener`` is.

    :ivar chain: the class that builds the chain; mutants come in here
    """

    build: Build
    image: GuestImage
    attachment: Attachment = field(default_factory=Attachment)
    chain: Callable[..., ProgramChain] = ProgramChain

    async def __call__(self, setup: Setup, directory: Path) -> GuestRig:
        """Restore a guest in *directory*, build the chain there and plug it in.

        The output of the guest's console and of QEMU stays there; the images are one directory
        deeper.

        :raises BuildError: this QEMU cannot do it
        """
        spec = GuestSpec(arguments=self.attachment.arguments(setup.spec.size))
        images = directory / "images"
        images.mkdir()
        guest = await saved_state.ready(self.build, self.image, directory, spec)
        chain = self.chain(guest, setup.spec, images, setup.qemu_img, self.attachment)
        oracle = setup.oracle(setup.spec, setup.behaviour)
        rig = GuestRig(guest.qemu, chain, oracle, images, guest)
        await rig.build(self.build.name)
        return rig
