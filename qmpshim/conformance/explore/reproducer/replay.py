"""Takes a finding's exact steps again, on this or another build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qmpshim.conformance.explore.checkers.crash_points import CrashPoints
from qmpshim.conformance.explore.harness.choices import RealChoice
from qmpshim.conformance.explore.harness.events import Event
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.real_system import Checks, Injection, RealSystem
from qmpshim.conformance.explore.harness.run import Release, faithfully
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.host.processors import one_processor
from qmpshim.model.check.cause import Phase
from qmpshim.model.check.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Replay:
    """How a schedule went.

    :ivar violation: what was wrong, ``None`` if nothing
    :ivar followed: whether every step could be taken
    :ivar early: it went wrong before the last step could be taken
    """

    violation: RealViolation | None
    followed: bool
    events: tuple[Event, ...]
    version: tuple[int, ...]
    early: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """What happened, as text."""
        return tuple(map(str, self.events))

    def shows(self, finding: Finding) -> bool:
        """Whether the finding was seen again.

        QEMU may end by the same signal for another reason: so it has to get as far as it did then.
        """
        if self.violation is None or finding.verdict is None:
            return self.followed and self.violation is None and finding.verdict is None
        if self.early and self.violation.kind in (Verdict.CRASH, Verdict.HANG):
            return False
        return (self.violation.kind, self.violation.cause) == (finding.verdict, finding.cause)


@one_processor()
def replay_schedule(
    finding: Finding,
    build: Build,
    release: Release = faithfully,
    deadline: float | None = None,
) -> Replay:
    """Take a finding's exact steps on *build*, in a fresh process.

    :param deadline: by time.monotonic()
    :raises BuildError: the build cannot do the scenario
    :raises OutOfBudget: the deadline is over
    """
    pool = QemuPool(build, False, deadline)
    try:
        return _replay(finding, pool, release)
    finally:
        pool.close()


def _replay(finding: Finding, pool: QemuPool, release: Release) -> Replay:
    system = system_of(finding, pool, release)
    system.reset()
    version = read_version(pool.build)[0]
    followed, early, violation = follow_finding(system, finding)
    return Replay(violation, followed, tuple(system.now.events), version, early)


def system_of(
    finding: Finding, pool: QemuPool, release: Release = faithfully, keeping: bool = False
) -> RealSystem:
    """The system on which a finding's steps can be taken, each that it may have.

    :param keeping: leave QEMU as it is in the end, to be looked at
    """
    return RealSystem(
        pool,
        finding.scenario,
        injection=Injection(errnos=finding.errnos, most=99),
        checks=Checks(each_step=CrashPoints.parse(finding.crash_points).check),
        release=release,
        all_io=finding.all_io,
        keeping=keeping,
    )


def follow_finding(system: RealSystem, finding: Finding) -> tuple[bool, bool, RealViolation | None]:
    """Take a finding's steps, and then what shows it: the end, or going back to the beginning.

    :returns: whether every step could be taken, whether it went wrong before the last of them, and
        what is wrong
    """
    followed, early = _take(system, finding.schedule)
    if finding.cause.phase is not Phase.TEAR_DOWN:
        _finish(system)
        return followed, early, system.violation
    if not system.enabled():  # else the rest was not done either when it was found
        system.finish()
    return followed, early, system.leave() or system.violation


def follow(system: RealSystem, schedule: Sequence[RealChoice]) -> bool:
    """Take these steps and finish; whether every one could be taken.

    Another build may do without some of the I/O, or do more: steps that are not there are left out,
    and what is left in the end goes in order of arrival.
    """
    followed, _ = _take(system, schedule)
    _finish(system)
    return followed


def _finish(system: RealSystem) -> None:
    while system.violation is None and (left := system.enabled()):
        system.take(left[0])
    system.finish()


def _take(system: RealSystem, schedule: Sequence[RealChoice]) -> tuple[bool, bool]:
    """Whether every step could be taken, and whether something went wrong before the last."""
    followed = True
    for choice in schedule:
        if system.violation is not None:
            return followed, True
        if system.offers(choice):
            system.take(choice)
        elif system.violation is None:
            followed = False
    return followed, False
