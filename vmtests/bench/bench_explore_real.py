"""Schedules per second and core over gated storage, and steps per second against QMP round trips.

One process explores alone, then one on each core, as ``explore --jobs`` does: per core is what all
of them do together, divided by the cores. Two scenarios of 7 to 8 steps, one with two copies before
writes (30 requests a schedule and more), one with one.

Run it alone: ``python -m vmtests.bench.bench_explore_real [BUILD ...]``
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass

from qmpshim.conformance.explore import scenario_sets
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.machine.builds import build
from qmpshim.machine.chain.gated import GatedMachine
from qmpshim.machine.host.processors import one_processor
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget

SCENARIOS = {
    "WV": "two overlapping primary writes",
    "WH": "primary write, primary flush",
}
SECONDS = 4.0
TRIPS = 1000


@dataclass
class Rates:
    """What one process did: schedules and steps a second, and pairs of QMP round trips.

    :ivar processor: milliseconds of ours (not QEMU's) for a schedule
    :ivar requests: that QEMU made of its disks in a schedule
    """

    schedules: float
    steps: float
    floor: float
    version: str
    processor: float
    requests: float


def measure(name: str, scenario: str, seed: int) -> Rates:
    with one_processor(seed):
        return _measure(name, scenario, seed)


def _measure(name: str, scenario: str, seed: int) -> Rates:
    pool = QemuPool(build.resolve(name))
    try:
        system = RealSystem(pool, *scenario_sets.named(scenario))
        system.reset()
        machine = system.machine
        machine.gate.open()
        began = time.perf_counter()
        for _ in range(TRIPS):
            machine.call("query-name")
            machine.call("query-name")
        floor = TRIPS / (time.perf_counter() - began)
        before, used = requests(machine), time.process_time()
        done = explore(system, Mode.RANDOM, Budget(seconds=SECONDS), seed=seed).statistics
        return Rates(
            done.schedules / done.seconds,
            done.steps / done.seconds,
            floor,
            ".".join(map(str, machine.version)),
            1e3 * (time.process_time() - used) / done.schedules,
            (requests(machine) - before) / done.schedules,
        )
    finally:
        pool.close()


def requests(machine: GatedMachine) -> int:
    """How many requests QEMU has made so far."""
    return sum(sum(machine.gate.counts(image).values()) for image in machine.images)


def bench(name: str) -> None:
    cores = len(os.sched_getaffinity(0))
    for scenario, what in SCENARIOS.items():
        alone = measure(name, scenario, 1)
        work = [(name, scenario, seed) for seed in range(cores)]
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            together = pool.starmap(measure, work)
        per_core = sum(one.schedules for one in together) / cores
        print(
            f"{name} (QEMU {alone.version}), {what}: {alone.steps / alone.schedules:.1f} steps; "
            f"{alone.schedules:.0f} schedules/s alone, {per_core:.0f} a core on {cores} cores; "
            f"{alone.steps:.0f} steps/s, the floor of two QMP round trips a step is "
            f"{alone.floor:.0f}/s ({alone.steps / alone.floor:.2f} of it); "
            f"{alone.processor:.1f} ms of our processor time and {alone.requests:.0f} requests a "
            "schedule"
        )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["system"]:
        bench(wanted)
