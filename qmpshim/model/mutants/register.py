"""What a sabotage is, and the register of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmpshim.model.chain.drain import Drain
from qmpshim.model.chain.protocols import (
    CopyBeforeWriteProtocol,
    CowRequestProtocol,
    SerialisingWriteProtocol,
    SerializationProtocol,
)
from qmpshim.model.disks.backup_job import BackupJob
from qmpshim.model.disks.image import Image, Qcow2Image
from qmpshim.model.explore.model_system import InstrumentedChain, ModelSystem
from qmpshim.model.runtime.containers import PLAIN, StateContainers
from qmpshim.model.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken model.

    :ivar honest: the discipline it was before
    :ivar scenarios: names of shipped scenarios that show it, the best first
    :ivar historic: the QEMU versions that are like this, if any
    """

    name: str
    about: str
    honest: type[SerializationProtocol]
    discipline: Callable[[], SerializationProtocol]
    scenarios: tuple[str, ...]
    historic: str = ""
    drained: bool | None = None
    drain: type[Drain] = Drain
    chain: type[InstrumentedChain] = InstrumentedChain

    def system(self, scenario: Scenario) -> ModelSystem:
        """The broken model running a scenario, judged by the honest one."""
        return ModelSystem(
            scenario,
            self.discipline,
            self.honest,
            drained=self.drained,
            drain=self.drain,
            chain=self.chain,
        )


SABOTAGES: dict[str, Mutant] = {}


def add(
    name: str,
    about: str,
    honest: type[SerializationProtocol],
    discipline: Callable[[], SerializationProtocol],
    *scenarios: str,
    **more: Any,
) -> None:
    SABOTAGES[name] = Mutant(name, about, honest, discipline, scenarios, **more)


def with_job(
    base: type[SerializationProtocol], job: Callable[..., BackupJob]
) -> Callable[[], SerializationProtocol]:
    class Sabotaged(base):  # type: ignore[misc, valid-type]
        def new_job(
            self,
            source: Image,
            target: Qcow2Image,
            copy_range: bool,
            memory: StateContainers = PLAIN,
        ) -> BackupJob:
            return job(source, target, copy_range, memory)

    return Sabotaged


COW = CowRequestProtocol
SERIAL = SerialisingWriteProtocol
CBW = CopyBeforeWriteProtocol
