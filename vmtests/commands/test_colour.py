"""Colour: results on a terminal, and nowhere else."""

from __future__ import annotations

import re

import pexpect
import pytest

from qmpshim.model.check.verdict import Verdict
from vmtests.support.command_line import LIMIT, QMPSHIM, CommandLine

GREEN, RED, END = "\x1b[32m", "\x1b[31m", "\x1b[0m"
VERIFY = ("verify", "--workflow", "backup", "--ops", "40", "--size", "1M")


def on_a_terminal(qmpshim: CommandLine, *words: str, **environment: str) -> str:
    """What a command writes to a terminal."""
    inherited = {name: value for name, value in qmpshim.env().items() if name != "NO_COLOR"}
    child = pexpect.spawn(
        QMPSHIM[0],
        [*QMPSHIM[1:], *words],
        cwd=str(qmpshim.home),
        env={**inherited, "TERM": "xterm", **environment},
        timeout=LIMIT,
        encoding="utf-8",
    )
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus in (0, 1), child.before
    return str(child.before)


def test_what_went_well_is_green(qmpshim: CommandLine) -> None:
    assert re.search(
        rf"{re.escape(GREEN)}all as predicted: .* s{re.escape(END)}\r\n",
        on_a_terminal(qmpshim, *VERIFY),
    )


@pytest.mark.parametrize(
    ("environment", "rewrites"), [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)]
)
def test_where_no_colour_is_wanted(
    environment: dict[str, str], rewrites: bool, qmpshim: CommandLine
) -> None:
    written = on_a_terminal(qmpshim, *VERIFY, **environment)
    assert "all as predicted: " in written
    assert re.search(r"\x1b\[\d*m", written) is None
    assert rewrites or "\x1b" not in written


def test_a_pipe_has_none(qmpshim: CommandLine) -> None:
    done = qmpshim.run(*VERIFY)
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr


def test_what_went_wrong_is_red(qmpshim: CommandLine) -> None:
    """The model's own known defect, not predicted: replication started and stopped."""
    words = ("verify", "--workflow", "replication", "--ops", "120", "--size", "1M")
    written = on_a_terminal(qmpshim, *words, "--strict", "--shrink", "1")
    if "DIVERGED" not in written:
        pytest.skip("this build has no defect that the workload meets")
    assert re.search(rf"{re.escape(RED)}DIVERGED .*: .*{re.escape(END)}\r\n", written)
    verdict = re.search(rf"{re.escape(RED)}  verdict: ([\w-]+) at .*{re.escape(END)}\r\n", written)
    assert verdict is not None and verdict[1] in list(Verdict)


def broken_lines(qmpshim: CommandLine, *words: str) -> list[str]:
    """What a command leaves on a terminal up to the first diagram; no line of prose is too long."""
    written = re.sub(r"\x1b\[[\d;]*[mK]", "", on_a_terminal(qmpshim, *words))
    written = written.partition("\r\nscenario ")[0]  # a diagram is drawn as wide as it is
    lines = [line.split("\r")[-1] for line in written.split("\r\n")]
    longer = [line for line in lines if len(line) > 80]
    assert all("qmpshim replay " in line for line in longer), longer  # commands stay whole
    return lines


def test_prose_is_broken_between_words(qmpshim: CommandLine) -> None:
    """As long as no single word is longer than the terminal is wide."""
    words = ("findings", "show", "snapshot-read-returns-new-data")
    lines = broken_lines(qmpshim, *words)
    whole = qmpshim.run(*words).stdout.partition("\nscenario ")[0]
    assert len(lines) > len(whole.splitlines())
    assert " ".join(lines).split() == whole.split()


def test_results_are_broken_between_words(qmpshim: CommandLine) -> None:
    lines = broken_lines(qmpshim, "explore", "--scenario", "fleecing-WR", "--jobs", "1")
    (first,) = (n for n, line in enumerate(lines) if "(QEMU " in line)
    assert lines[first + 1].endswith(" with 1 process"), lines


def test_a_list_that_does_not_fit_has_names_alone_and_what_they_are_below(
    qmpshim: CommandLine,
) -> None:
    words = ("findings", "list", "--affects", "fleecing")
    lines = broken_lines(qmpshim, *words)
    whole = qmpshim.run(*words).stdout
    assert all(line.partition(" ")[0] in lines for line in whole.splitlines())
    assert " ".join(lines).split() == whole.split()
