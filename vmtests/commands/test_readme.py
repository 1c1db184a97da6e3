"""The top README: its commands are typed, and what they print is what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from qmpshim.conformance.finding_words import classified
from qmpshim.conformance.known.folder import write_up
from qmpshim.conformance.pair.plan import Failover, PairOutcome, PairPlan
from qmpshim.conformance.pair.run_plan import summary
from qmpshim.machine.builds.build import Build
from vmtests.support.command_line import ROOT, CommandLine

TEXT = (ROOT / "README.md").read_text()
SHOWN = re.compile(r"(?m)^    \$ (qmpshim .*)\n((?:    .*\n)+)")


def plain(text: str) -> str:
    """A text without what differs between runs: figures, and where lines are broken."""
    return re.sub(r"\d+(\.\d+)?", "N", " ".join(text.split()))


def pieces(block: str) -> Iterator[str]:
    """What a block of output says, between the places where something is left out."""
    for piece in re.split(r"(?m)^    \.\.\.\n", block):
        if piece.strip():
            yield plain(piece)


def test_its_commands_print_what_it_shows(qmpshim: CommandLine, qemu_build: Build) -> None:
    if qemu_build.name != "system":
        pytest.skip("it shows the system's QEMU")
    sessions = SHOWN.findall(TEXT)
    assert len(sessions) >= 3
    for command, block in sessions:
        done = qmpshim.run(*shlex.split(command)[1:])
        assert done.returncode in (0, 1) and not done.stderr.startswith("Traceback"), done
        output = plain(done.stdout)
        for piece in pieces(block):
            assert piece in output, (command, piece, done.stdout)


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 130


def test_what_it_points_to_is_there() -> None:
    for path in (
        ROOT / "README.md",
        *(ROOT / "qmpshim").rglob("*.md"),
        *ROOT.glob("vmtests/**/*.md"),
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)


def test_what_other_readmes_show_is_what_is_printed() -> None:
    """A pair's last line; and of `check` no number of cases, which changes with every write-up."""
    folder = ROOT / "qmpshim" / "conformance"
    plan = PairPlan(checkpoints=5, failover=Failover.PRIMARY, accel="tcg")
    shown, _, _ = summary(PairOutcome(plan, ("", ""), checkpoints=5)).partition(" checkpoints")
    text = (folder / "pair" / "README.md").read_text()
    assert f"all as predicted: {shown} checkpoints, " in text
    known = write_up("pair/colo-migration-completes")
    assert f"({classified(known.contract, known.id)})" in text
    text = (folder / "check" / "README.md").read_text()
    assert not re.search(r"\d+ (cases|ok)\b|\d+ in all", text)
