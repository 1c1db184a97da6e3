"""What a case finds has the uses of what it was found in, for a finding that has no write-up."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.uses import Use
from qmpshim.machine.builds.build import Build, read_version
from vmtests.support.checks import runner_of


@pytest.mark.parametrize(
    ("name", "uses"),
    [
        ("checkpoint-corrupts-overlay", {Use.COLO_SECONDARY}),
        ("snapshot-read-returns-new-data", {Use.FLEECING}),
        ("verify/stop-always-fails", {Use.COLO_SECONDARY}),
        (
            "verify/refused-transaction-marks-everything",
            {Use.FULL_BACKUP, Use.INCREMENTAL_BACKUP, Use.BITMAPS},
        ),
        ("directed/quorum-rewrite-beside-write", {Use.QUORUM}),
    ],
)
def test_a_finding_names_its_uses(
    name: str, uses: set[Use], qemu_build: Build, tmp_path: Path
) -> None:
    if not write_up(name).concerns(read_version(qemu_build)[0]):
        pytest.skip("another version's")
    (finding,) = runner_of("known")(
        qemu_build, Case("known", name, {"id": name}), tmp_path
    ).findings
    assert {*finding.uses} == uses
