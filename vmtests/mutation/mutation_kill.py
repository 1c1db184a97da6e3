"""Tries to kill one mutant: by the explorer, by random workloads, by the quick suite."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EIO, ENOSPC
from itertools import chain, zip_longest
from pathlib import Path

from mutation_build import MutatedQemu, reached_in
from mutation_operators import Mutant

from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.conformance.explore.harness.choices import Cut
from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.space.naming import array, scenarios_called
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.known.folder import known_directed, known_findings
from qmpshim.errors import BuildError, HostError, MachineError
from qmpshim.machine.builds.build import Build, read_version, resolve
from qmpshim.machine.host.workspace import Workspace

_REACH_LIMIT = 5.0  # seconds for a scenario on the QEMU that is no mutant
_WITHOUT_FAULTS = 0.5  # of the time to explore: or long lists of scenarios leave none for faults
_STRENGTH = 2  # of the scenarios that are generated: what `explore` takes by itself
_DIRECTED = "directed/"  # before the name of a directed case
_VERIFY = "verify/"  # before a workflow of `verify`
_CHUNK = 2  # scenarios explored at first; then twice as many, and so on
_SHORT = ("--ops", "1500", "--limit", "10", "--shrink", "1s")
#: Of `verify`; transactions, and most of what is done to bitmaps, only these have.
_WORKFLOWS = ("backup", "replication", "bitmaps", "push", "pull")
_VERIFY_LIMIT = 120.0
_CHECK_LIMIT = 900.0
_QMPSHIM = Path(sys.executable).with_name("qmpshim")
_FAULTS = (EIO, ENOSPC, *Cut)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant.

    :ivar reached: by how many scenarios, directed cases and workflows
    :ivar killed_by: what found it, and how; empty: nothing did
    :ivar seconds: until then
    """

    mutant: str
    reached: int
    killed_by: str
    seconds: float

    @property
    def over(self) -> bool:
        """Whether nothing else need be tried: it is killed, or no scenario reaches it."""
        return bool(self.killed_by) or not self.reached

    @property
    def line(self) -> str:
        """To read."""
        what = self.killed_by or ("alive" if self.reached else "not reached")
        return f"{self.mutant:52} {self.seconds:6.1f} s  {what}"


def names_to_try() -> list[str]:
    """The scenarios, directed cases and workflows by which mutants are looked for."""
    sets = ("alone", "pairs", "follow-ups", "vanishing", "twice", "qcow2-pairs")
    scenarios = [one for name in sets for one in named(name)]
    scenarios += array(_STRENGTH)
    directed = [_DIRECTED + case.name for case in DIRECTED]
    return [*(one.name for one in scenarios), *directed, *(_VERIFY + one for one in _WORKFLOWS)]


def scenario_named(name: str) -> RealScenario:
    """A scenario by its name, of letters or generated."""
    return scenarios_called(name)[0]


def pristine_reach(qemu: MutatedQemu, names: Sequence[str]) -> dict[str, set[int]]:
    """Which mutants each of these reaches; a scenario is explored as a whole.

    :raises HostError: one finds something, so nothing follows from what a mutant does
    """
    found = {}
    with Workspace() as workspace:
        record = workspace.path / "reached"
        program = qemu.wrapper(workspace.path / "qemu", reached=record)
        build = resolve(str(program))
        for name in names:
            record.write_bytes(bytes(record.stat().st_size))
            if name.startswith(_DIRECTED):
                _run(name, build)
            elif name.startswith(_VERIFY):
                if wrong := verified(program, name.removeprefix(_VERIFY), program):
                    raise HostError(f"{name}: QEMU diverges without a mutant: {wrong}")
            else:
                _explore_pristine(build, name)
            found[name] = reached_in(record)
    return found


def _explore_pristine(build: Build, name: str) -> None:
    """Explore a scenario on the QEMU that is no mutant.

    :raises HostError: it diverges, so nothing follows from what a mutant does
    """
    scenario, known = [scenario_named(name)], known_findings()
    report = explore_real(
        build,
        scenario,
        settings=Settings(minimise=False),
        bounds=Bounds(limit=_REACH_LIMIT),
        known=WrittenUp(known),
    )
    for finding in report.new:
        raise HostError(f"{name}: QEMU diverges without a mutant: {finding.text}")


def attempt(
    qemu: MutatedQemu, mutant: Mutant, names: Sequence[str], budget: float, check: bool
) -> Outcome:
    """Try to kill a mutant, by the cheapest first.

    :param names: the scenarios, directed cases and workflows that reach it
    :param budget: seconds to explore the scenarios
    """
    began = time.monotonic()
    with Workspace() as workspace:
        program = qemu.wrapper(workspace.path / "qemu", mutant.number)
        sound = qemu.wrapper(workspace.path / "sound")
        ways = _ways(program, sound, names, budget, check) if names else ()
        killed = next((how for how in ways if how), "")
    return Outcome(mutant.name, len(names), killed, round(time.monotonic() - began, 2))


def spread(names: Iterable[str]) -> list[str]:
    """Scenarios in an order in which every chain comes soon, and no operation comes in all.

    Always the same order, but one that was not chosen: what is explored under a budget is a sample.
    """
    by_chain: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        scenario = scenario_named(name)
        by_chain[scenario.form, scenario.secondary].append(name)
    for group in by_chain.values():
        random.Random(len(group)).shuffle(group)
    return [name for name in chain(*zip_longest(*by_chain.values())) if name is not None]


def _ways(
    program: Path, sound: Path, names: Sequence[str], budget: float, check: bool
) -> Iterator[str]:
    yield _directed(program, [name for name in names if name.startswith(_DIRECTED)])
    began = time.monotonic()
    scenarios = spread(name for name in names if not name.startswith((_DIRECTED, _VERIFY)))
    yield _explored(program, scenarios, began + budget * _WITHOUT_FAULTS, ())
    yield _explored(program, scenarios, began + budget, _FAULTS)
    for name in names:
        if name.startswith(_VERIFY):
            yield verified(program, name.removeprefix(_VERIFY), sound)
    if check:
        yield _commanded(program, ("check", "--suite", "quick"), _CHECK_LIMIT, sound)


def _explored(program: Path, names: Sequence[str], deadline: float, faults: Sequence[int]) -> str:
    """How the explorer finds the mutant; empty: not at all."""
    try:
        build = resolve(str(program))
        at, many = 0, _CHUNK
        while at < len(names) and (left := deadline - time.monotonic()) > 0:
            scenarios = [scenario_named(name) for name in names[at : at + many]]
            report = explore_real(
                build,
                scenarios,
                settings=Settings(faults=faults, minimise=False),
                bounds=Bounds(budget=left),
                known=WrittenUp(known_findings()),
            )
            for finding in (*report.new, *(one for one in report.unconfirmed if not one.known)):
                how = "explore --faults" if faults else "explore"
                return f"{how}: {finding.verdict} in {finding.scenario.name}"
            for result in report.scenarios:
                if result.skipped:  # without the mutant it can be done
                    return f"start: {result.name}: {result.skipped}"
            at, many = at + many, many * 2
    except (BuildError, MachineError) as error:
        return f"start: {error}"
    return ""


def _directed(program: Path, names: Sequence[str]) -> str:
    """Which directed case finds the mutant; empty: none."""
    written = known_directed()
    try:
        build = resolve(str(program))
        version = read_version(build)[0]
        for name in names:
            found = _run(name, build)
            known = written.get(name.removeprefix(_DIRECTED))
            if found and not (known and known.covers(found.kind, found.cause, version)):
                return f"{name}: {found.kind}"
    except (BuildError, MachineError) as error:
        return f"start: {error}"
    return ""


def _run(name: str, build: Build) -> RealViolation | None:
    (case,) = (one for one in DIRECTED if _DIRECTED + one.name == name)
    return run_directed(case, build)


def verified(program: Path, workflow: str, sound: Path, limit: float = _VERIFY_LIMIT) -> str:
    """How a random workload finds the mutant; empty: not at all.

    :param workflow: of `verify`
    :param sound: the QEMU that is no mutant
    :param limit: seconds
    :raises HostError: the command is wrong, or this host
    """
    return _commanded(program, ("verify", "--workflow", workflow, *_SHORT), limit, sound)


def _commanded(
    program: Path, command: Sequence[str], limit: float, sound: Path | None = None
) -> str:
    """How a command of ours finds the mutant; empty: not at all.

    :param sound: the QEMU that is no mutant; where it takes as long, the host is busy
    :raises HostError: the command is wrong, or this host
    """
    with Workspace() as workspace:
        try:
            done = subprocess.run(
                [str(_QMPSHIM), *command, "--qemu", str(program)],
                cwd=workspace.path,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            found = f"{command[0]}: no end in {limit:g} s"
            busy = sound is not None and _commanded(sound, command, limit) == found
            return "" if busy else found
    if done.returncode == HostError.exit_code:
        raise HostError(f"{' '.join(command)}: {done.stderr.decode().strip()}")
    return f"{command[0]}: exit status {done.returncode}" if done.returncode == 1 else ""
