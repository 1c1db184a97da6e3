"""The explorer's speed, and the same protocol in Promela under Spin beside it.

Run: ``python -m vmtests.bench.bench_explorer [--json FILE]``.  Needs ``spin`` and ``gcc`` for the
second half.  Both exhaust the same operations with the same I/O steps.  Spin checks assertions in
each state; the explorer also keeps which operation ended before which began, and judges every
outcome by linearisation.  Spin's time is given twice: of the search alone, and with making the
verifier.  All times are of the processor, so a busy machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qmpshim.model.chain.protocols import REFERENCE_PROTOCOLS, CowRequestProtocol
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.model_system import ModelSystem
from qmpshim.model.operations import operation
from qmpshim.model.scenario import Scenario
from qmpshim.model.scenarios import SCENARIOS
from vmtests.support.schedules import count_schedules

MODEL = Path(__file__).parent / "spin" / "cow_request.pml"
C = 128


def apart(writers: int, readers: int, clusters: int) -> Scenario:
    """Writers and readers of single clusters, and a checkpoint."""
    writes = tuple(operation("primary_write", i % clusters * C, C) for i in range(writers))
    reads = tuple(operation("guest_read", i % clusters * C, C) for i in range(readers))
    return Scenario(
        f"{writers} writers, {readers} readers, {clusters} clusters",
        (*writes, *reads, operation("checkpoint")),
        (operation("primary_write", 0, clusters * C), operation("start")),
        size=clusters * C,
    )


PAIRS: list[tuple[Scenario, list[str]]] = [
    (SCENARIOS["seed"], ["-DWRITERS=2", "-DREADERS=2", "-DCLUSTERS=2"]),
    (apart(2, 2, 2), ["-DWRITERS=2", "-DREADERS=2", "-DCLUSTERS=2", "-DAPART"]),
    (apart(3, 2, 3), ["-DWRITERS=3", "-DREADERS=2", "-DCLUSTERS=3", "-DAPART"]),
]


def ours(scenario: Scenario, mode: Mode) -> dict[str, Any]:
    """Exhaust a scenario under cow-request; the time includes computing what is allowed."""
    began = time.process_time()
    system = ModelSystem(scenario, CowRequestProtocol, CowRequestProtocol)
    result = explore(system, mode)
    seconds = time.process_time() - began
    assert result.exhaustive and not result.violations, result.violations
    s = result.statistics
    return {
        "seconds": seconds,
        "schedules": s.schedules,
        "states": s.states,
        "steps": s.steps,
        "schedules_per_second": s.schedules / seconds,
        "states_per_second": s.states / seconds,
    }


def spins(defines: list[str], reduce: bool) -> dict[str, Any]:
    """Exhaust the Promela model; the best of five searches."""
    with tempfile.TemporaryDirectory(prefix="qmpshim-spin-") as directory:
        began = children()
        run(["spin", *defines, "-a", str(MODEL)], directory)
        flags = ["-O2", "-w", "-DSAFETY", *([] if reduce else ["-DNOREDUCE"])]
        run(["gcc", *flags, "-o", "pan", "pan.c"], directory)
        made = children() - began
        searches = []
        for _ in range(5):
            began = children()
            text = run(["./pan", "-n", "-m100000"], directory)
            searches.append(children() - began)
    if "errors: 0" not in text:
        sys.exit(f"Spin found an error in {MODEL}:\n{text}")
    states = re.search(r"(\d+) states, stored", text)
    steps = re.search(r"(\d+) transitions", text)
    assert states and steps
    return {
        "seconds": min(searches),
        "seconds_to_make": made,
        "states": int(states[1]),
        "steps": int(steps[1]),
    }


def children() -> float:
    """Processor seconds that finished children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command: list[str], directory: str) -> str:
    """Run a program to its end."""
    done = subprocess.run(
        command,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    args = parser.parse_args()
    report: dict[str, Any] = {"speed": [], "spin": []}

    print("all shipped scenarios, exhausted")
    for protocol in REFERENCE_PROTOCOLS:
        began = time.process_time()
        schedules = states = 0
        for scenario in SCENARIOS.values():
            if not scenario.protocols or protocol.name in scenario.protocols:
                statistics = explore(ModelSystem(scenario, protocol, protocol)).statistics
                schedules += statistics.schedules
                states += statistics.states
        seconds = time.process_time() - began
        report["speed"].append([protocol.name, schedules, states, seconds])
        print(f"  {protocol.name:18} {schedules:7} schedules {schedules / seconds:7.0f}/s  "
              f"{states:7} states {states / seconds:7.0f}/s  {seconds:6.2f} s")  # fmt: skip

    seed = SCENARIOS["seed"]
    every = count_schedules(ModelSystem(seed, CowRequestProtocol, CowRequestProtocol))
    print(f"\nthe seed's scenario: {every} schedules")
    for mode in (Mode.STATES, Mode.DPOR, Mode.STATEFUL):
        found = ours(seed, mode)
        share = every // found["schedules"]
        print(f"  {mode.value:10} {found['schedules']:7} schedules (1/{share}) "
              f"{found['states']:7} states {found['seconds']:6.2f} s")  # fmt: skip

    if not (shutil.which("spin") and shutil.which("gcc")):
        print("\nno spin or no gcc: nothing to compare with")
        return
    print("\nbeside Spin (its own partial-order reduction on)")
    for scenario, defines in PAIRS:
        mine, full, other = (
            ours(scenario, Mode.STATEFUL),
            spins(defines, False),
            spins(defines, True),
        )
        made = other["seconds"] + other["seconds_to_make"]
        report["spin"].append({"scenario": scenario.name, "ours": mine, "spin": other,
                               "spin_unreduced": full})  # fmt: skip
        print(f"  {scenario.name}")
        print(f"    ours   {mine['states']:7} states {mine['seconds']:7.3f} s")
        print(f"    Spin   {other['states']:7} states {other['seconds']:7.3f} s, {made:.2f} s with "
              f"making the verifier; {full['states']} states unreduced")  # fmt: skip
        print(f"    ratio  {mine['seconds'] / other['seconds']:.1f} to the search, "
              f"{mine['seconds'] / made:.2f} to all of it")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
