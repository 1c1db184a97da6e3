"""Carries out the guest scenarios: restores a guest, builds the chain, judges, keeps the evidence.

:func:`run` is the kind ``guest`` of `qmpshim check`; :func:`run_scenario` is for everyone else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.compare.divergence import Divergence, Ending
from qmpshim.conformance.compare.exchange import check_space
from qmpshim.conformance.explore.directed.cases import crash_cause
from qmpshim.conformance.guest.rig import GuestOpener, ProgramChain
from qmpshim.conformance.guest.scenarios import SCENARIOS, GuestScenario
from qmpshim.conformance.guest.work import GuestDiverged, GuestWork
from qmpshim.conformance.known.folder import known_directed, summary
from qmpshim.conformance.uses import uses_of
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.errors import BuildError, GuestFailed, GuestPanicked, InputError, MachineError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.guest import image as guest_image
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
    chain: Callable[..., ProgramChain] = ProgramChain,
    keep: Path | None = None,
) -> GuestOutcome:
    """Run a scenario on a fresh chain under a guest.

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
        outcome.known = known_cause(outcome.divergence, build)
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


def known_cause(found: Divergence, build: Build) -> str:
    """The id of the written-up finding that this is, or ``""``.

    What a directed case shows in its own way a guest may show, too.
    """
    if found.ending is None:
        return ""
    version = read_version(build)[0]
    for name, written in known_directed().items():
        if written.covers(found.verdict, crash_cause(name, found.ending), version):
            return f"directed/{name}"
    return ""


def run(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """Kind ``guest``: ``scenario``, ``device``, ``iothread``, ``cache``, ``aio``, ``seed``.

    :raises BuildError: this build cannot do it
    :raises InputError: the case's arguments are wrong
    """
    began = time.monotonic()
    given = dict(case.arguments)
    name, seed = given.pop("scenario", "mixed"), given.pop("seed", 1)
    if name not in SCENARIOS:
        raise InputError(f"{case.name}: no guest scenario {name!r}: {', '.join(SCENARIOS)}")
    try:
        attachment = Attachment(**given)
    except TypeError as error:
        raise InputError(f"{case.name}: {error}") from error
    keep = directory / "guest"
    refuse(build, attachment)
    outcome = asyncio.run(
        run_scenario(SCENARIOS[name], build, guest_image.build(), attachment, seed, keep=keep)
    )
    found = outcome.divergence
    words = command_line(outcome, seed)
    findings = () if found is None else (finding(outcome, words, str(found)),)
    return CaseOutcome(
        Status.DIVERGED if found is not None and not outcome.known else Status.OK,
        f"{name}: {outcome.figures['operations']} operations",
        findings,
        outcome.figures,
        round(time.monotonic() - began, 3),
    )


def finding(outcome: GuestOutcome, words: str, text: str) -> CaseFinding:
    """The outcome's divergence for a report.

    :param words: the command that shows it again
    """
    found, written = outcome.divergence, summary(outcome.known)
    assert found is not None
    return CaseFinding(
        found.verdict,
        outcome.known or f"guest {outcome.scenario.name}: {found.verdict} in {found.where}",
        text,
        found.predicted,
        found.observed,
        known=outcome.known,
        replay=words,
        details={"logs": "guest"} | ({"written": written} if written else {}),
        uses=uses_of("replication"),
    )


def command_line(outcome: GuestOutcome, seed: int) -> str:
    """The command that runs this again."""
    attachment = outcome.attachment
    flags = [f"--device {attachment.device}"] if attachment.device != "virtio-blk" else []
    flags += ["--iothread"] * attachment.iothread
    flags += [f"--cache {attachment.cache}"] if attachment.cache != "unsafe" else []
    flags += [f"--aio {attachment.aio}"] if attachment.aio != "threads" else []
    return " ".join(
        ["qmpshim guest check", outcome.scenario.name, *flags, f"--seed {seed} --keep DIRECTORY"]
    )
