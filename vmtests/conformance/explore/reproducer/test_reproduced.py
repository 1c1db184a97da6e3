"""Reproduced, not reproduced, and neither: what a replay and a bisection need to say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qmpshim.conformance.bundles import chain as bundles
from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.compare.divergence import Divergence
from qmpshim.conformance.explore.harness.choices import Complete, Start, io_id
from qmpshim.conformance.explore.harness.events import events_from_lines
from qmpshim.conformance.explore.harness.history import ended
from qmpshim.conformance.explore.harness.setup_state import (
    allocation_after_setup,
    predicted_after_setup,
)
from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.explore.scenarios import scenario_from_json
from qmpshim.conformance.explore.search import minimize
from qmpshim.conformance.known.write_ups import DIRECTORY
from qmpshim.conformance.workload.session import Result, Setup
from qmpshim.conformance.workload.verification import VerifyOutcome
from qmpshim.conformance.workload.verify import ChainSubject
from qmpshim.machine.builds.build import Build, read_version
from qmpshim.machine.chain.secondary import ChainSpec
from qmpshim.model.chain.behaviour import Behaviour
from qmpshim.model.chain.secondary import Workflow
from qmpshim.model.check.verdict import Verdict
from qmpshim.model.operations import Operation, Side, Verb, operation
from vmtests.support.broken_builds import make
from vmtests.support.command_line import CommandLine

OWN = "do_checkpoint: Assertion `0' failed."  # what the builds say that die
#: A checkpoint in the second of two steps; on the builds that die there it is where they do.
CHECKPOINT = Finding(
    Verdict.CRASH,
    ended(OWN),
    f"QEMU was killed by SIGABRT: {OWN}",
    False,
    1,
    ("made up",),
    scenario_from_json({"ops": [{"do": "status"}, {"do": "checkpoint"}]}),
    (Start(0), Start(1)),
    events_from_lines(
        ("start 0: status", "    0 ends: ok", "start 1: checkpoint"),
        (operation("status"), operation("checkpoint")),
    ),
)
LATER = replace(
    CHECKPOINT,
    scenario=scenario_from_json(
        {"ops": [{"do": "checkpoint"}, {"do": "status"}, {"do": "status", "after": 0}]}
    ),
    schedule=(Start(0), Start(1), Start(2)),
)
ANOTHER = replace(CHECKPOINT, cause=ended("another_function: Assertion `0' failed."))


def as_file(directory: Path, finding: Finding) -> Path:
    path = directory / "finding.json"
    path.write_text(json.dumps(finding.to_json()))
    return path


@pytest.mark.parametrize(
    ("build", "finding", "replayed", "expected"),
    [
        ("dies-at-checkpoint", CHECKPOINT, 1, "reproduced: crash: "),
        ("dies-at-checkpoint", ANOTHER, 125, f"another divergence: crash: .*{OWN}"),
        ("dies-at-checkpoint", LATER, 125, "another divergence: crash: "),
        ("dies-building", CHECKPOINT, 125, "another divergence: crash: before the scenario"),
        ("reference", CHECKPOINT, 0, "not reproduced: "),
        ("ends-at-once", CHECKPOINT, 125, ""),
    ],
    ids=["its own", "other words", "too early", "in the beginning", "none", "no start"],
)
def test_a_crash_is_the_findings_at_its_step_and_in_its_words(
    build: str, finding: Finding, replayed: int, expected: str, qmpshim: CommandLine
) -> None:
    make(build, qmpshim.home / "build")
    path = as_file(qmpshim.home, finding)
    done = qmpshim.run("replay", path, "--build", "./build")
    assert done.returncode == replayed, done
    words = done.stdout + done.stderr
    assert expected.split(".*")[0] in words and expected.split(".*")[-1] in words
    if finding is LATER:  # there is a schedule of the scenario in which it is the last step
        return
    done = qmpshim.run("check", "--bisect", "--build", "./build", "--case", path)
    assert done.returncode == replayed, done


@pytest.mark.parametrize(
    ("build", "during", "words", "status"),
    [
        ("dies-at-checkpoint", 2, OWN, 1),
        ("dies-at-checkpoint", 2, "another_function: Assertion `0' failed.", 125),
        ("dies-at-checkpoint", 3, OWN, 125),
        ("dies-building", 2, OWN, 125),
        ("reference", 2, OWN, 0),
    ],
)
def test_the_same_of_a_workload(
    build: str, during: int, words: str, status: int, qmpshim: CommandLine
) -> None:
    make(build, qmpshim.home / "build")
    kinds = (Verb.START, Verb.CHECKPOINT, Verb.STATUS)
    operations = tuple(Operation(Side.CHAIN, kind, number=n) for n, kind in enumerate(kinds, 1))
    how = f"QEMU was killed by SIGABRT during {operations[during - 1]}: qemu: x.c:1: {words}"
    found = Divergence(Verdict.CRASH, "QEMU", during, "an answer", how)
    spec = ChainSpec(Workflow.REPLICATION, 1 << 20)
    case = ChainCase(spec, Behaviour(), operations, found, 1, {})
    bundle = bundles.save(qmpshim.home / "bundle", case, None)
    for command in (["replay"], ["check", "--bisect", "--case"]):
        done = qmpshim.run(*command, bundle, "--build", "./build")
        assert done.returncode == status, done


def test_one_name_has_one_answer(qmpshim: CommandLine) -> None:
    """While bisecting a known defect is looked for if its case or its file is named."""
    name = "failover-reports-io-error"  # which every version has
    endings = []
    for case in (f"known/{name}", str(DIRECTORY / f"{name}.json")):
        done = qmpshim.run("check", "--bisect", "--build", "system", "--case", case)
        endings.append((done.returncode, done.stdout.splitlines()[-1]))
    assert endings[0] == endings[1] and endings[0][0] == 1, endings
    done = qmpshim.run("check", "--bisect", "--build", "system", "--case", "directed/start-fails")
    assert done.returncode == 1 and "\nbad: directed/start-fails: " in done.stdout
    out = qmpshim.home / "out"  # all else is as it was: what is known is no failure
    done = qmpshim.run("check", "--case", f"known/{name}", "--out", out)
    assert done.returncode == 0, done


# -- the state that the setup leaves ---------------------------------------------------------------

NO_HOLE = Finding(
    Verdict.CONTENT,
    ended("made up"),
    "made up",
    True,
    1,
    (),
    scenario_from_json(
        {
            "form": "backup",
            "secondary": "qcow2",
            "setup": [{"do": "primary_zero_no_hole", "at": [0, 128]}, {"do": "stop"}],
            "ops": [{"do": "status"}],
        }
    ),
    (Start(0),),
    events_from_lines(("start 0: status", "    0 ends: ok"), (operation("status"),)),
)


def test_zeroes_without_a_hole_keep_their_place(qemu_build: Build) -> None:
    """On every version, whatever its job does with the flag of those that may unmap."""
    assert allocation_after_setup(NO_HOLE, qemu_build) == {"secondary": "ZD", "hidden": "D-"}
    plain = replace(NO_HOLE, scenario=replace(NO_HOLE.scenario, setup=()))
    assert allocation_after_setup(plain, qemu_build) == {}


@pytest.mark.parametrize(
    ("recorded", "status", "expected"),
    [
        ({}, 0, "not reproduced: "),
        ({"secondary": "ZD", "hidden": "D-"}, 0, "not reproduced: "),
        ({"secondary": "zD"}, 125, "the secondary disk's clusters are ZD, recorded were zD "),
        ({"active": "--"}, 125, "the active disk's clusters are not known, recorded were -- "),
    ],
)
def test_not_seen_from_another_state_is_no_answer(
    recorded: dict[str, str], status: int, expected: str, qmpshim: CommandLine
) -> None:
    path = as_file(qmpshim.home, replace(NO_HOLE, allocation=recorded))
    assert load_finding(path).allocation == recorded
    done = qmpshim.run("replay", path)
    assert done.returncode == status and expected in done.stdout, done
    done = qmpshim.run("check", "--bisect", "--build", "system", "--case", path)
    assert done.returncode == status, done


#: ../shared/cases/discard-during-cow.json: its setup has zeroes that may unmap, under a backup job,
#: which keeps that flag from the disk since QEMU 9.1.
MAY_UNMAP = replace(
    NO_HOLE,
    scenario=scenario_from_json(
        {
            "form": "backup",
            "secondary": "qcow2",
            "setup": [{"do": "primary_zero", "at": [0, 128]}, {"do": "stop"}],
            "ops": [{"do": "status"}],
        }
    ),
)
LEFT = {(5, 2): "zD", (7, 2): "zD", (10, 0): "ZD", (11, 1): "ZD"}


def test_what_the_setup_leaves_is_predicted(each_build: Build) -> None:
    """As the build leaves it: so a finding that did not record it has something to compare with."""
    version = read_version(each_build)[0]
    for finding in (NO_HOLE, MAY_UNMAP):
        predicted = predicted_after_setup(finding.scenario, version)
        here = allocation_after_setup(finding, each_build)
        assert here["secondary"] == predicted["secondary"] and here["hidden"] == predicted["hidden"]
    assert predicted["secondary"] == LEFT[version[:2]]


@pytest.mark.parametrize(
    ("finding", "version", "status"),
    [
        (MAY_UNMAP, [10, 0, 2], 125),
        (MAY_UNMAP, [7, 2, 22], 0),
        (MAY_UNMAP, None, 125),
        (NO_HOLE, [10, 0, 2], 0),
    ],
)
def test_without_a_record_the_model_predicts_the_state(
    finding: Finding, version: list[int] | None, status: int, qmpshim: CommandLine
) -> None:
    """An older bundle, on 7.2: 125 where the setup left another state on what it was found with."""
    build = {} if version is None else {"name": "another", "version": version}
    path = as_file(qmpshim.home, replace(finding, build=build))
    done = qmpshim.run("replay", path)
    assert done.returncode == status, done
    assert status == 0 or "clusters are zD, predicted were ZD " in done.stdout
    done = qmpshim.run("check", "--bisect", "--build", "system", "--case", path)
    assert done.returncode == status, done


@pytest.mark.parametrize("zeroes", ["primary_zero", "primary_zero_no_hole"])
def test_a_scenario_that_is_another_on_another_version(zeroes: str, qmpshim: CommandLine) -> None:
    """A file shows nothing on 7.2, where its setup does not leave what it leaves on 10.0: 125."""
    path = qmpshim.home / "discard-during-cow.json"
    scenario = {
        "form": "backup",
        "secondary": "qcow2",
        "setup": [{"do": zeroes, "at": [0, 128]}, {"do": "stop"}],
        "ops": [
            {"do": "primary_write", "at": [16, 8]},
            {"do": "primary_discard", "at": [0, 128]},
        ],
    }
    path.write_text(json.dumps(scenario))
    done = qmpshim.run("explore", "--strict", "--scenario", path, "--json", "result")
    if zeroes == "primary_zero_no_hole":  # the same everywhere, and it is found
        assert done.returncode == 1 and "0 new finding(s), 1 known" in done.stdout, done
    else:
        assert done.returncode == 125 and "no divergence" in done.stdout, done
        assert "cannot judge by what was not found: " in done.stdout
        assert "the secondary disk's clusters are zD, there ZD" in done.stdout
        document = json.loads((qmpshim.home / "result").read_text())
        assert document["verdict"] is None and document["schedules"] == 3, document


def test_not_seen_needs_the_schedule_or_all_of_them(
    qemu_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert minimize.show_again(NO_HOLE, qemu_build) == minimize.Shown(None)
    another = replace(NO_HOLE, schedule=(Start(0), Complete(io_id(0, "hidden write 0+128"))))
    assert minimize.show_again(another, qemu_build) == minimize.Shown(None)  # all were taken
    monkeypatch.setattr(minimize, "SMALLER_LIMIT", 0.0)
    monkeypatch.setattr("qmpshim.conformance.explore.harness.run.PATIENCE", 0.1)
    shown = minimize.show_again(another, qemu_build)
    assert shown.finding is None and "more schedules than 0 s suffice for" in shown.unsure


# -- what selects nothing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "status", "expected"),
    [
        ("quick:blah", 2, "0 crash points looked at; no step is 'blah'"),
        ("full:99", 2, "0 crash points looked at; no step is '99'"),
        ("quick:checkpoint,blah", 0, "2 crash points looked at; no step is 'blah'"),
        ("quick", 0, "4 crash points looked at\n"),
    ],
)
def test_crash_points_that_there_are_not(
    points: str, status: int, expected: str, qmpshim: CommandLine
) -> None:
    report = qmpshim.home / "report.json"
    words = ("--scenario", "CQ", "--jobs", "1", "--crash-points", points, "--json", report)
    done = qmpshim.run("explore", *words)
    assert done.returncode == status and expected in done.stdout, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("qmpshim: ")]
    none = f"qmpshim: --crash-points {points}: none in 2 schedules"
    assert errors == ([none] if status else [])
    document = json.loads(report.read_text())["crash_points"]
    assert document["chosen"] == points and f"{document['looked_at']} crash points" in expected
    assert document["never"] == [step for step in ("blah", "99") if step in points]


@pytest.mark.parametrize(
    ("words", "content", "expected"),
    [
        (["explore"], [], "no scenarios"),
        (["explore"], {"ops": []}, "a scenario needs an operation"),
        (["explore", "--model"], [], "no scenarios"),
        (["check", "--suite"], {"cases": []}, "no cases"),
    ],
)
def test_what_selects_nothing_is_an_error(
    words: list[str], content: object, expected: str, qmpshim: CommandLine
) -> None:
    path = qmpshim.home / "empty.json"
    path.write_text(json.dumps(content))
    option = [] if words[0] == "check" else ["--scenario"]
    done = qmpshim.run(*words, *option, path)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr and done.stderr.count("\n") == 1, done


def test_a_case_that_selects_nothing_is_broken(qmpshim: CommandLine) -> None:
    arguments = {"scenarios": ["CQ"], "crash_points": "quick:blah"}
    suite = qmpshim.home / "suite.json"
    suite.write_text(
        json.dumps({"cases": [{"kind": "explore", "name": "c", "arguments": arguments}]})
    )
    done = qmpshim.run("check", "--suite", suite, "--out", qmpshim.home / "out")
    assert done.returncode == 2, done
    assert "c: --crash-points quick:blah: none in 2 schedules" in done.stdout


def test_what_never_occurred_is_reported() -> None:
    result = Result()
    result.operations.update({"chain start": 2, "guest read": 1})
    outcome = VerifyOutcome(ChainSubject(Setup(ChainSpec(Workflow.BACKUP))), 1, result, "")
    assert outcome.never == [
        "chain check",
        "chain rebuild",
        "chain stop",
        *(f"primary {kind}" for kind in ("discard", "flush", "read", "write", "zero")),
    ]
    assert outcome.to_json()["never"] == outcome.never
