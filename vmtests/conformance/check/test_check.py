"""`qmpshim check`: the run, its journal, being killed and resumed, and what it reports."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.check.case import Case, CaseFinding, CaseOutcome, Status
from qmpshim.conformance.check.report.compare import State, compare, headline
from qmpshim.conformance.check.report.results import Results
from qmpshim.conformance.check.run import campaign
from qmpshim.conformance.check.run.bisect import BAD, GOOD, SKIP, answer
from qmpshim.conformance.check.run.case_process import Delivery
from qmpshim.conformance.check.run.identity import Identity
from qmpshim.conformance.check.run.journal import JOURNAL, REPORTS, Journal, Plan
from qmpshim.conformance.check.runners.kinds import KINDS
from qmpshim.conformance.check.suites import suite_named
from qmpshim.conformance.explore.scenario_sets import named, pairs
from qmpshim.conformance.explore.scenarios import RealScenario
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Settings
from qmpshim.conformance.explore.space.naming import point_if_named, scenarios_called
from qmpshim.conformance.finding_words import KNOWN_FAIL
from qmpshim.conformance.known.seen import assessed
from qmpshim.errors import InputError
from qmpshim.machine.builds.build import Build, read_version, resolve
from qmpshim.machine.chain.chains import TOPOLOGIES
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.explore.explorer import MODES
from qmpshim.model.operations import Verb
from vmtests.support.broken_builds import make
from vmtests.support.checks import runner_of
from vmtests.support.command_line import LIMIT, CommandLine
from vmtests.support.waiting import wait_until

WORKLOAD = {"workflow": "backup", "operations": 60, "size": 1 << 20}


def suite_file(place: Path, count: int, **arguments: Any) -> Path:
    path = place / "suite.json"
    cases = [
        {"kind": "verify", "name": f"v{n}", "arguments": {**WORKLOAD, "seed": n, **arguments}}
        for n in range(count)
    ]
    path.write_text(json.dumps({"name": "mine", "cases": cases}))
    return path


def journal_of(place: Path) -> list[dict[str, Any]]:
    """The results in a journal, without a line that is being written."""
    lines = (place / "journal.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines[1:]]


# -- the command ---------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(qmpshim: CommandLine) -> None:
    suite = suite_file(qmpshim.home, 3)
    done = qmpshim.run("check", "--suite", suite, "--out", "out")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "suite mine: 3 cases on 1 build(s), 3 in all" in done.stdout
    assert re.search(r"system  3 ok, 0 diverged, 0 cannot be tested, 0 broken", done.stdout)
    assert done.stdout.endswith(
        "all as predicted: 0 new finding(s), 0 known\n"
        "assess would say of this, system: nothing known was seen\n"
    )
    out = qmpshim.home / "out"
    assert {path.name for path in out.iterdir()} == {
        *("journal.jsonl", "results.json", "junit.xml", "report.tap", "report.html")
    }
    again = qmpshim.run("check", "--suite", suite, "--out", "out")
    assert again.returncode == 2
    assert "out holds a run already: go on with it by --resume out" in again.stderr
    assert len(again.stderr.splitlines()) == 1 and "replace it by --force" in again.stderr
    # A run that is done goes on to its end at once.
    idle = qmpshim.run("check", "--resume", "out")
    assert idle.returncode == 0 and "3 of them done before" in idle.stdout
    both = qmpshim.run("check", "--resume", "out", "--force")
    assert both.returncode == 2 and "--resume goes on with what was begun" in both.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_and_resumed(qmpshim: CommandLine, number: signal.Signals) -> None:
    suite, out = suite_file(qmpshim.home, 8), qmpshim.home / "out"
    process = qmpshim.start("check", "--suite", suite, "--out", "out", "--jobs", "2")
    # Two cases have to end, each with QEMUs of its own.
    wait_until(lambda: (out / "journal.jsonl").exists() and len(journal_of(out)) >= 2, LIMIT)
    process.send_signal(number)
    output, complaint = process.communicate(timeout=LIMIT)
    assert complaint == ""
    before = journal_of(out)
    if number is signal.SIGKILL:
        assert process.returncode == -number
        assert qmpshim.left(patience=20.0) == []
    else:
        assert process.returncode == 128 + number
        assert re.search(
            r"interrupted: \d of 8 done and kept; go on with: qmpshim check --resume out\n", output
        )
        assert qmpshim.left(patience=1.0) == []
    done = qmpshim.run("check", "--resume", "out")
    assert done.returncode == 0, done
    after = journal_of(out)
    assert after[: len(before)] == before  # nothing lost
    assert Counter(one["case"] for one in after) == Counter(f"v{n}" for n in range(8))  # nor twice


def test_a_run_that_goes_on_is_not_resumed(qmpshim: CommandLine, qemu_build: Build) -> None:
    suite = suite_named(str(suite_file(qmpshim.home, 1)))
    with closing(campaign.begin(qmpshim.home / "out", {qemu_build.name: qemu_build}, suite)):
        other = qmpshim.run("check", "--resume", "out")
    assert other.returncode == 2
    assert other.stderr == "qmpshim: the run in out is being done right now\n"


def test_a_run_is_resumed_on_the_very_builds_it_was_begun_with(
    qmpshim: CommandLine, qemu_build: Build
) -> None:
    """What another binary does must not be reported as this one's."""
    suite, out = suite_named(str(suite_file(qmpshim.home, 2))), qmpshim.home / "out"
    binary = make("reference", qmpshim.home / "mine")
    version = re.escape(".".join(map(str, read_version(qemu_build)[0])))
    with closing(campaign.begin(out, {str(binary): resolve(str(binary))}, suite)):
        pass
    original, begun = binary.read_bytes(), (out / "journal.jsonl").read_bytes()
    for change, say in (
        (original + b"# rebuilt\n", rf"is another one by now \({version}.*\): begin a new run"),
        (b"#!/bin/sh\nexit 1\n", r"qemu-system-x86_64"),
    ):
        binary.write_bytes(change)
        done = qmpshim.run("check", "--resume", "out")
        assert done.returncode in (2, 125), done
        assert re.fullmatch(rf"qmpshim: [^\n]*{say}[^\n]*\n", done.stderr), done.stderr
        assert (out / "journal.jsonl").read_bytes() == begun  # nothing of it was taken down
    binary.write_bytes(original)
    done = qmpshim.run("check", "--resume", "out")
    assert done.returncode == 0 and "2 ok" in done.stdout, done


def test_a_shim_that_answers_otherwise_than_qemu_is_reported_by_the_command(
    qmpshim: CommandLine,
) -> None:
    """To the check it makes no difference which misbehaves, the shim or the QEMU behind it."""
    binary = make("two-faced", qmpshim.home / "mine")
    done = qmpshim.run("check", "--build", binary, "--case", "protocol/shim", "--out", "out")
    assert done.returncode == 1, done
    assert "PROTOCOL (contract, NEW): the shim before QEMU answers" in done.stdout
    assert re.search(r"predicted: directly: .*GenericError", done.stdout)
    assert re.search(r"observed:  shim: .*CommandNotFound", done.stdout)
    assert f"  again: qmpshim check --case protocol/shim --build {binary}" in done.stdout


@pytest.mark.parametrize(
    ("args", "say"),
    [
        (["--build", "nowhere"], "no build named nowhere"),
        (["--build", "system", "--build", "system"], "--build system is there twice"),
        (["--suite", "slow"], "no suite 'slow': there are quick, .*full, and files"),
        (["--suite", "missing.json"], "missing.json: No such file or directory"),
        (["--case", "explode"], "suite quick has no case 'explode'; .*--list"),
        (["--case", "./nowhere"], "--case ./nowhere: no such bundle"),
        (
            ["--baseline", "nowhere"],
            "no nowhere: `qmpshim check --out nowhere` would have left results there",
        ),
        (["--resume", "nowhere"], "nowhere holds no run"),
        (["--resume", "x", "--build", "system"], "--resume goes on with what was begun"),
        (["--out", "/dev/null"], "/dev/null"),
        (["--dask", "tcp://127.0.0.1:9", "--case", "protocol/schema"], "no Dask scheduler at"),
        (["--jobs", "0"], "'0' is no positive number"),
    ],
)
def test_words_that_are_wrong(qmpshim: CommandLine, args: list[str], say: str) -> None:
    done = qmpshim.run("check", *args)
    assert done.returncode == 2
    assert re.fullmatch(rf"qmpshim[^\n]*: [^\n]*{say}[^\n]*\n", done.stderr), done.stderr
    assert not (qmpshim.home / "qmpshim-check").exists()  # nothing was begun


def test_the_suites_cases_are_shown(qmpshim: CommandLine) -> None:
    done = qmpshim.run("check", "--list", "--case", "explore/*")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert "explore/replication/checkpoint" in names
    assert all(name.startswith("explore/") for name in names)


# -- suites --------------------------------------------------------------------------------------


def test_the_quick_suite_has_every_pair_once() -> None:
    wanted = sorted(one.name for form in TOPOLOGIES for one in pairs(form))
    cases = suite_named("quick").cases
    had = [n for case in cases if case.kind == "explore" for n in case.arguments["scenarios"]]
    assert sorted(one for one in had if point_if_named(one) is None) == wanted
    names = [case.name for case in suite_named("full").cases]
    assert len(names) == len(set(names))


def test_both_suites_have_pulls_with_all_that_they_can_do() -> None:
    """That a transaction begins, one that runs beside requests, frozen bitmaps, and two disks."""
    every = {"frozen before", "frozen", "read", "stopped", "two disks"}
    for suite in ("quick", "full"):
        there = set()
        for case in suite_named(suite).cases:
            for name in case.arguments.get("scenarios", ()) if case.kind == "explore" else ():
                for one in scenarios_called(name):
                    there |= _pulls(one)
        assert there == every, suite


def _pulls(scenario: RealScenario) -> set[str]:
    """What of pulls a scenario has."""
    late, verbs = scenario.topology.begins_late, {op.verb for op in scenario.ops}
    frozen = Verb.DIRTY_BITMAP in verbs
    has = {
        "frozen before": frozen and not late,
        "frozen": frozen and late,
        "read": late and any(op.verb is Verb.READ and op.after is not None for op in scenario.ops),
        "stopped": late and Verb.STOP in verbs,
        "two disks": scenario.disks > 1,
    }
    return {what for what, there in has.items() if there}


def test_a_case_takes_names_of_points(tmp_path: Path, qemu_build: Build) -> None:
    (name,) = (
        case.arguments["scenarios"]
        for case in suite_named("quick").cases
        if case.name == "explore/pull/grouped"
    )
    case = Case("explore", "e", {"scenarios": name})
    outcome = runner_of("explore")(qemu_build, case, tmp_path)
    assert outcome.status is Status.OK and not outcome.findings
    assert outcome.figures["schedules"] > 1


def test_check_takes_the_schedules_that_explore_takes(tmp_path: Path, qemu_build: Build) -> None:
    case = Case("explore", "e", {"scenarios": ["WR"]})
    outcome = runner_of("explore")(qemu_build, case, tmp_path)
    alone = explore_real(qemu_build, named("WR"), settings=Settings(mode=MODES["exhaustive"]))
    assert alone.mode == "stateful"
    assert outcome.figures["schedules"] == alone.schedules
    # The words of the command line are those of a suite.
    dpor = replace(case, arguments={**case.arguments, "mode": "dpor"})
    outcome = runner_of("explore")(qemu_build, dpor, tmp_path)
    assert outcome.figures["schedules"] > alone.schedules


def test_check_holds_all_io_and_looks_at_crash_points(tmp_path: Path, qemu_build: Build) -> None:
    words = {"scenarios": ["WR"], "all_io": True, "crash_points": "quick:meta"}
    outcome = runner_of("explore")(qemu_build, Case("explore", "e", words), tmp_path)
    plain = runner_of("explore")(qemu_build, Case("explore", "e", {"scenarios": ["WR"]}), tmp_path)
    assert outcome.status is Status.OK and not outcome.findings
    assert outcome.figures["schedules"] > plain.figures["schedules"]
    wrong = Case("explore", "e", {**words, "crash_points": "all"})
    with pytest.raises(InputError, match="crash points are none, quick, full"):
        runner_of("explore")(qemu_build, wrong, tmp_path)


def test_every_kind_can_be_found() -> None:
    for kind in KINDS:
        assert callable(runner_of(kind))
    with pytest.raises(InputError, match="no kind of check 'dance'"):
        runner_of("dance")


def test_a_suite_file(tmp_path: Path) -> None:
    path = tmp_path / "nightly.toml"
    path.write_text(
        """
        include = ["other.json"]

        [[cases]]
        kind = "verify"
        name = "v"
        budget = 5
        arguments = { seed = 7 }
        shards = 3
        """
    )
    (tmp_path / "other.json").write_text('{"cases": [{"kind": "protocol", "name": "p"}]}')
    suite = suite_named(str(path))
    assert suite.name == "nightly"
    assert [case.name for case in suite.cases] == ["p", "v/seed7", "v/seed8", "v/seed9"]
    assert [case.arguments.get("seed") for case in suite.cases] == [None, 7, 8, 9]
    assert suite.cases[1].budget == 5.0
    assert [case.name for case in suite.only(["v/*"]).cases] == ["v/seed7", "v/seed8", "v/seed9"]


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ("[1", "is damaged"),
        ("[]", "a suite is an object with cases"),
        ("{}", "no cases"),
        ('{"case": []}', "nothing is known of case"),
        ('{"cases": [{"kind": "dance", "name": "x"}]}', "no kind of check 'dance'"),
        ('{"cases": [{"name": "x"}]}', "not a case: .*`kind`"),
        ('{"cases": [{"kind": "protocol", "name": "x", "seed": 1}]}', "nothing is known of seed"),
        ('{"cases": [{"kind": "protocol", "name": "x", "budget": 0}]}', "limits must not be"),
        ('{"cases": [{"kind": "protocol", "name": "x"}, {"kind": "known", "name": "x"}]}', "more"),
        ('{"include": ["self.json"]}', "includes itself"),
    ],
)
def test_a_suite_file_that_is_wrong(tmp_path: Path, text: str, say: str) -> None:
    path = tmp_path / "self.json"
    path.write_text(text)
    with pytest.raises(InputError, match=say):
        suite_named(str(path))


# -- the journal ---------------------------------------------------------------------------------

OK = CaseOutcome(Status.OK, "fine")


def a_plan(*builds: str, cases: tuple[str, ...] = ("x", "y")) -> Plan:
    identities = tuple(Identity(name, "7.2.22", "00", (7, 2, 22)) for name in builds)
    return Plan("s", identities, tuple(Case("verify", name) for name in cases), {})


def test_a_line_that_was_not_written_to_its_end_does_not_count(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path / "j", a_plan("a"))
    journal.record(Delivery(("a", "x"), OK))
    journal.close()
    path = tmp_path / "j" / "journal.jsonl"
    whole = path.read_bytes()
    for torn in (b'{"build":"a","ca', b"{", b'{"build":"a","case":"y","outcome":{}}'):
        path.write_bytes(whole + torn)
        again = Journal.resume(tmp_path / "j")
        assert again.missing == [("a", "y")]
        again.record(Delivery(("a", "y"), OK))
        again.close()
        done = Journal.resume(tmp_path / "j")
        assert done.missing == [] and done.outcomes[("a", "y")] == OK
        done.close()


@pytest.mark.parametrize(
    ("change", "say"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: [b"x", *lines[1:]], "is damaged"),
        (lambda lines: [lines[0].replace(b'"format":1', b'"format":9'), *lines[1:]], "format 9"),
        (lambda lines: [*lines, lines[1]], "not wanted, or there twice"),
        (lambda lines: [lines[0], lines[1].replace(b'"x"', b'"z"')], "not wanted"),
        (lambda lines: [lines[0], b'{"build": "a"}'], "is damaged"),
    ],
)
def test_a_journal_that_is_damaged(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], say: str
) -> None:
    journal = Journal.begin(tmp_path / "j", a_plan("a"))
    journal.record(Delivery(("a", "x"), OK))
    journal.close()
    path = tmp_path / "j" / "journal.jsonl"
    lines = change(path.read_bytes().split(b"\n")[:-1])
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(InputError, match=say):
        Journal.resume(tmp_path / "j")


def test_a_run_is_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    """And its reports and its cases' files with it; what is none of a run's stays."""
    place = tmp_path / "j"
    journal = Journal.begin(place, a_plan("a"))
    journal.record(Delivery(("a", "x"), OK))
    for name in (*REPORTS, "mine.txt", "cases/a/x/trace.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("old")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="being done right now"):
        Journal.begin(place, a_plan("b"), replace=True)
    journal.close()
    with pytest.raises(InputError, match="holds a run already"):
        Journal.begin(place, a_plan("b"))
    assert {path: path.read_bytes() for path in before} == before
    Journal.begin(place, a_plan("b"), replace=True).close()
    assert {path.name for path in place.iterdir()} == {JOURNAL, "mine.txt"}
    again = Journal.resume(place)
    assert [build.name for build in again.plan.builds] == ["b"] and not again.outcomes
    again.close()
    Journal.begin(tmp_path / "new", a_plan("a"), replace=True).close()  # none there: as without


# -- the comparison ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found, strict, status, say",
    [
        ([], False, 0, "all as predicted: 0 new finding(s), 0 known"),
        (["known"], False, 0, "all as predicted: 0 new finding(s), 1 known"),
        (["known"], True, 1, f"DIVERGED: 1 finding(s) fail the run ({KNOWN_FAIL}): 0 new"),
        (["new", "known"], False, 1, "DIVERGED: 1 finding(s) fail the run: 1 new"),
        (["new", "known"], True, 1, f"DIVERGED: 2 finding(s) fail the run ({KNOWN_FAIL}): 1 new"),
        (["unsure"], False, 1, "DIVERGED: 1 finding(s) fail the run: 0 new finding(s), 0 known, 1"),
        (Status.BROKEN, False, 2, "NOT ALL CARRIED OUT: 0 of 1 case(s) done"),
        (Status.SKIPPED, False, 125, "cannot be tested: none of the 1 case(s) on these builds"),
    ],
)
def test_what_is_counted_is_what_decides(
    found: list[str] | Status, strict: bool, status: int, say: str
) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "known": {"known": "some-id"},
        "unsure": {"confirmed": False},
        "new": {},
    }
    what = found if isinstance(found, Status) else [finding(k, **kinds[k]) for k in found]
    compared = compare(results(a=what), strict=strict)
    assert compared.exit_status == status
    assert headline(compared).startswith(say)


def test_what_cannot_be_tested_is_counted_beside_what_was_carried_out() -> None:
    """Else the report has two numbers of cases that are done."""
    compared = compare(results(a=Status.BROKEN, b=Status.SKIPPED))
    expected = "NOT ALL CARRIED OUT: 0 of 2 case(s) done, 1 cannot be tested; "
    assert headline(compared).startswith(expected)


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_in_the_baseline_fails_nothing(strict: bool) -> None:
    """Known or not; and what nothing explains was not predicted, whatever the baseline has."""
    found = [finding("known", known="failover-reports-io-error"), finding("odd")]
    compared = compare(results(a=found), results(a=found), strict)
    assert compared.exit_status == 0 and not list(compared.failing())
    assert headline(compared) == (
        "nothing new since the baseline: 0 new finding(s), 1 known, "
        "1 not explained and in the baseline"
    )
    assert assessed(compared.seen_on("a")).startswith("NOT RELIABLE for what was tried here")
    # What the baseline lacks fails the run as without one.
    compared = compare(results(a=found), results(a=found[1:]), strict)
    assert [row.key for row, _ in compared.failing()] == ["failover-reports-io-error"] * strict
    known = compare(results(a=found[:1]), results(a=found[:1]), strict)
    assert headline(known) == "all as predicted: 0 new finding(s), 1 known"


def finding(cause: str, **more: Any) -> CaseFinding:
    return CaseFinding(Verdict.CONTENT, cause, f"title of {cause}", **more)


def results(**found: list[CaseFinding] | Status) -> Results:
    """Of builds, with one case, what each found."""
    outcomes = {}
    for build, what in found.items():
        if isinstance(what, Status):
            outcomes[build, "x"] = CaseOutcome(what, "why")
        else:
            status = Status.DIVERGED if what else Status.OK
            outcomes[build, "x"] = CaseOutcome(status, "", tuple(what))
    return Results(a_plan(*found, cases=("x",)), outcomes)


def test_what_is_new_and_what_is_gone() -> None:
    compared = compare(results(a=[finding("1")], b=[finding("2"), finding("1")], c=[]))
    assert {row.key: row.state for row in compared.rows} == {
        "content: 1": State.NEW,
        "content: 2": State.NEW,
    }
    rows = {row.key: row for row in compared.rows}
    assert not rows["content: 1"].sights["b"].differs
    assert rows["content: 2"].sights["b"].differs
    assert [(one.build, one.key, one.why) for one in compared.gone] == [("c", "content: 1", "on a")]
    assert compared.exit_status == 1


def written_up(version: tuple[int, ...], *outcomes: CaseOutcome) -> list[tuple[str, str]]:
    """What is reported to be gone of a build of *version*, which did two cases of what is known."""
    cases = ("known/checkpoint-corrupts-overlay", "directed/failover-fails")
    plan = Plan("s", (Identity("a", "", "00", version),), tuple(Case("k", c) for c in cases), {})
    done = {("a", case): outcome for case, outcome in zip(cases, outcomes, strict=True)}
    return [(one.key, one.why) for one in compare(Results(plan, done)).gone]


def test_what_is_written_up_and_was_not_seen_is_gone() -> None:
    """Only for a version it is written up for, and only when its own case was done."""
    why = "written up for this version"
    overlay, failover = "checkpoint-corrupts-overlay", "directed/failover-fails"  # until 6.1
    seen = [
        CaseOutcome(Status.OK, "", (replace(finding("1"), known=key),))
        for key in (overlay, failover)
    ]
    assert written_up((5, 2), OK, OK) == [(overlay, why), (failover, why)]
    assert written_up((7, 2, 22), OK, OK) == [(overlay, why)]
    assert written_up((5, 2), seen[0], OK) == [(failover, why)]
    assert written_up((5, 2), *seen) == []
    assert written_up((5, 2), CaseOutcome(Status.SKIPPED), CaseOutcome(Status.BROKEN)) == []
    # Another finding in its case does not stand for it.
    other = CaseOutcome(Status.DIVERGED, "", (finding("2"),))
    assert (overlay, why) in written_up((5, 2), other, OK)


def test_the_baseline_excuses() -> None:
    baseline = results(a=[finding("1"), finding("3")])
    compared = compare(results(b=[finding("1")]), baseline)
    assert compared.rows[0].state is State.BASELINE and compared.exit_status == 0
    assert [(one.build, one.key) for one in compared.gone] == [("b", "content: 3")]
    compared = compare(results(b=[finding("1"), finding("2")]), baseline)
    assert [row.state for row in compared.rows] == [State.NEW, State.BASELINE]
    assert compared.exit_status == 1


def test_what_is_known_fails_only_the_strict() -> None:
    found = results(a=[finding("1", known="an-id")])
    assert compare(found).exit_status == 0
    assert compare(found, strict=True).exit_status == 1


def test_what_is_known_and_was_not_there_before_is_reported() -> None:
    found = results(a=[finding("1", known="an-id")])
    assert compare(found, results(a=[])).rows[0].sights["a"].differs
    assert not compare(found, found).rows[0].sights["a"].differs
    assert not compare(found, results(a=Status.SKIPPED)).rows[0].sights["a"].differs


def test_what_did_not_show_itself_again_fails_the_run_but_blames_no_commit() -> None:
    compared = compare(results(a=[finding("1", confirmed=False)]))
    assert compared.rows[0].state is State.UNCONFIRMED and compared.exit_status == 1
    assert answer(compared).status == SKIP
    compared = compare(results(a=[finding("1", confirmed=False), finding("2")]))
    assert answer(compared).status == BAD and "2" in answer(compared).text
    known = compare(results(a=[finding("1", confirmed=False, known="an-id")]))
    assert known.exit_status == 0 and answer(known).status == GOOD


def test_the_smallest_case_speaks_for_a_finding() -> None:
    long, short = finding("1", trace=("a",) * 9), finding("1", trace=("a",) * 2)
    outside = finding("1", trace=("a",), contract=False)
    compared = compare(results(a=[long], b=[outside, short]))
    assert compared.rows[0].smallest.best == short
    assert compared.rows[0].smallest.build == "b"


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"a": Status.SKIPPED, "b": Status.SKIPPED}, 125),
        ({"a": Status.SKIPPED, "b": []}, 0),
        ({"a": Status.BROKEN, "b": []}, 2),
        ({"a": Status.BROKEN, "b": [finding("1")]}, 1),
    ],
)
def test_the_exit_status(found: dict[str, Any], status: int) -> None:
    assert compare(results(**found)).exit_status == status
