"""From what was tried on a build to an answer for each use. Pure: it runs nothing."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qmpshim.conformance.assess.exploration import LEAST, Explored
from qmpshim.conformance.assess.trials import Seen, Trial
from qmpshim.conformance.assess.workloads import UseWorkload, WorkloadTrial
from qmpshim.conformance.check.case import CaseFinding, Status
from qmpshim.conformance.explore.directed.run import DirectedFinding
from qmpshim.conformance.explore.report.report import AnyFinding
from qmpshim.conformance.known.folder import by_id
from qmpshim.conformance.known.meaning import SEVERITY_OF, Severity, Trigger
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import Use
from qmpshim.errors import name_errnos
from qmpshim.model.check.verdict import Verdict

_NOT_AGAIN = "seen, and not each time it was tried again"
_NOT_TRIED = "seen, and not tried again"
#: What stands above the remarks of a judgement.
NOT_AGAINST_IT = (
    "shown, and not against it: it loses nothing unannounced, or takes more than ordinary use and "
    "one failure"
)
#: What stands before the known findings that the time did not suffice for.
UNTRIED = "not tried for lack of time, and as little against it"


class Answer(StrEnum):
    """Whether a build can be relied on for a use."""

    RELIABLE = "RELIABLE"
    NOT_RELIABLE = "NOT RELIABLE"
    CANNOT_TELL = "CANNOT TELL"


@dataclass(frozen=True, slots=True, eq=False)
class Reason:
    """Why, in words for users. Two are never the same one, so each can have its command.

    :ivar text: what happens, :ivar when: and when, :ivar then: what comes of it,
        :ivar avoid: and how to avoid it, :ivar fixed: the first release without it; all but *text*
        are ``""`` of what has no write-up
    :ivar entry: the write-up, None: there is none
    :ivar finding: of the exploration, None: something else shows it
    :ivar workload: that showed it, None: something else does
    :ivar trial: of a known finding, in whose case it went wrong instead, None: something else shows
        it
    :ivar contract: it keeps to QEMU's documents
    """

    severity: Severity
    text: str
    when: str = ""
    then: str = ""
    avoid: str = ""
    fixed: str = ""
    promised: str = ""
    entry: WriteUp | None = None
    finding: AnyFinding | None = None
    workload: UseWorkload | None = None
    trial: Trial | None = None
    contract: bool = True

    @property
    def condition(self) -> str:
        """What it takes beside ordinary use, ``""``: not known."""
        if self.entry is not None:
            return self.entry.meaning.trigger.words
        return "" if self.contract else Trigger.MISUSE.words


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer for a use.

    :ivar reasons: why it is not reliable, the worst first
    :ivar doubts: why more cannot be concluded, one line each
    :ivar remarks: what was shown and does not make it unreliable, the worst first
    """

    use: Use
    answer: Answer
    reasons: tuple[Reason, ...]
    doubts: tuple[str, ...]
    remarks: tuple[Reason, ...]
    tried: tuple[Trial, ...]
    explored: Explored
    workloads: tuple[WorkloadTrial, ...]

    @property
    def findings_tried(self) -> int:
        """How many of the known findings were tried: there was time, and the build can do it."""
        return sum(one.seen not in (Seen.NOT_TRIED, Seen.IMPOSSIBLE) for one in self.tried)

    @property
    def untried(self) -> tuple[WriteUp, ...]:
        """Known findings that the time did not suffice for; none makes a build unreliable.

        What showed itself nevertheless, beside something else, is not among them.
        """
        shown = [one.entry for one in (*self.reasons, *self.remarks)]
        return tuple(
            one.entry
            for one in self.tried
            if one.seen is Seen.NOT_TRIED
            and not one.entry.meaning.disqualifies
            and one.entry not in shown
        )

    @property
    def figures(self) -> str:
        """What was tried, in words."""
        explored = self.explored
        impossible = sum(one.seen is Seen.IMPOSSIBLE for one in self.tried)
        text = f"{self.findings_tried} of {len(self.tried)} known findings tried"
        text += f" ({impossible} not possible here)" if impossible else ""
        if self.workloads:
            operations = sum(one.operations for one in self.workloads)
            text += f", {operations} operations of random workloads"
        if explored.cases:
            text += f", {explored.cases_run} of {explored.cases} directed cases run"
        if not explored.scenarios:
            return f"{text}, nothing explored"
        return (
            f"{text}, {explored.schedules} schedules explored, at least {LEAST} of each of "
            f"{explored.reached} of {explored.scenarios} scenarios ({explored.exhausted} exhausted)"
            + (f", {explored.lacking} need what it does not have" if explored.lacking else "")
        )


def judge(
    use: Use, trials: Sequence[Trial], explored: Explored, workloads: Sequence[WorkloadTrial] = ()
) -> Judgement:
    """The answer for *use*.

    :param trials: of all findings; those that do not affect the use are passed over
    :param explored: the scenarios of this use
    :param workloads: of all uses
    """
    ran = tuple(one for one in workloads if use in one.workload.uses)
    own = tuple(trial for trial in trials if use in trial.entry.meaning.affects)
    shown = {trial.entry.name: _of_entry(trial.entry) for trial in own if trial.seen is Seen.SHOWN}
    new: list[Reason] = []
    doubts = []
    for finding in (one for one in explored.seen if one.confirmed):
        entry = by_id(finding.known)
        if entry is None:
            new.append(_of_finding(finding))
        elif use in entry.meaning.affects:
            shown.setdefault(entry.name, _of_entry(entry))
    elsewhere = {(one.verdict, one.cause) for one in explored.seen if one.confirmed}
    instead = [trial for trial in own if trial.new and use in trial.uses]
    by_cause = {
        (trial.wrong, trial.causes): trial
        for trial in instead
        if not {(trial.wrong, cause) for cause in trial.causes} <= elsewhere
    }
    new += [_of_trial(trial) for trial in by_cause.values()]
    for run in ran:
        for found in run.outcome.findings:
            entry = by_id(found.known)
            if entry is None and not found.confirmed:
                if found.contract:
                    doubts.append(f"{_NOT_AGAIN}: {found.verdict}: {name_errnos(found.title)}")
            elif entry is None:
                new.append(_of_workload(run.workload, found))
            elif use in entry.meaning.affects:
                shown.setdefault(entry.name, _of_entry(entry))
        if run.outcome.status in (Status.SKIPPED, Status.BROKEN):
            doubts.append(f"the workload {run.workload.workflow}: {run.outcome.text}")
    everything = sorted((*shown.values(), *new), key=lambda one: one.severity.rank)
    reasons = tuple(one for one in everything if _disqualifies(one))
    doubts += _unexplored(use, explored)
    doubts += [
        f"{_NOT_AGAIN if finding.tried else _NOT_TRIED}: {finding.described}"
        for finding in explored.seen
        if not finding.confirmed and _would_disqualify(finding, use, shown)
    ]
    doubts += [
        f"{trial.entry.name}: {_doubt(trial)}"
        for trial in own
        if _leaves_doubt(trial) and trial.entry.name not in shown and trial not in instead
    ]
    answer = Answer.NOT_RELIABLE if reasons else Answer.CANNOT_TELL if doubts else Answer.RELIABLE
    remarks = tuple(one for one in everything if not _disqualifies(one))
    return Judgement(use, answer, reasons, tuple(doubts), remarks, own, explored, ran)


def _unexplored(use: Use, explored: Explored) -> Iterator[str]:
    """What was not explored, as doubts."""
    if not explored.scenarios:
        yield f"there is no exploration of {use.words} in this qmpshim"
    elif explored.skipped + explored.lacking == explored.scenarios:
        yield f"this build cannot do it: {explored.why}"
    elif explored.skipped:
        many = f"{explored.skipped} of {explored.scenarios}"
        yield f"{many} scenarios could not be done: {explored.why}"
    if left := explored.scenarios - explored.skipped - explored.lacking - explored.reached:
        yield f"{left} of {explored.scenarios} scenarios were not explored in the budget"
    if explored.cases_run < explored.cases:
        many = f"{explored.cases - explored.cases_run} of {explored.cases}"
        yield f"{many} directed cases were not run"


def _leaves_doubt(trial: Trial) -> bool:
    """Whether it is not known of a finding that matters, or something else went wrong beside it."""
    meaning = trial.entry.meaning
    if trial.seen is Seen.OTHER:
        return meaning.disqualifies or trial.entry.contract
    return trial.seen in (Seen.UNSURE, Seen.NOT_TRIED) and meaning.disqualifies


def _doubt(trial: Trial) -> str:
    why = name_errnos(trial.why)
    return f"{trial.seen.value}: {why}" if trial.seen is Seen.OTHER else why


def _would_disqualify(finding: AnyFinding, use: Use, shown: Container[str]) -> bool:
    """Whether a finding of the exploration, were it confirmed, would be another reason."""
    entry = by_id(finding.known)
    if entry is None:
        return finding.contract
    meaning = entry.meaning
    return use in meaning.affects and meaning.disqualifies and entry.name not in shown


def _disqualifies(reason: Reason) -> bool:
    """What is known by its meaning; what is not explained if it is within the contract."""
    if reason.entry is not None:
        return reason.entry.meaning.disqualifies
    return reason.contract


def _of_entry(entry: WriteUp) -> Reason:
    meaning = entry.meaning
    return Reason(
        meaning.severity,
        entry.title,
        meaning.situation,
        meaning.consequence,
        meaning.workaround,
        meaning.fix.release if meaning.fix else entry.fixed,
        entry=entry,
    )


def _of_finding(finding: AnyFinding) -> Reason:
    assert finding.verdict is not None
    text = _what(finding.verdict, finding.text)
    severity = SEVERITY_OF[finding.verdict]
    promised = finding.case.about if isinstance(finding, DirectedFinding) else ""
    contract = finding.contract
    return Reason(severity, text, promised=promised, finding=finding, contract=contract)


def _of_workload(workload: UseWorkload, found: CaseFinding) -> Reason:
    severity = SEVERITY_OF[found.verdict]
    text = _what(found.verdict, found.title)
    return Reason(severity, text, workload=workload, contract=found.contract)


def _of_trial(trial: Trial) -> Reason:
    assert trial.wrong is not None
    severity = SEVERITY_OF[trial.wrong]
    text = name_errnos(trial.why).removeprefix(f"{severity.value}: ")
    return Reason(severity, text, trial=trial)


def _what(verdict: Verdict, text: str) -> str:
    """What stands after a severity: with the verdict where that is another word."""
    text = name_errnos(text)
    return text if SEVERITY_OF[verdict].value == verdict.value else f"{verdict}: {text}"
