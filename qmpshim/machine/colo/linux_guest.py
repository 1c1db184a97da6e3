"""The Linux guest of a pair: it boots, and does a random workload for ever."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from qmpshim.errors import MachineHung
from qmpshim.machine.guest.guest import GuestSpec, arguments
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.process import escaped
from qmpshim.model.units import SECTOR

PROMPT = b"[ready] guest# "
_FOR_EVER = 1_000_000_000  # operations


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """The guest and what it is to do.

    :ivar memory: MiB
    :ivar seed: of its program's random operations (``guest-images/workload.c``)
    :ivar sectors: of the disk, that it uses
    :ivar booting: it boots when COLO runs already, on both sides at once; else COLO begins when the
        primary's guest is at its prompt
    """

    image: GuestImage
    sectors: int
    memory: int = 128
    seed: int = 1
    booting: bool = False

    @property
    def end(self) -> int:
        """The size in bytes that the disk must have at least."""
        return self.sectors * SECTOR

    def sector(self) -> bytes:
        """What the disk begins with: nothing."""
        return b""

    def words(self, console: Path, terminal: bool = False) -> list[str]:
        """QEMU's options for it; its output goes to the file *console*.

        :param terminal: it also takes input, from a socket with the file's name and ``.sock``
        """
        file = escaped(console)
        where = f"file,id=console,path={file}"
        if terminal:
            where = f"socket,id=console,path={file}.sock,server=on,wait=off,logfile={file}"
        return [
            *arguments(self.image, GuestSpec(memory=self.memory << 20)),
            *("-chardev", where, "-serial", "chardev:console"),
        ]

    @staticmethod
    async def prompt(console: Path, limit: float) -> None:
        """Wait for the guest's prompt.

        :raises MachineHung: there is none within *limit* seconds
        """
        deadline = time.monotonic() + limit
        while not _at_prompt(console):
            if time.monotonic() > deadline:
                raise MachineHung(f"the guest came to no prompt in {limit:g} s")
            await asyncio.sleep(0.05)

    async def begin(self, console: Path) -> asyncio.Task[None]:
        """At the prompt: have the program run.

        :returns: what keeps its terminal connected, until it is cancelled
        """
        reader, writer = await asyncio.open_unix_connection(f"{console}.sock")
        listening = asyncio.ensure_future(_listen(reader, writer))
        what = f"random {self.seed} {_FOR_EVER} 1 0 {self.sectors}"
        writer.write(f"workload /dev/vda {what}\n".encode())
        await writer.drain()
        return listening


def _at_prompt(console: Path) -> bool:
    try:
        return console.read_bytes().endswith(PROMPT)
    except OSError:
        return False


async def _listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The output is in the file; unread here, it would stop the guest."""
    try:
        while await reader.read(1 << 16):
            pass
    except OSError:
        return
    finally:
        writer.transport.abort()
