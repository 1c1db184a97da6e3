"""`git bisect run` with `qmpshim check --bisect`, over a short history of made-up QEMU commits.

The "source" is a build recipe; "building" it writes a wrapper around the system's real QEMU. One
commit makes it swallow checkpoints, one before that does not build.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qmpshim.conformance.check.run.bisect import in_haste
from qmpshim.conformance.check.runners.kinds import KINDS
from qmpshim.conformance.check.suites import suite_named
from qmpshim.conformance.known.write_ups import DIRECTORY
from vmtests.support.broken_builds import make
from vmtests.support.checks import runner_of
from vmtests.support.command_line import QMPSHIM, CommandLine

LOOK = {
    "cases": [
        {
            "kind": "verify",
            "name": "small",
            "arguments": {"operations": 100, "seed": 2, "size": 1 << 20, "shrink": 3},
        }
    ]
}
EXPLORE = {
    "cases": [{"kind": "explore", "name": "small", "arguments": {"scenarios": ["WC"]}}],
}
#: The history: what each commit's build is; None: it does not build.
HISTORY = (
    "reference",
    "reference",
    None,
    "reference",
    "checkpoint-swallowed",
    "checkpoint-swallowed",
)


def git(tree: Path, *words: str) -> str:
    environment = {
        **os.environ,
        **{f"GIT_{role}_NAME": "a" for role in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{role}_EMAIL": "a@example.org" for role in ("AUTHOR", "COMMITTER")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }
    done = subprocess.run(
        ["git", "-C", str(tree), *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path, qemu_on_path: None) -> Path:
    """A repository with that history; ``make`` there fills ``build/``."""
    wrappers, tree = tmp_path / "wrappers", tmp_path / "qemu"
    wrappers.mkdir()
    for name in {name for name in HISTORY if name}:
        make(name, wrappers / name)
    tree.mkdir()
    git(tree, "init", "-q", "-b", "master")
    (tree / ".gitignore").write_text("build/\n")
    for number, build in enumerate(HISTORY):
        made = f"cp {wrappers}/{build}/* build/ && touch build/build.ninja"
        recipe = made if build else "echo it does not build >&2; exit 1"
        (tree / "build.sh").write_text(
            f"# commit {number}\nset -e\nrm -rf build; mkdir build\n{recipe}\n"
        )
        git(tree, "add", "-A")
        git(tree, "commit", "-q", "-m", f"commit {number}")
    return tree


def bisect(tree: Path, qmpshim: CommandLine, *options: str) -> str:
    """Run git bisect over the whole history."""
    git(tree, "bisect", "start", "HEAD", f"HEAD~{len(HISTORY) - 1}")
    check = shlex.join([*QMPSHIM, "check", "--bisect", "--build", "build/", *options])
    done = subprocess.run(
        ["git", "-C", str(tree), "bisect", "run", "sh", "-c", f"sh build.sh || exit 125; {check}"],
        capture_output=True,
        text=True,
        env=qmpshim.env(),
        timeout=600,
    )
    return done.stdout + done.stderr


FOUND = r"[0-9a-f]{40} is the first bad commit\n(?s:.*?)\n    commit 4\n"


def test_nothing_is_made_small_in_haste() -> None:
    """Of whatever kind of case would take its time for that."""
    cases = in_haste(suite_named("quick")).cases
    takes_time = {kind for kind in KINDS if "shrink" in (runner_of(kind).__doc__ or "")}
    assert {case.kind for case in cases if case.arguments.get("shrink") == 0} == takes_time


def test_the_first_bad_commit_is_found(tree: Path, qmpshim: CommandLine) -> None:
    """By a suite, and past a commit that does not build."""
    suite = tree.parent / "suite.json"
    suite.write_text(json.dumps(LOOK))
    output = bisect(tree, qmpshim, "--suite", str(suite))
    assert re.search(FOUND, output), output
    assert "bad: allocation: " in output and "good: 1 case(s) as predicted" in output
    assert "does not build" in output  # that commit was skipped: 125


@pytest.mark.full
@pytest.mark.parametrize(
    ("look", "key", "title"),
    [
        (LOOK, "allocation: ", "allocation"),
        (EXPLORE, "lost-write: view: the old data instead of new data", "the guest's view ends as"),
    ],
    ids=["verify", "explore"],
)
def test_the_first_bad_commit_is_found_by_a_bundle(
    tree: Path, qmpshim: CommandLine, look: dict[str, Any], key: str, title: str
) -> None:
    """The bundle that a check of the last commit kept."""
    suite, out = tree.parent / "suite.json", tree.parent / "out"
    suite.write_text(json.dumps(look))
    subprocess.run(["sh", "build.sh"], cwd=tree, check=True)
    found = qmpshim.run("check", "--build", tree / "build", "--suite", suite, "--out", out)
    assert found.returncode == 1, found
    summary = json.loads((out / "results.json").read_text())["comparison"]["findings"]
    (again,) = (
        build["again"] for one in summary for build in one["builds"] if one["key"].startswith(key)
    )
    output = bisect(tree, qmpshim, "--case", str(out / shlex.split(again)[2]))
    assert re.search(FOUND, output), output
    assert f"bad: reproduced: {title}" in output


@pytest.mark.parametrize(
    ("options", "status", "say"),
    [
        (["--build", "reference"], 0, "good: 1 case"),
        (["--build", "late-start"], 1, "bad: error-contract: guest read"),
        (["--build", "./missing"], 125, "cannot be tested: .*missing does not exist"),
        (["--build", "missing"], 128, "no build named missing: give a path"),
        (["--build", "debian:missing"], 128, "debian:missing is not here yet: qmpshim builds"),
        (["--build", "empty"], 125, "cannot be tested: .*holds no qemu-system"),
        (["--build", "tree"], 125, "cannot be tested: .*a tree without .* build it there first"),
        (["--build", "kills-its-owner"], 125, "cannot be tested: the check was killed by SIGSEGV"),
        ([], 128, "--bisect needs exactly one --build"),
        (["--build", "reference", "--build", "tree"], 128, "--bisect needs exactly one --build"),
        (["--build", "reference", "--case", "./no-bundle"], 128, "no such bundle"),
        (["--build", "reference", "--case", "no-case"], 128, "has no case 'no-case'"),
        (["--build", "reference", "--baseline", "x"], 128, "--bisect goes with"),
    ],
)
def test_the_answer(qmpshim: CommandLine, options: list[str], status: int, say: str) -> None:
    """Never 2, which git takes for bad; 128 and above ends the bisection."""
    for name in ("reference", "late-start", "kills-its-owner"):
        if name in options:
            make(name, qmpshim.home / name)
    (qmpshim.home / "empty").mkdir()
    (qmpshim.home / "tree").mkdir()
    (qmpshim.home / "tree" / "build.ninja").touch()
    (qmpshim.home / "suite.json").write_text(json.dumps(LOOK))
    words = [f"./{word}" if (qmpshim.home / word).is_dir() else word for word in options]
    done = qmpshim.run("check", "--bisect", "--suite", "suite.json", *words)
    assert done.returncode == status, done
    assert re.search(say, done.stdout + done.stderr), done


def test_another_divergence_in_the_finding_s_place_is_no_answer(qmpshim: CommandLine) -> None:
    """The question was about one defect: a build with another one is skipped."""
    make("checkpoint-swallowed", qmpshim.home / "swallows")
    make("late-start", qmpshim.home / "late")
    (qmpshim.home / "suite.json").write_text(json.dumps(LOOK))
    words = ("check", "--build", "./late", "--suite", "suite.json", "--out", "out")
    assert qmpshim.run(*words).returncode == 1
    (case,) = (qmpshim.home / "out").glob("cases/*/*/*/case.json")
    value = json.loads(case.read_text())
    value["divergence"]["verdict"] = "hang"
    case.write_text(json.dumps(value))
    done = qmpshim.run("check", "--bisect", "--build", "./late", "--case", case.parent)
    assert done.returncode == 125
    assert "cannot be tested, another divergence: error-contract" in done.stdout


def test_a_schedule_of_another_build_is_looked_for(qmpshim: CommandLine) -> None:
    """A bundle of the explorer, on this QEMU: what is written up is bad where it shows itself."""
    known = DIRECTORY / "checkpoint-corrupts-overlay.json"
    done = qmpshim.run("check", "--bisect", "--build", "system", "--case", known)
    assert (done.returncode, done.stderr) == (1, ""), done
    assert "bad: reproduced: active disk: corruption" in done.stdout


@pytest.mark.parametrize(
    ("change", "status", "say"),
    [
        ({}, 1, "bad: reproduced: "),
        ({"cause": "something else"}, 125, "cannot be tested, another divergence: "),
        ({"failover": "cut"}, 0, "good: 1 case"),
        ({"format": 7}, 128, "has format 7"),
    ],
)
def test_a_bundle_of_a_pair(
    change: dict[str, Any], status: int, say: str, qmpshim: CommandLine
) -> None:
    """A write-up that this QEMU shows, as it is and with one thing changed."""
    written = DIRECTORY / "pair"
    value = json.loads((written / "checkpoint-after-lost-writes.json").read_text())["case"]
    for part in (value, value["plan"], value["findings"][0]):
        part.update({name: change[name] for name in change if name in part})
    bundle = qmpshim.home / "bundle"
    bundle.mkdir()
    (bundle / "pair.json").write_text(json.dumps(value))
    done = qmpshim.run("check", "--bisect", "--build", "system", "--case", bundle)
    assert done.returncode == status, done
    assert say in done.stdout + done.stderr, done


@pytest.mark.parametrize(
    ("name", "status", "answer"),
    [
        ("verify/stop-always-fails", 1, "bad: reproduced: error-contract: stop"),
        # The build shows another of its family in its place, and so lacks it.
        ("verify/refused-transaction-loses-bitmap", 0, "good: 1 case(s)"),
        ("directed/copy-fails", 1, "bad: known/directed/copy-fails: "),
        ("pair/colo-primary-deadlocks-under-tcg", 1, "bad: reproduced: "),
    ],
)
def test_a_known_finding_of_each_kind_by_its_name(
    qmpshim: CommandLine, name: str, status: int, answer: str
) -> None:
    """Whatever it is that shows it: `verify`, a directed case or a pair."""
    done = qmpshim.run("check", "--bisect", "--build", "system", "--case", f"known/{name}")
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(answer), done.stdout


def test_a_known_finding_of_a_workload_is_expected(qmpshim: CommandLine) -> None:
    """Without --bisect as that of a schedule: it is written up, and so fails nothing."""
    done = qmpshim.run("check", "--case", "known/verify/stop-always-fails", "--build", "system")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "known, as expected: stop-always-fails\n" in done.stdout
