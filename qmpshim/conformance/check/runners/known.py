"""Cases of kind ``known`` and ``directed``: what is written up, and what a directed case shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status, details_of
from qmpshim.conformance.check.runners.arguments import argument, only
from qmpshim.conformance.check.runners.bundle import pair_case, shown_otherwise, workload_case
from qmpshim.conformance.check.runners.explore import schedule_finding
from qmpshim.conformance.explore.directed.cases import DIRECTED, run_directed
from qmpshim.conformance.explore.search.minimize import show_again
from qmpshim.conformance.known.folder import (
    known_directed,
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
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build, read_version


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
    shown = show_again(written.case, build)
    others = recognised(shown.others, version)
    found = shown.finding or others.get(written.id)
    if found is None:
        if "" in others:
            return shown_otherwise(others[""], build, directory)
        text = "not seen" + (", though it is written up for this version" if expected else "")
        if shown.unsure:
            return CaseOutcome(Status.SKIPPED, f"{text}: {shown.unsure}", figures={"seen": 0})
        text += f": {shown.unrequested}" if shown.unrequested else ""
        return CaseOutcome(Status.OK, text, figures={"seen": 0})
    reported = replace(found, known=name if expected else "", contract=written.contract)
    return CaseOutcome(
        Status.OK if expected else Status.DIVERGED,
        "seen" if expected else "seen, though it is written up for other versions",
        (schedule_finding(reported, build, directory),),
        {"seen": 1},
    )


def _known_bundle(
    build: Build, written: PairWriteUp | WorkloadWriteUp, expected: bool, directory: Path
) -> CaseOutcome:
    """The case of a write-up that `verify` or `pair` shows: whether the build has it."""
    if isinstance(written, PairWriteUp):
        outcome = pair_case(build, written.case, directory)
    else:
        outcome, found = workload_case(build, written.case, directory)
        same = found is None or written.case.shown_by(found)
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
        details=details_of(written=summary(one.id) if is_known else None),
        uses=one.uses,
    )
    return CaseOutcome(Status.OK if is_known else Status.DIVERGED, one.about, (finding,))
