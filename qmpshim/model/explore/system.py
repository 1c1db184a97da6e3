"""What the explorer drives: a system that offers choices, takes one, and shows what it touched.

The model implements it (:mod:`qmpshim.model.explore.model_system`), and so can a real QEMU behind
gated storage: there a step is "start operation i" or "complete the held I/O j".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from qmpshim.model.check.verdict import Verdict

Choice: TypeAlias = tuple[Any, ...]
"""A step's name, of a form that each system chooses.  A name stands for
the same event in every execution in which what it depends on happened before it, is offered until
it is taken, and is taken at most once.  A step may end everything, as a crash does: then nothing is
offered any more, and its footprint conflicts with all others."""


class Footprint(NamedTuple):
    """What a step looked at and what it changed, as bit sets over places the system numbers.

    Two steps that touch no common place, or only look at the common ones, may change places.
    """

    reads: int
    writes: int

    def conflicts(self, other: Footprint) -> bool:
        """Whether the order of the two steps matters."""
        return bool(self.writes & (other.reads | other.writes) or other.writes & self.reads)


NOTHING = Footprint(0, 0)


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not happen did.

    :ivar kind: the verdict
    :ivar text: one sentence
    :ivar op: number of the operation in which it was seen, if one
    :ivar cluster: number of the backup cluster at which it was seen, if one
    """

    kind: Verdict
    text: str
    op: int | None = None
    cluster: int | None = None


class System(Protocol):
    """Something that can be taken, step by step, along any of its schedules."""

    @property
    def threads(self) -> int:
        """How many threads (operations) there are; they are numbered from 0."""

    @property
    def violation(self) -> Violation | None:
        """The first thing that went wrong since the reset."""

    def reset(self) -> None:
        """Go back to the start.  Every execution from here is determined by the choices taken."""

    def enabled(self) -> Sequence[Choice]:
        """The choices there are now; none means that the execution is over."""

    def take(self, choice: Choice) -> Footprint:
        """Take a step and run until only choices are left to make."""

    def finish(self) -> Hashable:
        """Nothing is enabled: judge the execution (see :attr:`violation`), return its outcome."""

    def fingerprint(self) -> Hashable | None:
        """Equal for two executions that can go on in the same ways; ``None``: not known."""

    def thread(self, choice: Choice) -> int:
        """The thread whose step this is."""

    def movers(self, thread: int) -> Sequence[Choice] | None:
        """Enabled choices without one of which *thread* makes no further step; ``None``: unknown.

        They include all of the thread's own choices.
        """
