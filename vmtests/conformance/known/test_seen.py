"""What a run's findings come to for a user: never harmless where data is silently wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.report.compare import compare
from qmpshim.conformance.check.report.reports import write_reports
from qmpshim.conformance.check.report.results import Results
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.conformance.check.run.journal import Plan
from qmpshim.conformance.known.folder import write_up, write_ups
from qmpshim.conformance.known.meaning import Trigger
from qmpshim.conformance.known.seen import (
    SeenFinding,
    Standing,
    assessed,
    avoiding,
    standing,
    worst_by_use,
)
from qmpshim.conformance.known.write_ups import WriteUp
from qmpshim.conformance.uses import Use
from qmpshim.model.check.verdict import Verdict


def of(one: WriteUp) -> SeenFinding:
    return SeenFinding(Verdict(one.verdicts[0]), "t", one.contract, one.id)


@pytest.mark.parametrize("one", write_ups(), ids=lambda one: one.name)
def test_a_known_finding_stands_for_what_it_means(one: WriteUp) -> None:
    bad, serious = one.meaning.disqualifies, one.meaning.severity.serious
    text = assessed([of(one)])
    assert avoiding([of(one)]) == (f"qmpshim findings show {one.name}" if bad else "")
    if bad:
        assert standing([of(one)]) is Standing.NOT_RELIABLE
    elif serious:
        assert standing([of(one)]) is Standing.CONDITIONAL
        assert text == f"1 known and serious {one.meaning.trigger.words}"
    else:
        assert standing([of(one)]) is Standing.HARMLESS
        assert text == "1 known and harmless finding(s)"
    assert text.startswith("NOT RELIABLE for ") is bad
    if bad:
        assert one.title in text and one.meaning.severity.words in text
        assert all(use.words in text for use in one.meaning.affects)


def test_what_is_serious_under_conditions_is_not_called_harmless() -> None:
    """Beside what is harmless, and beside what is not explained."""
    ones = [one for one in write_ups() if not one.meaning.disqualifies]
    serious = [one for one in ones if one.meaning.severity.serious]
    mild = next(one for one in ones if one not in serious)
    assert {one.meaning.trigger for one in serious} >= {Trigger.TWO_FAILURES, Trigger.MISUSE}
    text = assessed([of(mild), *map(of, serious)])
    start = f"1 known and harmless finding(s), {len(serious)} known and serious "
    assert text.startswith(start) and Trigger.TWO_FAILURES.words in text
    assert standing([of(mild), of(serious[0])]) is Standing.CONDITIONAL
    outside = SeenFinding(Verdict.CRASH, "x", contract=False)
    assert standing([of(serious[0]), outside]) is Standing.UNEXPLAINED


def test_the_worst_is_named() -> None:
    text = assessed([of(one) for one in reversed(write_ups())])
    assert "silent wrong data: " in text


def test_what_is_not_explained_is_not_harmless_within_the_contract() -> None:
    new = SeenFinding(Verdict.ERROR_CONTRACT, "it is odd", contract=True)
    assert standing([new]) is Standing.NOT_RELIABLE and "it is odd" in assessed([new])
    outside = SeenFinding(Verdict.CRASH, "x", contract=False)
    assert standing([outside]) is Standing.UNEXPLAINED
    assert assessed([outside]) == "1 against QEMU's documented rules, not explained"
    assert standing([]) is Standing.NOTHING and assessed([]) == "nothing known was seen"


def test_what_is_not_explained_counts_for_the_uses_that_it_was_found_in() -> None:
    new = SeenFinding(Verdict.CRASH, "it ends", contract=True, uses=(Use.BITMAPS, Use.QUORUM))
    assert worst_by_use([new]) == {Use.BITMAPS: new, Use.QUORUM: new}
    assert assessed([new]) == (
        "NOT RELIABLE for dirty bitmaps, a quorum of disks that vote: crash: it ends"
    )
    for less in (replace(new, confirmed=False), replace(new, contract=False)):
        assert not worst_by_use([less])
    known = replace(new, known="verify/refused-transaction-loses-bitmap")
    assert known.meaning and {*worst_by_use([known])} == {*known.meaning.affects} != {*new.uses}


def test_how_another_finding_is_avoided_is_no_answer() -> None:
    """The worst has no write-up: what is known of a lesser one would mislead."""
    known = of(write_up("overlapping-writes-part-voting-disks"))
    new = SeenFinding(Verdict.ISOLATION, "new data", contract=True)
    assert new.severity.rank < known.severity.rank
    assert "new data" in assessed([known, new]) and avoiding([known])
    assert not avoiding([known, new])


def test_what_did_not_show_itself_every_time_is_kept_apart() -> None:
    """It makes nothing unreliable, and nothing green."""
    flaky = SeenFinding(Verdict.CONTENT, "now and then", contract=True, confirmed=False)
    assert standing([flaky]) is Standing.UNEXPLAINED
    doubt = "; 1 more did not show itself every time"
    assert assessed([flaky]) == f"nothing known was seen{doubt}"
    known = of(write_up("snapshot-read-returns-new-data"))
    assert standing([known, flaky]) is Standing.NOT_RELIABLE
    unsure = replace(known, confirmed=False)
    assert standing([unsure]) is Standing.UNEXPLAINED
    assert assessed([unsure]) == f"nothing known was seen{doubt}"
    assert assessed([known, flaky]) == assessed([known]) + doubt


@pytest.mark.parametrize(
    "known, verdict, badge",
    [
        ("snapshot-read-returns-new-data", Verdict.ISOLATION, "not-reliable"),
        ("failover-reports-io-error", Verdict.ERROR_CONTRACT, "harmless"),
        ("", None, "nothing"),
    ],
)
def test_the_badge_is_not_green_over_silent_corruption(
    known: str, verdict: Verdict | None, badge: str, tmp_path: Path
) -> None:
    builds = (Identity("one", "7.2.22", "ab" * 32, (7, 2, 22)),)
    found = (CaseFinding(verdict, "c", "title", known=known),) if verdict else ()
    plan = Plan("mine", builds, (Case("verify", "x"),), {})
    compared = compare(Results(plan, {("one", "x"): CaseOutcome(Status.OK, "", found)}))
    assert compared.exit_status == 0
    write_reports(compared, tmp_path)
    junit = (tmp_path / "junit.xml").read_text()
    assert (f'<property name="known" value="{known}: title" />' in junit) is bool(known)
    assert "<failure" not in junit
    page = (tmp_path / "report.html").read_text()
    assert f'<p class="verdict {badge}">' in page
    assert f'<span class="state {badge}">' in page
    # Of no build is anything concluded but the worst: what tries the rest is `assess`.
    for name in ("verdict", "state"):
        colour = re.search(rf"\.{name}\.{badge}[^{{]*{{ color: var\(--(\w+)\)", page)
        assert colour is not None and colour[1] != "ok"
    # The answer first, then the findings, then the checks.
    order = [page.index(f"<h2>{name}</h2>") for name in ("The answer", "Findings", "Checks")]
    assert order == sorted(order)
    assert ('class="uses"' in page) is (badge == "not-reliable")


def test_a_failure_can_be_waived_by_the_name_of_its_write_up(tmp_path: Path) -> None:
    """With --fail-known it is the type of the failure; what has no write-up has its verdict."""
    builds = (Identity("one", "7.2.22", "ab" * 32, (7, 2, 22)),)
    known = CaseFinding(Verdict.ISOLATION, "c", "it is new", known="snapshot-read-returns-new-data")
    other = CaseFinding(Verdict.ERROR_CONTRACT, "d", "it", known="failover-reports-io-error")
    new = CaseFinding(Verdict.HANG, "e", "it hangs")
    plan = Plan("mine", builds, (Case("verify", "x"), Case("verify", "y")), {})
    found = {
        ("one", "x"): CaseOutcome(Status.OK, "", (known, other)),
        ("one", "y"): CaseOutcome(Status.DIVERGED, "", (new,)),
    }
    write_reports(compare(Results(plan, found), strict=True), tmp_path)
    tree = ElementTree.parse(tmp_path / "junit.xml")
    failures = {one.get("type"): one.get("message") for one in tree.iter("failure")}
    assert failures == {
        known.known: f"isolation (contract, known: {known.known}): it is new; "
        f"and known: {other.known}",
        "hang": "hang (contract, NEW): it hangs",
    }
    assert not list(tree.iter("testcase")) or "known" not in {
        one.get("name") for one in tree.iter("property")
    }


def test_the_report_answers_for_each_use_on_each_build(tmp_path: Path) -> None:
    """The reason is the worst of this use on this build, not the worst of all."""
    names = ("snapshot-read-returns-new-data", "directed/iothread-client-leaves")
    builds = tuple(Identity(name, "7.2.22", "ab" * 32, (7, 2, 22)) for name in ("one", "two"))
    both = [
        CaseFinding(Verdict(write_up(name).verdicts[0]), name, "t", known=write_up(name).id)
        for name in names
    ]
    plan = Plan("mine", builds, (Case("verify", "x"),), {})
    outcomes = {
        ("one", "x"): CaseOutcome(Status.OK, "", tuple(both)),
        ("two", "x"): CaseOutcome(Status.OK, "", (both[1],)),
    }
    write_reports(compare(Results(plan, outcomes)), tmp_path)
    page = (tmp_path / "report.html").read_text().replace("&#39;", "'")
    table = page.partition('class="uses"')[2].partition("</table>")[0]
    rows = {row.partition("<")[0]: row for row in table.split('<th scope="row">')[1:]}
    snapshot, iothread = (write_up(name).title for name in names)
    assert list(rows) == ["image fleecing", "NBD export", "every other use"]
    assert snapshot in rows["image fleecing"] and iothread in rows["image fleecing"]
    assert rows["NBD export"].count(iothread) == 2 and snapshot not in rows["NBD export"]
    assert rows["every other use"].count("CANNOT TELL") == 2


def test_nothing_is_concluded_of_a_build_on_which_nothing_ran() -> None:
    """And a known finding that did not show itself each time makes it no more than unclear."""
    builds = (Identity("one", "7.2.22", "ab" * 32, (7, 2, 22)),)
    plan = Plan("mine", builds, (Case("verify", "x"),), {})
    broken = compare(Results(plan, {("one", "x"): CaseOutcome(Status.BROKEN, "no greeting")}))
    assert broken.answer_on("one").startswith("CANNOT TELL: ")
    found = CaseFinding(
        Verdict.ISOLATION, "c", "t", known="snapshot-read-returns-new-data", confirmed=False
    )
    seen = compare(Results(plan, {("one", "x"): CaseOutcome(Status.OK, "", (found,))}))
    assert seen.answer_on("one").endswith("; 1 more did not show itself every time")
    assert standing(seen.seen_on("one")) is Standing.UNEXPLAINED
