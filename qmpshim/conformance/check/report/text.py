"""Results for other programs: JUnit XML and TAP.

JUnit XML as Jenkins and GitLab read it (the schema of the Jenkins xUnit plugin); TAP version 13 as
``prove`` reads it. What fails the run fails there; what is known stands beside it.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from qmpshim.conformance.check.case import CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.report.compare import Comparison, Row, State
from qmpshim.conformance.check.run.again import replay_command
from qmpshim.conformance.check.run.journal import Key
from qmpshim.conformance.finding_words import CANNOT_BE_TESTED, classified, state_words
from qmpshim.errors import name_errnos

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _sentence(row: Row, finding: CaseFinding, build: str) -> str:
    sight = row.sights[build]
    words = classified(finding.contract, finding.known, sight.state is not State.UNCONFIRMED)
    before = ", in baseline" if sight.before else ""
    return name_errnos(f"{finding.verdict} ({words}{before}): {finding.title}")


def _skipped(outcome: CaseOutcome) -> str:
    return f"{CANNOT_BE_TESTED}: {outcome.text}"


def junit(comparison: Comparison) -> bytes:
    """A test suite for each build, a test for each case.

    The type of a failure is the id of the write-up, where there is one, so that it can be waived.
    """
    root = ElementTree.Element("testsuites", name=f"qmpshim check {comparison.results.plan.suite}")
    for build in comparison.results.builds:
        suite = ElementTree.SubElement(root, "testsuite", name=build.name)
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        seconds = 0.0
        properties = ElementTree.SubElement(suite, "properties")
        for name in ("version", "sha256"):
            ElementTree.SubElement(
                properties, "property", name=name, value=_clean(getattr(build, name))
            )
        for case in comparison.results.cases:
            outcome = comparison.results.outcomes.get((build.name, case.name))
            if outcome is None:
                continue
            counts["tests"] += 1
            seconds += outcome.seconds
            group, _, name = case.name.rpartition("/")
            test = ElementTree.SubElement(
                suite,
                "testcase",
                classname=".".join(filter(None, (build.name, group.replace("/", ".")))),
                name=name,
                time=f"{outcome.seconds:.3f}",
            )
            key = (build.name, case.name)
            found = comparison.of(key)
            failing = [(row, f) for row, f in found if comparison.fails(row.sights[build.name])]
            rest = [pair for pair in found if pair not in failing]
            _known_properties(test, rest)
            if outcome.status is Status.SKIPPED:
                counts["skipped"] += 1
                ElementTree.SubElement(test, "skipped", message=_clean(_skipped(outcome)))
            elif failing:
                counts["failures"] += 1
                row, finding = failing[0]
                others = [state_words(f.known) for _, f in failing[1:]]
                more = f"; and {', '.join(dict.fromkeys(others))}" if others else ""
                failure = ElementTree.SubElement(
                    test,
                    "failure",
                    type=finding.known or finding.verdict.value,
                    message=_clean(_sentence(row, finding, build.name) + more),
                )
                failure.text = _clean("\n\n".join(_text(comparison, key, *f) for f in failing))
            elif outcome.status is Status.BROKEN:
                counts["errors"] += 1
                ElementTree.SubElement(test, "error", type="broken", message=_clean(outcome.text))
            lines = [outcome.text, *(_sentence(row, f, build.name) for row, f in rest)]
            ElementTree.SubElement(test, "system-out").text = _clean("\n".join(lines))
        for name, number in counts.items():
            suite.set(name, str(number))
        suite.set("time", f"{seconds:.3f}")
    ElementTree.indent(root)
    text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _known_properties(test: ElementTree.Element, found: list[tuple[Row, CaseFinding]]) -> None:
    """What is known and fails nothing: a property of its test."""
    known = [(row.key, finding) for row, finding in found if finding.known]
    if known:
        properties = ElementTree.SubElement(test, "properties")
        for key, finding in known:
            value = _clean(f"{key}: {finding.title}")
            ElementTree.SubElement(properties, "property", name="known", value=value)


def _text(comparison: Comparison, key: Key, row: Row, finding: CaseFinding) -> str:
    lines = [_sentence(row, finding, key[0])]
    if finding.predicted:
        lines += [f"predicted: {finding.predicted}", f"observed:  {finding.observed}"]
    lines += [*finding.trace, f"again: {replay_command(comparison.results.plan, key, finding)}"]
    return name_errnos("\n".join(lines))


def _clean(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def tap(comparison: Comparison) -> str:
    """A line for each case on each build."""
    results = comparison.results
    done = [key for key in results.plan.keys if key in results.outcomes]
    lines = ["TAP version 13", f"1..{len(done)}"]
    for number, key in enumerate(done, 1):
        outcome = results.outcomes[key]
        name = f"{number} - {key[0]} {key[1]}".replace("#", r"\#")
        found = comparison.of(key)
        failing = [(row, f) for row, f in found if comparison.fails(row.sights[key[0]])]
        if outcome.status is Status.SKIPPED:
            lines.append(f"ok {name} # SKIP {_line(_skipped(outcome))}")
            continue
        bad = failing or outcome.status is Status.BROKEN
        lines.append(f"{'not ok' if bad else 'ok'} {name}")
        lines.append(f"# {_line(outcome.text)}")
        for row, finding in found:
            lines.append(f"# {_line(_sentence(row, finding, key[0]))}")
            if (row, finding) in failing:
                lines.append(
                    f"# again: {_line(replay_command(comparison.results.plan, key, finding))}"
                )
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())
