"""The report as one self-contained HTML page, made from ``templates/report.html.j2``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmpshim.conformance.check.case import CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.report.compare import Comparison, Row, Sight, State, headline
from qmpshim.conformance.check.report.drawing import Drawing, draw
from qmpshim.conformance.check.run.again import bundle_place, replay_command
from qmpshim.conformance.check.run.journal import Key
from qmpshim.conformance.html_page import page_of
from qmpshim.conformance.known.folder import summary
from qmpshim.conformance.known.meaning import Meaning
from qmpshim.conformance.known.seen import SeenFinding, Standing, seen, standing, worst_by_use
from qmpshim.conformance.uses import Use
from qmpshim.errors import name_errnos

_TEMPLATE = Path(__file__).with_name("templates") / "report.html.j2"
_COLOURS = 8  # that the style sheet has for owners


@dataclass(frozen=True, slots=True)
class Cell:
    """A case on a build, in the matrix.

    :ivar kind: what it looks like: ok, known, new, unconfirmed, baseline, skipped, broken, missing
    :ivar anchors: of the findings it leads to, with how they are called
    """

    kind: str
    word: str
    title: str
    anchors: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A finding as it is shown."""

    row: Row
    seen: SeenFinding
    meaning: Meaning | None
    sight: Sight
    finding: CaseFinding
    anchor: str
    title: str
    drawing: Drawing | None
    maps: Any
    predicted: bool
    owners: dict[str, int]
    written: dict[str, Any]
    commands: tuple[tuple[str, str], ...]
    more: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the findings of a build come to for its user.

    :ivar reasons: by use the worst that makes it unreliable
    """

    build: str
    standing: Standing
    text: str
    reasons: dict[Use, SeenFinding]


def html(comparison: Comparison) -> bytes:
    """The page."""
    results = comparison.results
    anchors = {row.key: f"f{number}" for number, row in enumerate(comparison.rows, 1)}
    blocks = [_text_block(comparison, row, anchors[row.key]) for row in comparison.rows]
    blocks.sort(key=lambda one: (not one.seen.disqualifies, one.seen.severity.rank))
    groups = _groups(comparison, anchors)
    answers = [_answer(comparison, build.name) for build in results.builds]
    return page_of(
        _TEMPLATE,
        comparison=comparison,
        headline=headline(comparison),
        results=results,
        builds=[(build, _counts(comparison, build.name)) for build in results.builds],
        short={build.name: _short(build.name) for build in results.builds},
        groups=_those(groups, fine=False),
        fine=_those(groups, fine=True),
        fine_count=sum(len(cases) for _, cases in _those(groups, fine=True)),
        findings=blocks,
        standing=max((answer.standing for answer in answers), key=list(Standing).index),
        answers=answers,
        uses=[use for use in Use if any(use in answer.reasons for answer in answers)],
        State=State,
        Use=Use,
        verdicts=sorted({one.finding.verdict.value for one in blocks}),
        done=len(results.outcomes),
    )


Groups = list[tuple[str, list[tuple[str, list[Cell]]]]]


def _those(groups: Groups, fine: bool) -> Groups:
    """The checks that went as predicted on every build, or the others."""
    found = [
        (group, [(n, cells) for n, cells in cases if all(c.kind == "ok" for c in cells) is fine])
        for group, cases in groups
    ]
    return [(group, cases) for group, cases in found if cases]


def _answer(comparison: Comparison, build: str) -> Answer:
    found = comparison.seen_on(build)
    return Answer(build, standing(found), comparison.answer_on(build), worst_by_use(found))


def _short(name: str) -> str:
    """A build's name where there is little room: of a path the end."""
    if "/" not in name:
        return name
    path = Path(name)
    return f"…/{path.parent.name}/" if path.name.startswith("qemu-system") else f"…/{path.name}"


def _counts(comparison: Comparison, build: str) -> dict[str, int]:
    outcomes = [o for (name, _), o in comparison.results.outcomes.items() if name == build]
    counts = {status.value: sum(o.status is status for o in outcomes) for status in Status}
    states = [row.sights[build].state for row in comparison.rows if build in row.sights]
    counts |= {state.value: states.count(state) for state in State}
    return {**counts, "cases": len(outcomes), "seconds": round(sum(o.seconds for o in outcomes))}


def _groups(comparison: Comparison, anchors: dict[str, str]) -> Groups:
    """The matrix: groups of cases, each with a cell for each build."""
    groups: dict[str, list[tuple[str, list[Cell]]]] = {}
    for case in comparison.results.cases:
        group, _, name = case.name.partition("/")
        cells = [
            _cell(comparison, (build.name, case.name), anchors)
            for build in comparison.results.builds
        ]
        groups.setdefault(group, []).append((name or group, cells))
    return [*groups.items()]


def _cell(comparison: Comparison, key: Key, anchors: dict[str, str]) -> Cell:
    outcome = comparison.results.outcomes.get(key)
    if outcome is None:
        return Cell("missing", "not done", "not done yet")
    found = comparison.of(key)
    links: dict[str, str] = {}
    worst: State | None = None
    for row, _ in found:
        state = row.sights[key[0]].state
        if worst is None or list(State).index(state) > list(State).index(worst):
            worst = state
        links[anchors[row.key]] = row.key
    return _cell_of(outcome, worst, tuple(links.items()))


def _cell_of(
    outcome: CaseOutcome, worst: State | None, anchors: tuple[tuple[str, str], ...]
) -> Cell:
    title = f"{outcome.text} ({outcome.seconds:.1f} s)"
    if outcome.status is Status.SKIPPED:
        return Cell("skipped", outcome.status.words, title)
    if worst is not None:
        kind = {State.BASELINE: "baseline"}.get(worst, worst.value)
        return Cell(kind, f"{len(anchors)} {worst}", title, anchors)
    if outcome.status is Status.BROKEN:
        return Cell("broken", "broken", title)
    return Cell("ok", "ok", title)


def _text_block(comparison: Comparison, row: Row, anchor: str) -> TextBlock:
    sight = row.smallest
    finding = sight.best
    diagram = finding.details.get("diagram")
    maps = finding.details.get("maps")
    if maps and "cluster_bytes" not in maps:  # of a run that an older qmpshim began
        maps = None
    written = dict(finding.details.get("written") or summary(finding.known))
    found = seen(finding)
    return TextBlock(
        row,
        found,
        found.meaning,
        sight,
        finding,
        anchor,
        str(written.get("title") or name_errnos(finding.title)),
        draw(diagram) if diagram else None,
        maps,
        any(cell["predicted"] for disk in maps["disks"] for cell in disk["clusters"])
        if maps
        else False,
        _owners(maps),
        written,
        tuple(_commands(comparison, sight)),
        {
            name: value
            for name, value in finding.details.items()
            if isinstance(value, list) and name not in ("scenarios", "replays")
        },
    )


def _owners(maps: Any) -> dict[str, int]:
    """A colour for each owner that occurs: two that are always the same, then one by one."""
    found = {"old data": 0, "zeroes": 1}
    for disk in maps["disks"] if maps else ():
        for cell in disk["clusters"]:
            for side in ("predicted", "observed"):
                for run in (cell[side] or {"runs": ()})["runs"]:
                    found.setdefault(run["owner"], len(found) % _COLOURS)
    return found


def _commands(comparison: Comparison, sight: Sight) -> Iterator[tuple[str, str]]:
    key = (sight.build, sight.smallest)
    finding = sight.best
    yield "see it again", replay_command(comparison.results.plan, key, finding)
    if not finding.bundle:
        return
    place = bundle_place(key, finding)
    if "scenarios" in finding.details:
        yield "as a script without qmpshim", f"qmpshim export {place} > reproducer.py"
    yield "find the commit: where this report is", f'export BUNDLE="$PWD"/{shlex.quote(place)}'
    yield (
        "and then in QEMU's tree, as built in build/",
        "git bisect run sh -c 'ninja -C build qemu-system-x86_64 || exit 125; "
        'qmpshim check --bisect --build build/ --case "$BUNDLE"\'',
    )
