"""The top README: its commands are typed, and what they print is what it shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

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
