"""A divergence: what was predicted, what was observed, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qmpshim.errors import (
    CommandFailed,
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

#: What is QEMU's doing, whatever was asked of it, and after which it can be asked for nothing more.
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
    """What it is called that QEMU or its guest went wrong so, where success was predicted.

    A command that is refused is an error that must not be; an answer that makes no sense is
    another matter, of the protocol.
    """
    return next((said for kind, said in _VERDICTS if isinstance(error, kind)), Verdict.PROTOCOL)


@dataclass(frozen=True, slots=True)
class Divergence:
    """One finding.

    :ivar verdict: what kind of finding it is
    :ivar where: the disk, view or command, e.g. ``hidden disk (file)``
    :ivar operation: number of the operation after which it was noticed
    :ivar predicted: the model's answer, in words
    :ivar observed: QEMU's answer, in words
    """

    verdict: Verdict
    where: str
    operation: int
    predicted: str
    observed: str

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
        """A JSON object with the fields above."""
        return {
            "verdict": self.verdict.value,
            "where": self.where,
            "operation": self.operation,
            "predicted": self.predicted,
            "observed": self.observed,
        }

    @classmethod
    def from_json(cls, value: Any) -> Divergence:
        """The reverse of :meth:`to_json`.

        :raises InputError: *value* is no divergence
        """
        try:
            return cls(
                Verdict(value["verdict"]),
                str(value["where"]),
                int(value["operation"]),
                str(value["predicted"]),
                str(value["observed"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a divergence: {value!r}") from error
