"""A check's case and its outcome: what `qmpshim check` hands out, and what comes back.

A *kind* of check is a function (a :data:`Runner`) that carries out a :class:`Case` on a build and
reports how it went. It does not decide what is new or what to print: it reports what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from qmpshim.codec import decode_all
from qmpshim.conformance.finding_words import CANNOT_BE_TESTED
from qmpshim.conformance.uses import Use
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.model.check.verdict import Verdict


class Status(StrEnum):
    """How a case ended."""

    OK = "ok"  # all as predicted, known findings apart
    DIVERGED = "diverged"  # something was found
    SKIPPED = "skipped"  # cannot be tested: this build cannot do it, 125
    BROKEN = "broken"  # the check itself could not be done (no disk space, over its budget, ...)

    @property
    def words(self) -> str:
        """What it is called in all output: a skipped case is one that cannot be tested."""
        return CANNOT_BE_TESTED if self is Status.SKIPPED else self.value


@dataclass(frozen=True, slots=True)
class Case:
    """One unit of work.

    :ivar kind: which :data:`Runner` carries it out
    :ivar name: unique within a suite
    :ivar arguments: JSON values, whose meaning is the kind's affair
    :ivar budget: seconds after which it is ended from outside
    :ivar memory: bytes that all its processes may use together
    :ivar disk: bytes that it may have in its temporary directory
    """

    kind: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    budget: float = 120.0
    memory: int = 4 << 30
    disk: int = 4 << 30


class ShownBy(StrEnum):
    """What shows a finding again, apart from its case or a command of its own."""

    BUNDLE = "qmpshim replay {bundle}"
    PROBE = "qmpshim builds probe"  # of the build


@dataclass(frozen=True, slots=True)
class CaseFinding:
    """One thing found, with one cause.

    :ivar cause: stable across runs, builds and machines; with the verdict it identifies a finding
    :ivar title: one line for people
    :ivar contract: seen within QEMU's documented contract
    :ivar known: id of the written-up finding that this is, or ``""``
    :ivar count: how often it was seen
    :ivar trace: the schedule or operation list, a line a step
    :ivar bundle: the replay bundle, relative to the directory the runner was given, or ``""``
    :ivar replay: a :class:`ShownBy`, to which a report adds the build and where ``{bundle}`` stands
        for the bundle's path; or a whole command; ``""``: its case, done once more
    :ivar confirmed: it showed itself again each time it was tried; what did not is no failure
    :ivar details: JSON values for reports (cluster maps, console tails, ...)
    :ivar uses: of QEMU, which what it was found in stands for; a write-up names its own
    """

    verdict: Verdict
    cause: str
    title: str
    predicted: str = ""
    observed: str = ""
    contract: bool = True
    known: str = ""
    count: int = 1
    trace: tuple[str, ...] = ()
    bundle: str = ""
    replay: str = ""
    confirmed: bool = True
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    uses: tuple[Use, ...] = ()

    @property
    def described(self) -> str:
        """One line for people."""
        return self.title

    @property
    def key(self) -> str:
        """What makes findings in other cases, builds and runs the same one."""
        return self.known or f"{self.verdict.value}: {self.cause}"


def details_of(**values: Any) -> Mapping[str, Any]:
    """The details of a finding: those that there are."""
    return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """How a case went on a build.

    :ivar text: one line: what was done, or why it was skipped or broke
    :ivar figures: numbers by name, with the unit in the name: ``operations``, ``boot seconds``
    """

    status: Status
    text: str = ""
    findings: tuple[CaseFinding, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict, hash=False)
    seconds: float = 0.0


def case_from_json(value: Any) -> Case:
    """A case; only ``kind`` and ``name`` are required.

    :raises InputError: it is none
    """
    case = decode_all(Case, value, "a case")
    if not case.budget > 0 or case.memory <= 0 or case.disk <= 0 or not case.name:
        raise InputError(f"case {case.name!r}: name and limits must not be empty or zero")
    return case


#: Carries out a case on a build; the directory is its own and is kept with the results.
#: Raises BuildError where the build cannot do it, and no exception for what QEMU does wrong.
Runner = Callable[[Build, Case, Path], CaseOutcome]
