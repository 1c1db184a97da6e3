"""A private directory that is removed when its owner ends, however the owner ends."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from qmpshim.errors import HostError
from qmpshim.machine.host.programs import find_program

# A UNIX socket's path ends at 107 bytes (sun_path, unix(7)); some are for what is below.
_LONGEST = 107 - 36

# The janitor outlives its owner by the one moment it takes to remove the directory: it sleeps on
# a pipe that only the owner holds open, so that even SIGKILL of the owner wakes it.
_JANITOR = 'cat >/dev/null; for n in 1 2 3; do rm -rf -- "$1" && exit; sleep 1; done'


class Closes:
    """A context manager that closes at the end."""

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_temporary_directory() -> None:
    """Check that a byte can be written in the directory TMPDIR names, if it is set.

    tempfile would silently take another place, perhaps the one that is full.

    :raises HostError: it cannot
    """
    wanted = os.environ.get("TMPDIR")
    if not wanted:
        return
    try:
        with tempfile.TemporaryFile(dir=wanted) as file:
            file.write(b"\n")
    except OSError as error:
        raise HostError(
            f"TMPDIR={wanted} is no directory to write to ({error.strerror}): "
            "set it to one with free space"
        ) from error


class Workspace(Closes):
    """A temporary directory (mode 0700) for sockets, images and logs; a context manager.

    :raises HostError: no directory can be made
    """

    def __init__(self, prefix: str = "qmpshim-") -> None:
        check_temporary_directory()
        try:
            place = Path(tempfile.gettempdir()).absolute()
        except OSError as error:
            raise _no_directory(error) from error
        self.path = place / (prefix + secrets.token_hex(4))
        if len(os.fsencode(self.path)) > _LONGEST:
            raise HostError(
                f"{place} is too long a path for UNIX sockets in it: set TMPDIR to a shorter one"
            )
        try:  # before there is a directory that could be left
            self._janitor = subprocess.Popen(
                ["/bin/sh", "-c", _JANITOR, "qmpshim-janitor", str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"no process can be started: {error.strerror}") from error
        try:
            self.path.mkdir(0o700)
        except OSError as error:
            self._janitor.kill()  # what is there is not ours
            self._janitor.wait()
            raise _no_directory(error) from error

    def subdirectory(self, name: str) -> Path:
        """A new directory in the workspace; a number is added if *name* is taken."""
        for number in range(1_000_000):
            path = self.path / (f"{name}-{number}" if number else name)
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
        raise HostError(f"{self.path} is full of {name}-*")

    def close(self) -> None:
        """Remove the directory and everything in it."""
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait()
        shutil.rmtree(self.path, ignore_errors=True)


def _no_directory(error: OSError) -> HostError:
    return HostError(f"no temporary directory: {error.strerror}; set TMPDIR to a writable place")


def dies_with_owner(command: list[str]) -> list[str]:
    """*command*, so started that the kernel kills it when the process that started it dies.

    The owner is this process: the caller must start the returned command itself.
    """
    setpriv = shutil.which("setpriv", path=os.defpath + ":/usr/bin:/bin")
    if setpriv is None:
        raise HostError("setpriv is missing: apt-get install util-linux")
    if os.sep not in command[0]:
        program = find_program(command[0])
        if program is None:
            raise HostError(f"there is no {command[0]} on PATH")
        command = [program, *command[1:]]
    # The owner may die before setpriv registers the signal; sh then sees another PPID.
    dying = [setpriv, "--pdeathsig", "KILL", "--"]
    owned = ["/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    return [
        *dying,
        *owned,
        *dying,
        *command,
    ]  # last again, for its error message about a bad command
