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

from qmpshim.conformance.known.meaning import Meaning, meaning_from_json
from qmpshim.errors import HostError, InputError
from qmpshim.model.check.cause import Cause, CauseKind, FaultContext, Phase, Relation
from qmpshim.model.check.verdict import Verdict

Version = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FaultPattern:
    """Whether the injected fault of a cause is of these.

    :ivar what: of :class:`FaultContext`; empty: any, or none at all
    :ivar gone: whether the image is gone for good
    :ivar relation: None: either
    """

    what: frozenset[str] = frozenset()
    gone: bool = False
    relation: Relation | None = None

    def matches(self, fault: FaultContext | None) -> bool:
        """Whether a cause with this fault may match."""
        if not self.what:
            return True
        return (
            fault is not None
            and fault.what in self.what
            and fault.gone is self.gone
            and self.relation in (None, fault.relation)
        )


@dataclass(frozen=True, slots=True)
class CausePattern:
    """The causes that a write-up explains.

    :ivar subjects: one of these; empty: any
    :ivar detail: a regular expression for all of QEMU's own words
    :ivar predicted: the first of what was predicted
    :ivar phases: in one of these
    :ivar faults: with one of these; empty: the cause names no fault
    """

    kind: CauseKind
    subjects: frozenset[str]
    detail: re.Pattern[str]
    predicted: tuple[str, ...]
    phases: frozenset[Phase]
    faults: tuple[FaultPattern, ...]

    def matches(self, cause: Cause) -> bool:
        """Whether *cause* is one of these."""
        return (
            cause.kind is self.kind
            and (not self.subjects or cause.subject in self.subjects)
            and self.detail.fullmatch(cause.detail) is not None
            and cause.predicted[: len(self.predicted)] == self.predicted
            and cause.phase in self.phases
            and (
                any(fault.matches(cause.fault) for fault in self.faults)
                if self.faults
                else cause.fault is None
            )
        )


def pattern_from_json(value: dict[str, Any]) -> CausePattern:
    """One of a write-up's ``causes``.

    :raises KeyError, TypeError, ValueError, re.error: it is none
    """
    unknown = value.keys() - {"kind", "subjects", "detail", "predicted", "phases", "faults"}
    if unknown:
        raise ValueError(f"a cause has no {', '.join(sorted(unknown))}")
    return CausePattern(
        CauseKind(value["kind"]),
        frozenset(value.get("subjects", ())),
        re.compile(value.get("detail", ".*"), re.DOTALL),
        tuple(value.get("predicted", ())),
        frozenset(Phase(one) for one in value.get("phases", [Phase.EXECUTION])),
        tuple(
            FaultPattern(
                frozenset(one.get("what", ())),
                bool(one.get("gone", False)),
                Relation(one["relation"]) if "relation" in one else None,
            )
            for one in value.get("faults", ())
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUp:
    """A finding that is written up.

    :ivar id: the file's name without its suffix
    :ivar causes: what the finding's cause has to be one of
    :ivar since: first version that has it, :ivar until: first version that has it no more
    :ivar contract: also within the contract; one about robustness never excuses a breach of that
    :ivar meaning: for users; None in a write-up that an older qmpshim was given
    """

    id: str
    title: str
    reason: str
    source: str
    verdicts: tuple[Verdict, ...]
    causes: tuple[CausePattern, ...]
    since: Version
    until: Version
    contract: bool
    meaning: Meaning | None = None

    def concerns(self, version: Version) -> bool:
        """Whether QEMU *version* has it."""
        return self.since <= version < self.until

    def explains(self, verdict: Verdict | None, cause: Cause, contract: bool) -> bool:
        """Whether something that went wrong is this, as far as verdict and cause say so.

        :param contract: it was seen within the contract
        """
        return (
            verdict in self.verdicts
            and (self.contract or not contract)
            and any(pattern.matches(cause) for pattern in self.causes)
        )


def common(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`WriteUp`, from a file's *value*.

    :raises KeyError, TypeError, ValueError: one is missing or wrong
    """
    return {
        "id": name,
        "title": str(value["title"]),
        "reason": str(value["reason"]),
        "source": str(value["source"]),
        "verdicts": tuple(Verdict(word) for word in value["verdicts"]),
        "causes": tuple(pattern_from_json(one) for one in value["causes"]),
        "since": _version(value["versions"].get("since", "0")),
        "until": _version(value["versions"].get("fixed", "999")),
        "contract": bool(value["contract"]),
        "meaning": meaning_from_json(value["meaning"]) if "meaning" in value else None,
    }


def load(directory: Path, make: Callable[[str, dict[str, Any]], T]) -> tuple[T, ...]:
    """Every write-up in *directory*, in the order of their names.

    :param make: makes one of its name and its file's value; KeyError, TypeError and ValueError
        say that it cannot
    :raises InputError: one of the files is damaged
    :raises HostError: the directory is missing; without it each known defect would be a new one
    """
    if not directory.is_dir():
        raise HostError(f"{directory} is missing: install qmpshim again")
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(make(path.stem, json.loads(path.read_text())))
        except (OSError, KeyError, TypeError, ValueError, re.error, InputError) as error:
            raise InputError(f"{path} is damaged: {error!r}") from error
    return tuple(found)


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.split("."))
