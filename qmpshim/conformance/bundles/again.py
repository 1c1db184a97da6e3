"""The command that shows a bundle again."""

from __future__ import annotations

import shlex
from pathlib import Path

from qmpshim.machine.builds.build import Build


def replay_command(bundle: Path, build: Build | None, *words: str) -> str:
    """The command that shows a bundle again, to be pasted into a shell where this one ran.

    :param build: what it was found on; None: a QEMU of somebody else's, whose program is unknown
    :param words: options that it was found with
    """
    which = [] if build is None or build.name == "system" else ["--build", build.name]
    return shlex.join(["qmpshim", "replay", str(bundle), *which, *words])
