"""The answer of `assess` to what a run saw. Nothing more is tried, so it is never RELIABLE."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from qmpshim.conformance.known.folder import by_id
from qmpshim.conformance.known.meaning import SEVERITY_OF, Meaning, Severity
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import Use
from qmpshim.model.check.verdict import Verdict


class Standing(StrEnum):
    """What a run's findings come to for a user; the badge of its report."""

    NOTHING = "nothing known"
    HARMLESS = "known and harmless"
    CONDITIONAL = "known, and serious only outside ordinary use"
    UNEXPLAINED = "not explained"
    NOT_RELIABLE = "not reliable"


class Found(Protocol):
    """What commands find, each in a class of its own, as far as it matters here."""

    @property
    def verdict(self) -> Verdict | None:
        """What kind of violation it is."""

    @property
    def described(self) -> str:
        """What is wrong, one line for people."""

    @property
    def contract(self) -> bool:
        """Whether it was seen within QEMU's documents."""

    @property
    def known(self) -> str:
        """The id of its write-up, or ``""``."""

    @property
    def confirmed(self) -> bool:
        """Whether it showed itself again, every time."""

    @property
    def uses(self) -> tuple[Use, ...]:
        """Those that what it was found in stands for."""


def seen(found: Found) -> SeenFinding:
    """What a finding comes to for a user.

    :raises ValueError: it shows nothing wrong
    """
    if found.verdict is None:
        raise ValueError(f"{found.described} shows nothing wrong")
    return SeenFinding(
        *(found.verdict, found.described, found.contract, found.known),
        *(found.confirmed, found.uses),
    )


@dataclass(frozen=True, slots=True)
class SeenFinding:
    """A finding as a run reports it.

    :ivar known: id of its write-up, or ``""``
    :ivar confirmed: it showed itself again, every time
    :ivar uses: those that what it was found in stands for, where it has no write-up
    """

    verdict: Verdict
    title: str
    contract: bool
    known: str = ""
    confirmed: bool = True
    uses: tuple[Use, ...] = ()

    @property
    def entry(self) -> WriteUp | None:
        """Its write-up."""
        return by_id(self.known)

    @property
    def meaning(self) -> Meaning | None:
        """What its write-up has of it."""
        return self.entry.meaning if self.entry else None

    @property
    def severity(self) -> Severity:
        """By its write-up, or by what was seen."""
        return self.meaning.severity if self.meaning else SEVERITY_OF[self.verdict]

    @property
    def disqualifies(self) -> bool:
        """What is not explained does if it is within the contract; none that was not confirmed."""
        return self.confirmed and (self.meaning.disqualifies if self.meaning else self.contract)

    @property
    def text(self) -> str:
        """One line."""
        return self.entry.title if self.entry else self.title


def standing(found: Iterable[SeenFinding]) -> Standing:
    """What findings come to."""
    all_found = list(found)
    if any(one.disqualifies for one in all_found):
        return Standing.NOT_RELIABLE
    if any(one.entry is None or not one.confirmed for one in all_found):
        return Standing.UNEXPLAINED
    if any(one.severity.serious for one in all_found):
        return Standing.CONDITIONAL
    return Standing.HARMLESS if all_found else Standing.NOTHING


def worst(found: Iterable[SeenFinding]) -> SeenFinding | None:
    """The worst of those that make it unreliable."""
    bad = [one for one in found if one.disqualifies]
    return min(bad, key=lambda one: one.severity.rank, default=None)


def worst_by_use(found: Iterable[SeenFinding]) -> dict[Use, SeenFinding]:
    """The uses for which it is not reliable, each with the worst reason."""
    by_use: dict[Use, list[SeenFinding]] = {use: [] for use in Use}
    for one in found:
        if one.confirmed:
            for use in one.meaning.affects if one.meaning else one.uses:
                by_use[use].append(one)
    return {use: bad for use, seen in by_use.items() if (bad := worst(seen))}


def assessed(found: Iterable[SeenFinding]) -> str:
    """What `assess` would conclude from these findings alone, one line."""
    all_found = list(found)
    unsure = sum(not one.confirmed for one in all_found)
    doubt = f"; {unsure} more did not show itself every time" if unsure else ""
    return _sentence([one for one in all_found if one.confirmed]) + doubt


def avoiding(found: Iterable[SeenFinding]) -> str:
    """The command that shows how to avoid the worst, ``""`` where that is not known."""
    bad = worst(one for one in found if one.confirmed)
    return f"qmpshim findings show {bad.entry.name}" if bad and bad.entry else ""


def _sentence(found: list[SeenFinding]) -> str:
    bad = worst(found)
    if bad is None:
        known = [one for one in found if one.entry is not None]
        serious = [one for one in known if one.severity.serious]
        parts = []
        if harmless := len(known) - len(serious):
            parts.append(f"{harmless} known and harmless finding(s)")
        if serious:
            when = {one.meaning.trigger.words: None for one in serious if one.meaning}
            parts.append(f"{len(serious)} known and serious {' or '.join(when)}")
        if unexplained := len(found) - len(known):
            parts.append(f"{unexplained} against QEMU's documented rules, not explained")
        return ", ".join(parts) or "nothing known was seen"
    hit = ", ".join(use.words for use in worst_by_use(found)) or "what was tried here"
    return f"NOT RELIABLE for {hit}: {bad.severity.words}: {bad.text}"
