"""The findings that are written up: where they are, also when qmpshim is installed, and which."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.explore.finding_files import load_known
from qmpshim.conformance.explore.findings import Known
from qmpshim.errors import InputError
from qmpshim.model.verdict import Verdict

#: In the source tree a link to ``vmtests/conformance/known``, in a wheel the files themselves.
DIRECTORY = Path(__file__).with_name("known")


@dataclass(frozen=True, slots=True)
class DirectedKnown:
    """A directed case that ends otherwise than QEMU's documents promise, as written up.

    :ivar since: first version that does, :ivar until: first version that does no more
    """

    case: str
    verdict: Verdict
    since: tuple[int, ...]
    until: tuple[int, ...]
    reason: str

    def covers(self, verdict: Verdict, version: tuple[int, ...]) -> bool:
        """Whether this is what was seen on QEMU *version*."""
        return verdict is self.verdict and self.since <= version < self.until


@functools.cache
def known_findings() -> tuple[Known, ...]:
    """The findings of the explorer.

    :raises InputError: one of the files is damaged
    """
    return tuple(load_known(DIRECTORY))


@functools.cache
def known_directed() -> dict[str, DirectedKnown]:
    """Those of the directed cases, by case.

    :raises InputError: one of the files is damaged
    """
    found = {}
    for path in sorted((DIRECTORY / "directed").glob("*.json")):
        try:
            value = json.loads(path.read_text())
            found[value["case"]] = DirectedKnown(
                value["case"],
                Verdict(value["verdict"]),
                _version(value["versions"].get("since", "0")),
                _version(value["versions"].get("fixed", "999")),
                str(value["reason"]),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
    return found


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


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
