"""A pair's replay bundle: a directory with what was done, reported, predicted and left behind."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qmpshim
from qmpshim.codec import encode
from qmpshim.conformance.bundles.case_file import build_fields, check_format
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.compare.evidence import Evidence, MigrationStatus
from qmpshim.conformance.pair.plan import PairFinding, PairOutcome, PairPlan
from qmpshim.errors import HostError, InputError, decoding
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import copy_sparse, write_directory, write_sparse
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.cause_reader import cause_of_finding, pair_cause_from_text
from qmpshim.model.check.verdict import Verdict

FORMAT = 1
CASE = "pair.json"
_KEPT = ("qmp.log", "stderr", "stdout", "console")

_README = """\
{finding}

Replay it:  qmpshim replay THIS-DIRECTORY [--build NAME | --qemu PATH]

pair.json      what is replayed: the plan, the builds, what was found
steps.txt      what was done, with times in seconds
autopsy.txt    what both sides said of themselves in the end
predicted.raw  what the secondary disk had to hold (the model)
primary/, secondary/, ...   of each QEMU: command line, QMP log, stderr, guest's console, disks
"""


def to_json(outcome: PairOutcome, builds: tuple[Build, Build]) -> dict[str, Any]:
    """A run's outcome as JSON."""
    return {
        "qmpshim": qmpshim.__version__,
        "format": FORMAT,
        "kind": "pair",
        "plan": encode(outcome.plan),
        "builds": [
            {"name": build.name, "command": build.command(), "version": version}
            for build, version in zip(builds, outcome.versions, strict=True)
        ],
        "checkpoints": outcome.checkpoints,
        "writes": outcome.writes,
        "bytes_compared": outcome.compared,
        "checks": outcome.checks,
        "seconds": round(outcome.seconds, 3),
        "figures": {name: round(value, 3) for name, value in outcome.figures.items()},
        "findings": [finding_json(finding) for finding in outcome.findings],
    }


def finding_json(finding: PairFinding) -> dict[str, Any]:
    """A finding as JSON."""
    return {
        **finding.divergence.to_json(),
        "cause": str(finding.cause),
        "cause_fields": finding.cause.to_json(),
        "contract": finding.contract,
        "known": finding.known,
        "autopsy": list(finding.post_mortem),
    }


def save(
    directory: Path, outcome: PairOutcome, builds: tuple[Build, Build], at: Path, predicted: bytes
) -> Path:
    """Write a bundle; it appears whole or not at all.

    :param directory: what it is to be called; a number is added when that is taken
    :param at: the pair's directory, all QEMUs ended
    :param predicted: what the secondary disk must hold by the model
    :returns: where it is
    :raises HostError: it cannot be written
    """
    return write_directory(directory, lambda parts: _write(parts, outcome, builds, at, predicted))


def _write(
    parts: Path, outcome: PairOutcome, builds: tuple[Build, Build], at: Path, predicted: bytes
) -> None:
    first = outcome.findings[0]
    (parts / CASE).write_text(json.dumps(to_json(outcome, builds), indent=1) + "\n")
    (parts / "README").write_text(_README.format(finding=first.divergence))
    (parts / "steps.txt").write_text("".join(f"{step}\n" for step in outcome.steps))
    (parts / "autopsy.txt").write_text("".join(f"{line}\n" for line in first.post_mortem))
    write_sparse(parts / "predicted.raw", predicted)
    _copy_members(at, parts)


def keep(directory: Path, at: Path) -> None:
    """Keep the logs and disks of a run that found nothing.

    :raises HostError: they cannot be written
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _copy_members(at, directory)
    except OSError as error:
        raise HostError(f"cannot write {directory}: {error.strerror}") from error


def _copy_members(at: Path, to: Path) -> None:
    for member in sorted(path for path in at.iterdir() if path.is_dir()):
        target = to / member.name
        target.mkdir(exist_ok=True)
        for name in (*_KEPT, "command-line.txt"):
            if (member / name).is_file():
                shutil.copyfile(member / name, target / name)
        for image in [*member.glob("*.raw"), *member.glob("*.qcow2")]:
            copy_sparse(image, target / image.name)


def note_command(directory: Path, argv: list[str]) -> None:
    """Keep a QEMU's command line beside its logs."""
    (directory / "command-line.txt").write_text(shlex.join(argv) + "\n")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a bundle shows.

    :ivar divergence: None in a write-up, which has the cause alone
    :ivar evidence: what it was seen by, as data; None: there is none
    """

    verdict: Verdict
    cause: Cause
    contract: bool
    divergence: Divergence | None = None
    evidence: Evidence | None = None

    def shown_by(self, finding: PairFinding) -> bool:
        """Whether *finding* is the same."""
        return (finding.verdict, finding.cause) == (self.verdict, self.cause)


@dataclass(frozen=True, slots=True)
class PairCase:
    """What a bundle replays.

    :ivar shown: what was found; None: nothing
    :ivar content: all that is in its file
    """

    plan: PairPlan
    shown: Shown | None
    content: dict[str, Any]

    @property
    def wrong(self) -> Shown:
        """What was found.

        :raises InputError: nothing
        """
        if self.shown is None:
            raise InputError("this run of a pair shows nothing wrong")
        return self.shown

    def to_json(self) -> dict[str, Any]:
        """As it is in the bundle's file."""
        return self.content


def from_json(value: Any, path: Path) -> PairCase:
    """What a bundle replays, from what :func:`to_json` made.

    :param path: where it is from, for the error
    :raises InputError: it is no bundle, or one of another format
    """
    with decoding(str(path)):
        check_format(value, FORMAT, path)
        if not isinstance(builds := value.get("builds", []), list):
            raise TypeError(f"{builds!r} are no builds")
        for build in builds:
            build_fields(build)
        first = next(iter(value["findings"]), None)
        shown = None if first is None else _shown(first)
        return PairCase(PairPlan.from_json(value["plan"]), shown, value)


def _shown(value: Mapping[str, Any]) -> Shown:
    cause = cause_of_finding(value, pair_cause_from_text)
    contract = bool(value.get("contract", True))
    divergence = Divergence.from_json(value) if "where" in value else None
    evidence = divergence.evidence if divergence is not None else None
    if evidence is None and cause.kind is CauseKind.PAIR_MIGRATION:
        # Older bundles, and write-ups, have it in the text alone.
        evidence = MigrationStatus(cause.subject, cause.detail.partition(" ")[0])
    return Shown(Verdict(value["verdict"]), cause, contract, divergence, evidence)
