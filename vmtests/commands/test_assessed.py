"""How `explore` and `check` end: the answer of `assess`, and how to avoid the worst."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from vmtests.support.command_line import CommandLine

#: What each build has, in ordinary use.
_NAME = "overlapping-writes-part-voting-disks"
_CASES = [{"kind": "known", "name": f"known/{_NAME}", "arguments": {"id": _NAME}}]


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--suite", "mine.json"),
        ("explore", "--scenario", "votes-PG"),
    ],
    ids=["check", "explore"],
)
def test_how_to_avoid_the_worst(words: Sequence[str], qmpshim: CommandLine) -> None:
    (qmpshim.home / "mine.json").write_text(json.dumps({"name": "mine", "cases": _CASES}))
    done = qmpshim.run(*words)
    assert done.returncode == 0, done
    concluded, how = done.stdout.splitlines()[-2:]
    assert "NOT RELIABLE for a quorum of disks that vote: " in concluded
    assert how == f"  how to avoid it: qmpshim findings show {_NAME}"


def test_a_directed_case_in_which_nothing_is_wrong(qmpshim: CommandLine) -> None:
    done = qmpshim.run("explore", "--scenario", "directed/job-progress")
    assert done.returncode == 0, done
    assert done.stdout.endswith("\nassess would say of this: nothing known was seen\n")
