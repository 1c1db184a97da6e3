"""Where programs are found."""

from __future__ import annotations

import shutil

from qmpshim.errors import HostError
from qmpshim.machine.host.safe_path import program_path


def find_program(name: str) -> str | None:
    """The program's path, or None; a name is looked up in PATH's absolute entries only."""
    return shutil.which(name, path=program_path())


def need_program(name: str, package: str) -> str:
    """The program's path.

    :param package: Debian's, that has it
    :raises HostError: it is not there
    """
    found = find_program(name)
    if found is None:
        raise HostError(f"{name} is missing: apt-get install {package}")
    return found
