"""Makes a finding small and proves it, again on fresh QEMUs.

Small is: the fewest I/Os that fail, the fewest things that a scenario has beyond the default, then
the fewest operations, then the fewest steps. What is left then is what the defect needs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qmpshim.conformance.explore.checkers.crash_points import NO_CRASH_POINTS, CrashPoints
from qmpshim.conformance.explore.harness.choices import Complete, Fail, IoId, failures
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, Injection, RealSystem
from qmpshim.conformance.explore.harness.setup_state import allocation_after_setup, other_state
from qmpshim.conformance.explore.report.findings import Finding, group
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.space.simpler import simpler, simplest
from qmpshim.machine.builds.build import Build
from qmpshim.machine.host.processors import one_processor
from qmpshim.model.check.cause import Cause
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import Mode, explore
from qmpshim.model.explore.walk import Budget, OutOfBudget
from qmpshim.model.operations import operation

TIMES = 3  # how often a finding has to show itself again
_PAST = 3  # checkpoints that a finding may need to have behind it
SMALLER_LIMIT = 5.0  # seconds for each try with less
_PLACES = 3  # I/Os of another scenario that are tried in place of the one that failed
_SHIFT = 3  # by how much the numbers of equal I/Os may differ where one before them does not fail
_SHIFTS = sorted({*range(-_SHIFT, _SHIFT + 1)} - {0}, key=abs)
_FEW = 4  # schedules in which one of another number is tried


@one_processor()
def confirm(
    finding: Finding,
    build: Build,
    minimise: bool = True,
    errnos: Sequence[int] = (),
    crash_points: CrashPoints = NO_CRASH_POINTS,
    all_io: bool = False,
    deadline: float | None = None,
    recognise: Callable[[Finding], str] = lambda finding: finding.known,
) -> Finding:
    """Make a finding small and run it again on fresh QEMUs.

    :param crash_points: how the images were looked at when it was found
    :param all_io: whether qcow2's own I/O was held then
    :param deadline: by time.monotonic(); half of the time until then is for making it small. What
        could not be run again before is given back as not tried
    :param recognise: the id of the known finding that one is, or ``""``: of several failures those
        that it takes are found out before
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
    if finding.several_failed and not finding.known:
        finding = _reduced(finding, build, _half_way(deadline), _Reduction.fewer_faults)
        finding = replace(finding, known=recognise(finding))
    if minimise and not finding.known:
        finding = _reduced(finding, build, _half_way(deadline), _Reduction.run)
    try:
        best = _with_past(finding, build, deadline)
        if not best.confirmed and minimise and finding.known:
            smaller = _reduced(finding, build, _half_way(deadline), _Reduction.run)
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
    have them: what the reused process had behind it becomes part of the setup.
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


def _reduced(
    finding: Finding,
    build: Build,
    deadline: float | None,
    reduce: Callable[[_Reduction], None],
) -> Finding:
    """Do without whatever the same is seen without.

    :param deadline: then it is as small as it was made until then
    """
    pool = QemuPool(build, deadline=deadline)
    reduction = _Reduction(finding, pool)
    try:
        reduce(reduction)
    except OutOfBudget:
        pass
    finally:
        pool.close()
    return reduction.finding


class _Reduction:
    """One finding being made smaller.

    :ivar finding: the smallest so far
    """

    def __init__(self, finding: Finding, pool: QemuPool) -> None:
        self.finding = finding
        self._pool = pool

    def run(self) -> None:
        """Make it as small as it gets.

        :raises OutOfBudget: the pool's deadline has passed
        """
        if self.finding.all_io:  # perhaps it does not take that
            self._keep(self.finding.scenario, replace(self.finding, all_io=False))
        self._fewer_dimensions()
        self._fewer_operations()
        found, *_ = _search(self.finding.scenario, self.finding, self._pool)
        if found is not None and len(found.schedule) <= len(self.finding.schedule):
            self.finding = found

    def fewer_faults(self) -> None:
        """Let only those I/Os fail without which it is not seen.

        :raises OutOfBudget: the pool's deadline has passed
        """
        for step in failures(self.finding.schedule):
            if not self.finding.several_failed:
                return
            self.finding = self._without_fault(step) or self.finding

    def _without_fault(self, step: Fail) -> Finding | None:
        """As it is seen when an I/O does not fail: by the same steps, or by any of its scenario."""
        schedule = tuple(Complete(one.io) if one == step else one for one in self.finding.schedule)
        less = replace(self.finding, schedule=schedule)
        again = replay_schedule(less, self._pool.build, deadline=self._pool.deadline)
        if again.violation is not None:  # its cause may have named the other failure
            cause = again.violation.cause
            if replace(cause, fault=None) == replace(less.cause, fault=None):
                less = replace(less, cause=cause, text=again.violation.text)
        if again.shows(less):
            return replace(less, events=again.events)
        found, *_ = _search(less.scenario, less, self._pool)
        return found or self._renumbered(less)

    def _renumbered(self, less: Finding) -> Finding | None:
        """As it is seen when an equal I/O fails in place of one: what does not fail has shifted it.

        QEMU gives up an operation's work, flushes among it, where an I/O of it fails.
        """
        plan = _plan(less)
        for io, by in itertools.product(plan, _SHIFTS):
            if io.nth + by >= 0:
                other = {one._replace(nth=one.nth + by * (one == io)): plan[one] for one in plan}
                found, *_ = _search(less.scenario, less, self._pool, other, schedules=_FEW)
                if found is not None:
                    return found
        return None

    def _keep(self, scenario: RealScenario, finding: Finding) -> bool:
        """Whether the finding is seen in *scenario*, too: then it is made to be of it."""
        found, *_ = _search(scenario, finding, self._pool)
        self.finding = found or self.finding
        return found is not None

    def _fewer_dimensions(self) -> None:
        """Give up what is not the default, and note what cannot be given up.

        First everything at once, then one thing after another until none of them is seen without.
        """
        bare = simplest(self.finding.scenario)
        if bare is not None:
            self._seen_in(bare)
        needed: dict[str, bool] = {}
        again = True
        while again:
            again = False
            for less in simpler(self.finding.scenario):
                if less.without in needed:
                    continue
                seen = self._seen_in(less.scenario)
                if seen is True:
                    # What was needed beside this may do without that, now that this is gone.
                    needed, again = {}, True
                    break
                needed[less.without] = seen is None
                self.finding = replace(
                    self.finding,
                    needs=tuple(one for one, unsure in needed.items() if not unsure),
                    may_need=tuple(one for one, unsure in needed.items() if unsure),
                )

    def _seen_in(self, scenario: RealScenario) -> bool | None:
        """Whether the finding is seen in another scenario; ``None``: that was not found out."""
        finding = replace(self.finding, needs=(), may_need=())
        sure = True
        for plan in self._plans(scenario):
            found, exhausted, _ = _search(scenario, finding, self._pool, plan, first=True)
            sure = sure and exhausted
            if found is not None:
                self.finding = found
                return True
        return False if sure else None

    def _plans(self, scenario: RealScenario) -> list[dict[IoId, int]]:
        """What is to fail in another scenario: the same I/O, or one of its kind elsewhere."""
        plan = _plan(self.finding)
        if len(plan) != 1:
            return [plan]
        system = RealSystem(self._pool, scenario, all_io=self.finding.all_io)
        explore(system, Mode.RANDOM, Budget(schedules=1), stop=False)
        system.leave()
        ((io, errno),) = plan.items()
        alike = _alike(io, system.ios)
        alike.sort(key=lambda one: one != io)
        return [{one: errno} for one in alike[:_PLACES]] or [plan]

    def _fewer_operations(self) -> None:
        """Leave out operations, of the setup too, as long as the same is seen without."""
        again = True
        while again:
            again = any(
                self._keep(smaller, self.finding) for smaller in _without_one(self.finding.scenario)
            )


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
    :ivar others: where it did not, what else went wrong in its scenario, with the same failures
    :ivar absent: what failed when it did, and is requested in no schedule here, nor is anything of
        its kind
    """

    finding: Finding | None
    unsure: str = ""
    others: tuple[Finding, ...] = ()
    absent: tuple[IoId, ...] = ()

    @property
    def unrequested(self) -> str:
        """What is :attr:`absent`, for people; ``""``: nothing is."""
        names = " and ".join(map(str, self.absent))
        return names and f"no schedule of the scenario requests what has to fail, {names}"


@one_processor()
def show_again(finding: Finding, build: Build) -> Shown:
    """The same verdict and cause on *build*, by the same steps or by any of its scenario.

    Another version does other I/O, so that a schedule cannot always be followed to the letter. Not
    seen is evidence where it could be, or where all schedules of the scenario were taken; and only
    where they begin with the state that the finding began with.

    :raises BuildError: the build cannot do the scenario
    """
    again = replay_schedule(finding, build)
    run_on = {"name": build.name, "version": list(again.version)}
    if again.shows(finding):
        return Shown(replace(finding, events=again.events, build=run_on, replays=(1, 1)))
    pool = QemuPool(build)
    try:
        found, exhausted, sightings, absent = _search_all(finding, pool)
    finally:
        pool.close()
    if found is not None:
        return Shown(replace(found, build=run_on, replays=(1, 1)))
    errnos, points = tuple(dict.fromkeys(_plan(finding).values())), finding.crash_points
    others = tuple(
        replace(one, build=run_on, errnos=errnos, crash_points=points) for one in group(sightings)
    )
    unsure = other_state(finding, build)
    if not unsure and not exhausted and (again.violation is not None or not again.followed):
        unsure = (
            "the schedule cannot be followed on this build, and there are more schedules than "
            f"{SMALLER_LIMIT:g} s suffice for"
        )
    return Shown(None, unsure, others, absent)


def _search_all(
    finding: Finding, pool: QemuPool
) -> tuple[Finding | None, bool, list[Sighting], tuple[IoId, ...]]:
    """The same finding in its scenario; where what fails there does not come, one of its kind does.

    :returns: it, whether all schedules were taken, all that went wrong in them, and what is to fail
        and never comes
    """
    plan = _plan(finding)
    found, exhausted, system = _search(finding.scenario, finding, pool, plan)
    sightings, ios = [*system.found.values()], system.ios
    if found is not None or not exhausted or plan.keys() <= ios:
        return found, exhausted, sightings, ()
    places = [[io] if io in ios else _alike(io, ios) for io in plan]
    for some in itertools.product(*places):
        other = dict(zip(some, plan.values(), strict=True))
        found, whole, system = _search(finding.scenario, finding, pool, other)
        sightings += [*system.found.values()]
        if found is not None:
            return found, exhausted, sightings, ()
        exhausted = exhausted and whole
    absent = tuple(io for io, some in zip(plan, places, strict=True) if not some)
    return None, exhausted, sightings, absent


def _alike(io: IoId, ios: Iterable[IoId]) -> list[IoId]:
    """Of these I/Os those of the same operation and kind as one."""
    kind = io.op, io.kind, io.meta
    return [one for one in sorted(ios) if (one.op, one.kind, one.meta) == kind]


def _plan(finding: Finding) -> dict[IoId, int]:
    """What fails in a finding's schedule."""
    return {step.io: step.fault for step in failures(finding.schedule)}


class _Until(RealSystem):
    """Ends an exploration once something was seen."""

    sought: tuple[Verdict, Cause] | None = None

    def reset(self) -> None:
        if self.sought in self.found:
            raise OutOfBudget
        super().reset()


def _search(
    scenario: RealScenario,
    finding: Finding,
    pool: QemuPool,
    plan: Mapping[IoId, int] | None = None,
    first: bool = False,
    schedules: int | None = None,
) -> tuple[Finding | None, bool, RealSystem]:
    """The same finding in *scenario*, with its shortest schedule; ``None``: not found.

    :param plan: what fails (default: what fails in the finding's schedule)
    :param first: any schedule will do, not the shortest
    :param schedules: how many are taken at most; ``None``: what there is time for
    :returns: it, whether all schedules were taken, as far as they could be, and what took them
    """
    plan = _plan(finding) if plan is None else plan
    check = CrashPoints.parse(finding.crash_points).check
    system = _Until(
        pool,
        scenario,
        injection=Injection(plan=plan),
        checks=Checks(each_step=check),
        all_io=finding.all_io,
    )
    if first and finding.verdict is not None:
        system.sought = finding.verdict, finding.cause
    budget = Budget(seconds=SMALLER_LIMIT, schedules=schedules)
    explored = explore(system, Mode.STATEFUL, budget, stop=False)
    system.leave()
    exhausted = explored.exhaustive and not system.derailed
    assert finding.verdict is not None
    found = system.found.get((finding.verdict, finding.cause))
    if found is None:
        return None, exhausted, system
    smaller = replace(
        finding,
        scenario=scenario,
        schedule=found.schedule,
        events=found.events,
        text=found.violation.text,
        contract=scenario.contract,
        ending=found.violation.ending,
    )
    return smaller, exhausted, system
