"""What a run of a random workload came to, whatever disks it was on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from qmpshim.conformance.compare.divergence import Divergence

Known = TypeVar("Known", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class MetDefect:
    """A known defect that an operation met.

    :ivar id: of its write-up
    :ivar where: where it shows itself, as :attr:`Divergence.where` has it
    :ivar operation: number of the operation
    """

    id: str
    where: str
    operation: int


@dataclass(slots=True)
class WorkloadResult(Generic[Known]):
    """How a run ended.

    :ivar divergence: the first divergence, or ``None``
    :ivar operations: how many of each kind were done
    :ivar known: how often a known defect was met as predicted, or what meets it was left out
    :ivar met: the known defects that were met and not left out, in a strict run
    :ivar clusters: clusters' worth of bytes compared; :ivar checks: comparisons of everything
    :ivar slowest: seconds that the longest operation took, of those that ended
    """

    divergence: Divergence | None = None
    operations: Counter[str] = field(default_factory=Counter)
    known: Counter[Known] = field(default_factory=Counter)
    met: list[MetDefect] = field(default_factory=list)
    clusters: int = 0
    checks: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def done(self) -> int:
        """Operations done."""
        return self.operations.total()
