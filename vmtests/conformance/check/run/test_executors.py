"""One worker or several, processes here or a Dask cluster: the same set of results."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.check.run import campaign
from qmpshim.conformance.check.run.case_process import Order
from qmpshim.conformance.check.run.executors import DaskExecutor, Executor, LocalExecutor
from qmpshim.conformance.check.run.identity import identify
from qmpshim.conformance.check.runners.kinds import name_of
from qmpshim.conformance.check.suites import Suite, suite_named
from qmpshim.conformance.cluster import Cluster
from qmpshim.machine.builds.build import Build
from vmtests.support.clusters import local_cluster
from vmtests.support.command_line import LIMIT, CommandLine
from vmtests.support.waiting import wait_until

#: Six shards of one workload, a few schedules, and a case whose runner cannot do what it has to.
SUITE = """
[[cases]]
kind = "verify"
name = "shard"
arguments = { operations = 60, size = 1048576, seed = 11 }
shards = 6

[[cases]]
kind = "explore"
name = "schedules"
arguments = { scenarios = ["WR", "PC"] }

[[cases]]
kind = "verify"
name = "nonsense"
arguments = { workflow = "mirror" }
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three worker processes on loopback, which take seconds to start."""
    with local_cluster(tmp_path_factory.mktemp("scratch"), 3) as made:
        yield made


def results(build: Build, executor: Executor, suite: Suite, place: Path) -> dict[str, Any]:
    """By case: everything that must not depend on where it was done."""
    with closing(campaign.begin(place, {build.name: build}, suite)) as journal:
        campaign.carry_on(journal, [build], executor, lambda standing: None)
        assert sorted(journal.outcomes) == sorted(journal.plan.keys)
        return {
            case: (
                outcome.status,
                outcome.text,
                {k: v for k, v in outcome.figures.items() if "seconds" not in k},
                sorted((f.key, f.count, f.trace) for f in outcome.findings),
                sorted(str(p.relative_to(place)) for p in (place / "cases").rglob(f"{case}/**/*")),
            )
            for (_, case), outcome in journal.outcomes.items()
        }


def test_the_results_do_not_depend_on_the_executor(
    tmp_path: Path, cluster: Any, qemu_build: Build
) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    suite = suite_named(str(tmp_path / "suite.toml"))
    seeds = [case.arguments["seed"] for case in suite.cases if case.name.startswith("shard")]
    assert seeds == list(range(11, 17))  # none repeats another's
    one = results(qemu_build, LocalExecutor(1), suite, tmp_path / "one")
    several = results(qemu_build, LocalExecutor(3), suite, tmp_path / "several")
    with closing(Cluster(cluster.scheduler_address)) as connected:
        executor = DaskExecutor(connected)
        dask = results(qemu_build, executor, suite, tmp_path / "dask")
    assert one == several == dask
    assert one["shard/seed11"][0] is Status.OK
    assert one["nonsense"][0] is Status.BROKEN
    # Each shard did another workload.
    assert len({str(value[2]) for case, value in one.items() if case.startswith("shard")}) == 6


def test_a_worker_that_dies_costs_its_case(tmp_path: Path, qemu_build: Build) -> None:
    """The worker process itself is killed: what waits for it gets an error, and the run goes on."""
    cases = tuple(
        Case("verify", f"v{n}", {"operations": 60, "size": 1 << 20, "seed": n}) for n in range(4)
    )
    builds = {qemu_build.name: qemu_build}
    with (
        local_cluster(tmp_path / "scratch", 3) as cluster,
        closing(Cluster(cluster.scheduler_address)) as connected,
        closing(campaign.begin(tmp_path / "out", builds, Suite("s", cases))) as journal,
    ):
        killed: list[int] = []

        def report(standing: campaign.RunStatus) -> None:
            if standing.done == 1 and not killed:
                worker = next(iter(cluster.workers.values()))
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

        campaign.carry_on(journal, [qemu_build], DaskExecutor(connected), report)
        assert killed and not journal.missing
        statuses = [outcome.status for outcome in journal.outcomes.values()]
        assert statuses.count(Status.OK) >= 3  # what the dead one had is given to another


def test_the_command(qmpshim: CommandLine, cluster: Any) -> None:
    (qmpshim.home / "suite.toml").write_text(SUITE)
    words = ("check", "--suite", "suite.toml", "--case", "shard/*")
    done = qmpshim.run(*words, "--dask", cluster.scheduler_address)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "6 ok" in done.stdout


def written(file: Path) -> bool:
    """Whether a JSON document is there, and the whole of it."""
    try:
        json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


@contextmanager
def processes(place: Path) -> Iterator[tuple[str, dict[str, subprocess.Popen[bytes]]]]:
    """A scheduler's address, and by name the scheduler and its one worker: as elsewhere."""
    file = place / "scheduler.json"
    common = ["--no-dashboard", "--scheduler-file", str(file)]
    environment = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(place)}
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(what: str, *words: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *common, *words]
        with (place / f"{what}.log").open("wb") as log:
            started[what] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        # The scheduler makes its file first, and writes it then.
        wait_until(lambda: written(file) or started["scheduler"].poll() is not None)
        assert written(file), (place / "scheduler.log").read_text()
        start("worker", "--nthreads", "1", "--no-nanny")
        yield json.loads(file.read_text())["address"], started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


@pytest.mark.parametrize("which", ["scheduler", "worker"])
def test_the_cluster_goes_away(qmpshim: CommandLine, tmp_path: Path, which: str) -> None:
    """One line; what is done is kept, and goes on elsewhere."""
    (qmpshim.home / "suite.toml").write_text(SUITE)
    words = ("check", "--suite", "suite.toml", "--case", "shard/*", "--out", "out")
    with processes(tmp_path) as (address, cluster):
        process = qmpshim.start(*words, "--dask", address, "--json", "it.json")
        journal = qmpshim.home / "out" / "journal.jsonl"

        def two_are_done() -> bool:
            return journal.exists() and len(journal.read_bytes().splitlines()) >= 2

        wait_until(lambda: two_are_done() or process.poll() is not None, LIMIT)
        assert process.poll() is None
        cluster[which].kill()
        output, complaint = process.communicate(timeout=LIMIT)
    why = {"scheduler": "went away", "worker": "has no workers any more"}[which]
    assert (process.returncode, complaint) == (2, ""), (output, complaint)
    pattern = rf"the Dask scheduler at {address} {why}: (\d) of 6 done and kept; go on with: (.*)"
    found = re.fullmatch(pattern, output.splitlines()[-1])
    assert found is not None, output
    assert found[2] == f"qmpshim check --resume out --dask {address}"
    document = json.loads((qmpshim.home / "it.json").read_text())
    assert len(document["results"]) == int(found[1]) >= 1
    assert document["verdict"] is None and why in document["error"]
    done = qmpshim.run("check", "--resume", "out")
    assert done.returncode == 0 and f"{found[1]} of them done before" in done.stdout, done


def test_an_order_can_be_sent(qemu_build: Build) -> None:
    """Whatever an order holds is plain data."""
    order = Order(
        qemu_build, identify(qemu_build), Case("verify", "v", {"seed": 1}), name_of("verify")
    )
    assert pickle.loads(pickle.dumps(order)) == order
