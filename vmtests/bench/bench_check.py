"""The quick suite: wall time for each build, cases per second, and what a second worker brings.

Run it alone: ``python -m vmtests.bench.bench_check [BUILD ...]``. The peer is the same work without
a campaign around it: each case's runner called in one process, one after the other.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from qmpshim.commands.check import SHIM
from qmpshim.conformance.check.run import campaign
from qmpshim.conformance.check.run.executors import LocalExecutor
from qmpshim.conformance.check.runners.kinds import timed
from qmpshim.conformance.check.suites import Suite, suite_named
from qmpshim.errors import BuildError
from qmpshim.machine.builds import build as builds
from qmpshim.machine.builds.build import Build
from vmtests.support.checks import runner_of

#: For the scaling, cases that take a while each; for the overhead, many that do not.
SHARE = ("explore/backup/*", "verify/backup/*")
SMALL = ("directed/start-*", "directed/copy-fails", "directed/old-read-fails", "directed/quit*")


def campaigned(build: Build, suite: Suite, jobs: int) -> float:
    """Seconds of wall time."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        with closing(campaign.begin(Path(place) / "out", {build.name: build}, suite)) as journal:
            campaign.carry_on(journal, [build], LocalExecutor(jobs), lambda standing: None)
        return time.perf_counter() - began


def bare(build: Build, suite: Suite) -> float:
    """Seconds of wall time without processes, watchdog and journal."""
    began = time.perf_counter()
    for case in suite.cases:
        with tempfile.TemporaryDirectory() as place:
            try:
                timed(runner_of(case.kind), build, case, Path(place))
            except BuildError:
                continue
    return time.perf_counter() - began


def bench(names: list[str]) -> None:
    cores = os.cpu_count() or 1
    quick = suite_named("quick")
    assert SHIM in quick.cases
    total = 0.0
    for name in names:
        seconds = campaigned(builds.resolve(name), quick, cores)
        total += seconds
        print(
            f"{name}: quick suite, {len(quick.cases)} cases, {cores} at a time: {seconds:.0f} s, "
            f"{len(quick.cases) / seconds:.2f} cases/s"
        )
    print(f"all {len(names)} build(s): {total:.0f} s (wanted for four: 900 s on 2 cores)")
    build = builds.resolve(names[0])
    share = quick.only(SHARE)
    one, two = (campaigned(build, share, jobs) for jobs in (1, 2))
    print(
        f"{len(share.cases)} cases: {one:.1f} s with 1 worker, {two:.1f} s with 2: {one / two:.2f}x"
    )
    small = quick.only(SMALL)
    with_, without = campaigned(build, small, 1), bare(build, small)
    print(
        f"{len(small.cases)} small cases: {with_:.1f} s, {without:.1f} s bare in one process: "
        f"{(with_ - without) / len(small.cases) * 1000:.0f} ms a case for its isolation"
    )


if __name__ == "__main__":
    bench(sys.argv[1:] or ["system"])
