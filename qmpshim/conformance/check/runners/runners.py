"""The kinds of check that need nothing but the block layer: see :mod:`~.suites`.

Each is a :data:`~qmpshim.conformance.check.case.Runner`. Findings come with what a report shows of
them: the steps as a diagram, the disks as predicted and as observed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmpshim.conformance.bundles.any_workload import AnyCase, load_case, replay_case
from qmpshim.conformance.bundles.workload_case import CASE as WORKLOAD_CASE
from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, ShownBy, Status
from qmpshim.conformance.check.report.cluster_maps import maps_of_bundle, maps_of_schedule
from qmpshim.conformance.check.report.sequence import steps_of_events, steps_of_operations
from qmpshim.conformance.check.runners.arguments import argument, only
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.checkers.crash_points import CrashPoints
from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.conformance.explore.report.finding_files import load_finding, save_finding
from qmpshim.conformance.explore.report.findings import Finding, finding_from_json
from qmpshim.conformance.explore.reproducer.replay import replay_schedule
from qmpshim.conformance.explore.scenarios import RealScenario, scenario_from_json
from qmpshim.conformance.explore.search.exploration import ExploreReport, explore_real
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.explore.search.settings import Bounds, Settings, WrittenUp
from qmpshim.conformance.explore.space.naming import scenarios_called
from qmpshim.conformance.known.folder import (
    known_directed,
    known_findings,
    recognised,
    shown_instead,
    summary,
    write_up,
)
from qmpshim.conformance.known.matching import (
    DirectedWriteUp,
    ExplorerWriteUp,
    PairWriteUp,
    WorkloadWriteUp,
)
from qmpshim.conformance.pair import bundle as pair_bundle
from qmpshim.conformance.pair import checks as pair_checks
from qmpshim.conformance.pointintime.bundle import PointsCase
from qmpshim.conformance.workload.verification import verify as run_verify
from qmpshim.conformance.workload.verify import ChainSubject, setup_for
from qmpshim.conformance.workload.workload import Workload
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.machine.host.files import slug
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.chain.behaviour import KnownDefect
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import MODES
from qmpshim.model.units import SECTOR

_OF_BUDGET = 0.9  # of a case's budget; the rest is for starting, and for bundles and maps


# -- verify ------------------------------------------------------------------------------------


def verify(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``workflow``, ``operations``, ``seed``, ``size``, ``cluster`` (bytes), ``secondary``,
    ``shrink`` (seconds for making a case small)."""
    only(case, "workflow", "operations", "seed", "size", "cluster", "secondary", "shrink")
    spec = ChainSpec(
        argument(case, "workflow", "replication"),
        argument(case, "size", 64 << 20),
        argument(case, "cluster", 64 << 10),
        argument(case, "secondary", "raw"),
    )
    count, seed = argument(case, "operations", 2000), argument(case, "seed", 1)
    _, version = read_version(build)
    with Workspace() as workspace:
        outcome = asyncio.run(
            run_verify(
                ChainSubject(setup_for(build, spec)),
                list(Workload(spec, seed).take(count)),
                version,
                seed,
                workspace,
                directory,
                _no_progress,
                shrinking=float(argument(case, "shrink", 30)),
            )
        )
    result = outcome.result
    found = [_relied_on(known, number) for known, number in sorted(result.known.items())]
    if result.divergence is not None:
        assert outcome.bundle is not None
        case_found = load_case(outcome.bundle)
        assert case_found.divergence is not None
        found.insert(0, _of_verify(case_found, case_found.divergence, outcome.bundle))
    return CaseOutcome(
        Status.DIVERGED if result.divergence else Status.OK,
        f"{result.done} operations, {result.checks} cross-checks, {result.clusters} clusters",
        tuple(found),
        {
            "operations": result.done,
            "cross-checks": result.checks,
            "clusters": result.clusters,
            "run seconds": round(result.seconds, 3),
        },
    )


#: What a known defect that a prediction rests on shows: verdict, text, predicted by QEMU's
#: documents, observed, and by which operations.
_SHOWN = {
    KnownDefect.STOP_ALWAYS_FAILS: (
        Verdict.ERROR_CONTRACT,
        "stop fails with 'Backup job was cancelled unexpectedly'",
        "no error",
        "Backup job was cancelled unexpectedly",
        ("start", "stop"),
    ),
    KnownDefect.SNAPSHOT_READS_NEW_DATA: (
        Verdict.ISOLATION,
        "a read of the snapshot returns new data",
        "the old data",
        "new data",
        ("primary write", "guest read"),
    ),
}


def _relied_on(known: KnownDefect, number: int) -> CaseFinding:
    verdict, text, predicted, observed, trace = _SHOWN[known]
    return CaseFinding(
        verdict,
        known.value,
        text,
        predicted,
        observed,
        known=known.value,
        count=number,
        trace=trace,
        details={"written": summary(known.value)},
    )


def _no_progress(_text: str) -> None:
    """The progress of a single case is not shown."""


#: Headings of a diagram's lanes, by the side of an operation.
_SIDES = {"primary": "primary (NBD)", "guest": "guest", "chain": "monitor (QMP)"}


def _of_verify(case: AnyCase, found: Divergence, place: Path) -> CaseFinding:
    if isinstance(case, PointsCase):
        lanes = {name: name for name in (f"disk{number}" for number in range(case.spec.disks))}
        steps = [(f"disk{operation.disk}", str(operation)) for operation in case.operations]
        chain = f"{case.workflow}, {case.spec.disks} disks"
    else:
        lanes = _SIDES
        steps = [(operation.side.value, str(operation)) for operation in case.operations]
        chain = f"{case.spec.workflow}, {case.spec.secondary} secondary"
    return CaseFinding(
        found.verdict,
        f"{found.where}: {_stable(found.predicted)} / {_stable(found.observed)}",
        f"{found.where}: predicted {found.predicted}; observed {found.observed}",
        found.predicted,
        found.observed,
        trace=tuple(str(operation) for operation in case.operations),
        bundle=place.name,
        replay=ShownBy.BUNDLE,
        details=_plain(
            diagram=steps_of_operations(lanes, steps, f"{found.verdict}: {found.observed}"),
            maps=maps_of_bundle(place),
            chain=f"{chain}, {case.spec.size} bytes, clusters of {case.spec.cluster}",
        ),
    )


def _stable(text: str) -> str:
    """A text without what differs from one workload to the next: numbers, and how many more."""
    text = re.sub(r" \(and \d+ more [^)]*\)|in sectors .*|during \d+: .*?(?=: |$)", "", text)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text).strip()[:120]


def _plain(**details: Any) -> Mapping[str, Any]:
    return {name: value for name, value in details.items() if value}


# -- explore -----------------------------------------------------------------------------------


def explore(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``scenarios`` (names or scenario objects), ``mode`` (as ``explore --mode``), ``faults``
    (errnos), ``all_io`` (a bool), ``crash_points`` (as the option), ``seconds``, ``seed``."""
    only(case, "scenarios", "mode", "faults", "all_io", "crash_points", "seconds", "seed")
    scenarios: list[RealScenario] = []
    for what in argument(case, "scenarios", ["pairs"]):
        scenarios += scenarios_called(what) if isinstance(what, str) else [scenario_from_json(what)]
    mode = argument(case, "mode", "exhaustive")
    if mode not in MODES:
        raise InputError(f"{case.name}: mode {mode!r} is none of {', '.join(MODES)}")
    seconds = case.arguments.get("seconds")
    report = explore_real(
        build,
        scenarios,
        settings=Settings(
            mode=MODES[mode],
            faults=tuple(argument(case, "faults", [])),
            all_io=argument(case, "all_io", False),
            crash_points=CrashPoints.parse(argument(case, "crash_points", "none")),
            seed=argument(case, "seed", 0),
        ),
        bounds=Bounds(
            budget=None if seconds is None else float(seconds),
            # What was found is reported before the case is ended from outside, and all is lost.
            limit=case.budget * _OF_BUDGET,
        ),
        known=WrittenUp(known_findings()),
    )
    findings = [
        _of_schedule(finding, build, directory)
        for finding in (*report.findings, *report.unconfirmed)
    ]
    if report.chose_nothing and not findings:
        raise InputError(f"{case.name}: {report.chose_nothing}")
    skipped = [one for one in report.scenarios if one.skipped]
    text = (
        f"{len(report.scenarios) - len(skipped)} scenarios, {report.schedules} schedules"
        + ("" if report.exhaustive else ", NOT exhausted")
        + (f"; {len(skipped)} skipped: {skipped[0].skipped}" if skipped else "")
        + (f"; {_unsure(report)}" if report.unconfirmed else "")
    )
    return CaseOutcome(
        Status.DIVERGED if report.new or report.unexplained else Status.OK,
        text,
        tuple(findings),
        {
            "scenarios": len(report.scenarios),
            "schedules": report.schedules,
            "steps": report.steps,
        },
    )


def _unsure(report: ExploreReport) -> str:
    untried = len(report.untried)
    tried = len(report.unconfirmed) - untried
    parts = [f"{tried} did not replay every time"] if tried else []
    parts += [f"{untried} seen, not confirmed: time was up"] if untried else []
    return "; ".join(parts)


def _of_schedule(finding: Finding, build: Build, directory: Path) -> CaseFinding:
    """A finding of the explorer's, kept as a bundle, with its diagram and maps."""
    assert finding.verdict is not None
    place = save_finding(directory / slug(f"{finding.verdict}-{finding.scenario.name}"), finding)
    lanes = [f"op {index}: {op}" for index, op in enumerate(finding.scenario.ops)]
    scenario = finding.scenario
    setup = ", ".join(map(str, scenario.setup))
    return CaseFinding(
        finding.verdict,
        str(finding.cause),
        finding.text,
        contract=finding.contract,
        known=finding.known,
        count=finding.count,
        trace=finding.lines,
        bundle=place.name,
        replay=ShownBy.BUNDLE,
        confirmed=finding.confirmed,
        details=_plain(
            diagram=steps_of_events(lanes, finding.events),
            maps=maps_of_schedule(finding, build),
            chain=f"{scenario.form}, {scenario.size * SECTOR} bytes, "
            f"clusters of {scenario.cluster * SECTOR}" + (f"; before: {setup}" if setup else ""),
            scenarios=list(finding.scenarios),
            replays=list(finding.replays),
            written=summary(finding.known) if finding.known else None,
        ),
    )


# -- known, directed, bundle -------------------------------------------------------------------


def known(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``id``: of a finding that is written up; does this build still have it?"""
    only(case, "id")
    name = argument(case, "id", case.name)
    try:
        written = write_up(name)
    except InputError as error:
        raise InputError(f"{case.name}: {error}") from error
    if isinstance(written, DirectedWriteUp):
        return directed(build, replace(case, arguments={"case": name.partition("/")[2]}), directory)
    version = read_version(build)[0]
    expected = written.concerns(version)
    if isinstance(written, PairWriteUp | WorkloadWriteUp):
        return _known_bundle(build, written, expected, directory)
    assert isinstance(written, ExplorerWriteUp)
    shown = show_again(load_finding(written.path), build)
    others = recognised(shown.others, version)
    found = shown.finding or others.get(written.id)
    if found is None:
        if "" in others:
            return _other(others[""], build, directory)
        text = "not seen" + (", though it is written up for this version" if expected else "")
        if shown.unsure:
            return CaseOutcome(Status.SKIPPED, f"{text}: {shown.unsure}", figures={"seen": 0})
        return CaseOutcome(Status.OK, text, figures={"seen": 0})
    reported = replace(found, known=name if expected else "", contract=written.contract)
    return CaseOutcome(
        Status.OK if expected else Status.DIVERGED,
        "seen" if expected else "seen, though it is written up for other versions",
        (_of_schedule(reported, build, directory),),
        {"seen": 1},
    )


def _known_bundle(
    build: Build, written: PairWriteUp | WorkloadWriteUp, expected: bool, directory: Path
) -> CaseOutcome:
    """The case of a write-up that `verify` or `pair` shows: whether the build has it."""
    if isinstance(written, PairWriteUp):
        outcome = _pair_bundle(build, pair_bundle.content(written.path), directory)
    else:
        outcome, found = _workload_bundle(build, written.shown.to_json(), directory)
        same = found is None or written.shown.shown_by(found)
        other = None if same or found is None else shown_instead(written, found)
        if other is not None:
            text = f"not seen: {other.name} shows itself instead"
            return CaseOutcome(Status.OK, text, figures={"seen": 0})
    if outcome.status is Status.OK:
        text = "not seen" + (", though it is written up for this version" if expected else "")
        return replace(outcome, text=text, figures={**outcome.figures, "seen": 0})
    if not outcome.figures.get("reproduced"):
        return outcome
    first, *others = outcome.findings
    known = replace(first, known=written.id if expected else "", contract=written.contract)
    return replace(
        outcome,
        status=Status.OK if expected and not others else Status.DIVERGED,
        text=outcome.text if expected else f"{outcome.text}; it is written up for other versions",
        findings=(known, *others),
    )


def directed(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``case``: the name of a directed case."""
    only(case, "case")
    name = argument(case, "case", case.name)
    one = next((one for one in DIRECTED if one.name == name), None)
    if one is None:
        names = ", ".join(one.name for one in DIRECTED)
        raise InputError(f"{case.name}: no directed case {name!r}; there are {names}")
    version = read_version(build)[0]
    found = run_directed(one, build)
    if found is None:
        return CaseOutcome(Status.OK, one.about)
    written = known_directed().get(name)
    is_known = written is not None and written.covers(found.kind, found.cause, version)
    finding = CaseFinding(
        found.kind,
        str(found.cause),
        found.text,
        one.about,
        found.text,
        one.contract,
        one.id if is_known else "",
        details=_plain(written=summary(one.id) if is_known else None),
    )
    return CaseOutcome(Status.OK if is_known else Status.DIVERGED, one.about, (finding,))


def bundle(build: Build, case: Case, directory: Path) -> CaseOutcome:
    """``content``: of a bundle's case file, of verify, explore or pair; does this build show it?"""
    only(case, "content")
    content = case.arguments["content"]
    if "schedule" in content:
        return _schedule_bundle(build, finding_from_json(content), directory)
    if content.get("kind") == "pair":
        return _pair_bundle(build, content, directory)
    return _workload_bundle(build, content, directory)[0]


def _workload_bundle(
    build: Build, content: Mapping[str, Any], directory: Path
) -> tuple[CaseOutcome, Divergence | None]:
    place = directory / "bundle"
    place.mkdir()
    (place / WORKLOAD_CASE).write_text(json.dumps(content))
    wanted = load_case(place)
    result = asyncio.run(replay_case(wanted, build))
    found = result.divergence
    if found is None:
        return CaseOutcome(Status.OK, f"{result.done} operations as predicted"), None
    same = wanted.shown_by(found)
    finding = _of_verify(wanted, found, place)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(same, str(found), finding)), found


def _schedule_bundle(build: Build, wanted: Finding, directory: Path) -> CaseOutcome:
    if wanted.verdict is None:  # recorded by hand, with nothing wrong
        return _recorded(build, wanted, directory)
    shown = show_again(wanted, build)
    if (found := shown.finding) is not None:
        finding = _of_schedule(replace(found, known=""), build, directory)
        return CaseOutcome(Status.DIVERGED, *_same_or_not(True, found.text, finding))
    if shown.others:
        return _other(shown.others[0], build, directory)
    if shown.unsure:
        return CaseOutcome(Status.SKIPPED, f"not seen, but {shown.unsure}")
    return CaseOutcome(Status.OK, "not seen in any schedule")


def _other(finding: Finding, build: Build, directory: Path) -> CaseOutcome:
    """What went wrong instead of what was looked for."""
    shown = replay_schedule(finding, build).shows(finding)
    finding = replace(finding, known="", replays=(int(shown), 1))
    found = _of_schedule(finding, build, directory)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(False, finding.text, found))


def _pair_bundle(build: Build, content: Mapping[str, Any], directory: Path) -> CaseOutcome:
    outcome, findings, same = pair_checks.again(build, content, directory)
    if not findings:
        return CaseOutcome(Status.OK, pair_checks.summary(outcome))
    text, _, figures = _same_or_not(same, findings[0].title, findings[0])
    return CaseOutcome(Status.DIVERGED, text, findings, figures)


def _recorded(build: Build, wanted: Finding, directory: Path) -> CaseOutcome:
    again = replay_schedule(wanted, build)
    wrong = again.violation
    if wrong is None:
        return CaseOutcome(Status.OK, "as it was recorded")
    found = replace(
        wanted, verdict=wrong.kind, cause=wrong.cause, text=wrong.text, events=again.events
    )
    finding = _of_schedule(found, build, directory)
    return CaseOutcome(Status.DIVERGED, *_same_or_not(False, found.text, finding))


def _same_or_not(same: bool, text: str, finding: CaseFinding) -> tuple[Any, ...]:
    how = "reproduced" if same else "another divergence"
    return f"{how}: {text}", (finding,), {"reproduced": int(same)}
