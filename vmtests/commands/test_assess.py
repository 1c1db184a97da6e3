"""`qmpshim assess`: its words, its document, its exit status, its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.commands import assess as command
from qmpshim.conformance.assess.advice import MILD
from qmpshim.conformance.assess.assess import Assessment
from qmpshim.conformance.assess.exploration import Explored
from qmpshim.conformance.assess.judgement import judge
from qmpshim.conformance.assess.page import page
from qmpshim.conformance.assess.trials import Seen, Trial
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.known.folder import write_up, write_ups
from qmpshim.conformance.uses import Use
from qmpshim.machine.builds.build import Build
from qmpshim.model.check.verdict import Verdict
from vmtests.support.browser import measured
from vmtests.support.documents import validator

ALL = Explored(scenarios=36, reached=36, exhausted=30, schedules=400)
EVIL = "<script>document.title='owned'</script>"


def assessment(build: Build, shown: bool, *uses: Use) -> Assessment:
    """As it would be of a build that shows all that is known, or nothing."""
    trials = [Trial(one, Seen.SHOWN if shown else Seen.NOT_SEEN) for one in write_ups()]
    judgements = tuple(
        judge(use, trials, Explored() if use is Use.BITMAPS else ALL) for use in uses
    )
    return Assessment(build, f"9.9 {EVIL}", judgements, tuple(trials), 1.0)


@pytest.mark.parametrize(
    "shown, uses, status",
    [
        (False, [Use.FLEECING], 0),
        (True, [Use.FLEECING], 1),
        (False, [Use.FLEECING, Use.BITMAPS], 125),
        (True, [Use.FLEECING, Use.BITMAPS], 1),
    ],
)
def test_the_exit_status_and_the_document(
    shown: bool,
    uses: list[Use],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    qemu_on_path: None,
) -> None:
    monkeypatch.setattr(
        command, "assess", lambda build, wanted, *_: assessment(build, shown, *wanted)
    )
    words = [word for use in uses for word in ("--use", use.value)]
    out = tmp_path / "it.json"
    html = tmp_path / "it.html"
    assert main(["assess", *words, "--json", str(out), "--html", str(html)]) == status
    document = json.loads(out.read_text())
    validator("assess").validate(document)
    assert document["verdict"] == {0: "as predicted", 1: "diverged", 125: None}[status]
    output = capsys.readouterr().out
    (judged,) = document["assessments"]
    # The table is the last that is seen of a long text, of one build, too.
    last = [re.split(r"  +", line) for line in output.splitlines()[-len(uses) :]]
    assert {line[0]: line[-1] for line in last} == {
        use.words: one["answer"] for use, one in zip(uses, judged["uses"], strict=True)
    }
    unsure = [one["use"] for one in judged["uses"] if one["answer"] == "CANNOT TELL"]
    for use in unsure:
        assert f": qmpshim assess --use {use} --budget 5m\n" in output
        assert f"<code>qmpshim assess --use {use} --budget 5m</code>" in html.read_text()
    assert output.count("  to tell: ") == html.read_text().count("To tell: ") == len(unsure)
    for use, one in zip(uses, judged["uses"], strict=True):
        assert f"{use.words}: {one['answer']}\n" in output
        for reason in one["reasons"]:
            assert reason["then"] in output and reason["again"] in output
            assert reason["then"] in html.read_text().replace("&#39;", "'")


def test_what_is_not_explained_and_harmless_stands_apart(
    qemu_build: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    one = load_finding(write_up("snapshot-read-returns-new-data").path)
    new = [
        replace(one, verdict=verdict, known="", replays=(3, 3), text=f"it is {verdict}")
        for verdict in (Verdict.ALLOCATION, Verdict.CONTENT)
    ]
    found = judge(Use.FLEECING, [], replace(ALL, confirmed=new))
    monkeypatch.setattr(
        command, "assess", lambda build, *_: Assessment(build, "9", (found,), (), 1.0)
    )
    html = tmp_path / "it.html"
    words = ["--use", "fleecing", "--build", qemu_build.name, "--html", str(html)]
    assert main(["assess", *words]) == 1
    for text in (" ".join(capsys.readouterr().out.split()), html.read_text()):
        places = [text.lower().index(part) for part in ("it is content", MILD, "it is allocation")]
        assert places == sorted(places)


def test_what_is_not_against_it_has_what_it_takes(
    tmp_path: Path,
    qemu_build: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of silent wrong data below RELIABLE it is to be seen at once why it does not count."""
    entry = write_up("failed-flush-unorders-frees")
    found = judge(Use.FLEECING, [Trial(entry, Seen.SHOWN)], ALL)
    monkeypatch.setattr(
        command, "assess", lambda build, *_: Assessment(build, "9", (found,), (), 1.0)
    )
    html = tmp_path / "it.html"
    words = ["--use", "fleecing", "--build", qemu_build.name, "--html", str(html)]
    assert main(["assess", *words]) == 0
    takes = entry.meaning.trigger.words
    out = capsys.readouterr().out
    assert f"    silent wrong data, {takes}: {entry.title} ({entry.name})\n" in out
    assert "\nassessed in 1 s\n" in out
    assert takes in html.read_text()


def test_a_real_one(tmp_path: Path, qemu_on_path: None, qemu_build: Build) -> None:
    """Of a use that little is known of, in a few seconds; whatever the answer, it has grounds."""
    out = tmp_path / "it.json"
    status = main(["assess", "--use", "nbd-export", "--budget", "3s", "--json", str(out)])
    document = json.loads(out.read_text())
    validator("assess").validate(document)
    (use,) = document["assessments"][0]["uses"]
    assert status == {"RELIABLE": 0, "NOT RELIABLE": 1, "CANNOT TELL": 125}[use["answer"]]
    assert bool(use["reasons"]) is (status == 1)
    assert use["tried"]["findings"] >= 3
    assert use["tried"]["schedules"] > 0 or "not explored in the budget" in " ".join(use["doubts"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_in_a_browser(width: int, dark: bool, tmp_path: Path, qemu_build: Build) -> None:
    both = [assessment(qemu_build, shown, *Use) for shown in (True, False)]
    again = {
        reason: f"qmpshim replay {'x' * 90}"
        for one in both
        for judgement in one.judgements
        for reason in (*judgement.reasons, *judgement.remarks)
    }
    text = page(both, again).decode()
    assert text.count("<script") == 0
    seen = measured(text, width, tmp_path, dark)
    assert seen["title"].startswith("Can this QEMU be relied on?")
    assert seen["dark"] is dark
    assert seen["hint"] is (width == 400)
    assert seen["headings"][:4] == ["H1", "H2", "H2", "H3"]


@pytest.mark.parametrize("other", ["it", "./it", "sub/../it"])
def test_two_documents_in_one_file_are_refused(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second would replace the first; nothing is begun, and the document has the error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    monkeypatch.setattr(command, "assess", lambda *_: pytest.fail("it was begun"))
    assert main(["assess", "--html", "it", "--json", other]) == 2
    assert capsys.readouterr().err == "qmpshim: --html and --json name the same file, it\n"
    assert json.loads((tmp_path / "it").read_text())["exit_status"] == 2
