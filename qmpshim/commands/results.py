"""Files for results: found to be writable before the work, written after it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from qmpshim.errors import HostError, InputError, os_errors
from qmpshim.machine.host.files import check_file, write_file

STDOUT = Path("-")  # as a file to write to
BUNDLES = Path("qmpshim-bundles")  # where replay bundles go without --keep


def check_writable(path: Path | None) -> None:
    """Find out now, not after the work, that a result cannot be written.

    :raises InputError: it cannot
    """
    if path is None or path == STDOUT:
        return
    try:
        check_file(path)
    except HostError as error:
        raise InputError(str(error)) from error


def check_directory(path: Path) -> None:
    """Make a directory for results before the work.

    :raises InputError: it cannot be made
    """
    with os_errors(InputError, f"cannot write {path}"):
        path.mkdir(parents=True, exist_ok=True)


def not_kept(why: str) -> str:
    """The message for a bundle that could not be written."""
    return f"no bundle: {why}; give a directory that can be written to with --keep DIR"


def write_json(path: Path | None, value: Any) -> None:
    """Write a result, if it is wanted.

    :raises HostError: it cannot be written
    """
    if path is None:
        return
    text = json.dumps(value, indent=1) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
        return
    write_file(path, text.encode())
