"""A real QEMU as a system that can be explored: steps are starting an operation, letting go an I/O.

Implements :class:`qmpshim.model.explore.system.System`, so the model's explorer drives it. A choice
is one of :mod:`~qmpshim.conformance.explore.harness.choices`; how it is taken is in
:mod:`~qmpshim.conformance.explore.harness.run`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from qmpshim.conformance.compare.divergence import BROKEN, verdict_of
from qmpshim.conformance.explore.checkers import final_state
from qmpshim.conformance.explore.checkers.at_end import check_end
from qmpshim.conformance.explore.checkers.end import End
from qmpshim.conformance.explore.checkers.failures import FailureChecker
from qmpshim.conformance.explore.checkers.linearizability import LinearizabilityChecker
from qmpshim.conformance.explore.checkers.orders import keeps_to
from qmpshim.conformance.explore.harness.choices import Complete, Cut, Fail, IoId, RealChoice, Start
from qmpshim.conformance.explore.harness.events import Note
from qmpshim.conformance.explore.harness.footprints import EVERYTHING, Footprints
from qmpshim.conformance.explore.harness.history import Sighting, ended_by, how_it_ended
from qmpshim.conformance.explore.harness.push import ending_of_job
from qmpshim.conformance.explore.harness.qemu_pool import QemuPool
from qmpshim.conformance.explore.harness.run import PATIENCE, RealRun, Release, faithfully
from qmpshim.conformance.explore.outcome import Outcome
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.errors import CommandFailed, MachineError
from qmpshim.model.answers import OK, UNANSWERED
from qmpshim.model.chain.behaviour import behaviour_of
from qmpshim.model.check.cause import Cause, Phase
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.system import NOTHING, Choice, Footprint

log = logging.getLogger(__name__)

_OVER = Verdict.CRASH, Verdict.HANG, Verdict.PROTOCOL  # after which QEMU is of no use any more
_COMES_BACK = 20  # seconds that QEMU waits for a connection to its disks


@dataclass(frozen=True, slots=True)
class Looks:
    """How many crash points were looked at.

    :ivar chosen: of these, by the number or the words that chose them
    """

    count: int = 0
    chosen: Counter[str] = field(default_factory=Counter)

    def __add__(self, more: Looks) -> Looks:
        """These and others."""
        return Looks(self.count + more.count, self.chosen + more.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """Which held I/Os end with an error: an errno or a :class:`.Cut`.

    :ivar plan: by name, these do in every execution, each once. Partial order reduction knows
        steps, not ways for one step to end: so an explorer plans faults, and chooses none
    :ivar errnos: with no plan: any I/O may be ended with one of these instead, as a choice
    :ivar most: how many of those choices there are in one execution
    """

    plan: Mapping[IoId, int] = field(default_factory=dict)
    errnos: tuple[int, ...] = ()
    most: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What is checked, and with what.

    :ivar linearizability: knows what is allowed in the scenario; None: one for the build is made
    :ivar online: requests as they arrive, too (False: only what comes of them)
    :ivar each_step: called after every step with the system (crash points, for one)
    """

    linearizability: LinearizabilityChecker | None = None
    online: bool = True
    each_step: Callable[[RealSystem], RealViolation | None] | None = None


_NO_FAULTS, _ALL_CHECKS = Injection(), Checks()


class RealSystem(RealRun):
    """One scenario on one build (a :class:`~qmpshim.model.explore.system.System`).

    :param pool: where the QEMU comes from
    :param all_io: hold every request, qcow2's own, flushes and block status among them
    :param release: how a request is let go; mutants replace it
    :param keeping: leave QEMU as it is after a violation, to be looked at
    :ivar ios: the names of all held I/Os so far, in whatever execution
    :ivar found: what went wrong so far, by verdict and cause
    :ivar looks: at crash points so far
    :ivar finished: executions so far, :ivar derailed: those that could not be followed
    """

    def __init__(
        self,
        pool: QemuPool,
        scenario: RealScenario,
        *,
        injection: Injection = _NO_FAULTS,
        checks: Checks = _ALL_CHECKS,
        all_io: bool = False,
        release: Release = faithfully,
        keeping: bool = False,
    ) -> None:
        super().__init__(pool, scenario, all_io, release, checks.online)
        self.injection = injection
        self.checks = checks
        self.keeping = keeping
        self.looks = Looks()
        self.found: dict[tuple[Verdict, Cause], Sighting] = {}
        self._checker = checks.linearizability
        self._failure_checker: FailureChecker | None = None
        self._left = True  # nothing is under way
        self._footprints = Footprints(scenario, all_io)

    # -- System ------------------------------------------------------------------------------------

    def movers(self, thread: int) -> Sequence[Choice] | None:
        own = [choice for choice in self.enabled() if self.thread(choice) == thread]
        return own if own and self._footprints.alone(thread) else None

    def fingerprint(self) -> Hashable | None:
        if self.violation is not None:
            return self.violation
        # While a commit goes on, its requests may be taken for those of the mover.
        commits = self.scenario.commits and self._execution.last_moved
        return self._execution.state.fingerprint(self.now), commits

    def reset(self) -> None:
        self.leave(apart=False)
        again = Cut.RECONNECT in (*self.injection.errnos, *self.injection.plan.values())
        self._left = False
        try:
            self.begin(_COMES_BACK if again else 0)
        except MachineError as error:
            self._never_began(error)
            return
        if self._checker is None:
            self._checker = LinearizabilityChecker(
                self.scenario, behaviour_of(self.machine.version)
            )
        if self._failure_checker is None:
            self._failure_checker = FailureChecker(self._checker)

    def enabled(self) -> Sequence[RealChoice]:
        now = self.now
        if self.violation is not None or now.lost:
            return ()
        found: list[RealChoice] = [Start(index) for index in self._startable()]
        plan = self.injection.plan
        if plan and now.faults < len(plan):
            found += [Fail(io, plan[io]) if io in plan else Complete(io) for io in now.held]
            return found
        found += map(Complete, now.held)
        if self.injection.errnos and now.faults < self.injection.most:
            found += [Fail(io, errno) for io in now.held for errno in self.injection.errnos]
        return found

    def offers(self, choice: Choice) -> bool:
        """Whether a step can be taken; what it waits for may be late (a timer, a busy host)."""
        deadline = time.monotonic() + PATIENCE
        while choice not in self.enabled():
            left = deadline - time.monotonic()
            if self.violation is not None or self.now.lost or left < 0:
                return False
            try:
                if self.machine.stalled(left, [named.io for named in self.now.held.values()]):
                    return False
                self.machine.event_loop.poll(0.02)
                self._settle()
            except MachineError as error:
                self._machine_failed(error)
        return True

    def take(self, choice: Choice) -> Footprint:
        now = self.now
        assert isinstance(choice, Start | Complete | Fail)
        if now.lost or self.violation is not None:
            return NOTHING
        if not self.offers(choice):
            why = f"cannot {choice}: there are {list(self.enabled())}"
            log.warning("%s: %s", self.scenario.name, why)
            now.events.append(Note(why))
            now.lost = True
            self.derailed += 1
            self.pool.discard()
            return NOTHING
        now.steps.append(choice)
        before = set(now.over)
        named = None if isinstance(choice, Start) else now.held.get(choice.io)
        known = set(now.held)
        try:
            self._do(choice)
            self._settle()
        except MachineError as error:
            self._machine_failed(error)
            return EVERYTHING
        if self.violation is None and self.checks.each_step is not None:
            self.violation = self.checks.each_step(self)
        if self.violation is not None:
            return EVERYTHING  # no execution goes on from here
        thread = self.thread(choice)
        if now.over - before - {thread}:
            return EVERYTHING  # it ended somebody else, too
        coming = [now.held[name] for name in now.held.keys() - known]
        if self.job_runs():
            unfinished = now.started - now.over
            held = now.held.values()
            if now.faults or not any(self._footprints.is_copy(io, unfinished) for io in held):
                return EVERYTHING
            if named is not None and self.scenario.ops[thread].backs_up:
                return self._footprints.of_copy(named, coming)
        if isinstance(choice, Complete) and named is not None and self.scenario.topology.voters:
            return self._footprints.of_voter(named, coming)
        more = thread not in now.over and all(one.op != thread for one in coming)
        return self._footprints.step(choice, thread, named, more)

    def job_runs(self) -> bool:
        """Whether a backup job goes on."""
        ops, now = self.scenario.ops, self.now
        started = any(ops[n].backs_up and now.answers[n] in (OK, UNANSWERED) for n in now.started)
        return started and ending_of_job(self.machine) is None

    def finish(self) -> Hashable:
        if not self.now.lost and self.violation is None:
            try:
                self.violation = self.run_checkers()
            except MachineError as error:
                self._machine_failed(error)
        if self.now.lost:
            return "lost"
        if self.violation is not None:
            self._keep(self.violation)
            over = self.violation.kind in _OVER
            if (over or self.violation.cause.phase is Phase.SETUP) and not self.keeping:
                self.pool.discard()
            self.pool.mark_tainted()
            return str(self.violation.kind), self.violation.cause
        return tuple(self.now.answers), tuple(self.now.data)

    def leave(self, apart: bool = True) -> RealViolation | None:
        """Go back to the beginning: QEMU has to live through that, whatever the execution did.

        What is wrong then is kept in :attr:`found`, with the steps and lines of that execution.

        :param apart: take the chain apart, too; to be called after the last execution
        """
        if self._left:
            return None
        self._left = True
        violation = self.violation
        if violation is not None:
            seen = self.now.lost or (violation.kind, violation.cause) in self.found
            if not seen:
                self._keep(violation)  # the execution was left before its end
            if violation.kind in _OVER:
                if not self.keeping:
                    self.pool.discard()
                return None
        try:
            self.pool.back(apart)
        except (*BROKEN, CommandFailed) as error:
            text, kind = str(error), verdict_of(error)
            cause, ending = ended_by(error, Phase.TEAR_DOWN), how_it_ended(error)
            wrong = RealViolation(kind, f"taken apart: {text}", cause=cause, ending=ending)
            self.now.events += [Note("afterwards: taken apart"), Note(f"{kind}: {wrong.text}")]
            self._keep(wrong)
            if not self.keeping:
                self.pool.discard()
            return wrong
        return None

    def _keep(self, violation: RealViolation) -> None:
        key = (violation.kind, violation.cause)
        steps, events = tuple(self.now.steps), tuple(self.now.events)
        seen = Sighting(self.scenario, violation, steps, events, 1, self.all_io)
        self.found[key] = self.found[key].joined(seen) if key in self.found else seen

    @property
    def in_part(self) -> int:
        """Executions judged in part: failed operations may have done any part of their work."""
        return self._failure_checker.in_part if self._failure_checker is not None else 0

    # -- the end -----------------------------------------------------------------------------------

    def run_checkers(self) -> RealViolation | None:
        """Look at everything, and run the checkers."""
        errors = self.pool.reported_errors
        end = End(self.machine, self.scenario, self.now, errors, self.judge_outcome)
        return check_end(end)

    def judge_outcome(self, seen: Outcome) -> RealViolation | None:
        """What is wrong with an outcome; None: some sequential execution explains it."""
        assert self._checker is not None and self._failure_checker is not None
        if self.now.failed and self.scenario.backs_up:
            return None  # the checkers of backup jobs take failed I/Os into account themselves
        if self.now.failed:
            return self._failure_checker.judge(seen, self.now.precedence, self.now.failed)
        return self._checker.judge(seen, self.now.precedence)

    def disks(self) -> Outcome:
        """What is on the disks at this moment, QEMU alive or not; for reports."""
        return final_state.disks(self.machine, self.scenario, self.now)

    def predictions(self) -> list[Outcome]:
        """The sequential outcomes that the order of starts and ends leaves possible."""
        assert self._checker is not None
        outcomes = self._checker.outcomes.items()
        return [end for order, end in outcomes if keeps_to(order, self.now.precedence)]
