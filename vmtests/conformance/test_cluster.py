"""Exploring and assessing on a cluster: the same results and order, also when a worker dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from qmpshim.conformance.assess.trials import try_findings
from qmpshim.conformance.assess.workloads import run_workloads
from qmpshim.conformance.cluster import Cluster
from qmpshim.conformance.explore import scenario_sets, scenarios
from qmpshim.conformance.explore.report.report import ExploreReport
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.progress import Progress
from qmpshim.conformance.explore.search.settings import Bounds, WrittenUp
from qmpshim.conformance.known.folder import known_findings, write_ups
from qmpshim.conformance.uses import Use
from qmpshim.errors import ExecutorLost
from qmpshim.machine.builds.build import Build
from vmtests.support.clusters import local_cluster
from vmtests.support.command_line import CommandLine

#: Twenty, among them one with a finding.
NAMES = "WV WD WZ WR WP WG WF WH WC WS VD VZ VR VP VG VF VH primary-PG primary-PE fleecing-WU"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Four worker processes on loopback; the last test here ends them."""
    with local_cluster(tmp_path_factory.mktemp("cluster"), 4) as made:
        yield made


def chosen() -> list[scenarios.RealScenario]:
    return [one for name in NAMES.split() for one in scenario_sets.named(name)]


def compared(report: ExploreReport) -> tuple[Any, ...]:
    """All that must not depend on where it was explored."""
    return (
        [(one.name, one.schedules, one.steps, one.distinct) for one in report.scenarios],
        [(one.known, one.verdict, one.cause, one.scenario.name) for one in report.findings],
        report.exhaustive,
    )


def test_the_machine_that_explores_decides_nothing(qemu_build: Build, cluster: Any) -> None:
    """Not even if one of four workers is killed: what it had is explored once more."""
    known = known_findings()
    here = explore_real(qemu_build, chosen(), known=WrittenUp(known))
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    with closing(Cluster(cluster.scheduler_address)) as connected:
        assert connected.workers == 4
        there = explore_real(
            qemu_build,
            chosen(),
            bounds=Bounds(cluster=connected),
            known=WrittenUp(known),
            progress=kill,
        )
    assert killed and compared(here) == compared(there) and there.jobs == 4
    assert len(there.findings) >= 1 and len(there.scenarios) == len(chosen())


def test_the_same_findings_are_shown(qemu_build: Build, cluster: Any) -> None:
    wanted = [one for one in write_ups() if one.kind == "explore"][:6]
    here = try_findings(qemu_build, wanted, 2, 100.0)
    with closing(Cluster(cluster.scheduler_address)) as connected:
        there = try_findings(qemu_build, wanted, 1, 100.0, cluster=connected)
    assert here == there


def test_the_same_workloads_are_run(qemu_build: Build, cluster: Any) -> None:
    uses = [Use.SYNC_NONE_BACKUP, Use.COLO_SECONDARY]
    with closing(Cluster(cluster.scheduler_address)) as connected:
        there = run_workloads(qemu_build, uses, 1, connected)
    here = run_workloads(qemu_build, uses, 2)
    assert [one.workload for one in there] == [one.workload for one in here] and len(here) > 1
    assert [one.outcome.text for one in there] == [one.outcome.text for one in here]


def test_the_command(qmpshim: CommandLine, cluster: Any) -> None:
    words = ("explore", "--scenario", "WR", "--dask", cluster.scheduler_address)
    done = qmpshim.run(*words)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "1 scenario " in done.stdout and "schedules, exhausted" in done.stdout
    refused = qmpshim.run(*words, "--jobs", "3")
    assert refused.returncode == 2 and "--jobs" in refused.stderr


def test_what_there_is_when_the_cluster_goes_away_is_not_lost(
    qemu_build: Build, cluster: Any
) -> None:
    kept: list[ExploreReport] = []

    def end(progress: Progress) -> None:
        cluster.scale(0)

    with (
        closing(Cluster(cluster.scheduler_address, patience=2.0)) as connected,
        pytest.raises(ExecutorLost, match="has no workers any more"),
    ):
        explore_real(
            qemu_build,
            chosen(),
            bounds=Bounds(cluster=connected),
            progress=end,
            interrupted=kept.append,
        )
    (partial,) = kept
    assert partial.interrupted and 0 < len(partial.scenarios) < len(chosen())
