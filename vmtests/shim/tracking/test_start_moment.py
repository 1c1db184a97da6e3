"""A job's T0 has its place among writes that come, past the shim, while the job is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.secondary import Workflow
from qmpshim.shim.emulator.serve import Options
from qmpshim.shim.tracking import start_moment
from qmpshim.shim.tracking.tracker import ModelTracker
from vmtests.support.shim_harness import Loop
from vmtests.support.tracking_service import CLUSTER, SIZE, Service, writing
from vmtests.support.waiting import wait_until

_BACKUP = {"job-id": "backup", "device": "secondary", "target": "hidden", "sync": "none"}


def _verified(loop: Loop, build: Build, seed: int, discards: bool = False) -> dict[str, Any]:
    """Start a job on a disk that is written; the verdict once it is written no more."""
    spec = ChainSpec(Workflow.BACKUP, SIZE, CLUSTER)
    service = Service(loop, Options(build=build, chain=spec, log_writes=True))
    try:
        wire = service.client()
        chain = service.served.chain
        assert chain is not None
        with writing(chain.uri("primary"), seed, discards) as done:
            wait_until(lambda: done() > 20)
            assert wire.ask("blockdev-backup", _BACKUP) == {"return": {}}
            there = done()
            wait_until(lambda: done() > there + 20)
        assert discards or not wire.ask("x-shim-status")["return"]["doubts"]
        return dict(wire.ask("x-shim-verify")["return"])
    finally:
        service.close()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 10))]
)
def test_a_disk_that_is_written_all_the_time(each_build: Build, loop: Loop, seed: int) -> None:
    verified = _verified(loop, each_build, seed)
    assert verified["as-predicted"], verified


@pytest.mark.full
@pytest.mark.parametrize("seed", range(10))
def test_a_discard_is_doubtful_at_worst(each_build: Build, loop: Loop, seed: int) -> None:
    verified = _verified(loop, each_build, seed, discards=True)
    assert not verified["verdicts"], verified


def _none_before(_: ModelTracker) -> None:
    pass


def _all_before(tracker: ModelTracker) -> None:
    tracker.apply_deferred()
    tracker.deferred = []


@pytest.mark.parametrize("wrong", [_none_before, _all_before])
def test_another_place_is_found_out(
    qemu_build: Build,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[ModelTracker], None],
) -> None:
    monkeypatch.setattr(start_moment, "apply_before_start", wrong)
    # A run in which nothing comes on one side of T0 shows nothing: half of them do.
    assert any(_verified(loop, qemu_build, seed)["verdicts"] for seed in range(40))
