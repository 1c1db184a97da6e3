"""Schedules per second over gated storage, and steps per second against two QMP round trips a step.

Run it alone: ``python vmtests/bench/bench_explore_real.py [BUILD ...]``
"""

from __future__ import annotations

import sys
import time

from qmpshim.conformance.explore import scenarios as scenarios
from qmpshim.conformance.explore.stage import Stage
from qmpshim.conformance.explore.system import RealSystem
from qmpshim.machine import builds
from qmpshim.model.explorer import Mode, explore
from qmpshim.model.walk import Budget

SCENARIO = "WV"  # two overlapping primary writes: 8 steps
SECONDS = 4.0


def bench(name: str) -> None:
    build = builds.resolve(name)
    stage = Stage(build)
    try:
        (scenario,) = scenarios.named(SCENARIO)
        system = RealSystem(stage, scenario)
        system.reset()
        machine = system.machine
        machine.gate.open()
        floor = time.perf_counter()
        for _ in range(1000):
            machine.call("query-name")
            machine.call("query-name")
        floor = 1000 / (time.perf_counter() - floor)
        explored = explore(system, Mode.RANDOM, Budget(seconds=SECONDS), seed=1)
        done = explored.statistics
        rate, steps = done.schedules / done.seconds, done.steps / done.seconds
        print(
            f"{name} (QEMU {'.'.join(map(str, machine.version))}): {rate:.0f} schedules/s of "
            f"{done.steps / done.schedules:.1f} steps; {steps:.0f} steps/s, the floor of two QMP "
            f"round trips a step is {floor:.0f}/s ({steps / floor:.2f} of it)"
        )
    finally:
        stage.close()


if __name__ == "__main__":
    for wanted in sys.argv[1:] or ["system"]:
        bench(wanted)
