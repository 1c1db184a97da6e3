"""The findings that are written up: where they are, also when qmpshim is installed, and which."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from qmpshim.conformance.known.matching import (
    DirectedWriteUp,
    ExplorerWriteUp,
    load_directed,
    load_known,
)
from qmpshim.conformance.known.pairs import PairWriteUp
from qmpshim.conformance.known.pairs import load_known as load_known_pairs
from qmpshim.errors import InputError

#: Package data: one JSON file a write-up.
DIRECTORY = Path(__file__).with_name("findings")


@functools.cache
def known_findings() -> tuple[ExplorerWriteUp, ...]:
    """The findings of the explorer.

    :raises InputError: one of the files is damaged
    :raises HostError: they are missing
    """
    return load_known(DIRECTORY)


@functools.cache
def known_directed() -> dict[str, DirectedWriteUp]:
    """Those of the directed cases, by case.

    :raises InputError: one of the files is damaged
    """
    return load_directed(DIRECTORY / "directed")


@functools.cache
def known_pairs() -> tuple[PairWriteUp, ...]:
    """Those of pairs.

    :raises InputError: one of the files is damaged
    """
    return load_known_pairs(DIRECTORY / "pair")


def known_path(name: str) -> Path:
    """The file of a finding of the explorer's.

    :raises InputError: there is none of that name
    """
    path = DIRECTORY / f"{name}.json"
    if not path.is_file():
        raise InputError(f"no known finding {name!r}")
    return path


def write_up(name: str) -> dict[str, Any]:
    """What is written about a known finding: title, reason, source, versions.

    :param name: its id, with ``directed/`` before that of a directed case
    """
    for path in (DIRECTORY / folder / f"{name}.json" for folder in ("", "pair", "verify")):
        if name and path.is_file():
            break
    else:
        return {}
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {key: value[key] for key in ("title", "reason", "source", "versions") if key in value}
