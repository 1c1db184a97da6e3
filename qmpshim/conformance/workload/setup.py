"""How the QEMU of a random workload is run, whatever disks it is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.process import COMMAND_LIMIT, Qemu

#: QEMU's C library (glibc) keeps the memory of requests that are over. By default it gives that of
#: large ones back each time: a fault for each page is half of what it costs QEMU to read a disk.
_KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
SILENCE = 5.0  # seconds for which QEMU may do nothing at all while it owes an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """How QEMU is run.

    :ivar command: how to run QEMU
    :ivar env: variables to add to its environment
    :ivar qemu_img: how to run the matching ``qemu-img``
    :ivar limit: seconds any one command or request may take
    :ivar silence: seconds of those for which QEMU may do nothing at all
    """

    command: tuple[str, ...] = ("qemu-system-x86_64",)
    env: Mapping[str, str] = field(default_factory=dict)
    qemu_img: tuple[str, ...] = ("qemu-img",)
    machine: str | None = "none"
    limit: float = COMMAND_LIMIT
    silence: float = SILENCE

    def qemu(self, directory: Path, beyond: float = 0.0) -> Qemu:
        """A QEMU that is not started yet.

        :param directory: where its output goes; it must exist
        :param beyond: seconds that a command may take beyond the limit
        """
        limit, env = self.limit + beyond, {**_KEEPS_MEMORY, **self.env}
        qemu = Qemu(self.command, directory, machine=self.machine, env=env, limit=limit)
        qemu.silence = self.silence
        return qemu

    def to_json(self, version: str) -> dict[str, Any]:
        """What a bundle keeps of it, for the reader."""
        return {"version": version, "command": list(self.command), "machine": self.machine}


def run_by(build: Build, machine: str, limit: float) -> dict[str, Any]:
    """The fields of a :class:`RunSetup` that run *build*.

    :param machine: value of ``-machine``, where it has that
    """
    return {
        "command": tuple(build.command()),
        "env": dict(build.env),
        "qemu_img": tuple(build.tool_command("qemu-img")),
        "machine": None if build.is_daemon else machine,
        "limit": limit,
    }
