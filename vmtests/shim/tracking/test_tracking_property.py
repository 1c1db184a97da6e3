"""The shim is right about random disks, jobs and writers, or says that it cannot say."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from qmpshim.machine.builds.build import Build
from qmpshim.shim.endpoint.session import Command
from qmpshim.shim.tracking import chain_commands, chains
from qmpshim.shim.tracking.applied_changes import Change
from qmpshim.shim.tracking.command_effects import BackupStart, backup_starts
from qmpshim.shim.tracking.discovery import ChainNodes
from qmpshim.shim.tracking.nbd_exports import NbdExports
from qmpshim.shim.tracking.tracker import ModelTracker
from qmpshim.shim.tracking.tracking_start import TrackingStart
from qmpshim.shim.tracking.write_logs import NodeLog, WriteLogs
from vmtests.support.shim_harness import Loop
from vmtests.support.tracking_scenarios import (
    Act,
    Disk,
    Scenario,
    Way,
    Write,
    Wrong,
    check,
    scenarios,
)

RAW, QCOW2 = Disk("raw", True, False), Disk("qcow2", False, False)
DEVICE = Disk("raw", True, True)
RELAYED = Scenario(
    *((RAW, QCOW2), False, True, True),
    (
        Write(Way.RELAY, 0, "write", 100, 300),
        Write(Way.RELAY, 1, "write", 7, 9),
        Act.READ_DIRECTLY,
        Act.VERIFY,
        Write(Way.RELAY, 1, "zero", 0, 400),
        Act.RESTART,
        Write(Way.RELAY, 0, "write", 3000, 30),
    ),
)
DIRECT = Scenario(
    *((QCOW2,), False, False, False),
    (Write(Way.RELAY, 0, "write", 100, 30), Write(Way.DIRECT, 0, "write", 110, 300)),
)
BY_MONITOR = Scenario(
    *((RAW, RAW), False, False, False),
    (Write(Way.MONITOR, 1, "write", 110, 300), Write(Way.RELAY, 0, "write", 110, 300)),
)
BY_DEVICE = Scenario(
    *((DEVICE,), False, False, False), (Act.RUN, Write(Way.DEVICE, 0, "write", 110, 300))
)
LOGGED = Scenario(
    *((DEVICE, QCOW2), True, True, False),
    (
        Write(Way.DEVICE, 0, "write", 110, 300),
        Write(Way.DIRECT, 1, "write", 110, 300),
        Write(Way.MONITOR, 1, "zero", 0, 128),
        Write(Way.RELAY, 0, "write", 200, 3),
        Act.RUN,
    ),
)


def _play(loop: Loop, build: Build, scenario: Scenario) -> None:
    with tempfile.TemporaryDirectory() as place:
        check(loop, build, scenario, Path(place))


@pytest.mark.parametrize(
    "scenario",
    [RELAYED, DIRECT, BY_MONITOR, BY_DEVICE, LOGGED],
    ids=["relayed", "direct", "by-monitor", "by-device", "logged"],
)
def test_the_verdict_is_right(loop: Loop, each_build: Build, scenario: Scenario) -> None:
    _play(loop, each_build, scenario)


def test_the_verdict_on_random_scenarios_is_right(
    loop: Loop, qemu_build: Build, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--full")

    @settings(
        max_examples=300 if full else 15,
        derandomize=not full,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=(Phase.generate,),  # a scenario has few steps anyhow, and each takes a QEMU
    )
    @given(scenarios())
    def holds(scenario: Scenario) -> None:
        _play(loop, qemu_build, scenario)

    holds()


# -- each mutant of the shim is killed by one of the scenarios -----------------------------------

Mutant = Callable[[pytest.MonkeyPatch], None]


def _relayed_write_is_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelTracker, "changed", lambda self, node, change, error: None)


def _one_relayed_write_is_dropped(patch: pytest.MonkeyPatch) -> None:
    real, seen = ModelTracker.changed, [0]

    def changed(self: ModelTracker, node: str, change: Change, error: int) -> None:
        seen[0] += self.found.role(node) is not None
        if seen[0] != 2:
            real(self, node, change, error)

    patch.setattr(ModelTracker, "changed", changed)


def _one_logged_write_is_dropped(patch: pytest.MonkeyPatch) -> None:
    real, seen = NodeLog.new, [False]

    def new(self: NodeLog) -> object:
        for entry in real(self):
            if seen[0]:
                yield entry
            seen[0] = True

    patch.setattr(NodeLog, "new", new)


def _no_writer_is_suspected(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelTracker, "suspect", lambda self, writer: None)


def _bypass_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelTracker, "exports_bypassed", lambda self, exports: None)
    patch.setattr(NbdExports, "all_seen", lambda self, export: True)


def _commands_have_no_effects(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain_commands, "effects", lambda command: [])


def _transactions_are_passed_over(patch: pytest.MonkeyPatch) -> None:
    def starts(command: Command) -> list[BackupStart]:
        return [] if command.name == "transaction" else backup_starts(command)

    patch.setattr(chain_commands, "backup_starts", starts)


def _refused_jobs_are_followed(patch: pytest.MonkeyPatch) -> None:
    real = TrackingStart.tracker

    async def tracker(self: TrackingStart, found: ChainNodes) -> ModelTracker | None:
        adopted = await real(self, found)
        if adopted is not None:
            await self.follow(adopted)
        return adopted

    patch.setattr(TrackingStart, "tracker", tracker)


def _the_second_disk_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    real = TrackingStart.follow

    async def follow(self: TrackingStart, tracker: ModelTracker) -> bool:
        if self.chains.trackers:
            self.chains.starting.remove(tracker)
            return False
        return await real(self, tracker)

    patch.setattr(TrackingStart, "follow", follow)


def _always_in_doubt(patch: pytest.MonkeyPatch) -> None:
    real = ModelTracker.followed

    def followed(self: ModelTracker) -> None:
        real(self)
        self.doubt("who knows")

    patch.setattr(ModelTracker, "followed", followed)


def _readers_raise_doubt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelTracker, "exports_bypassed", lambda self, _: self.doubt("a client came"))


def _job_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelTracker, "job_ended", lambda self: None)


def _devices_stay_off_the_logs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chains, "STOPPED_STATES", frozenset())
    patch.setattr(
        "qmpshim.shim.tracking.write_logs.ATTACHING_COMMANDS", {"block-export-add": "node-name"}
    )

    async def nothing(self: WriteLogs, node: str) -> None:
        pass

    patch.setattr(WriteLogs, "insert_above_devices", nothing)


MUTANTS: list[tuple[Mutant, Scenario]] = [
    (_relayed_write_is_dropped, RELAYED),
    (_one_relayed_write_is_dropped, RELAYED),
    (_one_logged_write_is_dropped, LOGGED),
    (_no_writer_is_suspected, DIRECT),
    (_no_writer_is_suspected, BY_DEVICE),
    (_bypass_is_not_noticed, DIRECT),
    (_commands_have_no_effects, BY_MONITOR),
    (_transactions_are_passed_over, RELAYED),
    (_refused_jobs_are_followed, RELAYED),
    (_the_second_disk_is_forgotten, RELAYED),
    (_always_in_doubt, RELAYED),
    (_readers_raise_doubt, RELAYED),
    (_job_never_ends, RELAYED),
    (_devices_stay_off_the_logs, LOGGED),
]


@pytest.mark.parametrize(
    ("mutant", "scenario"), MUTANTS, ids=lambda value: getattr(value, "__name__", "").strip("_")
)
def test_a_mutant_is_killed(
    mutant: Mutant,
    scenario: Scenario,
    loop: Loop,
    qemu_build: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant(monkeypatch)
    with pytest.raises(Wrong):
        _play(loop, qemu_build, scenario)
