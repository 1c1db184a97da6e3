"""The JSON file in a replay bundle, whatever kind of bundle: read and checked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

from qmpshim.errors import InputError, decoding, os_errors


class BundleCase(Protocol):
    """What a bundle replays, of whatever kind."""

    def to_json(self) -> dict[str, Any]:
        """As it is in the bundle's file."""


def read_case(path: Path, *names: str) -> tuple[Any, Path]:
    """The case in a bundle, in its file alone, or in a write-up of a known finding (``case``).

    :param path: the bundle's directory or the file
    :param names: what the file may be called in the directory
    :returns: the case, and the file
    :raises InputError: there is none, or it is no JSON object
    """
    file = path
    if path.is_dir():
        files = [path / name for name in names]
        file = next(filter(os.path.exists, files), files[-1])
    with os_errors(InputError, f"{path} is no bundle: {file}"), decoding(str(file)):
        value = json.loads(file.read_text())
    if not isinstance(value, dict):
        raise InputError(f"{file} is no replay bundle")
    return value.get("case", value), file


def strings(value: Any) -> tuple[str, ...]:
    """A JSON array of strings.

    :raises TypeError: it is none
    """
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(value)


def integers(value: Any) -> tuple[int, ...]:
    """A JSON array of integers.

    :raises TypeError: it is none
    """
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise TypeError(f"{value!r} is no list of integers")
    return tuple(value)


def build_fields(value: Any) -> dict[str, Any]:
    """What a bundle has of the build it was made on; its version is a text.

    :raises TypeError: it is none
    """
    if not isinstance(value, dict) or not isinstance(value.get("version", ""), str):
        raise TypeError(f"{value!r} is no build")
    return value


def check_format(value: Any, number: int, path: Path) -> None:
    """Check that a case is of the format this qmpshim reads.

    :raises InputError: it is of another, or no case
    """
    if not isinstance(value, dict) or "format" not in value:
        raise InputError(f"{path} is no replay bundle")
    if value["format"] != number:
        raise InputError(f"{path} has format {value['format']}; this qmpshim reads format {number}")
