"""The reports, read by others: a JSON Schema validator, JUnit and TAP parsers, a browser."""

from __future__ import annotations

import html as htmls
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from junitparser import JUnitXml, TestSuite
from tap.parser import Parser

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.report.compare import Comparison, compare
from qmpshim.conformance.check.report.drawing import draw
from qmpshim.conformance.check.report.reports import write_reports
from qmpshim.conformance.check.report.results import Results, load_results
from qmpshim.conformance.check.report.sequence import steps_of_events
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.conformance.check.run.journal import Plan
from qmpshim.conformance.check.runners.bundle import bundle
from qmpshim.conformance.explore.harness.events import events_from_lines
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.folder import known_directed, known_findings, summary
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build
from qmpshim.model.chain import behaviour
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import operation
from qmpshim.model.pointintime.points import PointDefect
from vmtests.support.browser import chromium, measured
from vmtests.support.checks import runner_of
from vmtests.support.documents import SCHEMA, SCHEMAS

KNOWN = CaseFinding(Verdict.HANG, "k", "it hangs", known="some-id")
EVIL = "<script>document.title='owned'</script> & \"it's\" \x1b[31m\x00 ]]> # TODO {{ 1 }}"


def real_finding(build: Build) -> CaseFinding:
    """A known finding, shown on this QEMU and reported as new."""
    path = DIRECTORY / "checkpoint-corrupts-overlay.json"
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        case = Case("bundle", "b", {"content": load_finding(path).to_json()})
        outcome = bundle(build, case, Path(place))
    (finding,) = outcome.findings
    return finding


@pytest.fixture(scope="module")
def reported(
    tmp_path_factory: pytest.TempPathFactory, qemu_build: Build
) -> tuple[Comparison, Path]:
    """A run with everything there can be in it."""
    names = ("old", "new <build>", "/a/path/to/qemu-system-x86_64")
    builds = tuple(
        Identity(n, f"{9 + i}.0.0", "ab" * 32, (9 + i, 0, 0)) for i, n in enumerate(names)
    )
    cases = tuple(Case("verify", name) for name in ("explore/real", "verify/évil", "x"))
    evil = CaseFinding(
        Verdict.CRASH, EVIL, EVIL, EVIL, EVIL, trace=(EVIL, "two"), replay="qmpshim replay {bundle}"
    )
    excused = replace(evil, cause="was", title="it was there before")
    known = CaseFinding(Verdict.HANG, "k", "it hangs", known="some-id", contract=False)
    flaky = CaseFinding(Verdict.CONTENT, "sometimes", "sometimes", confirmed=False)
    real = real_finding(qemu_build)
    outcomes = {
        (names[0], "explore/real"): CaseOutcome(Status.OK, "fine", (known,), seconds=1.5),
        (names[0], "verify/évil"): CaseOutcome(Status.SKIPPED, f"cannot {EVIL}"),
        (names[0], "x"): CaseOutcome(Status.DIVERGED, "", (excused, flaky)),
        (names[1], "explore/real"): CaseOutcome(Status.DIVERGED, "bad", (real, known)),
        (names[1], "verify/évil"): CaseOutcome(Status.DIVERGED, "bad", (evil,)),
        (names[1], "x"): CaseOutcome(Status.BROKEN, f"broke {EVIL}"),
        (names[2], "explore/real"): CaseOutcome(Status.OK, "fine"),
    }
    results = Results(Plan("mine", builds, cases, {names[2]: names[2]}), outcomes)
    plan = Plan("mine", builds[:1], cases, {})
    baseline = Results(plan, {(names[0], "x"): CaseOutcome(Status.DIVERGED, "", (excused,))})
    comparison = compare(results, baseline)
    place = tmp_path_factory.mktemp("reports")
    write_reports(comparison, place)
    return comparison, place


def test_the_json_is_as_its_schema_says(reported: tuple[Comparison, Path]) -> None:
    comparison, place = reported
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    document = json.loads((place / "results.json").read_text())
    validator.validate(document)
    assert load_results(place) == comparison.results
    with pytest.raises(InputError, match="would have left results there"):
        load_results(place / "nowhere")
    ways: tuple[Callable[[Any], object], ...] = (
        lambda d: d["results"][0].pop("status"),
        lambda d: d["results"][0]["findings"][0].update(verdict="bad"),
        lambda d: d.update(version=2),
    )
    for spoil in ways:
        spoilt: Any = json.loads((place / "results.json").read_text())
        spoil(spoilt)
        assert not validator.is_valid(spoilt)


def test_junit_xml(reported: tuple[Comparison, Path]) -> None:
    _, place = reported
    suites = {suite.name: suite for suite in JUnitXml.fromfile(str(place / "junit.xml"))}
    assert set(suites) == {"old", "new <build>", "/a/path/to/qemu-system-x86_64"}
    counts = {
        name: (suite.tests, suite.failures, suite.errors, suite.skipped)
        for name, suite in suites.items()
    }
    assert counts == {
        "old": (3, 1, 0, 1),
        "new <build>": (3, 2, 1, 0),
        "/a/path/to/qemu-system-x86_64": (1, 0, 0, 0),
    }
    suite = suites["new <build>"]
    assert isinstance(suite, TestSuite)
    (failure,) = next(test for test in suite if test.name == "real").result
    assert failure.type == "corruption"
    assert "start 1: checkpoint" in failure.text
    assert "qmpshim replay cases/new-build/explore-real/" in failure.text
    (evil,) = next(test for test in suite if test.name == "évil").result
    assert "<script>" in evil.message and "\x00" not in evil.message


def test_tap(reported: tuple[Comparison, Path]) -> None:
    _, place = reported
    lines = list(Parser().parse_file(str(place / "report.tap")))
    tests = [line for line in lines if line.category == "test"]
    assert not [line for line in lines if line.category == "unknown"]
    assert [(test.ok, bool(test.skip)) for test in tests] == [
        # case by case, the builds side by side
        (True, False), (False, False), (True, False),
        (True, True), (False, False),
        (False, False), (False, False),
    ]  # fmt: skip
    prove = shutil.which("prove")
    assert prove is not None, "apt-get install perl"
    done = subprocess.run(
        [prove, "--exec", "cat", str(place / "report.tap")], capture_output=True, text=True
    )
    assert "Failed 4/7 subtests" in done.stdout + done.stderr


# -- the page ------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(reported: tuple[Comparison, Path]) -> None:
    _, place = reported
    text = (place / "report.html").read_text()
    assert not re.findall(r"<(?:link|img|iframe|script[^>]* src)", text)
    assert not re.findall(r"url\(|@import", text)
    addresses = set(re.findall(r"https?://[^\"'\s<]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert htmls.escape("<script>document.title") in text
    assert "<script>document.title" not in text
    assert text.count("<script") == 1


def test_what_was_seen_now_and_then_makes_no_build_unreliable(
    reported: tuple[Comparison, Path],
) -> None:
    """In the page as in the answer; what was confirmed does."""
    _, place = reported
    pieces = (place / "report.html").read_text().split('<article class="finding"')[1:]
    bad = {re.findall("<h3>(.*?)</h3>", one)[0]: '"badge severity-bad"' in one for one in pieces}
    assert bad["it was there before"] and not bad["sometimes"]


def test_the_commands_of_the_page_are_complete(reported: tuple[Comparison, Path]) -> None:
    """Pasted where the report is, without anything to fill in; then in QEMU's tree."""
    _, place = reported
    text = htmls.unescape((place / "report.html").read_text())
    assert "REPORT-DIR" not in text
    named = re.findall(r'<code>(export BUNDLE="\$PWD"/\S+)</code>', text)
    assert named and text.count('--case "$BUNDLE"\'</code>') == len(named)
    for command in named:
        script = f'{command}; cd /; printf %s "$BUNDLE"'
        done = subprocess.run(["sh", "-c", script], cwd=place, capture_output=True, text=True)
        assert Path(done.stdout).is_relative_to(place / "cases")


PROBE = """
<script>
addEventListener("load", () => {
  const seen = {}, form = document.querySelector(".filter");
  const shown = () => [...document.querySelectorAll(".finding")].filter(o => !o.hidden).length;
  seen.title = document.title;
  seen.all = shown();
  form.text.value = "refcount"; form.dispatchEvent(new Event("input"));
  seen.text = shown();
  form.text.value = ""; form.state.value = "known"; form.dispatchEvent(new Event("input"));
  seen.known = shown();
  form.state.value = ""; form.build.selectedIndex = 1; form.dispatchEvent(new Event("input"));
  seen.build = shown();
  form.build.value = ""; form.verdict.value = "crash"; form.dispatchEvent(new Event("input"));
  seen.verdict = shown();
  form.verdict.value = ""; form.dispatchEvent(new Event("input"));
  const stepper = document.querySelector(".stepper");
  const future = () => stepper.parentElement.querySelectorAll(".step.future").length;
  seen.steps = stepper.parentElement.querySelectorAll(".step").length;
  seen.before = future();
  for (let n = 0; n < 2; n++) stepper.querySelector("[data-move='-1']").click();
  seen.after = future();
  seen.wide = document.documentElement.scrollWidth <= innerWidth;
  seen.small = [...document.querySelectorAll(".scroll")].length;
  for (const one of document.querySelectorAll("details")) one.open = true;
  seen.open = document.documentElement.scrollWidth <= innerWidth;
  document.body.dataset.seen = JSON.stringify(seen);
});
</script>
"""


@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_in_a_browser(
    reported: tuple[Comparison, Path], tmp_path: Path, width: int
) -> None:
    """The filter, stepping through a schedule, and nothing that sticks out."""
    _, place = reported
    page = tmp_path / "page.html"
    page.write_text((place / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    dom = chromium(page, tmp_path, f"--window-size={width},900")
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None, dom[-1000:]
    seen = json.loads(htmls.unescape(found[1]))
    assert seen["title"].startswith("qmpshim check: mine on old, new <build>")
    assert (seen["all"], seen["text"], seen["known"], seen["build"], seen["verdict"]) == (
        *(5, 1, 1, 3, 2),
    )
    assert seen["steps"] > 3 and (seen["before"], seen["after"]) == (0, 2)
    assert seen["wide"] and seen["open"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_read_on_a_telephone_too(
    reported: tuple[Comparison, Path], tmp_path: Path, width: int, dark: bool
) -> None:
    """The answer comes first, the filter covers nothing, nothing sticks out without a hint."""
    _, place = reported
    seen = measured((place / "report.html").read_text(), width, tmp_path, dark)
    assert seen["filter"] == ("static" if width == 400 else "sticky")
    assert seen["hint"] is (width == 400)
    assert seen["dark"] is dark
    assert seen["headings"][:2] == ["H1", "H2"] and seen["first"] == "The answer"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_that_is_hard_to_read_is_noticed(
    reported: tuple[Comparison, Path], tmp_path: Path, dark: bool
) -> None:
    """What :func:`measured` refuses: words as pale as their ground, a wide line, a lost heading."""
    _, place = reported
    text = (place / "report.html").read_text()
    for old, new in (
        ("--dim: #586369", "--dim: #c5c5c5") if not dark else ("--dim: #9aa7af", "--dim: #3a3a3a"),
        ("</body>", '<p style="white-space: nowrap">' + "wide " * 400 + "</p></body>"),
        ("</body>", "<h2>two</h2><h4>four</h4></body>"),
    ):
        assert old in text
        with pytest.raises(AssertionError):
            measured(text.replace(old, new), 400, tmp_path, dark)


def test_the_page_without_scripts(reported: tuple[Comparison, Path], tmp_path: Path) -> None:
    _, place = reported
    policy = '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
    page = tmp_path / "page.html"
    page.write_text((place / "report.html").read_text().replace("<head>", f"<head>{policy}"))
    dom = chromium(page, tmp_path)
    assert '<form class="filter" hidden' in dom  # what would do nothing is not shown
    for word in ("checkpoint", "predicted", "qmpshim replay cases/new-build/", "refcount"):
        assert word in dom
    assert dom.count('<details open="">') >= 2  # what is new is open


def test_a_page_without_findings(tmp_path: Path) -> None:
    builds = (Identity("one", "9.0.0", "ab" * 32, (9, 0, 0)),)
    plan = Plan("mine", builds, (Case("verify", "x"),), {})
    write_reports(compare(Results(plan, {("one", "x"): CaseOutcome(Status.OK)})), tmp_path)
    dom = chromium(tmp_path / "report.html", tmp_path)
    assert "All as predicted." in dom
    assert "None: every check that could be done went as predicted." in dom
    assert "<form" not in dom


@pytest.mark.parametrize(
    "outcome, strict, verdict, say",
    [
        (CaseOutcome(Status.BROKEN, "no"), False, 2, "NOT ALL CARRIED OUT: 0 of 1 case(s) done"),
        (CaseOutcome(Status.SKIPPED, "no"), False, 125, "cannot be tested: none of the 1 case(s)"),
        (CaseOutcome(Status.OK, "", (KNOWN,)), True, 1, "DIVERGED: 1 finding(s) fail the run"),
    ],
)
def test_the_headline_says_why(
    tmp_path: Path, outcome: CaseOutcome, strict: bool, verdict: int, say: str
) -> None:
    """Red for what is counted; and nothing went as predicted where nothing was done."""
    builds = (Identity("one", "9.0.0", "ab" * 32, (9, 0, 0)),)
    plan = Plan("mine", builds, (Case("verify", "x"),), {})
    write_reports(compare(Results(plan, {("one", "x"): outcome}), strict=strict), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert f'<p class="verdict s{verdict}">\n{say}' in page
    assert "went as predicted" not in page
    assert ("None, for no check could be done." in page) == (verdict != 1)


def test_one_word_for_what_cannot_be_tested(tmp_path: Path) -> None:
    """In the page, in JUnit and TAP; a schema's users know it as ``skipped`` in JSON."""
    builds = tuple(Identity(n, "9.0.0", "ab" * 32, (9, 0, 0)) for n in ("one", "two"))
    plan = Plan("mine", builds, (Case("verify", "x"), Case("verify", "y")), {})
    gone = CaseFinding(Verdict.HANG, "k", "it hangs")
    done = {
        ("one", "x"): CaseOutcome(Status.SKIPPED, "no replication"),
        ("one", "y"): CaseOutcome(Status.DIVERGED, "", (gone,)),
        ("two", "y"): CaseOutcome(Status.OK),
    }
    write_reports(compare(Results(plan, done)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert ">cannot be tested</td>" in page and "<th>cannot be tested</th>" in page
    assert "<h2>Cannot be tested on these builds (1)</h2>" in page
    assert "<h2>Not seen here</h2>" in page and "<h2>Gone</h2>" not in page
    assert 'message="cannot be tested: no replication"' in (tmp_path / "junit.xml").read_text()
    tap = (tmp_path / "report.tap").read_text()
    assert "ok 1 - one x # SKIP cannot be tested: no replication\n" in tap
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["status"] == "skipped"


# -- what a finding shows ------------------------------------------------------------------------


def test_the_disks_of_a_finding_are_shown_as_predicted_and_observed(qemu_build: Build) -> None:
    """A checkpoint in the middle of a guest's write: the active disk ends other than it must."""
    finding = real_finding(qemu_build)
    maps = finding.details["maps"]
    disks = {disk["name"]: disk["clusters"] for disk in maps["disks"]}
    assert {"secondary", "hidden", "active"} <= disks.keys()
    for clusters in disks.values():
        assert [cell["index"] for cell in clusters] == list(range(len(clusters)))
    assert any(cell["differs"] for cell in disks["active"])
    assert not any(cell["differs"] for cell in disks["secondary"])
    assert any(line.startswith("active") for line in maps["wrong"])
    # In bytes, as in all documents: the runs fill the disk of two clusters.
    assert maps["cluster_bytes"] == 65536
    lengths = [run["length_bytes"] for c in disks["secondary"] for run in c["observed"]["runs"]]
    assert sum(lengths) == 131072


TWO = (operation("primary_write", 0, 128), operation("guest_read", 0, 128))


def test_a_diagram_shows_what_holds_and_what_waits() -> None:
    diagram = steps_of_events(
        ["write", "checkpoint"],
        events_from_lines(
            [
                "start 0: write",
                "    hidden write 0+128 (of 0)",
                "start 1: checkpoint",
                "complete hidden write 0+128 (of 0)",
                "    0 ends: ok",
                "    1 ends: ok",
                "crash: QEMU was killed",
            ],
            TWO,
        ),
    )
    assert [step["kind"] for step in diagram["steps"]] == ["start", "start", "complete", "note"]
    drawing = draw(diagram)
    kinds = [[segment.kind for segment in step.segments] for step in drawing.steps]
    assert kinds == [["held"], ["held", "waits"], [], []]
    words = [text.text for step in drawing.steps for text in step.texts]
    assert "waits (op 0 is held up)" in words


def test_a_cut_connection_ends_what_waits_on_it() -> None:
    diagram = steps_of_events(
        ["write", "read"],
        events_from_lines(
            [
                "start 0: write",
                "    secondary write 0+128 (of 0)",
                "start 1: read",
                "    secondary read 0+128 (of 1)",
                "cut the connection of secondary write 0+128 (of 0) for good",
                "    0 ends: errno 5",
                "    1 ends: errno 5",
            ],
            TWO,
        ),
    )
    assert [step["kind"] for step in diagram["steps"]] == ["start", "start", "cut"]
    drawing = draw(diagram)
    kinds = [[segment.kind for segment in step.segments] for step in drawing.steps]
    assert kinds == [["held"], ["held", "held"], []]
    words = [text.text for text in drawing.steps[-1].texts]
    assert " ".join(words).startswith("secondary write 0+128: cut for   good")


# -- what is known, also when installed ----------------------------------------------------------


def test_what_is_known_is_found() -> None:
    assert {one.id for one in known_findings()} >= {"checkpoint-corrupts-overlay"}
    assert "start-fails" in known_directed()
    assert summary("directed/start-fails")["reason"]


def test_what_the_model_predicts_of_defects_is_written_up() -> None:
    """One file each, as for all others: what a report says of it is nowhere else."""
    written = {path.stem for path in (DIRECTORY / "verify").glob("*.json")}
    explored = {path.stem for path in DIRECTORY.glob("*.json")}  # these have a schedule, too
    predicted = {known.value for known in (*behaviour.KnownDefect, *PointDefect)}
    assert written == predicted - explored
    for name in written:
        assert summary(name).keys() == {"title", "reason", "source", "versions"}


def test_a_report_has_what_is_written_of_a_predicted_defect(
    tmp_path: Path, qemu_build: Build
) -> None:
    arguments = {"operations": 300, "seed": 1, "size": 1 << 20}
    case = Case("verify", "verify/it", arguments)
    outcome = runner_of("verify")(qemu_build, case, tmp_path)
    assert outcome.status is Status.OK
    (found,) = outcome.findings
    assert found.known == "stop-always-fails"
    assert found.details["written"] == summary("stop-always-fails")


def test_a_wheel_has_what_is_known_and_the_templates(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    source = tmp_path / "source"
    shutil.copytree(
        root,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__"),
    )
    import sys

    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
            *("--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(source)),
        ],
        check=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("qmpshim-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    known = {path.relative_to(DIRECTORY) for path in DIRECTORY.rglob("*.json")}
    assert {f"qmpshim/conformance/known/findings/{path}" for path in known} <= names
    assert "qmpshim/conformance/check/report/templates/report.html.j2" in names
    assert "qmpshim/conformance/check/report/results.schema.json" in names
    schemas = {f"qmpshim/conformance/schemas/{path.name}" for path in SCHEMAS.iterdir()}
    assert schemas and schemas <= names
