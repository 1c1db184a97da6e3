"""Makes a finding small and proves it: fewest operations, fewest steps, again on fresh QEMUs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qmpshim.conformance.explore.checkers.crash_points import (
    NO_CRASH_POINTS,
    CrashPoints,
)
from qmpshim.conformance.explore.harness.choices import failures
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import RealSystem
from qmpshim.conformance.explore.harness.setup_state import allocation_after_setup, other_state
from qmpshim.conformance.explore.report.findings import Finding, Sighting, group
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.processors import one_processor
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget, OutOfBudget
from qmpshim.model.operations import operation

TIMES = 3  # how often a finding has to show itself again
_PAST = 3  # checkpoints that a finding may need to have behind it
_SMALLER = 5.0  # seconds for each try with fewer operations


@one_processor()
def confirm(
    finding: Finding,
    build: Build,
    minimise: bool = True,
    errnos: Sequence[int] = (),
    crash_points: CrashPoints = NO_CRASH_POINTS,
    all_io: bool = False,
    deadline: float | None = None,
) -> Finding:
    """Make a finding small and run it again on fresh QEMUs.

    :param crash_points: how the images were looked at when it was found
    :param all_io: whether qcow2's own I/O was held then
    :param deadline: by time.monotonic(); half of the time until then is for making it small. What
        could not be run again before is given back as not tried
    """
    if not finding.cause.kind.after_crash:
        crash_points = NO_CRASH_POINTS
    # Only what it needs: a QEMU that waits for a disk to come back takes longer to see it gone.
    needed = {step.fault for step in failures(finding.schedule)}
    finding = replace(
        finding,
        errnos=tuple(errno for errno in errnos if errno in needed),
        build={"name": build.name},
        crash_points=str(crash_points),
        all_io=all_io,
    )
    if minimise and not finding.known:
        finding = _fewer_operations(finding, build, _half_way(deadline))
    try:
        best = _with_past(finding, build, deadline)
        if not best.confirmed and minimise and finding.known:
            smaller = _fewer_operations(finding, build, _half_way(deadline))
            best = _with_past(smaller, build, deadline)
    except OutOfBudget:
        return finding
    return replace(best, allocation=dict(allocation_after_setup(best, build)))


def _half_way(deadline: float | None) -> float | None:
    now = time.monotonic()
    return None if deadline is None else now + (deadline - now) / 2


def _with_past(finding: Finding, build: Build, deadline: float | None) -> Finding:
    """Run a finding again, if need be after some checkpoints.

    A QEMU that has taken checkpoints before is no artefact of the harness, but then the case has to
    say so: what the reused process had behind it becomes part of the setup.
    """
    best = _run_again(finding, build, deadline)
    if best.confirmed or finding.scenario.topology.replication_mode != "secondary":
        return best
    for past in range(1, _PAST + 1):
        setup = (operation("checkpoint"),) * past + finding.scenario.setup
        longer = replace(finding, scenario=replace(finding.scenario, setup=setup))
        again = _run_again(longer, build, deadline)
        if again.confirmed:
            return again
    return best


def _run_again(finding: Finding, build: Build, deadline: float | None) -> Finding:
    """Take the schedule in fresh processes and count how often the finding shows itself."""
    seen = 0
    events = finding.events
    for _ in range(TIMES):
        again = replay_schedule(finding, build, deadline=deadline)
        finding.build["version"] = list(again.version)
        if again.shows(finding):
            seen, events = seen + 1, again.events
    return replace(finding, replays=(seen, TIMES), events=events)


def _fewer_operations(finding: Finding, build: Build, deadline: float | None) -> Finding:
    """Leave out operations, of the setup too, as long as the same is seen without.

    :param deadline: then it is as small as it was made until then
    """
    stage = QemuPool(build, deadline=deadline)
    try:
        if finding.all_io:  # perhaps it does not take that
            plain, _ = _search(finding.scenario, replace(finding, all_io=False), stage)
            finding = plain or finding
        again = True
        while again:
            again = False
            for smaller in _without_one(finding.scenario):
                found, _ = _search(smaller, finding, stage)
                if found is not None:
                    finding, again = found, True
                    break
        found, _ = _search(finding.scenario, finding, stage)
        if found is not None and len(found.schedule) <= len(finding.schedule):
            finding = found
    except OutOfBudget:
        pass
    finally:
        stage.close()
    return finding


def _without_one(scenario: RealScenario) -> list[RealScenario]:
    smaller = []
    for index in range(len(scenario.setup)):
        setup = scenario.setup[:index] + scenario.setup[index + 1 :]
        smaller.append(replace(scenario, setup=setup))
    for index in range(len(scenario.ops) if len(scenario.ops) > 1 else 0):
        ops = list(scenario.ops)
        del ops[index]
        if any(op.after == index for op in ops):
            continue
        shifted = [
            replace(op, after=op.after - 1) if op.after is not None and op.after > index else op
            for op in ops
        ]
        smaller.append(replace(scenario, ops=tuple(shifted), name=f"{scenario.name}'"))
    return smaller


@dataclass(frozen=True, slots=True)
class Shown:
    """Whether a finding showed itself again.

    :ivar finding: as it did, ``None`` where it did not
    :ivar unsure: why nothing follows from that it did not, or ``""``
    """

    finding: Finding | None
    unsure: str = ""


@one_processor()
def show_again(finding: Finding, build: Build) -> Shown:
    """The same verdict and cause on *build*, by the same steps or by any of its scenario.

    Another version does other I/O, so that a schedule cannot always be followed to the letter. Not
    seen is evidence where it could be, or where all schedules of the scenario were taken; and only
    where they begin with the state that the finding began with.

    :raises BuildError: the build cannot do the scenario
    """
    again = replay_schedule(finding, build)
    told = {"name": build.name, "version": list(again.version)}
    if again.shows(finding):
        return Shown(replace(finding, events=again.events, build=told, replays=(1, 1)))
    stage = QemuPool(build)
    try:
        found, exhausted = _search(finding.scenario, finding, stage)
    finally:
        stage.close()
    if found is not None:
        return Shown(replace(found, build=told, replays=(1, 1)))
    if other := other_state(finding, build):
        return Shown(None, other)
    if exhausted or (again.followed and again.violation is None):
        return Shown(None)
    return Shown(
        None,
        "the schedule cannot be followed on this build, and there are more schedules than "
        f"{_SMALLER:g} s suffice for",
    )


@one_processor()
def search(scenario: RealScenario, build: Build) -> Finding | None:
    """Whatever is wrong in a scenario, its shortest schedule first.

    :raises BuildError: the build cannot do the scenario
    """
    stage = QemuPool(build)
    try:
        system = RealSystem(stage, scenario)
        explore(system, Mode.DPOR, Budget(seconds=_SMALLER), stop=False)
        system.leave()
        sightings = [
            Sighting(scenario, one.violation, one.schedule, one.events, one.count)
            for one in system.found.values()
        ]
    finally:
        stage.close()
    found = group(sightings)
    return min(found, key=lambda one: len(one.schedule), default=None)


def _search(
    scenario: RealScenario, finding: Finding, stage: QemuPool
) -> tuple[Finding | None, bool]:
    """The same finding in *scenario*, with its shortest schedule; ``None``: not found.

    :returns: it, and whether all schedules were taken, as far as they could be
    """
    plan = {step.io: step.fault for step in failures(finding.schedule)}
    check = CrashPoints.parse(finding.crash_points).check
    system = RealSystem(stage, scenario, plan=plan, all_io=finding.all_io, each_step=check)
    explored = explore(system, Mode.STATEFUL, Budget(seconds=_SMALLER), stop=False)
    system.leave()
    exhausted = explored.exhaustive and not system.derailed
    assert finding.verdict is not None
    found = system.found.get((finding.verdict, finding.cause))
    if found is None:
        return None, exhausted
    smaller = replace(
        finding,
        scenario=scenario,
        schedule=found.schedule,
        events=found.events,
        text=found.violation.text,
        ending=found.violation.ending,
    )
    return smaller, exhausted
