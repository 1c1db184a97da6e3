"""What a finding means to users of QEMU: which use it hits, how badly, when, what to do.

The sentences are read by operators of COLO and by authors of backup tools: they name what the user
does and sees, not QEMU's functions, which are in the write-up's ``reason``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qmpshim.codec import decode
from qmpshim.conformance.uses import Use
from qmpshim.errors import InputError
from qmpshim.model.check.verdict import Verdict


class Severity(StrEnum):
    """How bad it is, the worst first. A damaged image that no error announces is wrong data."""

    SILENT_WRONG_DATA = "silent-wrong-data"
    LOST_WRITE = "lost-write"
    STALE_READ = "stale-read"
    CRASH = "crash"
    HANG = "hang"
    FAILED_REQUEST = "failed-request"  # of a guest whose disk could have done it
    DAMAGE_AFTER_ERROR = "damage-after-error"
    WRONG_STATUS = "wrong-status"
    COSMETIC = "cosmetic"

    @property
    def rank(self) -> int:
        """Its place, 0 for the worst."""
        return list(Severity).index(self)

    @property
    def serious(self) -> bool:
        """Data or service is lost, and nothing warns of it in time."""
        return self.rank <= Severity.FAILED_REQUEST.rank

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        return self.value.replace("-", " ")


class Trigger(StrEnum):
    """What it takes beside an ordinary use of QEMU."""

    LOAD = "load"  # nothing: the right requests at the right time
    FAILURE = "failure"  # a disk, a link or a host fails
    TWO_FAILURES = "two-failures"  # one after the other
    TESTING = "testing"  # a driver that QEMU has for tests, as blkdebug
    REFUSED = "refused"  # what tools that manage QEMU refuse, or do only if forced
    MISUSE = "misuse"  # what QEMU's documents forbid

    @property
    def words(self) -> str:
        """As a condition in a sentence."""
        return _TRIGGERS[self]


_TRIGGERS = {
    Trigger.LOAD: "in ordinary use",
    Trigger.FAILURE: "when a disk, a link or a host fails",
    Trigger.TWO_FAILURES: "when a disk or a link fails and then the host",
    Trigger.TESTING: "only with a driver for tests",
    Trigger.REFUSED: "only by what management tools refuse or have to be forced to",
    Trigger.MISUSE: "only against QEMU's documented rules",
}


class Upstream(StrEnum):
    """Whether QEMU's current code still has it."""

    PRESENT = "present"
    FIXED = "fixed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fix:
    """What ended it upstream, as far as that is established.

    :ivar commit: abbreviated hash, ``""``: not established
    :ivar title: of the commit or series, ``""``: not established
    :ivar release: the first with it
    """

    commit: str
    title: str
    release: str

    def __str__(self) -> str:
        commit = f"commit {self.commit}" if self.commit else "commit not established"
        title = f" ({self.title})" if self.title else ""
        return f"{commit}{title}, first in {self.release}"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a finding means.

    :ivar affects: the uses in which it is met
    :ivar situation: when a user meets it, one sentence
    :ivar consequence: what happens to them then, one sentence
    :ivar workaround: how to avoid it, one sentence
    :ivar seen: QEMU versions on which it was seen, oldest first; a release that was not run is not
        among them
    :ivar fix: None where none is known
    """

    affects: tuple[Use, ...]
    severity: Severity
    trigger: Trigger
    situation: str
    consequence: str
    workaround: str
    seen: tuple[str, ...]
    fix: Fix | None
    upstream: Upstream

    @property
    def disqualifies(self) -> bool:
        """Whether a build that shows it is not reliable for the uses it affects."""
        return self.severity.serious and self.trigger in (Trigger.LOAD, Trigger.FAILURE)


def meaning_from_json(value: Any) -> Meaning:
    """A write-up's ``meaning``.

    :raises InputError: it is none, or one of its sentences is not filled in
    """
    meaning = decode(Meaning, value, "a meaning")
    for name in ("situation", "consequence", "workaround"):
        _check_sentence(name, getattr(meaning, name))
    if not meaning.affects or len(set(meaning.affects)) != len(meaning.affects):
        raise InputError("affects: at least one use, and each once")
    return meaning


#: What a draft has in the place of a sentence that somebody has to write.
TO_WRITE = "TO BE WRITTEN"


def _check_sentence(name: str, text: str) -> None:
    """Check that a text is one sentence: it ends with a full stop and holds no second one.

    :raises InputError: it does not
    """
    if TO_WRITE in text:
        raise InputError(f"{name} has to be written")
    if not text.endswith(".") or text != text.strip() or ". " in text or "\n" in text:
        raise InputError(f"{name} is no single sentence: {text!r}")


#: How bad a divergence without a write-up is.
SEVERITY_OF: dict[Verdict, Severity] = {
    Verdict.CONTENT: Severity.SILENT_WRONG_DATA,
    Verdict.ISOLATION: Severity.SILENT_WRONG_DATA,
    Verdict.CORRUPTION: Severity.SILENT_WRONG_DATA,
    Verdict.ORDER: Severity.SILENT_WRONG_DATA,
    Verdict.LOST_WRITE: Severity.LOST_WRITE,
    Verdict.CRASH: Severity.CRASH,
    Verdict.HANG: Severity.HANG,
    Verdict.ERROR_CONTRACT: Severity.WRONG_STATUS,
    Verdict.PROTOCOL: Severity.WRONG_STATUS,
    Verdict.ALLOCATION: Severity.COSMETIC,
}
