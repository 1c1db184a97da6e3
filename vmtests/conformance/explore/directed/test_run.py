"""What comes of directed cases: run, skipped, left out, and whether a finding comes again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.cli import main
from qmpshim.conformance.document import BUDGET
from qmpshim.conformance.explore.directed import run
from qmpshim.conformance.explore.directed.cases import DIRECTED, Directed
from qmpshim.conformance.explore.directed.machine import CaseMachine
from qmpshim.conformance.explore.directed.run import (
    ALL,
    TIMES,
    DirectedResult,
    cases_named,
    run_cases,
)
from qmpshim.conformance.explore.report.report import render
from qmpshim.conformance.explore.scenario_sets import named
from qmpshim.conformance.explore.search.exploration import explore_real
from qmpshim.conformance.explore.search.settings import Bounds
from qmpshim.conformance.explore.violation import RealViolation
from qmpshim.conformance.known.folder import known_directed
from qmpshim.errors import BuildError, DriverMissing, InputError, NotStarted, OptionMissing
from qmpshim.machine.builds.build import Build, read_version, resolve
from qmpshim.model.check.cause import Cause, CauseKind
from qmpshim.model.check.verdict import Verdict
from vmtests.support.directed import made_case as case
from vmtests.support.documents import validator

WRONG = RealViolation(Verdict.ISOLATION, "wrong", cause=Cause(CauseKind.DIRECTED, "made", "wrong"))


def never(machine: CaseMachine) -> None:
    """As promised."""


def ran(build: Build, *cases: Directed, deadline: float | None = None) -> DirectedResult:
    result = DirectedResult(cases)
    run_cases(build, result, known_directed(), deadline)
    return result


def test_a_word_means_all_or_one() -> None:
    assert cases_named(ALL) == list(DIRECTED)
    assert [one.name for one in cases_named("directed/start-fails")] == ["start-fails"]
    assert not cases_named("WR")
    with pytest.raises(InputError, match=r"no directed case .*did you mean directed/start-fails"):
        cases_named("directed/start-fail")


@pytest.mark.parametrize("seen", [1 + TIMES, 2, 1])
def test_what_diverges_is_run_again(seen: int, qemu_build: Build) -> None:
    left = [WRONG] * seen
    result = ran(qemu_build, case(lambda machine: left.pop() if left else None))
    (finding,) = result.findings
    assert finding.violation == WRONG and finding.replays == (seen - 1, TIMES)
    assert finding.confirmed is (seen == 1 + TIMES)
    assert not finding.known and result.complete


def test_another_violation_is_not_the_same_one(qemu_build: Build) -> None:
    other = RealViolation(Verdict.CRASH, "other", cause=WRONG.cause)
    left = [other] * TIMES + [WRONG]
    (finding,) = ran(qemu_build, case(lambda machine: left.pop())).findings
    assert finding.verdict is Verdict.ISOLATION and finding.replays == (0, TIMES)


def test_a_case_that_cannot_be_run_again_is_not_seen_again(qemu_build: Build) -> None:
    left = [WRONG]

    def once(machine: CaseMachine) -> RealViolation:
        if not left:
            raise BuildError("it does not start any more")
        return left.pop()

    (finding,) = ran(qemu_build, case(once)).findings
    assert finding.replays == (0, TIMES) and not finding.confirmed


def test_what_is_written_up_is_known_on_its_versions_alone(qemu_build: Build) -> None:
    (start,) = cases_named("directed/start-fails")
    (finding,) = ran(qemu_build, start).findings
    covered = known_directed()["start-fails"].concerns(read_version(qemu_build)[0])
    assert covered and finding.known == start.id and finding.replays == (0, 0)
    result = DirectedResult((start,))
    run_cases(qemu_build, result, {})
    assert result.findings and result.findings[0].confirmed and not result.findings[0].known


def test_what_the_build_cannot_do_is_skipped(qemu_build: Build) -> None:
    def cannot(machine: CaseMachine) -> None:
        raise BuildError("no such driver")

    cases = case(cannot), case(cannot, "too"), case(never, "other")
    report = explore_real(qemu_build, [], directed=cases)
    why = "no such driver"
    assert report.directed.skipped == {"directed/made": why, "directed/too": why}
    assert report.directed.complete and [one.name for one in report.directed.run] == ["other"]
    assert f"cannot be tested: directed/made and 1 more: {why}" in render(report)
    assert not report.directed.lacking


@pytest.mark.parametrize("error", [OptionMissing, DriverMissing])
def test_what_the_build_lacks_is_apart_from_what_it_cannot_do(
    qemu_build: Build, error: type[BuildError]
) -> None:
    def lacks(machine: CaseMachine) -> None:
        raise error("no such option")

    result = ran(qemu_build, case(lacks), case(never, "other"))
    assert result.lacking == {"directed/made"} == set(result.skipped)


def test_a_build_that_can_do_none_cannot_be_tested(tmp_path: Path, qemu_build: Build) -> None:
    def cannot(machine: CaseMachine) -> None:
        raise DriverMissing("no such driver")

    with pytest.raises(BuildError, match="no such driver"):
        explore_real(qemu_build, [], directed=[case(cannot)])
    mute = tmp_path / "qemu-system-x86_64"
    mute.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 7.2.0"\n')
    mute.chmod(0o755)
    with pytest.raises(NotStarted):
        ran(resolve(str(mute)), case(never), case(never))


def test_what_a_case_found_is_kept_where_no_scenario_can_be_done(qemu_build: Build) -> None:
    (scenario,) = named("backup-WR")
    impossible = [replace(scenario, options=(("hidden", "no-such-option", True),))]
    report = explore_real(qemu_build, impossible, directed=[case(lambda machine: WRONG)])
    assert report.failing_cases and report.diverged and report.scenarios[0].skipped
    with pytest.raises(BuildError, match="no-such-option"):
        explore_real(qemu_build, impossible, directed=[case(never)])


def test_what_is_seen_is_reported_before_it_is_run_again(qemu_build: Build) -> None:
    """And, without time, run again once."""
    result = DirectedResult((case(lambda machine: WRONG),))
    seen: list[int] = []
    deadline = time.monotonic() + 3

    def slow(name: str) -> None:
        seen.append(len(result.findings))
        time.sleep(max(0.0, deadline - time.monotonic()))

    run_cases(qemu_build, result, {}, deadline, slow)
    assert seen == [0, 1] and result.findings[0].replays == (1, 1)
    assert result.findings[0].confirmed


def test_no_time_is_reported(qemu_build: Build) -> None:
    result = ran(qemu_build, case(never), deadline=time.monotonic())
    assert not result.run and not result.complete
    report = explore_real(qemu_build, [], directed=[case(never)] * 3, bounds=Bounds(budget=0.001))
    assert not report.exhaustive and "0 of 3 directed cases run" in render(report)
    assert report.cut_short and report.to_json()["cut_short"] is True
    assert not explore_real(qemu_build, [], directed=[case(never)]).cut_short


def test_the_command(
    qemu_on_path: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it.json"
    for words, status in (((), 0), (("--strict",), 1)):
        command = ["explore", "--scenario", "directed/start-fails", "--json", str(out), *words]
        assert main(command) == status
        document = json.loads(out.read_text())
        validator("explore").validate(document)
        (finding,) = document["directed"]["findings"]
        assert finding["known"] == "directed/start-fails"
        assert document["interrupted"] is None and not document["cut_short"]
        shown = capsys.readouterr().out
        again = "qmpshim explore --strict --scenario directed/start-fails"
        assert (again in shown) is (status == 1)
        assert "; 1 of 1 directed cases, exhausted" in shown


def test_several_run_at_a_time_and_are_reported_in_their_order(qemu_build: Build) -> None:
    """The first waits for the second, and is noted after it."""
    both, second_noted = threading.Barrier(2), threading.Event()
    seen: set[str] = set()

    def once(name: str, wait: Callable[[], object]) -> Directed:
        def found(machine: CaseMachine) -> RealViolation | None:
            if name in seen:
                return None
            seen.add(name)
            both.wait(10.0)
            wait()
            return WRONG

        return case(found, name)

    cases = once("a", lambda: second_noted.wait(10.0)), once("b", lambda: None), case(never)
    result = DirectedResult(cases)

    def progress(name: str) -> None:
        if any(one.case is cases[1] for one in result.findings):
            second_noted.set()

    run_cases(qemu_build, result, {}, None, progress, jobs=2)
    assert second_noted.is_set() and result.run == list(cases)
    assert [one.case.name for one in result.findings] == ["a", "b"]


def test_what_shows_itself_now_and_then_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, qemu_on_path: None, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [WRONG]
    sometimes = case(lambda machine: left.pop() if left else None)
    monkeypatch.setattr(run, "DIRECTED", (sometimes,))
    assert main(["explore", "--scenario", ALL]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"directed/made; replays 0 of {TIMES} on fresh QEMUs" in shown
    assert "1 that did not replay every time (they fail the run, too); 1 of 1 directed" in shown


def test_what_could_not_be_run_again_is_not_one_that_did_not_replay(
    monkeypatch: pytest.MonkeyPatch, qemu_on_path: None, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [WRONG]

    def once(machine: CaseMachine) -> RealViolation:
        if not left:
            os.kill(os.getpid(), signal.SIGINT)
            machine.event_loop.until(lambda: False, 10.0)
        return left.pop()

    monkeypatch.setattr(run, "DIRECTED", (case(once), case(never, "other")))
    assert main(["explore", "--scenario", ALL, "--jobs", "1"]) == 128 + signal.SIGINT
    shown = " ".join(capsys.readouterr().out.split())
    assert "directed/made; seen, not confirmed: interrupted" in shown
    assert "0 that did not replay every time, 1 seen and not confirmed (they fail" in shown
    assert "; 0 of 2 directed cases, interrupted" in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--scenario", ALL, "--dask", "x"), "--dask has no effect with --scenario directed:"),
        (("--scenario", "directed/nothing"), "no directed case 'directed/nothing'; did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    words: tuple[str, ...], why: str, qemu_on_path: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_without_a_choice_they_come_first(
    qemu_on_path: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it.json"
    assert main(["explore", "--budget", "2s", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    directed = document["directed"]
    assert directed["cases"] == len(DIRECTED) and 0 < directed["run"] < len(DIRECTED)
    assert f"; {directed['run']} of {len(DIRECTED)} directed cases, " in capsys.readouterr().out
    assert document["cut_short"] and document["interrupted"] == BUDGET
    assert main(["explore", "--strength", "1", "--budget", "1s", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["directed"]["cases"] == 0
