"""Exploring in several processes: each scenario is explored, or somebody says that one was not."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness.run import RealRun
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.report.report import ExploreReport
from qmpshim.conformance.explore.search import agenda, confirmed, progress, workers
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.explore.search.settings import Bounds, Settings
from qmpshim.errors import HostError, MachineDied, NotStarted
from qmpshim.machine.builds.build import Build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.model.check.verdict import Verdict


def explorers() -> list[int]:
    """The processes that explore for this one."""
    found = []
    for entry in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        command = Path(f"/proc/{entry}/cmdline").read_bytes()
        if b"spawn_main" in command:
            found.append(int(entry))
    return found


def test_every_scenario_is_explored_in_its_place(qemu_build: Build) -> None:
    names = ["WR", "HF", "FQ", "RF", "HQ"]
    every = [one for name in names for one in scenario_sets.named(name)]
    report = explore_real(qemu_build, every, bounds=Bounds(jobs=2))
    assert [one.name for one in report.scenarios] == [one.name for one in every]
    assert report.exhaustive and all(one.schedules for one in report.scenarios)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_progress_is_of_all_that_is_explored(
    jobs: int, qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With faults a scenario is explored once for each I/O that fails: nothing begins anew."""
    monkeypatch.setattr(progress, "TICK", 0.0)
    monkeypatch.setattr(workers, "TICK", 0.0)
    reported: list[Progress] = []
    every = [*scenario_sets.named("WV"), *scenario_sets.named("WR")]
    report = explore_real(
        qemu_build,
        every,
        settings=Settings(faults=(EIO,)),
        bounds=Bounds(jobs=jobs),
        progress=reported.append,
    )
    schedules = [one.schedules for one in reported]
    assert schedules == sorted(schedules) and schedules[-1] == report.schedules
    assert len(set(schedules)) > (report.schedules // 2 if jobs == 1 else 3)
    distinct = [one.distinct for one in reported]
    assert distinct == sorted(distinct)
    assert distinct[-1] == sum(one.distinct for one in report.scenarios)
    assert any(one.distinct for one in reported if not one.scenarios)  # in the middle of the first
    errors = [one.verdicts[Verdict.ERROR_CONTRACT.value] for one in reported]
    assert errors == sorted(errors)


def test_what_was_cut_short_is_explored_with_what_is_left(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, shares = workers.share_of_time, iter([600.0] * 3 + [0.001, 0.001])  # samples come first

    def mean(*words: Any) -> float | None:
        return next(shares, share(*words))

    monkeypatch.setattr(workers, "share_of_time", mean)
    monkeypatch.setattr(progress, "TICK", 0.0)
    monkeypatch.setattr(workers, "TICK", 0.0)
    reported: list[Progress] = []
    every = [*scenario_sets.named("WV"), *scenario_sets.named("HQ"), *scenario_sets.named("WR")]
    report = explore_real(qemu_build, every, bounds=Bounds(budget=600.0), progress=reported.append)
    assert report.exhaustive and [one.name for one in report.scenarios] == ["WV", "HQ", "WR"]
    whole = explore_real(qemu_build, every)
    # Samples come before. On a busy machine a share may be over before the first schedule.
    every_one = whole.schedules + len(every) * agenda.PLAIN_SAMPLES
    assert every_one <= report.schedules <= every_one + 2
    assert reported[-1].schedules == report.schedules and reported[-1].scenarios == 3
    schedules = [one.schedules for one in reported]
    assert schedules == sorted(schedules)


def test_what_can_never_be_exhausted_is_explored_once(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun = RealRun.begin, []

    def ends(self: RealRun, reconnect: int) -> None:
        begin(self, reconnect)
        begun.append(self.scenario.name)
        raise MachineDied("QEMU was killed by SIGABRT")

    monkeypatch.setattr(RealRun, "begin", ends)
    for budget in (None, 600.0):
        begun.clear()
        report = explore_real(
            qemu_build,
            scenario_sets.named("WH"),
            settings=Settings(minimise=False),
            bounds=Bounds(budget=budget),
        )
        samples = 0 if budget is None else agenda.PLAIN_SAMPLES
        assert report.schedules == samples + 1 and not report.exhaustive and report.findings


def test_a_qemu_that_starts_no_more_hides_nothing(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found before is reported; only the scenario that needed it is skipped."""
    start, spawn, starts = RealRun.start_operation, GatedMachine.spawn, iter(range(100))

    def struck(self: RealRun, index: int) -> None:
        start(self, index)
        os.kill(self.machine.pid, signal.SIGKILL)

    def not_again(self: GatedMachine) -> None:
        if next(starts) == 1:
            raise NotStarted("it did not greet")
        spawn(self)

    monkeypatch.setattr(RealRun, "start_operation", struck)
    monkeypatch.setattr(GatedMachine, "spawn", not_again)
    (finding,) = explore_real(
        qemu_build, scenario_sets.named("WG"), settings=Settings(minimise=False)
    ).findings
    assert str(finding.cause) == "QEMU was killed by SIGKILL"


def test_a_process_that_is_killed_is_not_overlooked(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was exploring is not explored: that is no report without divergence.

    What there is by then is not lost.
    """
    monkeypatch.setattr(progress, "TICK", 0.0)
    killed: list[int] = []
    kept: list[ExploreReport] = []

    def kill_one(progress: Progress) -> None:
        if not killed and progress.schedules and len(found := explorers()) == 2:
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    every = [*scenario_sets.named("WV"), *scenario_sets.named("WP"), *scenario_sets.named("WR")]
    with pytest.raises(HostError, match="ended with SIGKILL: nothing is known of that scenario"):
        explore_real(
            qemu_build, every, bounds=Bounds(jobs=2), progress=kill_one, interrupted=kept.append
        )
    assert killed
    (partial,) = kept
    assert partial.interrupted and partial.schedules and not partial.exhaustive


def test_under_a_budget_every_scenario_is_sampled_before_one_is_exhausted(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, begun = RealRun.begin, []

    def noted(self: RealRun, reconnect: int) -> None:
        begun.append(self.scenario.name)
        begin(self, reconnect)

    monkeypatch.setattr(RealRun, "begin", noted)
    names = ["WV", "HQ", "WR"]
    every = [one for name in names for one in scenario_sets.named(name)]
    report = explore_real(qemu_build, every, bounds=Bounds(budget=600.0))
    many = agenda.PLAIN_SAMPLES
    assert Counter(begun[: len(names) * many]) == dict.fromkeys(names, many)
    assert report.exhaustive


@pytest.mark.parametrize("seen", [False, True])
def test_what_confirming_leaves_of_the_time_is_explored(
    seen: bool, qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turns: what is found in the second one is confirmed, too, and nothing is twice."""
    begin, begun, deadlines = RealRun.begin, list[str](), list[float]()
    found: list[tuple[str, int]] = []  # and how many scenarios were begun by then

    def noted(self: RealRun, reconnect: int) -> None:
        assert self.pool.deadline is not None
        begun.append(self.scenario.name)
        deadlines.append(self.pool.deadline)
        begin(self, reconnect)
        if seen:
            raise MachineDied(f"QEMU was killed by {'SIGBUS' if found else 'SIGABRT'}")

    def at_once(finding: Finding, *words: Any) -> Finding:
        found.append((str(finding.cause), len(set(begun))))
        return replace(finding, replays=(3, 3))

    monkeypatch.setattr(RealRun, "begin", noted)
    monkeypatch.setattr(confirmed, "confirm", at_once)
    budget, every = 10.0, scenario_sets.pairs("replication")
    began = time.monotonic()
    report = explore_real(qemu_build, every, bounds=Bounds(budget=budget))
    first, last = deadlines[0] - began, deadlines[-1] - began
    assert first < 0.8 * budget < last < budget and len(report.scenarios) == len(every)
    if not seen:
        return
    causes = [cause for cause, _ in found]
    assert [cause.rpartition(" ")[2] for cause in causes] == ["SIGABRT", "SIGBUS"]
    assert 0 < found[0][1] < found[1][1]
    counts = {str(one.cause): one.count for one in report.findings}
    assert counts.keys() == {*causes} and counts[causes[0]] >= found[0][1]
