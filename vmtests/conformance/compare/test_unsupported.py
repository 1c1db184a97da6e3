"""An image that our reader does not know is no verdict anywhere: it cannot be judged."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.run import case_worker
from qmpshim.conformance.check.run.case_process import Order
from qmpshim.conformance.check.run.identity import identify
from qmpshim.conformance.compare.overlay import read_overlay
from qmpshim.conformance.explore.harness import overlays
from qmpshim.errors import UnsupportedFeature
from qmpshim.machine.builds.build import Build
from vmtests.support.qcow2_images import MiB, make_luks

FEATURE = "LUKS encryption"


@pytest.fixture
def encrypted(tmp_path: Path) -> bytes:
    path = tmp_path / "luks.qcow2"
    make_luks(path, MiB)
    return path.read_bytes()


def test_verify_and_explore_raise_what_they_cannot_judge(encrypted: bytes) -> None:
    with pytest.raises(UnsupportedFeature, match=f"cannot judge: {FEATURE}"):
        read_overlay(encrypted)
    with pytest.raises(UnsupportedFeature, match=f"cannot judge: {FEATURE}"):
        overlays.read_state(encrypted, 2048, 128, "hidden")


def test_it_is_the_same_error_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(UnsupportedFeature(FEATURE)))
    assert (str(error), error.feature) == (f"cannot judge: {FEATURE}", FEATURE)
    assert error.exit_code == 125


def unsupported(build: Build, case: Case, results: Path) -> CaseOutcome:
    """A case that meets such an image."""
    raise UnsupportedFeature(FEATURE)


def test_check_skips_a_case_that_cannot_be_judged(tmp_path: Path, qemu_build: Build) -> None:
    case = Case("made", "up")
    order = Order(qemu_build, identify(qemu_build), case, f"{__name__}:unsupported")
    outcome = case_worker.carry_out(order, tmp_path / "results")
    assert (outcome.status, outcome.text) == (Status.SKIPPED, f"cannot judge: {FEATURE}")
