"""A build's programs as a directory for PATH: for whatever starts QEMU by its name or path."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qmpshim.errors import HostError, InputError, os_errors
from qmpshim.machine.builds.build import EMULATOR, Build
from qmpshim.machine.host.workspace import Workspace

TOOLS = ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")


def write_programs(build: Build, directory: Path) -> None:
    """Write a program for the emulator and for each tool that this build, or the host, has.

    They need nothing of the environment: a build's own loader and libraries are in them.

    :raises BuildError: the build is the storage daemon, which is no emulator
    :raises HostError: there is no ``env``
    """
    commands = {EMULATOR: build.alone(build.emulator_command())}
    for tool in TOOLS:
        with contextlib.suppress(HostError):
            commands[tool] = build.tool_command(tool)
    for name, words in commands.items():
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)


def environment_with(directory: Path) -> dict[str, str]:
    """Our environment with these programs: first in PATH, and as ``QEMU`` and ``QEMU_IMG``."""
    return {
        **os.environ,
        "PATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PATH", "")])),
        "QEMU": str(directory / EMULATOR),
        "QEMU_IMG": str(directory / "qemu-img"),
    }


def run_with(build: Build, command: Sequence[str]) -> int:
    """Run a command that finds the build's programs in its environment; its exit status.

    :returns: as a shell gives it: 128 and the signal's number for one that a signal ended
    :raises InputError: the command cannot be started
    :raises BuildError: the build is the storage daemon, which is no emulator
    """
    with Workspace() as workspace:
        write_programs(build, workspace.path)
        with os_errors(InputError, command[0]):
            process = subprocess.Popen(command, env=environment_with(workspace.path))
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        return status if status >= 0 else 128 - status
