"""What all write-ups of known findings have in common, whatever shows them: one JSON file each.

A write-up excuses a finding, so it has to say of what it is true: of which versions, within the
contract or not, with which cause; and, each kind for itself, in which circumstances.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qmpshim.errors import InputError
from qmpshim.model.check.verdict import Verdict

Version = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUp:
    """A finding that is written up.

    :ivar id: the file's name without its suffix
    :ivar cause: a regular expression for the whole cause of what was found
    :ivar since: first version that has it, :ivar until: first version that has it no more
    :ivar contract: also within the contract; one about robustness never excuses a breach of that
    """

    id: str
    title: str
    reason: str
    source: str
    verdicts: tuple[Verdict, ...]
    cause: str
    since: Version
    until: Version
    contract: bool

    def concerns(self, version: Version) -> bool:
        """Whether QEMU *version* has it."""
        return self.since <= version < self.until

    def tells_of(self, verdict: Verdict | None, cause: str, contract: bool) -> bool:
        """Whether something that went wrong is this, as far as its words say so.

        :param contract: it was seen within the contract
        """
        return (
            verdict in self.verdicts
            and (self.contract or not contract)
            and re.fullmatch(self.cause, cause) is not None
        )


def common(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`WriteUp`, from a file's *value*.

    :raises KeyError, TypeError, ValueError: one is missing or wrong
    """
    re.compile(cause := str(value["cause"]))
    return {
        "id": name,
        "title": str(value["title"]),
        "reason": str(value["reason"]),
        "source": str(value["source"]),
        "verdicts": tuple(Verdict(word) for word in value["verdicts"]),
        "cause": cause,
        "since": _version(value["versions"].get("since", "0")),
        "until": _version(value["versions"].get("fixed", "999")),
        "contract": bool(value["contract"]),
    }


def load(directory: Path, make: Callable[[str, dict[str, Any]], T]) -> tuple[T, ...]:
    """Every write-up in *directory*, in the order of their names; none if it is not there.

    :param make: makes one of its name and its file's value; KeyError, TypeError and ValueError
        say that it cannot
    :raises InputError: one of the files is damaged
    """
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(make(path.stem, json.loads(path.read_text())))
        except (OSError, KeyError, TypeError, ValueError, re.error, InputError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
    return tuple(found)


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))
