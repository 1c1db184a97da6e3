"""What the results mean: which build fails what, what is new, what is gone, the smallest case.

A finding is the same on two builds when its key is: the id of what is written up, else verdict
and cause. *New* is what is neither written up nor in the reference: the baseline when there is
one, else nothing. Beside that, each build is compared with the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qmpshim.conformance.check.case import CaseFinding, Status
from qmpshim.conformance.check.report.results import Results
from qmpshim.conformance.check.run.again import replay_command
from qmpshim.conformance.check.run.journal import Key
from qmpshim.conformance.finding_words import CANNOT_BE_TESTED, KNOWN_FAIL
from qmpshim.conformance.known.folder import known_directed, known_findings, summary
from qmpshim.conformance.known.seen import SeenFinding, assessed, seen
from qmpshim.conformance.known.write_ups import WriteUp


class State(StrEnum):
    """What a finding is to a reader of the report; the first that fits."""

    UNCONFIRMED = "unconfirmed"  # it did not show itself again every time
    BASELINE = "in baseline"
    KNOWN = "known"
    NEW = "new"


@dataclass(slots=True)
class Sight:
    """A finding on one build.

    :ivar cases: it was seen in, with how often
    :ivar best: its smallest case, of case ``smallest``
    :ivar differs: it is not in the reference (the baseline, else the first build), where the same
        case was done
    :ivar before: it is in the baseline, known or not
    """

    build: str
    cases: dict[str, int]
    smallest: str
    best: CaseFinding
    state: State = State.NEW
    differs: bool = False
    before: bool = False

    @property
    def count(self) -> int:
        """How often it was seen."""
        return sum(self.cases.values())


@dataclass(slots=True)
class Row:
    """A finding, wherever it was seen.

    :ivar sights: by build
    """

    key: str
    sights: dict[str, Sight] = field(default_factory=dict)

    @property
    def smallest(self) -> Sight:
        """The sight with the smallest case."""
        return min(self.sights.values(), key=lambda sight: _size(sight.best))

    @property
    def state(self) -> State:
        """The worst of its states."""
        return max((sight.state for sight in self.sights.values()), key=list(State).index)


@dataclass(frozen=True, slots=True)
class Gone:
    """What was to be expected on a build and was not seen, though its case was done.

    :ivar why: what made one expect it
    """

    build: str
    key: str
    title: str
    why: str


@dataclass(slots=True)
class Comparison:
    """All answers.

    :ivar rows: new ones first
    :ivar broken: what could not be carried out: build, case, why
    :ivar skipped: what cannot be tested: build, case, why
    """

    results: Results
    rows: list[Row]
    gone: list[Gone]
    broken: list[tuple[str, str, str]]
    skipped: list[tuple[str, str, str]]
    strict: bool
    baseline: Results | None = None

    def failing(self) -> Iterator[tuple[Row, Sight]]:
        """What the run fails for."""
        for row in self.rows:
            for sight in row.sights.values():
                if self.fails(sight):
                    yield row, sight

    def seen_on(self, build: str) -> list[SeenFinding]:
        """What was seen on a build, for what it means to a user."""
        return [seen(row.sights[build].best) for row in self.rows if build in row.sights]

    def answer_on(self, build: str) -> str:
        """What `assess` would make of what was seen on a build."""
        if not any(self.results.ran(build, case.name) for case in self.results.cases):
            return "CANNOT TELL: none of these cases was carried out on it"
        return assessed(self.seen_on(build))

    def fails(self, sight: Sight) -> bool:
        """Whether the run fails for it: a finding without a write-up, seen once or each time.

        What is in the baseline never does, known or not.
        """
        new = sight.state in (State.NEW, State.UNCONFIRMED)
        return new or (self.strict and sight.state is State.KNOWN and not sight.before)

    @property
    def ran(self) -> bool:
        """Whether any case was done to its end on any build."""
        return any(self.results.ran(*key) for key in self.results.outcomes)

    @property
    def reference(self) -> str:
        """What the builds are held against, in words."""
        return "in the baseline" if self.baseline else f"on {self.results.builds[0].name}"

    @property
    def exit_status(self) -> int:
        """0, 1, 2 or 125: see the README."""
        if any(self.failing()):
            return 1
        if self.broken or not self.results.complete:
            return 2
        outcomes = self.results.outcomes.values()
        return 125 if all(one.status is Status.SKIPPED for one in outcomes) else 0

    def of(self, key: Key) -> list[tuple[Row, CaseFinding]]:
        """The findings of one case on one build."""
        outcome = self.results.outcomes.get(key)
        by_key = {row.key: row for row in self.rows}
        return [(by_key[f.key], f) for f in outcome.findings] if outcome else []

    def summary(self) -> dict[str, Any]:
        """For the JSON document."""
        return {
            "exit status": self.exit_status,
            "findings": [
                {
                    "key": row.key,
                    "state": row.state.value,
                    "builds": [
                        {
                            "build": sight.build,
                            "state": sight.state.value,
                            "count": sight.count,
                            "cases": sorted(sight.cases),
                            "smallest": sight.smallest,
                            "again": replay_command(
                                self.results.plan, (sight.build, sight.smallest), sight.best
                            ),
                            "not in the reference": sight.differs,
                        }
                        for sight in row.sights.values()
                    ],
                }
                for row in self.rows
            ],
            "gone": [
                {"build": one.build, "key": one.key, "title": one.title, "why": one.why}
                for one in self.gone
            ],
        }


def headline(comparison: Comparison) -> str:
    """What a run came to, in one line; what it counts is what decides the exit status."""
    new, known, unsure, before = (
        [row for row in comparison.rows if row.state is state]
        for state in (State.NEW, State.KNOWN, State.UNCONFIRMED, State.BASELINE)
    )
    found = f"{len(new)} new finding(s), {len(known)} known" + (
        f", {len(unsure)} that did not show themselves every time" if unsure else ""
    )
    found += f", {len(before)} not explained and in the baseline" if before else ""
    status = comparison.exit_status
    if status == 0:
        # What is in the baseline alone was not predicted.
        return f"{'nothing new since the baseline' if before else 'all as predicted'}: {found}"
    if status == 1:
        failing = len({row.key for row, _ in comparison.failing()})
        why = f" ({KNOWN_FAIL})" if comparison.strict else ""
        return f"DIVERGED: {failing} finding(s) fail the run{why}: {found}"
    of = len(comparison.results.plan.keys)
    if status == 125:
        return f"{CANNOT_BE_TESTED}: none of the {of} case(s) on these builds"
    outcomes = comparison.results.outcomes
    done = sum(comparison.results.ran(*key) for key in outcomes)
    skipped = sum(one.status is Status.SKIPPED for one in outcomes.values())
    also = f", {skipped} {CANNOT_BE_TESTED}" if skipped else ""
    return f"NOT ALL CARRIED OUT: {done} of {of} case(s) done{also}; {found}"


def compare(results: Results, baseline: Results | None = None, strict: bool = False) -> Comparison:
    """Hold the builds of a run against each other, the baseline and what is known.

    :param baseline: of an earlier run; each build is held against the one of the same name there,
        or against the only one
    :param strict: what is known fails the run, too
    """
    rows: dict[str, Row] = {}
    for (build, case), outcome in results.outcomes.items():
        for finding in outcome.findings:
            row = rows.setdefault(finding.key, Row(finding.key))
            sight = row.sights.get(build)
            if sight is None:
                row.sights[build] = sight = Sight(build, {}, case, finding)
            sight.cases[case] = sight.cases.get(case, 0) + finding.count
            if _size(finding) < _size(sight.best):
                sight.best, sight.smallest = finding, case
    first = results.builds[0].name
    for row in rows.values():
        for build, sight in row.sights.items():
            reference = _counterpart(baseline, build)
            sight.before = reference is not None and _has(*reference, row.key)
            sight.state = _state(sight)
            where, there = reference or (results, first)
            seen_there = sight.before if reference else first in row.sights
            sight.differs = not seen_there and any(where.ran(there, case) for case in sight.cases)
    ordered = sorted(
        rows.values(),
        key=lambda row: (
            -list(State).index(row.state),
            not row.smallest.best.contract,
            row.smallest.best.verdict,
            row.key,
        ),
    )
    return Comparison(
        results,
        ordered,
        [*_gone(results, rows, baseline), *_known_and_gone(results, rows)],
        list(_with_status(results, Status.BROKEN)),
        list(_with_status(results, Status.SKIPPED)),
        strict,
        baseline,
    )


def _size(finding: CaseFinding) -> tuple[bool, bool, int]:
    """What is shown rather: confirmed, within the contract, short."""
    return not finding.confirmed, not finding.contract, len(finding.trace) or 1 << 30


def _counterpart(baseline: Results | None, build: str) -> tuple[Results, str] | None:
    """What a build is held against where there is a baseline; None: there is nothing."""
    if baseline is None:
        return None
    names = [one.name for one in baseline.builds]
    if build in names:
        return baseline, build
    return (baseline, names[0]) if len(names) == 1 else None


def _state(sight: Sight) -> State:
    if sight.best.known:
        return State.KNOWN
    if sight.before:
        return State.BASELINE
    return State.NEW if sight.best.confirmed else State.UNCONFIRMED


def _has(results: Results, build: str, key: str) -> bool:
    """Whether a finding was seen on a build."""
    return any(
        finding.key == key
        for (name, _), outcome in results.outcomes.items()
        if name == build
        for finding in outcome.findings
    )


def _gone(results: Results, rows: dict[str, Row], baseline: Results | None) -> Iterator[Gone]:
    """Seen in the baseline, or on the first build, and not on this one."""
    first = results.builds[0].name
    for build in (one.name for one in results.builds):
        if reference := _counterpart(baseline, build):
            yield from _missing(results, rows, build, *reference, "in the baseline")
        elif build != first:
            yield from _missing(results, rows, build, results, first, f"on {first}")


def _missing(
    results: Results, rows: dict[str, Row], build: str, where: Results, there: str, why: str
) -> Iterator[Gone]:
    done: set[str] = set()
    for (other, case), outcome in where.outcomes.items():
        if other != there or not results.ran(build, case):
            continue
        for finding in outcome.findings:
            key = finding.key
            if key in done or (key in rows and build in rows[key].sights) or not finding.confirmed:
                continue
            done.add(key)
            yield Gone(build, key, summary(finding.known).get("title", finding.title), why)


def _known_and_gone(results: Results, rows: dict[str, Row]) -> Iterator[Gone]:
    """Written up for this version, its own case done, and not seen."""
    expected: list[tuple[str, WriteUp]] = [(f"known/{one.id}", one) for one in known_findings()]
    expected += [(one.id, one) for one in known_directed().values()]
    for build in results.builds:
        for case, one in expected:
            there = one.id in rows and build.name in rows[one.id].sights
            if one.concerns(build.numbers) and results.ran(build.name, case) and not there:
                yield Gone(build.name, one.id, one.title, "written up for this version")


def _with_status(results: Results, status: Status) -> Iterator[tuple[str, str, str]]:
    for key in results.plan.keys:
        outcome = results.outcomes.get(key)
        if outcome is not None and outcome.status is status:
            yield (*key, outcome.text)
