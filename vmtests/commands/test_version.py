"""`--version`: of a checkout with its revision, else without."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qmpshim.cli import git_revision, main
from vmtests.support.command_line import ROOT


def test_it_has_the_revision_of_a_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    assert re.fullmatch(r"qmpshim \d+\.\d+\.\d+( \(git [0-9a-f]{10}(-dirty)?\))?\n", output)
    if (ROOT / ".git").exists():
        words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        head = subprocess.check_output(words, text=True)
        assert f"(git {head[:10]}" in output


def test_what_is_no_checkout_has_none(tmp_path: Path) -> None:
    assert git_revision(tmp_path) == ""
