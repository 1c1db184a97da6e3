"""The JSON file in a replay bundle, whatever kind of bundle: read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qmpshim.errors import InputError, decoding, os_errors


def read_case(path: Path, name: str) -> Any:
    """The case in a bundle, in its file alone, or in a write-up of a known finding (``case``).

    :param path: the bundle's directory or the file
    :param name: the file's name in the directory
    :raises InputError: there is none, or it is no JSON object
    """
    file = path / name if path.is_dir() else path
    with os_errors(InputError, f"{path} is no bundle: {file}"), decoding(str(file)):
        value = json.loads(file.read_text())
    if not isinstance(value, dict):
        raise InputError(f"{file} is no replay bundle")
    return value.get("case", value)


def peek(path: Path, name: str) -> dict[str, Any]:
    """The case as :func:`read_case` gives it, to see of which kind it is; empty: there is none."""
    try:
        value = read_case(path, name)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


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
    """That a case is of the format this qmpshim reads.

    :raises InputError: it is of another, or no case
    """
    if not isinstance(value, dict) or "format" not in value:
        raise InputError(f"{path} is no replay bundle")
    if value["format"] != number:
        raise InputError(f"{path} has format {value['format']}; this qmpshim reads format {number}")
