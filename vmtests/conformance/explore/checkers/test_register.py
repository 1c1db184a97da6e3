"""The table of checkers says what there is: modules, verdicts, and tests that have mutants."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qmpshim.conformance.explore.checkers as package
from qmpshim.conformance.explore.checkers import at_end, register
from qmpshim.conformance.explore.checkers.register import CHECKERS, SHARED, Checker
from qmpshim.model.check.verdict import Verdict

FOLDER = Path(next(iter(package.__path__)))


def test_the_readme_has_the_table() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert register.table() in readme, f"the README's table is to be:\n{register.table()}"


def test_every_module_is_a_checker_or_shared() -> None:
    modules = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert modules == {one.module for one in CHECKERS} | set(SHARED)
    at_the_end = {
        check.__module__.rpartition(".")[2]
        for check in (*at_end.GATE_CLOSED, *at_end.GATE_OPEN, *at_end.DISKS_READ)
    }
    assert at_the_end <= {one.module for one in CHECKERS}


@pytest.mark.parametrize("checker", CHECKERS, ids=lambda one: one.module)
def test_a_row_is_true(checker: Checker) -> None:
    """It has a summary, all verdicts that its module names, and tests that there are."""
    assert checker.summary
    tree = ast.parse((FOLDER / f"{checker.module}.py").read_text())
    named = {
        Verdict[node.attr]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Verdict"
    }
    assert named <= set(checker.verdicts)
    assert checker.kills
    for file, test in checker.kills:
        tests = ast.parse(Path(__file__).with_name(f"test_{file}.py").read_text())
        names = {node.name for node in ast.walk(tests) if isinstance(node, ast.FunctionDef)}
        assert f"test_{test}" in names
