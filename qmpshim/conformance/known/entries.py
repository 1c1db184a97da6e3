"""Every write-up, whatever shows it, as the commands list it: what is common to all of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.known.folder import DIRECTORY
from qmpshim.conformance.known.meaning import TO_WRITE, Meaning, meaning_from_json
from qmpshim.errors import InputError, no_such


@dataclass(frozen=True, slots=True)
class Entry:
    """A write-up.

    :ivar name: its file below ``findings/``, without the suffix; the part before a ``/`` says what
        shows it: ``directed``, ``pair``, ``verify``, and nothing for the explorer
    :ivar since: first version that has it, :ivar fixed: first that has it no more; ``""``: unknown
    :ivar causes: as :func:`~.write_ups.pattern_from_json` reads them
    :ivar case: what shows it again; empty: the directed case of its name
    :ivar path: its file
    """

    name: str
    title: str
    reason: str
    source: str
    since: str
    fixed: str
    contract: bool
    verdicts: tuple[str, ...]
    causes: tuple[dict[str, Any], ...]
    meaning: Meaning
    case: dict[str, Any]
    path: Path

    @property
    def kind(self) -> str:
        """What shows it: ``directed``, ``pair``, ``verify`` or ``explore``."""
        if not self.case:
            return "directed"
        if self.case.get("kind") == "pair":
            return "pair"
        return "verify" if "operations" in self.case else "explore"

    @property
    def id(self) -> str:
        """What a finding's ``known`` is when it is this."""
        return self.name if self.kind == "directed" else self.name.rpartition("/")[2]

    @property
    def versions(self) -> str:
        """Which versions have it, by the builds that were run and by QEMU's sources."""
        if self.fixed:
            return f"{self.since or '…'} to before {self.fixed}"
        return f"from {self.since}" if self.since else "all"

    def concerns(self, version: tuple[int, ...]) -> bool:
        """Whether it is written up for QEMU *version*."""
        since, fixed = (
            tuple(int(part) for part in text.split("."))
            for text in (self.since or "0", self.fixed or "999")
        )
        return since <= version < fixed


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All of them, by name.

    :raises InputError: one is damaged
    """
    return tuple(read_entry(path) for path in sorted(DIRECTORY.rglob("*.json")))


def read_entry(path: Path) -> Entry:
    """A write-up's file.

    :raises InputError: it is damaged, or a draft that is not filled in
    """
    try:
        value = json.loads(path.read_text())
        versions = value["versions"]
        if any(TO_WRITE in str(value[name]) for name in ("title", "reason", "source")):
            raise ValueError("title, reason and source have to be written")
        return Entry(
            path.relative_to(DIRECTORY).with_suffix("").as_posix()
            if path.is_relative_to(DIRECTORY)
            else path.stem,
            str(value["title"]),
            str(value["reason"]),
            str(value["source"]),
            str(versions.get("since", "")),
            str(versions.get("fixed", "")),
            bool(value.get("contract", True)),
            tuple(value.get("verdicts", [value.get("verdict", "")])),
            tuple(value.get("causes", ())),
            meaning_from_json(value["meaning"]),
            dict(value.get("case", {})),
            path,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def entry(name: str) -> Entry:
    """The write-up of that name or id.

    :raises InputError: there is none
    """
    if (found := by_id(name)) is not None:
        return found
    raise InputError(
        no_such("finding", name, [one.name for one in entries()], "qmpshim findings list")
    )


def by_id(name: str) -> Entry | None:
    """The same; None where there is none."""
    return next((one for one in entries() if name in (one.name, one.id)), None)


def by_severity(found: Iterable[Entry]) -> list[Entry]:
    """The worst first; of equals what needs the least comes first."""
    triggers = ["load", "failure", "misuse"]
    return sorted(
        found,
        key=lambda one: (
            one.meaning.severity.rank,
            triggers.index(one.meaning.trigger),
            one.name,
        ),
    )
