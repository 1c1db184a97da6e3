"""Tries to kill one mutant: by the explorer, by random workloads, by the quick suite."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from errno import EIO, ENOSPC
from pathlib import Path

from mutation_build import MutatedQemu, reached_in
from mutation_operators import Mutant

from qmpshim.conformance.explore.harness.choices import CUT, RECONNECT
from qmpshim.conformance.explore.scenarios import RealScenario, named
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.known.folder import known_findings
from qmpshim.errors import QmpshimError
from qmpshim.machine.builds.build import resolve

_REACH_LIMIT = 5.0  # seconds for a scenario on the QEMU that is no mutant
_CHUNK = 2  # scenarios explored at first; then twice as many, and so on
_SHORT = ("--ops", "1500", "--limit", "10", "--shrink", "0s")
_VERIFY_LIMIT = 60.0
_CHECK_LIMIT = 900.0
_QMPSHIM = Path(sys.executable).with_name("qmpshim")
_FAULTS = (EIO, ENOSPC, CUT, RECONNECT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant.

    :ivar reached: by how many scenarios
    :ivar killed_by: what found it, and how; empty: nothing did
    :ivar seconds: until then
    """

    mutant: str
    reached: int
    killed_by: str
    seconds: float

    @property
    def line(self) -> str:
        """To read."""
        what = self.killed_by or ("alive" if self.reached else "not reached")
        return f"{self.mutant:52} {self.seconds:6.1f} s  {what}"


def scenarios_to_try() -> list[RealScenario]:
    """The scenarios by which mutants are looked for."""
    sets = ("pairs", "follow-ups", "vanishing", "qcow2-pairs")
    return [one for name in sets for one in named(name)]


def pristine_reach(qemu: MutatedQemu, names: Sequence[str]) -> dict[str, set[int]]:
    """Which mutants each of these scenarios reaches, explored as a whole."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        record = Path(place, "reached")
        build = resolve(str(qemu.wrapper(Path(place, "qemu"), reached=record)))
        for name in names:
            record.write_bytes(bytes(record.stat().st_size))
            explore_real(build, named(name), limit=_REACH_LIMIT, minimise=False)
            found[name] = reached_in(record)
    return found


def attempt(
    qemu: MutatedQemu, mutant: Mutant, names: Sequence[str], budget: float, check: bool
) -> Outcome:
    """Try to kill a mutant, by the cheapest first.

    :param names: the scenarios that reach it
    :param budget: seconds to explore them
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        program = qemu.wrapper(Path(place, "qemu"), mutant.number)
        ways = (_ways(program, names, began + budget, check)) if names else ()
        killed = next((how for how in ways if how), "")
    return Outcome(mutant.name, len(names), killed, round(time.monotonic() - began, 2))


def _ways(program: Path, names: Sequence[str], deadline: float, check: bool) -> Iterator[str]:
    yield _explored(program, names, deadline, ())
    yield _explored(program, names, deadline, _FAULTS)
    for workflow in ("backup", "replication"):
        command = (
            "verify",
            "--workflow",
            workflow,
            "--ops",
            "1500",
            "--limit",
            "10",
            "--shrink",
            "0s",
        )
        yield _commanded(program, command, _VERIFY_LIMIT)
    if check:
        yield _commanded(program, ("check", "--suite", "quick"), _CHECK_LIMIT)


def _explored(program: Path, names: Sequence[str], deadline: float, faults: Sequence[int]) -> str:
    """How the explorer finds the mutant; empty: not at all."""
    try:
        build = resolve(str(program))
        at, many = 0, _CHUNK
        while at < len(names) and (left := deadline - time.monotonic()) > 0:
            scenarios = [one for name in names[at : at + many] for one in named(name)]
            report = explore_real(
                build, scenarios, faults=faults, budget=left, known=known_findings(),
                minimise=False,
            )  # fmt: skip
            for finding in (*report.new, *(one for one in report.unconfirmed if not one.known)):
                how = "explore --faults" if faults else "explore"
                return f"{how}: {finding.verdict} in {finding.scenario.name}"
            for result in report.scenarios:
                if result.skipped:  # without the mutant it can be done
                    return f"start: {result.name}: {result.skipped}"
            at, many = at + many, many * 2
    except QmpshimError as error:
        return f"start: {error}"
    return ""


def _commanded(program: Path, command: Sequence[str], limit: float) -> str:
    """How a command of ours finds the mutant; empty: not at all."""
    with tempfile.TemporaryDirectory() as place:
        try:
            done = subprocess.run(
                [str(_QMPSHIM), *command, "--qemu", str(program)],
                cwd=place,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return f"{command[0]}: no end in {limit:g} s"
    return f"{command[0]}: exit status {done.returncode}" if done.returncode == 1 else ""
