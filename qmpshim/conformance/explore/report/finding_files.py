"""Findings on disk: bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.case_file import read_case
from qmpshim.conformance.explore.report.evidence import collect
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json
from qmpshim.errors import InputError, name_errnos
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.files import write_directory

CASE = "schedule.json"


def save_finding(directory: Path, finding: Finding, build: Build | None = None) -> Path:
    """Write a bundle: the case, the trace and what to do with it; whole or not at all.

    :param directory: what it is to be called; a number is added when that is taken
    :param build: run it once more on this, for what else can be seen (see
        :mod:`qmpshim.conformance.explore.report.evidence`)
    :returns: where it is
    :raises HostError: it cannot be written
    """

    def write(parts: Path) -> None:
        (parts / CASE).write_text(json.dumps(finding.to_json(), indent=1) + "\n")
        (parts / "trace.txt").write_text(name_errnos("\n".join(finding.lines)) + "\n")
        (parts / "README").write_text(
            f"{finding.described}\n\n"
            + (f"It {finding.needed}.\n\n" if finding.needed else "")
            + "Replay it:  qmpshim replay THIS-DIRECTORY [--build NAME]\n"
            "For a bug report:  qmpshim export THIS-DIRECTORY > reproducer.py\n"
        )
        if build is not None:
            collect(finding, build, parts)

    return write_directory(directory, write)


def load_finding(path: Path) -> Finding:
    """Read a bundle, its ``schedule.json``, or a write-up of a known finding.

    :raises InputError: it is none
    """
    return finding_of(*read_case(path, CASE))


def finding_of(value: Any, path: Path) -> Finding:
    """The same of what is in the file *path*."""
    try:
        return finding_from_json(value)
    except InputError as error:
        raise InputError(f"{path} is no finding: {error}") from error
