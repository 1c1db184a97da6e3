"""What an exploration of a real QEMU gave: by scenario, by finding; as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from qmpshim.conformance.explore.checkers.crash_points import NO_CRASH_POINTS, CrashPoints, How
from qmpshim.conformance.explore.directed.run import DirectedFinding, DirectedResult
from qmpshim.conformance.explore.harness.choices import step_object
from qmpshim.conformance.explore.harness.history import Sighting
from qmpshim.conformance.explore.harness.real_system import Looks
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import scenario_object
from qmpshim.conformance.explore.space.coverage import TupleCoverage, tuples_met
from qmpshim.conformance.finding_words import CANNOT_BE_TESTED, classified
from qmpshim.errors import name_errnos

#: What an exploration reports: of its scenarios, or of a directed case.
AnyFinding: TypeAlias = Finding | DirectedFinding
SOAK = "soak"  # a mode: scenarios without end


@dataclass(slots=True)
class ScenarioResult:
    """What exploring one scenario gave.

    :ivar exhaustive: every schedule was taken, or is equivalent to one that was
    :ivar cut_short: its time was over before that
    :ivar derailed: executions that could not be followed; too many mean a harness at fault
    :ivar in_part: executions in which an I/O failed that the model does not do: what then ended
        with an error was not looked at any closer
    :ivar looks: at crash points
    :ivar skipped: why this build cannot do the scenario, or ``""``
    :ivar lacks: that is a command, a driver or an option which the build's own schema has not
    """

    name: str
    contract: bool
    exhaustive: bool = False
    cut_short: bool = False
    schedules: int = 0
    steps: int = 0
    depth: int = 0
    distinct: int = 0
    seconds: float = 0.0
    derailed: int = 0
    in_part: int = 0
    skipped: str = ""
    lacks: bool = False
    looks: Looks = field(default_factory=Looks)
    sightings: list[Sighting] = field(default_factory=list)

    @property
    def yielded(self) -> float:
        """What it gave for its time: different outcomes a second, and ten for each sighting."""
        return (self.distinct + 10 * len(self.sightings)) / max(self.seconds, 0.01)

    def joined(self, before: ScenarioResult) -> ScenarioResult:
        """With what was done of this scenario before it was begun anew counted in."""
        seen = {one.key: one for one in self.sightings}
        for one in before.sightings:
            seen[one.key] = seen[one.key].joined(one) if one.key in seen else one
        return replace(
            self,
            schedules=self.schedules + before.schedules,
            steps=self.steps + before.steps,
            seconds=self.seconds + before.seconds,
            derailed=self.derailed + before.derailed,
            in_part=self.in_part + before.in_part,
            looks=self.looks + before.looks,
            sightings=list(seen.values()),
        )


def why_none(results: Sequence[ScenarioResult]) -> str:
    """Why a build can do none of these scenarios; ``""``: it can, or there are none."""
    if any(one.sightings or not one.skipped for one in results):
        return ""
    return next((one.skipped for one in results), "")


@dataclass(slots=True)
class ExploreReport:
    """An exploration's result.

    :ivar build: name and version
    :ivar findings: new ones first, then known ones; each showed itself again on fresh QEMUs
    :ivar crash_points: at which the images were looked at
    :ivar unconfirmed: what did not do so every time (a race of QEMU's, or a harness at fault), or
        could not be tried for want of time
    :ivar interrupted: this is what there was until it was ended
    :ivar bundles: where those that were kept are
    :ivar before: names of scenarios that were reached before, in the soak that this goes on with
    :ivar directed: what came of the directed cases
    :ivar strict: what is written up counts, too
    """

    build: str
    version: tuple[int, ...]
    mode: str
    seed: int
    faults: bool
    scenarios: list[ScenarioResult]
    findings: list[Finding]
    seconds: float
    jobs: int
    unconfirmed: list[Finding] = field(default_factory=list)
    crash_points: CrashPoints = NO_CRASH_POINTS
    interrupted: bool = False
    bundles: list[tuple[Finding, Path]] = field(default_factory=list)
    before: tuple[str, ...] = ()
    directed: DirectedResult = field(default_factory=DirectedResult)
    strict: bool = False

    @property
    def looks(self) -> Looks:
        """At crash points, in all scenarios."""
        return sum((one.looks for one in self.scenarios), Looks())

    @property
    def chose_nothing(self) -> str:
        """Why no crash point was looked at although some were wanted; ``""``: one was."""
        if self.crash_points.how is How.NONE or self.looks.count:
            return ""
        where = _many(self.schedules, "schedule")
        return f"--crash-points {self.crash_points}: none in {where}"

    @property
    def all_findings(self) -> list[AnyFinding]:
        """Whatever was seen."""
        return [*self.findings, *self.unconfirmed, *self.directed.findings]

    @property
    def untried(self) -> list[Finding]:
        """What was seen, and not run again for want of time."""
        return [finding for finding in self.unconfirmed if not finding.tried]

    @property
    def new(self) -> list[Finding]:
        """Findings without a write-up that replay."""
        return [finding for finding in self.findings if not finding.known]

    @property
    def unexplained(self) -> list[Finding]:
        """What has no write-up and did not replay every time: something diverged."""
        return [finding for finding in self.unconfirmed if not finding.known]

    @property
    def failing(self) -> list[Finding]:
        """What the run fails for: what has no write-up, seen once or each time; else all."""
        seen = (*self.findings, *self.unconfirmed)
        return [finding for finding in seen if self.strict or not finding.known]

    @property
    def failing_cases(self) -> list[DirectedFinding]:
        """The same of the directed cases."""
        return [one for one in self.directed.findings if self.strict or not one.known]

    @property
    def diverged(self) -> bool:
        """Whether the run fails."""
        return bool(self.failing or self.failing_cases)

    @property
    def cut_short(self) -> bool:
        """Whether time was up before all was explored and run that this build can do."""
        short = any(one.cut_short for one in self.scenarios) or not self.directed.complete
        return short and not self.interrupted

    @property
    def schedules(self) -> int:
        return sum(one.schedules for one in self.scenarios)

    @property
    def steps(self) -> int:
        return sum(one.steps for one in self.scenarios)

    @property
    def exhaustive(self) -> bool:
        """Whether every scenario that this build can do was exhausted, and every case run."""
        done = all(one.exhaustive or one.skipped for one in self.scenarios)
        return done and self.directed.complete and not self.interrupted

    @property
    def reached(self) -> list[ScenarioResult]:
        """The scenarios of which a schedule was run."""
        return [one for one in self.scenarios if one.schedules]

    @property
    def coverage(self) -> list[TupleCoverage]:
        """What was covered of the scenario space, where its scenarios were explored."""
        return tuples_met([*self.before, *(one.name for one in self.reached)])

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "build": self.build,
            "version": list(self.version),
            "mode": self.mode,
            "seed": self.seed,
            "faults": self.faults,
            "seconds": round(self.seconds, 3),
            "jobs": self.jobs,
            "schedules": self.schedules,
            "steps": self.steps,
            "exhaustive": self.exhaustive,
            "cut_short": self.cut_short,
            "coverage": {
                "scenarios": len(self.scenarios),
                "reached": len(self.reached),
                "exhausted": sum(one.exhaustive for one in self.scenarios),
                **({"reached_before": len(self.before)} if self.before else {}),
                "tuples": [asdict(one) for one in self.coverage],
            },
            "directed": self.directed.to_json(),
            "crash_points": {
                "chosen": str(self.crash_points),
                "looked_at": self.looks.count,
                "never": self.crash_points.unmet(self.looks),
            },
            "scenarios": [
                {
                    "name": one.name,
                    "contract": one.contract,
                    "exhaustive": one.exhaustive,
                    "schedules": one.schedules,
                    "steps": one.steps,
                    "depth": one.depth,
                    "distinct": one.distinct,
                    "seconds": round(one.seconds, 3),
                    "crash_points": one.looks.count,
                    "derailed": one.derailed,
                    "judged_in_part": one.in_part,
                    "skipped": one.skipped,
                }
                for one in self.scenarios
            ],
            "findings": [self._finding_object(finding) for finding in self.findings],
            "unconfirmed": [self._finding_object(finding) for finding in self.unconfirmed],
        }

    def _finding_object(self, finding: Finding) -> dict[str, Any]:
        """A finding; what replays it, in sectors, is in its bundle."""
        value = finding.to_json()
        for of_bundles in ("qmpshim", "format", "kind", "ending"):
            value.pop(of_bundles, None)
        bundle = next((place for one, place in self.bundles if one is finding), None)
        return {
            **value,
            "scenario": scenario_object(finding.scenario),
            "schedule": [step_object(choice) for choice in finding.schedule],
            "bundle": str(bundle) if bundle else None,
        }


def render(report: ExploreReport) -> str:
    """The report as text."""
    version = ".".join(map(str, report.version))
    contract = [one for one in report.scenarios if one.contract]
    many = _many(len(report.scenarios), "scenario")
    lines = _directed(report)
    if report.scenarios:
        lines = [
            f"{report.build} (QEMU {version}), {report.mode}: {many} "
            f"({len(contract)} within the contract), {_many(report.schedules, 'schedule')}, "
            f"{_many(report.steps, 'step')} in {report.seconds:.1f} s with "
            f"{_many(report.jobs, 'process')}" + (", with faults" if report.faults else ""),
            _covered(report),
            *lines,
        ]
    left = [one.name for one in report.scenarios if not one.exhaustive and not one.skipped]
    if left and report.mode != SOAK:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        lines.append(f"not exhausted: {', '.join(left[:8])}{more}")
    lines += _skipped({one.name: one.skipped for one in report.scenarios if one.skipped})
    derailed = sum(one.derailed for one in report.scenarios)
    if derailed:
        many = _many(derailed, "schedule")
        lines.append(f"{many} could not be followed (a timer of QEMU's came between)")
    if report.crash_points.how is not How.NONE:
        never = report.crash_points.unmet(report.looks)
        lines.append(
            f"{_many(report.looks.count, 'crash point')} looked at"
            + (f"; no step is {', '.join(map(repr, never))}" if never else "")
        )
    in_part = sum(one.in_part for one in report.scenarios)
    if in_part:
        lines.append(
            f"{_many(in_part, 'schedule')} judged in part: an I/O of qcow2's own failed, "
            "and what then ended with an error may have done any part of it"
        )
    if not report.all_findings:
        lines.append("no divergence")
    for case in report.directed.findings:
        lines += ["", *_of_case(case, report.interrupted)]
    for finding in (*report.findings, *report.unconfirmed):
        lines.append("")
        lines.append(f"{str(finding.verdict).upper()} ({_state(finding)}): {finding.text}")
        lines.append(
            f"  {_many(finding.count, 'schedule')} in {finding.where}"
            + f"; {_replays(finding, report.interrupted)}"
        )
        if finding.needed:
            lines.append(f"  {finding.needed}")
        lines += [f"    {line}" for line in finding.lines]
    return name_errnos("\n".join(lines))


def _covered(report: ExploreReport) -> str:
    """What was covered: without it, finding nothing means nothing."""
    exhausted = sum(one.exhaustive for one in report.scenarios)
    text = f"covered: {len(report.reached)} of {_many(len(report.scenarios), 'scenario')}"
    text += f", {exhausted} in all their schedules"
    text += f"; {len(report.before)} reached before" if report.before else ""
    for one in report.coverage:
        text += f"; {one.met} of {one.possible} combinations of {one.strength} values"
    return text


def _directed(report: ExploreReport) -> list[str]:
    """How many directed cases were run, and which could not be."""
    result = report.directed
    if not result.cases:
        return []
    version = ".".join(map(str, report.version))
    many = _many(len(result.cases), "directed case")
    lines = [f"{report.build} (QEMU {version}): {len(result.run)} of {many} run"]
    return lines + _skipped(result.skipped)


def _skipped(reasons: Mapping[str, str]) -> list[str]:
    """What cannot be tested, a line for each reason.

    :param reasons: by name
    """
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return [
        f"{CANNOT_BE_TESTED}: {first}{f' and {len(more)} more' if more else ''}: {why}"
        for why, (first, *more) in names.items()
    ]


def _of_case(finding: DirectedFinding, interrupted: bool) -> list[str]:
    """A finding of a directed case."""
    return [
        f"{str(finding.verdict).upper()} ({_state(finding)}): {finding.violation.text}",
        f"  {finding.case.id}" + ("" if finding.known else f"; {_replays(finding, interrupted)}"),
        f"    {finding.case.about}",
    ]


def _state(finding: AnyFinding) -> str:
    """Whether a finding is within the contract, and known."""
    return classified(finding.contract, finding.known, finding.confirmed)


def _replays(finding: AnyFinding, interrupted: bool) -> str:
    if not finding.tried:
        return f"seen, not confirmed: {'interrupted' if interrupted else 'time was up'}"
    return f"replays {finding.replays[0]} of {finding.replays[1]} on fresh QEMUs"


def _many(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
