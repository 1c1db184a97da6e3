"""Cases of kind ``guest``: a scenario with a guest on the chain of disks."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.guest.run import GuestOutcome, refuse, run_scenario
from qmpshim.conformance.guest.scenarios import SCENARIOS
from qmpshim.conformance.known.folder import known_directed, summary
from qmpshim.conformance.uses import uses_of
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.machine.guest import image as guest_image
from qmpshim.machine.guest.chain import Attachment


def guest(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``scenario``, ``device``, ``iothread``, ``cache``, ``aio``, ``seed``.

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
    known = known_directed()
    running = run_scenario(
        SCENARIOS[name], build, guest_image.build(), attachment, seed, known=known, keep=keep
    )
    outcome = asyncio.run(running)
    found = outcome.divergence
    words = _command_line(outcome, seed)
    findings = () if found is None else (_finding(outcome, words, str(found)),)
    return CaseOutcome(
        Status.DIVERGED if found is not None and not outcome.known else Status.OK,
        f"{name}: {outcome.figures['operations']} operations",
        findings,
        outcome.figures,
        round(time.monotonic() - began, 3),
    )


def _finding(outcome: GuestOutcome, words: str, text: str) -> CaseFinding:
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


def _command_line(outcome: GuestOutcome, seed: int) -> str:
    """The command that runs this again."""
    attachment = outcome.attachment
    flags = [f"--device {attachment.device}"] if attachment.device != "virtio-blk" else []
    flags += ["--iothread"] * attachment.iothread
    flags += [f"--cache {attachment.cache}"] if attachment.cache != "unsafe" else []
    flags += [f"--aio {attachment.aio}"] if attachment.aio != "threads" else []
    return " ".join(
        ["qmpshim guest check", outcome.scenario.name, *flags, f"--seed {seed} --keep DIRECTORY"]
    )
