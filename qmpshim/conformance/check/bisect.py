"""Good, bad or cannot be tested: what ``git bisect run`` asks of one build.

``git bisect run`` takes 0 for good, 125 for "skip this commit", 1 to 127 for bad, and ends at 128
and above. So only what was looked for, seen, is bad; what is wrong with the question itself (no
such bundle) ends the bisection rather than blaming a commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from qmpshim.conformance.case import CaseOutcome, Status
from qmpshim.conformance.check.compare import Comparison, State

GOOD, BAD, SKIP, ABORT = 0, 1, 125, 128


@dataclass(frozen=True, slots=True)
class Answer:
    """The exit status, and why."""

    status: int
    text: str


def answer(comparison: Comparison) -> Answer:
    """What a run of one build says.

    A bundle's finding is bad where it shows itself, written up or not; another divergence in its
    place leaves the question open. Of other cases whatever is new is bad, if it shows itself each
    time: a commit is not blamed for what may be luck, nor cleared.
    """
    outcomes = comparison.results.outcomes
    bundles = {
        key: outcome
        for key, outcome in outcomes.items()
        if any(case.kind == "bundle" and case.name == key[1] for case in comparison.results.cases)
    }
    shown = [outcome for outcome in bundles.values() if outcome.figures.get("reproduced")]
    if shown:
        return Answer(BAD, f"bad: {shown[0].text}")
    others = [
        (row, sight)
        for row, sight in comparison.failing()
        if any((sight.build, case) not in bundles for case in sight.cases)
    ]
    if others:
        sure = [(row, sight) for row, sight in others if sight.state is not State.UNCONFIRMED]
        row, sight = (sure or others)[0]
        if not sure:
            return Answer(SKIP, f"cannot be tested: {row.key} did not show itself every time")
        return Answer(BAD, f"bad: {row.key} in {sight.smallest}: {sight.best.title}")
    for outcome in outcomes.values():
        if outcome.status is Status.BROKEN:
            return Answer(SKIP, f"cannot be tested: {outcome.text}")
    for outcome in bundles.values():
        if outcome.status is Status.DIVERGED:
            return Answer(SKIP, f"cannot be tested, {outcome.text}")
    if all(_skipped(outcome) for outcome in outcomes.values()):
        text = next(iter(outcomes.values())).text if outcomes else "nothing was done"
        return Answer(SKIP, f"cannot be tested: {text}")
    return Answer(GOOD, f"good: {len(outcomes)} case(s) as predicted")


def _skipped(outcome: CaseOutcome) -> bool:
    return outcome.status is Status.SKIPPED
