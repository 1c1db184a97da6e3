"""Good, bad or cannot be tested: what ``git bisect run`` has to know of one build.

``git bisect run`` takes 0 for good, 125 for "skip this commit", 1 to 127 for bad, and ends at 128
and above. So only what was looked for, seen, is bad; what is wrong with the question itself (no
such bundle) ends the bisection rather than blaming a commit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qmpshim.conformance.check.case import Case, CaseOutcome, Status
from qmpshim.conformance.check.report.compare import Comparison, State
from qmpshim.conformance.check.suites import Suite
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.known.matching import DirectedWriteUp, ExplorerWriteUp

GOOD, BAD, SKIP, ABORT = 0, 1, 125, 128


@dataclass(frozen=True, slots=True)
class BisectAnswer:
    """The exit status, and why."""

    status: int
    text: str


def in_haste(suite: Suite) -> Suite:
    """While bisecting, what workloads find is not made small: only the exit status is used."""
    return replace(
        suite,
        cases=tuple(
            replace(case, arguments={**case.arguments, "shrink": 0})
            if case.kind in ("verify", "points")
            else case
            for case in suite.cases
        ),
    )


def named_cases(suite: Suite) -> Suite:
    """A suite of cases that were chosen by their names, as bisecting takes them.

    A known finding that is named is checked on any build, also on one not known to have it: its
    case is the bundle in its write-up.

    :raises InputError: a case has no write-up
    """
    return replace(suite, cases=tuple(map(_named_case, suite.cases)))


def _named_case(case: Case) -> Case:
    if case.kind != "known":
        return case
    written = write_up(str(case.arguments.get("id", case.name)))
    if isinstance(written, DirectedWriteUp):
        return replace(case, kind="directed", arguments={"case": written.name.partition("/")[2]})
    if not isinstance(written, ExplorerWriteUp):
        return replace(case, budget=300.0)
    content = written.case.to_json()
    return replace(case, kind="bundle", arguments={"content": content}, budget=300.0)


def answer(comparison: Comparison, named: bool = False) -> BisectAnswer:
    """What follows from a run of one build.

    A bundle's finding is bad where it shows itself, written up or not; another divergence in its
    place leaves the question open. Of other cases whatever is new is bad, if it shows itself each
    time: a commit is not blamed for what may be luck, nor cleared.

    :param named: the cases were chosen by their names: then what a directed
        case shows is what was looked for, written up or not
    """
    outcomes = comparison.results.outcomes
    directed = {case.name for case in comparison.results.cases if case.kind == "directed"}
    for (_, name), outcome in outcomes.items() if named else ():
        if name in directed and outcome.findings:
            return BisectAnswer(BAD, f"bad: {name}: {outcome.findings[0].title}")
    bundles = {
        key: outcome
        for key, outcome in outcomes.items()
        if any(case.name == key[1] and _is_bundle(case, named) for case in comparison.results.cases)
    }
    shown = [outcome for outcome in bundles.values() if outcome.figures.get("reproduced")]
    if shown:
        return BisectAnswer(BAD, f"bad: {shown[0].text}")
    others = [
        (row, sight)
        for row, sight in comparison.failing()
        if any((sight.build, case) not in bundles for case in sight.cases)
    ]
    if others:
        sure = [(row, sight) for row, sight in others if sight.state is not State.UNCONFIRMED]
        row, sight = (sure or others)[0]
        if not sure:
            return BisectAnswer(SKIP, f"cannot be tested: {row.key} did not show itself every time")
        return BisectAnswer(BAD, f"bad: {row.key} in {sight.smallest}: {sight.best.title}")
    for outcome in outcomes.values():
        if outcome.status is Status.BROKEN:
            return BisectAnswer(SKIP, f"cannot be tested: {outcome.text}")
    for outcome in bundles.values():
        if outcome.status is Status.DIVERGED:
            return BisectAnswer(SKIP, f"cannot be tested, {outcome.text}")
    if all(_skipped(outcome) for outcome in outcomes.values()):
        text = next(iter(outcomes.values())).text if outcomes else "nothing was done"
        return BisectAnswer(SKIP, f"cannot be tested: {text}")
    done = sum(not _skipped(outcome) for outcome in outcomes.values())
    return BisectAnswer(GOOD, f"good: {done} case(s) as predicted")


def _is_bundle(case: Case, named: bool) -> bool:
    """Whether one thing is looked for in it: a bundle, or a known finding that was named."""
    return case.kind == "bundle" or (named and case.kind == "known")


def _skipped(outcome: CaseOutcome) -> bool:
    return outcome.status is Status.SKIPPED
