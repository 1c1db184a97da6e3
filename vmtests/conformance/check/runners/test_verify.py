"""What cases of workloads find has the causes that baselines have of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case, ShownBy, Status
from qmpshim.conformance.check.runners import verify
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.pointintime.verify import points_setup
from qmpshim.conformance.uses import Use
from qmpshim.conformance.workload.verify import setup_for
from qmpshim.machine.builds.build import Build, read_version
from vmtests.support.checks import runner_of


def test_of_points(qemu_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defect = write_up("transaction-undoes-enable-that-was-refused")
    if not defect.concerns(read_version(qemu_build)[0]):
        pytest.skip("another version's")
    monkeypatch.setattr(verify, "points_setup", partial(points_setup, strict=True))
    case = Case("points", "it", {"workflow": "bitmaps", "operations": 400, "shrink": 1})
    outcome = runner_of("points")(qemu_build, case, tmp_path)
    (found,) = outcome.findings
    assert outcome.status is Status.DIVERGED and found.key == "crash: transaction"
    assert found.replay is ShownBy.BUNDLE and (tmp_path / found.bundle).is_dir()
    assert found.details["diagram"] and found.uses == (Use.BITMAPS, Use.INCREMENTAL_BACKUP)


def test_of_a_chain(qemu_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not write_up("stop-always-fails").concerns(read_version(qemu_build)[0]):
        pytest.skip("another version's")
    monkeypatch.setattr(verify, "setup_for", partial(setup_for, strict=True))
    case = Case("verify", "it", {"operations": 120, "size": 1 << 20, "shrink": 1})
    outcome = runner_of("verify")(qemu_build, case, tmp_path)
    (found,) = outcome.findings
    answer = "the error 'Backup job was cancelled unexpectedly'"
    assert found.key == f"error-contract: stop: no error / {answer}"
