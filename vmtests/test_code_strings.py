"""Programs in strings (of `python -c`, of child processes): what they import is there.

A type checker does not look into them, and a bench that only people run breaks unseen.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: These have imports that are wrong on purpose.
INVENTED = {Path(__file__), ROOT / "vmtests" / "test_floors.py"}
IMPORT = re.compile(r"^\s*(from\s+qmpshim[\w.]*\s+import\s|import\s+qmpshim)", re.MULTILINE)


def programs() -> Iterator[tuple[str, str]]:
    """(place, text) of each string that imports something of ours."""
    for path in sorted({*(ROOT / "vmtests").rglob("*.py")} - INVENTED):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if IMPORT.search(node.value):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def missing(program: str) -> list[str]:
    """What a program imports of ours that is not there."""
    absent = []
    for line in program.splitlines():
        text = textwrap.dedent(line).partition(";")[0]
        if not IMPORT.match(text):
            continue
        try:
            (node,) = ast.parse(text).body
        except (SyntaxError, ValueError):
            continue  # prose, or the first line of several
        names = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
        for alias in names:
            module = node.module if isinstance(node, ast.ImportFrom) else alias.name
            assert module is not None
            try:
                found = importlib.import_module(module)
                if isinstance(node, ast.ImportFrom) and not hasattr(found, alias.name):
                    importlib.import_module(f"{module}.{alias.name}")
            except ImportError:
                absent.append(f"{module}: {alias.name}")
    return absent


def test_what_they_import_is_there() -> None:
    found = dict(programs())
    assert len(found) >= 5
    assert {place: absent for place, text in found.items() if (absent := missing(text))} == {}


def test_what_is_absent_is_found() -> None:
    assert missing("import os\nfrom qmpshim.shim.endpoint import Address\n")
    assert missing("import qmpshim.nonsense")
    assert not missing("from qmpshim.shim.endpoint.listener import Address")


def test_benches_find_what_they_import() -> None:
    """From the project's directory, as `make bench` runs them: there no pytest has made a path."""
    benches = sorted(path.stem for path in (ROOT / "vmtests" / "bench").glob("bench_*.py"))
    assert len(benches) >= 5
    imports = "; ".join(f"import vmtests.bench.{bench}" for bench in benches)
    subprocess.run([sys.executable, "-c", imports], cwd=ROOT, check=True, timeout=120)
    makefile = (ROOT / "Makefile").read_text()
    assert "-m vmtests.bench.$$bench" in makefile
