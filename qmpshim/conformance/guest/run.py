"""Carries out guest scenarios: restores a guest, builds the chain, judges, keeps the evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.compare.divergence import Divergence, Ending
from qmpshim.conformance.compare.exchange import check_space
from qmpshim.conformance.explore.directed.cases import crash_cause
from qmpshim.conformance.explore.report.recognition import ExplainsCase
from qmpshim.conformance.guest.rig import GuestOpener, ProgramChain
from qmpshim.conformance.guest.scenarios import GuestScenario
from qmpshim.conformance.guest.work import GuestDiverged, GuestWork
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.errors import BuildError, GuestFailed, GuestPanicked, MachineError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.guest.chain import Attachment
from qmpshim.machine.guest.image import GuestImage
from qmpshim.machine.host.files import copy_tree
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import features_of
from qmpshim.model.chain.secondary import Workflow


@dataclass(slots=True)
class GuestOutcome:
    """How a scenario went.

    :ivar known: the id of the write-up that explains it, or ``""``
    :ivar figures: numbers by name, the unit in the name
    """

    scenario: GuestScenario
    attachment: Attachment
    divergence: Divergence | None = None
    known: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a document."""
        found = self.divergence
        return {
            "name": self.scenario.name,
            "divergence": found.to_json() if found else None,
            "known": self.known,
            "figures": dict(self.figures),
        }


async def run_scenario(
    scenario: GuestScenario,
    build: Build,
    image: GuestImage,
    attachment: Attachment,
    seed: int = 1,
    *,
    known: Mapping[str, ExplainsCase],
    chain: Callable[..., ProgramChain] = ProgramChain,
    keep: Path | None = None,
) -> GuestOutcome:
    """Run a scenario on a fresh chain under a guest.

    :param known: what is written up of directed cases, by case
    :param chain: the class that builds the chain; mutants come in here
    :param keep: where logs and images go when something was found
    :raises BuildError: the build cannot do it
    :raises HostError: the disk under the images is full
    """
    spec = ChainSpec(Workflow.REPLICATION, scenario.size)
    attachment = replace(attachment, log=True) if scenario.log else attachment
    setup = setup_for(build, spec)
    outcome = GuestOutcome(scenario, attachment)
    with Workspace("qmps-") as workspace:
        began = time.monotonic()
        rig = await GuestOpener(build, image, attachment, chain)(setup, workspace.path)
        ready = time.monotonic()
        work = GuestWork(rig, setup.qemu_img)
        try:
            await scenario.run(work, seed)
        except GuestDiverged as diverged:
            outcome.divergence = diverged.divergence
        except MachineError as error:
            outcome.divergence = _misbehaved(work, error)
        finally:
            outcome.figures = {
                "operations": work.number,
                "clusters": work.clusters,
                "ready seconds": round(ready - began, 3),
                "run seconds": round(time.monotonic() - ready, 3),
            }
            await work.close()
            # The images' last state is evidence, so the rig keeps them until they are copied.
            if outcome.divergence is not None and keep is not None:
                rig.qemu.kill()
                copy_tree(workspace.path, keep, "*.sock", "*.copy")
            await rig.close()
    if outcome.divergence is not None:
        outcome.known = known_cause(outcome.divergence, build, known)
    return outcome


def refuse(build: Build, attachment: Attachment) -> None:
    """Refuse at once what a build cannot do.

    :raises BuildError: replication does not start in an iothread before 6.0
    """
    if attachment.iothread and not features_of(read_version(build)[0]).replicates_in_iothread:
        raise BuildError(f"{build.name}: QEMU before 6.0 has no replication in an iothread")


def _misbehaved(work: GuestWork, error: MachineError) -> Divergence:
    check_space(work.rig.directory)  # QEMU stops a guest whose write finds no room
    # A process that was killed closes its connections a little before it can be waited for.
    known = isinstance(error, GuestPanicked | GuestFailed) or Ending.of(error) is not None
    if not known and not work.rig.qemu.alive(1.0):
        error = work.rig.qemu.exit_error("the scenario")
    return Divergence.of_error(error, "guest", work.number, "an answer")


def known_cause(found: Divergence, build: Build, known: Mapping[str, ExplainsCase]) -> str:
    """The id of the written-up finding that this is, or ``""``.

    What a directed case shows in its own way a guest may show, too.
    """
    if found.ending is None:
        return ""
    version = read_version(build)[0]
    for name, written in known.items():
        if written.covers(found.verdict, crash_cause(name, found.ending), version):
            return f"directed/{name}"
    return ""
