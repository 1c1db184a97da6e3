"""A divergence: what was predicted, what was observed, and the verdict on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from qmpshim.codec import decode, encode
from qmpshim.conformance.compare.evidence import Evidence
from qmpshim.errors import (
    CommandFailed,
    Exit,
    GuestFailed,
    GuestPanicked,
    InputError,
    IOFailed,
    MachineDied,
    MachineError,
    MachineHung,
    ProtocolBroken,
)
from qmpshim.model.check.verdict import Verdict

#: Errors that are QEMU's fault whatever was done with it, and after which it is of no more use.
BROKEN = MachineDied, MachineHung, ProtocolBroken

_VERDICTS: tuple[tuple[type[MachineError], Verdict], ...] = (
    (MachineDied, Verdict.CRASH),
    (GuestPanicked, Verdict.CRASH),
    (MachineHung, Verdict.HANG),
    (GuestFailed, Verdict.ERROR_CONTRACT),
    (CommandFailed, Verdict.ERROR_CONTRACT),
    (IOFailed, Verdict.ERROR_CONTRACT),
)


def verdict_of(error: MachineError) -> Verdict:
    """The verdict on an error of QEMU or of its guest, where success was predicted.

    A command that is refused is an error that must not be; an answer that makes no sense is
    another matter, of the protocol.
    """
    return next(
        (verdict for kind, verdict in _VERDICTS if isinstance(error, kind)), Verdict.PROTOCOL
    )


class Ending(NamedTuple):
    """How a QEMU ended, and what it wrote last."""

    how: Exit
    last_words: str

    @classmethod
    def of(cls, error: MachineError) -> Ending | None:
        """How QEMU ended, if that is what an error reports."""
        if isinstance(error, MachineDied) and error.exit is not None:
            return cls(error.exit, error.last_words)
        return None

    @classmethod
    def from_json(cls, value: Any) -> Ending:
        """Of its two texts: ``was killed by SIGABRT``, and what it wrote.

        :raises InputError: they are none
        """
        how, last_words = decode(tuple[str, str], value, "an ending")
        try:
            return cls(Exit.parse(how), last_words)
        except ValueError as error:
            raise InputError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Divergence:
    """One finding.

    :ivar verdict: what kind of finding it is
    :ivar where: the disk, view or command, e.g. ``hidden disk (file)``
    :ivar operation: number of the operation after which it was noticed
    :ivar predicted: the model's answer, in words
    :ivar observed: QEMU's answer, in words
    :ivar ending: how QEMU ended, where that is what was observed
    :ivar evidence: the same as data, where a script can look for it
    """

    verdict: Verdict
    where: str
    operation: int
    predicted: str
    observed: str
    ending: Ending | None = None
    evidence: Evidence | None = None

    @classmethod
    def of_error(
        cls, error: MachineError, where: str, operation: int, predicted: str
    ) -> Divergence:
        """What an error of QEMU or of its guest is, where success was predicted."""
        return cls(verdict_of(error), where, operation, predicted, str(error), Ending.of(error))

    def same_as(self, found: Divergence) -> bool:
        """Whether *found* shows the same, when the same operations are done again.

        QEMU may end or hang for many reasons: it has to do so in the same operation, and to end in
        the same way, with the same words.
        """
        if found.signature != self.signature:
            return False
        if found.verdict in (Verdict.CRASH, Verdict.HANG) and found.operation != self.operation:
            return False
        return _stable(found.ending) == _stable(self.ending)

    @property
    def signature(self) -> tuple[Verdict, str]:
        """What makes two divergences the same finding while a case is being shrunk."""
        return self.verdict, self.where

    def __str__(self) -> str:
        return (
            f"{self.verdict}: {self.where}, after operation {self.operation}: "
            f"predicted {self.predicted}; observed {self.observed}"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the fields above; the last two only where there is one."""
        value: dict[str, Any] = encode(replace(self, ending=None))
        del value["ending"]
        if self.ending is not None:
            value["ending"] = [str(self.ending.how), self.ending.last_words]
        if self.evidence is None:
            del value["evidence"]
        return value

    @classmethod
    def from_json(cls, value: Any) -> Divergence:
        """The reverse of :meth:`to_json`.

        :raises InputError: *value* is no divergence
        """
        members = decode(dict[str, Any], value, "a divergence")
        written = members.pop("ending", None)
        found = decode(cls, members, "a divergence")
        return replace(found, ending=Ending.from_json(written) if written else _ending_of(found))


def stable(text: str) -> str:
    """A text without what differs between runs and builds: numbers, programs, source lines.

    A cluster in use that counts as free is another matter than one that is used twice.
    """
    text = re.sub(r"refcount (\d+), but (\d+) references", _compared, text)
    text = re.sub(r"^[\w-]*qemu[\w-]*: |(?:\.\./)*[\w/-]+\.[ch]:\d+: ", "", text)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text)[:160]


def _compared(found: re.Match[str]) -> str:
    refcount, references = int(found[1]), int(found[2])
    if refcount == 0:
        return "in use, but free"
    return f"refcount {'above' if refcount > references else 'below'} references"


def _stable(ending: Ending | None) -> Ending | None:
    return None if ending is None else Ending(ending.how, stable(ending.last_words))


#: How older bundles have an ending, in their text.
_ENDING = re.compile(
    r"QEMU (was killed by \w+|exited with status \d+) during (?:\d+: )?[^:]*(?:: (.*))?", re.DOTALL
)


def _ending_of(one: Divergence) -> Ending | None:
    found = _ENDING.fullmatch(one.observed) if one.verdict is Verdict.CRASH else None
    return Ending.from_json([found[1], found[2] or ""]) if found else None
