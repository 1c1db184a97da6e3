"""Pairs: checkpoints a second with all disks compared at each, and what the comparing costs.

The peer is the same pair without a check: QEMU's own checkpoints, as fast as it takes them.

    python -m vmtests.bench.bench_pair [BUILD ...]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

from qmpshim.conformance.known.accelerator import best_accel
from qmpshim.conformance.known.folder import known_pairs
from qmpshim.conformance.pair.colo import ColoRun
from qmpshim.conformance.pair.plan import PairPlan
from qmpshim.conformance.pair.run_plan import run_plan
from qmpshim.machine.builds.build import Build, read_version, resolve
from qmpshim.machine.host.workspace import Workspace

RUNS = 3
CHECKPOINTS = 100


class Unwatched(ColoRun):
    """The same pair, and QEMU left alone: checkpoints follow each other without a look."""

    async def play_round(self) -> None:
        pair, channel = self.pair, self.pair.channel
        await self.workload.join()
        since = [len(member.events) for member in pair.members]
        await pair.start_colo()
        await self.until_colo_runs(since)
        await self.workload.write(pair.primary, 1, 120.0)
        first = channel.loaded
        began = time.monotonic()
        await pair.set_delay(1)
        await self.until(lambda: channel.loaded >= first + CHECKPOINTS, "bench", "checkpoints")
        self.outcome.figures["checkpoints/s"] = CHECKPOINTS / (time.monotonic() - began)
        self.outcome.checkpoints = CHECKPOINTS


async def unwatched(plan: PairPlan, build: Build) -> float:
    with Workspace("qmps-") as workspace:
        run = Unwatched(plan, (build, build), workspace.subdirectory("pair"))
        return (await run.run()).figures.get("checkpoints/s", 0.0)


async def watched(plan: PairPlan, build: Build, bundles: Path) -> tuple[float, int, int]:
    outcome, _ = await run_plan(plan, (build, build), bundles, known=known_pairs())
    new = [finding for finding in outcome.findings if not finding.known]
    if new or outcome.checkpoints < CHECKPOINTS:
        return 0.0, outcome.compared, len(new)
    return outcome.figures["checkpoints/s"], outcome.compared, len(new)


def bench(name: str) -> None:
    build = resolve(name)
    print(f"{name}: QEMU {read_version(build)[1]}")
    plans = {
        "COLO, no guest": PairPlan(guest="none", checkpoints=CHECKPOINTS, writes=10, limit=60.0),
        "COLO, guest writing": PairPlan(
            checkpoints=CHECKPOINTS, writes=5, accel=best_accel((build, build), "boot"), limit=60.0
        ),
    }
    for title, plan in plans.items():
        with Workspace() as bundles:
            runs = [asyncio.run(watched(plan, build, bundles.path)) for _ in range(RUNS)]
        alone = [asyncio.run(unwatched(plan, build)) for _ in range(RUNS)]
        ours, theirs = (statistics.median(each) for each in ([rate for rate, *_ in runs], alone))
        if not ours or not theirs:
            print(f"  {title:22} does not work here (see qmpshim pair)")
            continue
        print(
            f"  {title:22} {ours:6.1f} checkpoints/s judged, {theirs:6.1f} unwatched "
            f"(ratio {ours / theirs:.2f}); {runs[0][1] >> 20} MiB compared, "
            f"{sum(wrong for _, _, wrong in runs)} divergences in {RUNS * CHECKPOINTS} checkpoints"
        )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["system"]:
        bench(wanted)
