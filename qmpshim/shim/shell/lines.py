"""Where lines come from when no person types them: a command line, a file, a pipe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TextIO

from qmpshim.errors import InputError
from qmpshim.shim.shell.io import in_thread


async def each(lines: Iterable[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line


async def as_they_come(source: TextIO) -> AsyncIterator[str]:
    """The lines of a pipe: its writer may wait for the answers in between."""

    def line() -> str:
        try:
            return source.readline()
        except UnicodeDecodeError as error:
            raise InputError("standard input is not UTF-8 text") from error

    while text := await in_thread(line):
        yield text.rstrip("\n")


def script(path: Path) -> list[str]:
    """The lines of a file.

    :raises InputError: it cannot be read
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
