"""The guest's prompt for programs, on its serial console.

The other end is ``guest-images/agent``: it takes a command a line and ends its output with the exit
status and a fixed prompt.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pexpect
from pexpect import fdpexpect

from qmpshim.errors import GuestFailed, GuestPanicked, InputError, MachineDied, MachineHung

BOOT_LIMIT = 120.0  # seconds to the first prompt, on a machine that is slow and loaded
RUN_LIMIT = 60.0  # seconds a command in the guest may take

_PROMPT = rb"\n?\[(?:ready|exit (\d+))\] guest# "
_PANIC = rb"Kernel panic - not syncing|BUG: unable to handle|general protection fault|Oops:"
_LONGEST = 4000  # bytes of a command: what a terminal takes as one line (N_TTY_BUF_SIZE) and less
_SHOWN = 12  # lines of the screen that a time-out's error has


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command in the guest ended: its exit status and what it printed."""

    status: int
    output: str


class Console:
    """A guest's console.

    :param connected: to the guest's serial port
    :param console_log: QEMU's log of the serial port
    :param died: the error for a QEMU that went away during what is named
    :param alive: whether QEMU runs
    """

    def __init__(
        self,
        connected: socket.socket,
        console_log: Path,
        died: Callable[[str], MachineDied],
        alive: Callable[[], bool],
    ) -> None:
        self.console_log = console_log
        self._died = died
        self._alive = alive
        self._terminal = fdpexpect.fdspawn(connected, maxread=1 << 16)
        self._terminal.delaybeforesend = None
        self._running = ""  # the command that has not ended yet

    def wait_for_prompt(self) -> None:
        """Wait until the guest has booted, also after a reboot.

        :raises MachineHung: it has not within ``BOOT_LIMIT`` seconds; has what was on the screen
        :raises GuestPanicked: its kernel gave up
        :raises MachineDied: QEMU went away
        """
        self._running = "the boot"
        self._until_prompt(BOOT_LIMIT)

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
            raise self._died(f"{command!r} in the guest") from error

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
                    raise self._died(f"{doing!r} in the guest")
        except OSError as error:  # the socket was torn down with QEMU
            raise self._died(f"{doing!r} in the guest") from error
        if not self._alive():
            raise self._died(f"{doing!r} in the guest")
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
