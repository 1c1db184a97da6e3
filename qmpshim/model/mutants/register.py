"""What a sabotage is, and the register of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qmpshim.model.chain.drain import Drain
from qmpshim.model.chain.protocols import (
    CopyBeforeWriteDiscipline,
    CowRequestDiscipline,
    Discipline,
    SerialisingWriteDiscipline,
)
from qmpshim.model.disks.backup_job import BackupJob
from qmpshim.model.disks.image import Image, Qcow2
from qmpshim.model.explore.model_system import CellChain, ModelSystem
from qmpshim.model.runtime.containers import PLAIN, Memory
from qmpshim.model.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A broken model.

    :ivar honest: the discipline it was before
    :ivar scenarios: names of shipped scenarios that show it, the best first
    :ivar historic: the QEMU versions that are like this, if any
    """

    name: str
    about: str
    honest: type[Discipline]
    discipline: Callable[[], Discipline]
    scenarios: tuple[str, ...]
    historic: str = ""
    drained: bool | None = None
    drain: type[Drain] = Drain
    chain: type[CellChain] = CellChain

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


SABOTAGES: dict[str, Sabotage] = {}


def add(name: str, about: str, honest: type[Discipline], discipline: Callable[[], Discipline],
         *scenarios: str, **more: Any) -> None:  # fmt: skip
    SABOTAGES[name] = Sabotage(name, about, honest, discipline, scenarios, **more)


def with_job(base: type[Discipline], job: Callable[..., BackupJob]) -> Callable[[], Discipline]:
    class Sabotaged(base):  # type: ignore[misc, valid-type]
        def new_job(
            self, source: Image, target: Qcow2, copy_range: bool, memory: Memory = PLAIN
        ) -> BackupJob:
            return job(source, target, copy_range, memory)

    return Sabotaged


COW = CowRequestDiscipline
SERIAL = SerialisingWriteDiscipline
CBW = CopyBeforeWriteDiscipline
