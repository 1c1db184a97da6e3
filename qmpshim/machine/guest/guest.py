"""A real guest: a small Linux on a real QEMU, driven over its serial console.

The other end of the console is ``guest-images/agent``: it takes a command a line and ends its
output with the exit status and a fixed prompt. TCG runs the guest, or KVM where the host has it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pexpect
from pexpect import fdpexpect

from qmpshim.errors import GuestFailed, GuestPanicked, InputError, MachineHung
from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.process import COMMAND_LIMIT, Qemu, escaped

log = logging.getLogger(__name__)

BOOT_LIMIT = 120.0  # seconds to the first prompt, on a machine that is slow and loaded
RUN_LIMIT = 60.0  # seconds a command in the guest may take

#: Quiet and quick: nothing that only matters on real hardware, no messages that are not read.
_KERNEL_WORDS = (
    *("console=ttyS0", "loglevel=1", "mitigations=off", "tsc=reliable", "no_timer_check"),
    *("oops=panic", "panic=0"),
)
_PROMPT = rb"\n?\[(?:ready|exit (\d+))\] guest# "
_PANIC = rb"Kernel panic - not syncing|BUG: unable to handle|general protection fault|Oops:"
_LONGEST = 4000  # bytes of a command: what a terminal takes as one line (N_TTY_BUF_SIZE) and less
_SHOWN = 12  # lines of the screen that a time-out's error has


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


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command in the guest ended: its exit status and what it printed."""

    status: int
    output: str


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
        *("-append", " ".join([*_KERNEL_WORDS, *spec.words])),
        *spec.arguments,
    ]


class Guest:
    """A QEMU with a guest in it, started by :meth:`start` and gone after :meth:`close`.

    :param build: the QEMU to run it on
    :param directory: where QEMU's logs and the guest's console (``console.log``) are kept
    :param more: arguments of QEMU that are not part of the machine: ``-S``, ``-incoming``
    :param limit: seconds a QMP command may take
    """

    def __init__(
        self,
        build: Build,
        image: GuestImage,
        directory: Path,
        spec: GuestSpec | None = None,
        more: Sequence[str] = (),
        limit: float = COMMAND_LIMIT,
    ) -> None:
        self.build = build
        self.image = image
        self.spec = spec or GuestSpec()
        self._ours, self._theirs = socket.socketpair()
        fd, self.console_log = self._theirs.fileno(), directory / "console.log"
        self.qemu = Qemu(
            build.command(),
            directory,
            [
                *arguments(image, self.spec),
                "-chardev",
                f"socket,id=console,fd={fd},logfile={escaped(self.console_log)},logappend=on",
                *("-serial", "chardev:console"),
                *more,
            ],
            machine(self.spec.machine),
            build.env,
            limit,
            pass_fds=(fd,),
        )
        self._terminal = fdpexpect.fdspawn(self._ours, maxread=1 << 16)
        self._terminal.delaybeforesend = None
        self._running = ""  # the command that has not ended yet

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

    # -- the console -------------------------------------------------------------------------

    def wait_for_prompt(self, limit: float = BOOT_LIMIT) -> None:
        """Wait until the guest has booted, also after a reboot.

        :raises MachineHung: it has not within *limit* seconds; has what was on the screen
        :raises GuestPanicked: its kernel gave up
        :raises MachineDied: QEMU went away
        """
        self._running = "the boot"
        self._until_prompt(limit)

    def run(self, command: str, limit: float = RUN_LIMIT, *, check: bool = True) -> Ran:
        """Run a shell command in the guest to its end; the guest must be at its prompt.

        :param check: another exit status than 0 is an error
        :raises GuestFailed: it ended with another status
        :raises MachineHung: it did not end within *limit* seconds; has what was on the screen
        :raises GuestPanicked: the guest's kernel gave up
        :raises MachineDied: QEMU went away
        """
        self.send(command)
        return self.finish(limit, check=check)

    def send(self, command: str) -> None:
        """Begin a command; :meth:`finish` waits for its end."""
        if self._running:
            raise InputError(f"{self._running!r} still runs in the guest")
        line = command.encode()
        if b"\n" in line or len(line) > _LONGEST:
            raise InputError(f"a command of the guest is one line of at most {_LONGEST} bytes")
        self._running = command
        try:
            self._terminal.send(line + b"\n")
        except OSError as error:
            raise self.qemu.died(f"{command!r} in the guest") from error

    def finish(self, limit: float = RUN_LIMIT, *, check: bool = True) -> Ran:
        """Wait for the end of what :meth:`send` began; see :meth:`run`."""
        command = self._running
        ran = self._until_prompt(limit)
        if check and ran.status:
            raise GuestFailed(command, ran.status, ran.output)
        return ran

    def _until_prompt(self, limit: float) -> Ran:
        doing, terminal = self._running, self._terminal
        wanted = [_PROMPT, _PANIC, pexpect.EOF, pexpect.TIMEOUT]
        try:
            match terminal.expect(wanted, timeout=limit):
                case 0:
                    self._running = ""
                    status = terminal.match.group(1) or b"0"
                    return Ran(int(status), terminal.before.decode(errors="replace"))
                case 1:
                    raise self._panicked(doing)
                case 2:
                    raise self.qemu.died(f"{doing!r} in the guest")
        except OSError as error:  # the socket was torn down with QEMU
            raise self.qemu.died(f"{doing!r} in the guest") from error
        if not self.qemu.alive():
            raise self.qemu.died(f"{doing!r} in the guest")
        raise MachineHung(f"{doing!r} did not end in {limit:g} s; on the screen: {self.screen()}")

    def _panicked(self, doing: str) -> GuestPanicked:
        output = self._terminal.after.decode(errors="replace")
        # The rest of the story comes within moments; then nothing more.
        if self._terminal.expect([rb"end Kernel panic", pexpect.EOF, pexpect.TIMEOUT], 5.0) < 2:
            pass
        story = (output + self._terminal.before.decode(errors="replace")).splitlines()
        return GuestPanicked(f"the guest's kernel gave up during {doing!r}: {story[0].strip()}")

    def screen(self) -> str:
        """The last lines of the console, in one line."""
        try:
            text = self.console_log.read_text(errors="replace")
        except OSError:
            return "nothing"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-_SHOWN:]) or "nothing"


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
