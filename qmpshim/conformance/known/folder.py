"""The write-ups: all that come with qmpshim, by kind, by name, and a file that is one."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.recognition import recogniser
from qmpshim.conformance.known.bundle_kinds import kind_of
from qmpshim.conformance.known.matching import (
    AnyOperation,
    DirectedWriteUp,
    ExplorerWriteUp,
    PairWriteUp,
    WorkloadWriteUp,
)
from qmpshim.conformance.known.meaning import Trigger
from qmpshim.conformance.known.write_ups import DIRECTORY, Version, WriteUp, common
from qmpshim.conformance.workload.result import MetDefect
from qmpshim.errors import HostError, InputError, no_such

Kind = TypeVar("Kind", bound=WriteUp)


def read(path: Path) -> WriteUp:
    """A write-up's file.

    :raises InputError: it is damaged, or a draft that is not filled in
    """
    try:
        value = json.loads(path.read_text())
        if not (case := value.get("case")):
            return DirectedWriteUp(**common(path, value))
        kind = kind_of(case, path)
        return kind.write_up(path, value, kind.read(case, path))
    except (OSError, KeyError, TypeError, ValueError, re.error, InputError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def read_all(directory: Path) -> tuple[WriteUp, ...]:
    """Every write-up in *directory* and below, by path.

    :raises InputError: one of the files is damaged
    :raises HostError: the directory is missing; without it each known defect would be a new one
    """
    if not directory.is_dir():
        raise HostError(f"{directory} is missing: install qmpshim again")
    return tuple(read(path) for path in sorted(directory.rglob("*.json")))


@functools.cache
def write_ups() -> tuple[WriteUp, ...]:
    """All that come with qmpshim; :raises InputError, HostError: as :func:`read_all`."""
    return read_all(DIRECTORY)


def known_findings() -> tuple[ExplorerWriteUp, ...]:
    """Those of the explorer."""
    return _of(ExplorerWriteUp)


def recognised(findings: Iterable[Finding], version: Version) -> dict[str, Finding]:
    """The first finding of each write-up on QEMU *version*, by its id; ``""``: not written up."""
    recognise = recogniser(known_findings(), version)
    found: dict[str, Finding] = {}
    for finding in findings:
        found.setdefault(recognise(finding), finding)
    return found


def crash_words(finding: Finding) -> list[str]:
    """The last words of QEMUs that crash as in *finding*, as its write-ups have them.

    :returns: regular expressions, for the words differ between builds
    """
    return [
        pattern.detail.pattern
        for one in known_findings()
        if one.covers(finding, finding.version)
        for pattern in one.causes
        if pattern.matches(finding.cause)
    ]


def known_directed() -> dict[str, DirectedWriteUp]:
    """Those of the directed cases, by case."""
    return {one.path.stem: one for one in _of(DirectedWriteUp)}


def known_pairs() -> tuple[PairWriteUp, ...]:
    """Those of pairs."""
    return _of(PairWriteUp)


def known_workloads() -> tuple[WorkloadWriteUp, ...]:
    """Those of workloads, of operations one after another."""
    return _of(WorkloadWriteUp)


def known_workload(
    found: Divergence,
    operations: Sequence[AnyOperation],
    version: Version,
    met: Sequence[MetDefect] = (),
) -> str:
    """The id of what a workload has shown on QEMU *version*; ``""``: it is not written up.

    :param met: the known defects that the run's operations met
    """
    shown = (one for one in known_workloads() if one.concerns(version))
    return next(
        (one.id for one in shown if one.covers(found, operations) or one.met_by(found, met)), ""
    )


def shown_instead(one: WorkloadWriteUp, found: Divergence) -> WorkloadWriteUp | None:
    """What a replay of *one* shows in its place: the build has this, and not that."""
    own = one.divergence
    if (found.operation, found.where) != (own.operation, own.where):
        return None
    others = (other for other in known_workloads() if other.id != one.id)
    return next((other for other in others if other.covers(found, one.case.operations)), None)


@functools.cache
def _of(kind: type[Kind]) -> tuple[Kind, ...]:
    return tuple(one for one in write_ups() if isinstance(one, kind))


def by_id(name: str) -> WriteUp | None:
    """The write-up of that name or id; None where there is none."""
    return next((one for one in write_ups() if name in (one.name, one.id)), None)


def write_up(name: str) -> WriteUp:
    """The write-up of that name or id.

    :raises InputError: there is none
    """
    if (found := by_id(name)) is not None:
        return found
    names = [one.name for one in write_ups()]
    raise InputError(no_such("finding", name, names, "qmpshim findings list"))


def summary(name: str) -> dict[str, Any]:
    """What reports have of the write-up of that name or id; empty where there is none."""
    found = by_id(name)
    return {} if found is None else found.summary


def by_severity(found: Iterable[WriteUp]) -> list[WriteUp]:
    """The worst first; of equals what needs the least comes first."""
    triggers = list(Trigger)
    return sorted(
        found,
        key=lambda one: (one.meaning.severity.rank, triggers.index(one.meaning.trigger), one.name),
    )
