"""A real guest: a small Linux on a real QEMU, driven over its serial console.

TCG runs the guest, or KVM where the host has it.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest.console import Console
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.process import Qemu, escaped

#: Quiet and quick: nothing that only matters on real hardware, no messages that are not read.
KERNEL_WORDS = (
    *("console=ttyS0", "loglevel=1", "mitigations=off", "tsc=reliable", "no_timer_check"),
    *("oops=panic", "panic=0"),
)


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """The machine a guest runs on.

    :ivar machine: QEMU's ``-machine``
    :ivar memory: bytes
    :ivar arguments: more of QEMU's arguments: devices
    :ivar words: more words for the kernel's command line
    """

    machine: str = "pc"
    memory: int = 256 << 20
    arguments: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def machine(kind: str) -> str:
    """The value of ``-machine`` with the accelerators that this host has, best first."""
    return f"{kind},accel={'kvm:tcg' if has_kvm() else 'tcg'}"


def has_kvm() -> bool:
    """Whether KVM is there and rests on hardware: without, it is slower than TCG or hangs."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    flags = re.search(r"(?m)^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text())
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags[1].split())


def arguments(image: GuestImage, spec: GuestSpec) -> list[str]:
    """QEMU's arguments for a guest, but for its machine and its console."""
    return [
        *("-m", f"{spec.memory >> 20}M", "-smp", "1"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", " ".join([*KERNEL_WORDS, *spec.words])),
        *spec.arguments,
    ]


class Guest(Console):
    """A QEMU with a guest in it, started by :meth:`start` and gone after :meth:`close`.

    :param build: the QEMU to run it on
    :param directory: where QEMU's logs and the guest's console (``console.log``) are kept
    :param more: arguments of QEMU that are not part of the machine: ``-S``, ``-incoming``
    """

    def __init__(
        self,
        build: Build,
        image: GuestImage,
        directory: Path,
        spec: GuestSpec | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.build = build
        self.image = image
        self.spec = spec or GuestSpec()
        self._ours, self._theirs = socket.socketpair()
        fd, console_log = self._theirs.fileno(), directory / "console.log"
        self.qemu = Qemu(
            build.emulator_command(),
            directory,
            [
                *arguments(image, self.spec),
                "-chardev",
                f"socket,id=console,fd={fd},logfile={escaped(console_log)},logappend=on",
                *("-serial", "chardev:console"),
                *more,
            ],
            machine(self.spec.machine),
            build.env,
            pass_fds=(fd,),
        )
        super().__init__(self._ours, console_log, self.qemu.exit_error, self.qemu.alive)

    async def start(self) -> None:
        """Start QEMU; :meth:`wait_for_prompt` waits for the guest.

        :raises BuildError: QEMU does not start with these arguments
        """
        try:
            await self.qemu.start()
        finally:
            self._theirs.close()

    async def close(self) -> int | None:
        """End QEMU, and give its exit status."""
        try:
            return await self.qemu.close()
        finally:
            self.disconnect()

    def disconnect(self) -> None:
        """Let go of the console; the guest's words still go to ``console.log``."""
        self._theirs.close()
        self._ours.close()


async def boot(
    build: Build, image: GuestImage, directory: Path, spec: GuestSpec | None = None
) -> Guest:
    """Boot a guest to its prompt.

    :raises BuildError: QEMU does not start with these arguments
    :raises MachineError: the guest does not come to its prompt
    """
    guest = Guest(build, image, directory, spec)
    try:
        await guest.start()
        guest.wait_for_prompt()
    except BaseException:
        await guest.close()
        raise
    return guest
