"""The command that shows again what was seen."""

from __future__ import annotations

import shlex
from pathlib import Path

from qmpshim.machine.builds.build import Build


def replay_command(bundle: Path, build: Build | None, *words: str) -> str:
    """The command that shows a bundle again, to be pasted into a shell where this one ran.

    :param build: what it was found on; None: a QEMU of somebody else's, whose program is unknown
    :param words: options that it was found with
    """
    return shlex.join(["qmpshim", "replay", str(bundle), *on_build(build), *words])


def directed_command(case: str, build: Build | None) -> str:
    """The command that runs a directed case again.

    :param case: its id
    :param build: as for :func:`replay_command`
    """
    return shlex.join(["qmpshim", "explore", "--strict", "--scenario", case, *on_build(build)])


def on_build(build: Build | None) -> list[str]:
    """The words that choose a build; none for the system's, or where it is unknown."""
    return [] if build is None or build.name == "system" else ["--build", build.name]
