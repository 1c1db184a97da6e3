"""`qmpshim assess`: its words, its document, its exit status, its page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.commands import assess as command
from qmpshim.conformance.assess.assess import Assessment
from qmpshim.conformance.assess.exploration import Explored
from qmpshim.conformance.assess.judgement import judge
from qmpshim.conformance.assess.page import page
from qmpshim.conformance.assess.trials import Seen, Trial
from qmpshim.conformance.known.entries import entries
from qmpshim.conformance.known.meaning import Use
from qmpshim.machine.builds.build import Build
from vmtests.commands.test_documents import validator
from vmtests.conformance.check.report.test_reports import in_a_frame

ALL = Explored(scenarios=36, reached=36, exhausted=30, schedules=400)
EVIL = "<script>document.title='owned'</script>"


def assessment(build: Build, shown: bool, *uses: Use) -> Assessment:
    """As it would be of a build that shows all that is known, or nothing."""
    trials = [Trial(one, Seen.SHOWN if shown else Seen.NOT_SEEN) for one in entries()]
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
    said = capsys.readouterr().out
    (told,) = document["assessments"]
    for use, one in zip(uses, told["uses"], strict=True):
        assert f"{use.words}: {one['answer']}\n" in said
        for reason in one["reasons"]:
            assert reason["then"] in said and reason["again"] in said
            assert reason["then"] in html.read_text().replace("&#39;", "'")


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
    assert use["tried"]["schedules"] > 0 or "not come to" in " ".join(use["doubts"])


PROBE = """
<script>
addEventListener("load", () => {
  const told = {title: document.title};
  for (const one of document.querySelectorAll("details")) one.open = true;
  told.wide = document.documentElement.scrollWidth <= innerWidth;
  told.hint = getComputedStyle(document.querySelector(".hint")).display !== "none";
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => (v /= 255) <= .03928
      ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/rgba\\(0, 0, 0, 0\\)|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  told.contrast = Math.min(...[...document.querySelectorAll("body *")].filter(node =>
    [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim()) && node.tagName !== "SCRIPT"
  ).map(node => {
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  }));
  told.headings = [...document.querySelectorAll("h1, h2, h3, h4")].map(h => h.tagName).join(" ");
  told.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.body.dataset.told = JSON.stringify(told);
});
</script>
"""


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
    inner = tmp_path / "inner.html"
    inner.write_text(text.replace("</body>", PROBE + "</body>"))
    told = in_a_frame(inner, width, tmp_path, dark)
    assert told["title"].startswith("Can this QEMU be relied on?")
    assert told["dark"] is dark
    assert told["wide"], "the page scrolls sideways"
    assert told["hint"] is (width == 400)
    assert told["contrast"] >= 4.5
    assert re.match(r"H1 H2 H2 H3", told["headings"])
