"""What a checker is given of the end of an execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from qmpshim.conformance.explore.harness.history import History
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.chain.gated import GatedMachine


@dataclass(slots=True)
class End:
    """The end of an execution.

    :ivar reported_errors: kinds of errors that this QEMU has sent an event about before
    :ivar explain: what no order of the operations explains of an outcome
    :ivar unflushed: what a failover's commit wrote was not flushed before the disks were looked at
    :ivar outcome: what there is to see, once it was looked at
    :ivar broken: what is broken in the images themselves
    """

    machine: GatedMachine
    scenario: RealScenario
    history: History
    reported_errors: set[str]
    explain: Callable[[Outcome], RealViolation | None]
    unflushed: bool = False
    outcome: Outcome | None = None
    broken: RealViolation | None = None


#: What every checker of the end is: it finds the first thing that is wrong.
Check: TypeAlias = Callable[[End], RealViolation | None]
