"""Runs an exported script as somebody with a QEMU and nothing of qmpshim's would."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qmpshim.conformance.explore.report.finding_files import load_finding
from qmpshim.conformance.explore.report.findings import Finding
from qmpshim.conformance.known.write_ups import DIRECTORY

NOT_SEEN, SEEN, UNTESTED = 0, 1, 125


def known(name: str) -> Finding:
    """The finding that a write-up explains."""
    return load_finding(DIRECTORY / f"{name}.json")


class Reproducer:
    """Runs a script as somebody with nothing else would, and sees that it leaves nothing."""

    def __init__(self, directory: Path, temporary: Path) -> None:
        self._path, self.temporary = directory / "reproducer.py", temporary

    def start(
        self,
        script: str,
        *words: str,
        temporary: Path | None = None,
        before: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start it.

        :param before: words of another program, which starts it
        """
        ast.parse(script, feature_version=(3, 8))
        self._path.write_text(script)
        return subprocess.Popen(
            [*before, sys.executable, "-I", "-S", "-u", str(self._path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary or self.temporary)},
        )

    def end(self, process: subprocess.Popen[str], temporary: Path | None = None) -> tuple[int, str]:
        output, _ = process.communicate(timeout=240)
        assert list((temporary or self.temporary).iterdir()) == []
        return process.returncode, output

    def __call__(self, script: str, *words: str) -> tuple[int, str]:
        """How it exits, and what it says."""
        return self.end(self.start(script, *words))
