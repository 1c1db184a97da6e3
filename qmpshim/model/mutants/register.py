"""The class of a mutant, and the register of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmpshim.model.chain.drain import Drain
from qmpshim.model.chain.protocols import (
    CopyBeforeWriteProtocol,
    CowRequestProtocol,
    JobMaker,
    SerialisingWriteProtocol,
    SerializationProtocol,
)
from qmpshim.model.explore.model_system import InstrumentedChain, ModelSystem
from qmpshim.model.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken model.

    :ivar reference: the correct protocol it was made from
    :ivar protocol: makes the broken one
    :ivar scenarios: names of shipped scenarios that show it, the best first
    """

    name: str
    about: str
    reference: type[SerializationProtocol]
    protocol: Callable[[], SerializationProtocol]
    scenarios: tuple[str, ...]
    drained: bool | None = None
    drain: type[Drain] = Drain
    chain: type[InstrumentedChain] = InstrumentedChain

    def system(self, scenario: Scenario) -> ModelSystem:
        """The broken model running a scenario, compared with the correct one."""
        return ModelSystem(
            scenario,
            self.protocol,
            self.reference,
            drained=self.drained,
            drain=self.drain,
            chain=self.chain,
        )


MUTANTS: dict[str, Mutant] = {}


def add(
    name: str,
    about: str,
    reference: type[SerializationProtocol],
    protocol: Callable[[], SerializationProtocol],
    *scenarios: str,
    **more: Any,
) -> None:
    MUTANTS[name] = Mutant(name, about, reference, protocol, scenarios, **more)


def with_job(
    base: type[SerializationProtocol], job: JobMaker
) -> Callable[[], SerializationProtocol]:
    class Broken(base):  # type: ignore[misc, valid-type]
        make_job = staticmethod(job)

    return Broken


COW = CowRequestProtocol
SERIAL = SerialisingWriteProtocol
CBW = CopyBeforeWriteProtocol
