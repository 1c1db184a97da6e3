"""What all write-ups have in common, whatever shows the finding: one JSON file each.

A write-up excuses a finding, so it has to be precise: of which versions, within the
contract or not, with which cause; and, each kind for itself (:mod:`~.matching`), in which
circumstances.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qmpshim.codec import decode, encode
from qmpshim.conformance.bundles.case_file import BundleCase
from qmpshim.conformance.known.meaning import TO_WRITE, Meaning, meaning_from_json
from qmpshim.model.check.cause import Cause, CauseKind, FaultContext, Phase, Relation
from qmpshim.model.check.verdict import Verdict

Version = tuple[int, ...]

#: Package data: one JSON file a write-up, in a folder by what shows the finding.
DIRECTORY = Path(__file__).with_name("findings")


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


@dataclass(frozen=True, slots=True)
class Interval:
    """Versions that have it. A stable branch that was mended ends one, and the next release, which
    was made before, begins another.

    :ivar since: the first, :ivar fixed: the first that has it no more; ``""``: unknown
    """

    since: str = ""
    fixed: str = ""

    def __contains__(self, version: Version) -> bool:
        return numbers(self.since or "0") <= version < numbers(self.fixed or "999")

    def __str__(self) -> str:
        if not self.fixed:
            return f"from {self.since}" if self.since else "all"
        return (f"from {self.since} to " if self.since else "") + f"before {self.fixed}"


def intervals_from_json(value: Any) -> tuple[Interval, ...]:
    """A write-up's ``versions``: one interval, or several that follow each other.

    :raises KeyError, TypeError, ValueError, InputError: they are none
    """
    found = decode(tuple[Interval, ...], value if isinstance(value, list) else [value], "versions")
    ends = [numbers(end) for one in found for end in (one.since or "0", one.fixed or "999")]
    if not found or ends != sorted(set(ends)):
        raise ValueError(f"these versions do not follow each other: {value}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUp:
    """A finding that is written up.

    :cvar kind: what shows it: ``explore``, ``directed``, ``pair`` or ``verify``
    :ivar name: its file below ``findings/``, without the suffix
    :ivar intervals: the versions that have it, oldest first
    :ivar contract: also within the contract; one about robustness never excuses a breach of that
    :ivar causes: what the finding's cause has to be one of
    :ivar expected: what QEMU promises here, ``""``: what follows from the verdicts
    :ivar observed: what QEMU does instead, ``""``: the case has it
    :ivar steps: what is done to see it, a sentence each; empty: the case has a schedule
    :ivar suggestion: how QEMU could be mended, as far as the reason supports it, ``""``: not known
    :ivar related: names of write-ups that have to do with it
    :ivar case: what shows it again; None: the directed case of its name
    :ivar path: its file
    """

    kind: ClassVar[str]

    name: str
    title: str
    reason: str
    source: str
    intervals: tuple[Interval, ...]
    contract: bool
    verdicts: tuple[Verdict, ...]
    causes: tuple[CausePattern, ...]
    meaning: Meaning
    expected: str
    observed: str
    steps: tuple[str, ...]
    suggestion: str
    related: tuple[str, ...]
    case: BundleCase | None
    path: Path

    @property
    def id(self) -> str:
        """What a finding's ``known`` is when it is this."""
        return self.path.stem

    @property
    def versions(self) -> str:
        """Which versions have it, by the builds that were run and by QEMU's sources."""
        return ", and ".join(map(str, self.intervals))

    @property
    def since(self) -> str:
        """The first version that has it; ``""``: unknown."""
        return self.intervals[0].since

    @property
    def fixed(self) -> str:
        """The first version after which none has it; ``""``: there is none, or it is unknown."""
        return self.intervals[-1].fixed

    @property
    def fixed_in(self) -> str:
        """Where it is no more: in a stable branch from a release on, in all from another on."""
        *branches, last = (one.fixed for one in self.intervals)
        ends = [f"{one} and later of {'.'.join(one.split('.')[:2])}" for one in branches]
        return ", ".join([*ends, f"{last} and later"])

    @property
    def summary(self) -> dict[str, Any]:
        """What reports have of it, as JSON."""
        versions = {"since": self.since, "fixed": self.fixed}
        several = [encode(one) for one in self.intervals] if len(self.intervals) > 1 else []
        return {
            "title": self.title,
            "reason": self.reason,
            "source": self.source,
            "versions": {name: version for name, version in versions.items() if version},
            **({"intervals": several} if several else {}),
        }

    def concerns(self, version: Version) -> bool:
        """Whether QEMU *version* has it."""
        return any(version in one for one in self.intervals)

    def explains(self, verdict: Verdict | None, cause: Cause, contract: bool) -> bool:
        """Whether something that went wrong is this, as far as verdict and cause go.

        :param contract: it was seen within the contract
        """
        return (
            verdict in self.verdicts
            and (self.contract or not contract)
            and any(pattern.matches(cause) for pattern in self.causes)
        )


def common(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """The fields of :class:`WriteUp` but its case, from the content of the file *path*.

    :raises KeyError, TypeError, ValueError, re.error, InputError: one is missing, wrong or not
        filled in
    """
    if unwritten := [name for name, field in value.items() if TO_WRITE in str(field)]:
        raise ValueError(f"{', '.join(unwritten)} have to be written")
    inside = path.is_relative_to(DIRECTORY)
    return {
        "name": path.relative_to(DIRECTORY).with_suffix("").as_posix() if inside else path.stem,
        "title": str(value["title"]),
        "reason": str(value["reason"]),
        "source": str(value["source"]),
        "intervals": intervals_from_json(value["versions"]),
        "contract": bool(value["contract"]),
        "verdicts": tuple(Verdict(word) for word in value["verdicts"]),
        "causes": tuple(pattern_from_json(one) for one in value.get("causes", ())),
        "meaning": meaning_from_json(value["meaning"]),
        "expected": str(value.get("expected", "")),
        "observed": str(value.get("observed", "")),
        "steps": tuple(str(step) for step in value.get("steps", ())),
        "suggestion": str(value.get("suggestion", "")),
        "related": tuple(str(name) for name in value.get("related", ())),
        "path": path,
    }


def numbers(text: str) -> Version:
    """A version as numbers; :raises ValueError: it is none."""
    return tuple(int(part) for part in text.split("."))
