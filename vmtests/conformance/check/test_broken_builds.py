"""Builds broken on purpose, beside a reference: each is killed, and only they."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shlex
from contextlib import closing
from pathlib import Path

import pytest

from qmpshim.conformance.bundles.chain import ChainCase
from qmpshim.conformance.check.case import Case, Status
from qmpshim.conformance.check.report.compare import Comparison, Sight, State, compare
from qmpshim.conformance.check.report.reports import write_reports
from qmpshim.conformance.check.report.results import Results
from qmpshim.conformance.check.run import campaign
from qmpshim.conformance.check.run.again import replay_command
from qmpshim.conformance.check.run.executors import LocalExecutor
from qmpshim.conformance.check.suites import Suite
from qmpshim.conformance.workload.verify import replay, setup_for
from qmpshim.machine.builds.build import resolve
from qmpshim.machine.host.workspace import Workspace
from qmpshim.model.check.verdict import Verdict
from vmtests.support.broken_builds import BROKEN, make
from vmtests.support.bundles import loaded
from vmtests.support.command_line import CommandLine

WORKLOAD = {"operations": 100, "seed": 2, "size": 1 << 20, "shrink": 1}
CASES = (
    Case("verify", "verify", {"workflow": "replication", **WORKLOAD}),
    Case("directed", "quit", {"case": "quit-running"}),
)
#: Build to the verdict it must get, and where it may show itself.
KILLED = {
    "wrong-cluster-size": ({Verdict.ALLOCATION}, {"hidden disk (file)", "active disk (file)"}),
    "checkpoint-swallowed": (
        {Verdict.ALLOCATION, Verdict.CONTENT, Verdict.ISOLATION},
        {"hidden disk (file)", "active disk (file)", "guest read"},
    ),
    "late-start": ({Verdict.ERROR_CONTRACT}, {"guest read", "guest write", "guest discard"}),
    "lossy-relay": (
        {Verdict.CONTENT, Verdict.ISOLATION, Verdict.CORRUPTION},
        {"hidden disk (file)", "guest read"},
    ),
    "substituted": ({Verdict.PROTOCOL}, {"another build was substituted"}),
    "wrong-exit-status": ({Verdict.CRASH}, {"quit-running: crash: QEMU exited with status N"}),
    "dies-at-checkpoint": ({Verdict.CRASH}, {"QEMU"}),
}


def new_on(comparison: Comparison, name: str) -> dict[str, Sight]:
    """By cause, what is new on a build."""
    return {
        sight.best.cause: sight
        for row in comparison.rows
        for sight in row.sights.values()
        if Path(sight.build).parent.name == name and sight.state is State.NEW
    }


@pytest.mark.usefixtures("qemu_on_path")
def test_each_is_killed_and_only_they(tmp_path: Path, workspace: Workspace) -> None:
    """One run over all of them; what it reports of each, in every report, with how to see it again.

    One test, since a fixture would do the run once for every worker of xdist.
    """
    builds = [resolve(str(make(name, tmp_path / name))) for name in ("reference", *KILLED)]
    place = tmp_path / "out"
    chosen = {build.name: build for build in builds}
    with closing(campaign.begin(place, chosen, Suite("broken", CASES))) as journal:
        campaign.carry_on(journal, builds, LocalExecutor(2), lambda standing: None)
        comparison = compare(Results.of(journal))
    write_reports(comparison, place)
    assert new_on(comparison, "reference") == {}
    assert not comparison.broken and not comparison.skipped
    assert comparison.exit_status == 1
    reports = {
        name: (place / name).read_text()
        for name in ("results.json", "junit.xml", "report.tap", "report.html")
    }
    for name, (verdicts, places) in KILLED.items():
        found = new_on(comparison, name)
        assert {sight.best.verdict for sight in found.values()} <= verdicts, (name, found)
        where = {cause if cause in places else cause.partition(": ")[0] for cause in found}
        assert where & places, (name, found)
        for report, text in reports.items():
            assert f"/{name}/qemu-system-x86_64" in text, (name, report)
            for sight in found.values():
                again = replay_command(
                    comparison.results.plan, (sight.build, sight.smallest), sight.best
                )
                assert again in html.unescape(text), (name, report)
    shows_itself_again(comparison, place, workspace)


def shows_itself_again(comparison: Comparison, place: Path, workspace: Workspace) -> None:
    """The bundle, replayed: on the broken build it is seen, on the reference it is not."""
    (sight,) = new_on(comparison, "late-start").values()
    (saved,) = place.glob(f"cases/*late-start*/verify/{sight.best.bundle}")
    case = loaded(saved, ChainCase)
    for name, diverges in ((sight.build, True), ("system", False)):
        setup = setup_for(resolve(name), case.spec)
        found = asyncio.run(replay(case, setup, workspace, lambda text: None)).divergence
        assert (found is not None) is diverges


def test_what_is_reported_to_show_it_again_does(qmpshim: CommandLine) -> None:
    """From where the run was begun, word for word: for a case of a file, a build at a path."""
    place = qmpshim.home / "a place"
    place.mkdir()
    suite = {
        "name": "mine",
        "cases": [
            {"kind": "directed", "name": "my quit", "arguments": {"case": "quit-running"}},
            {"kind": "verify", "name": "v", "arguments": {"workflow": "replication", **WORKLOAD}},
        ],
    }
    (place / "mine.json").write_text(json.dumps(suite))
    shown: dict[str, list[str]] = {}
    for name in ("wrong-exit-status", "late-start", "substituted"):
        make(name, place / name)
        build = f"a place/{name}/qemu-system-x86_64"
        words = ("--build", build, "--suite", "a place/mine.json", "--out", name)
        output = qmpshim.run("check", *words).stdout
        shown[name] = re.findall(r"again: qmpshim (.*)", output)
        assert shown[name], output
    for commands in shown.values():
        for command in set(commands):
            done = qmpshim.run(*shlex.split(command))
            status = 0 if command.startswith("builds probe") else 1
            assert done.returncode == status, (command, done)


# -- what costs its own case, and never the run --------------------------------------------------

MIB = 1 << 20
GREEDY = {
    "hangs": (Status.BROKEN, r"did not end within its 6 s"),
    "eats-memory": (Status.DIVERGED, r"used more than 700 MiB of memory, qemu"),
    "fills-the-disk": (Status.DIVERGED, r"stored more than 100 MiB"),
    "kills-its-owner": (Status.BROKEN, r"killed by SIGSEGV"),
}


@pytest.mark.usefixtures("qemu_on_path")
def test_what_goes_wrong_costs_its_own_case(tmp_path: Path) -> None:
    limits = {"hangs": 6.0}
    names = ["reference", *GREEDY]
    assert BROKEN.keys() >= set(names)
    builds = {name: resolve(str(make(name, tmp_path / name))) for name in names}
    workload = {"workflow": "backup", "operations": 60, "size": 1 << 20, "shrink": 1}
    for name, build in builds.items():
        cases = [
            Case(
                "verify",
                f"{n}",
                {**workload, "seed": n},
                limits.get(name, 60.0),
                700 * MIB,
                100 * MIB,
            )
            for n in (1, 2)
        ]
        with closing(
            campaign.begin(tmp_path / f"out-{name}", {build.name: build}, Suite("s", tuple(cases)))
        ) as journal:
            campaign.carry_on(journal, [build], LocalExecutor(2), lambda standing: None)
            assert not journal.missing
            for outcome in journal.outcomes.values():
                if name == "reference":
                    assert outcome.status is Status.OK, outcome
                    continue
                status, text = GREEDY[name]
                assert outcome.status is status and re.search(text, outcome.text), outcome


@pytest.mark.usefixtures("qemu_on_path")
def test_a_build_that_does_not_start_is_reported_once(qmpshim: CommandLine) -> None:
    """Not for each case, and not by doing each; another build's cases are done all the same."""
    for name in ("ends-at-once", "reference"):
        make(name, qmpshim.home / name)
    (qmpshim.home / "quit.json").write_text(
        json.dumps({"cases": [{"kind": "directed", "name": f"quit {n}",
                               "arguments": {"case": "quit-running"}} for n in range(3)]})
    )  # fmt: skip
    words = ("check", "--suite", "quit.json", "--build", "./ends-at-once")
    done = qmpshim.run(*words, "--out", "alone")
    why = "qemu: cannot set up guest memory"
    pattern = rf"cannot be tested on \./ends-at-once: quit 0 and 2 more: .*\(exit status 1\): {why}"
    assert done.returncode == 125 and len(re.findall(pattern, done.stdout)) == 1, done
    assert not list((qmpshim.home / "alone" / "cases").rglob("*")), "a case was done"
    done = qmpshim.run(*words, "--build", "./reference", "--out", "both")
    assert done.returncode == 0 and len(re.findall(pattern, done.stdout)) == 1, done
    assert re.search(r"^\./reference +3 ok, ", done.stdout, re.M), done
    done = qmpshim.run("check", "--bisect", *words[1:])
    assert done.returncode == 125 and "cannot be tested: " in done.stdout, done
    done = qmpshim.run("explore", "--scenario", "pairs", "--build", "./ends-at-once")
    assert done.returncode == 125, done
    assert done.stderr == f"qmpshim: ./ends-at-once ended at once: {why}\n"
