"""What the tests' server of commands runs ends as what is started by hand."""

from __future__ import annotations

import subprocess

import pytest

from vmtests.support.command_line import QMPSHIM, CommandLine
from vmtests.support.command_server import run_command


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--version",
        "verify --size 0",
        "replay nothing.json",
        "explore --scenario list",
        "export no/where",
        "assess --help",
        "check --list",
        "findings --help",
        "guest --help",
        "pair --help",
        "serve --nothing",
        "shell no-such-socket",
        "stress --help",
        "builds list",
    ],
)
def test_a_command_ends_as_by_hand(words: str, qmpshim: CommandLine) -> None:
    here = qmpshim.run(*words.split())
    by_hand = qmpshim.run(*words.split(), command=[*QMPSHIM])
    assert by_hand.args[0] == QMPSHIM[0] and here.args[0] == "qmpshim"
    for one in ("returncode", "stdout", "stderr"):
        assert getattr(here, one) == getattr(by_hand, one)


def test_a_command_that_takes_too_long_is_killed(qmpshim: CommandLine) -> None:
    """And the next one is carried out."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["verify", "--ops", "100000"], qmpshim.home, qmpshim.env(), 0.5)
    assert run_command(["--version"], qmpshim.home, qmpshim.env(), 60.0).returncode == 0
