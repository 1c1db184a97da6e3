"""The table of checkers says what there is: modules, verdicts, and tests that have mutants."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from qmpshim.conformance.explore.checkers import at_end
from qmpshim.model.check.verdict import Verdict
from vmtests.support.checker_table import CHECKERS, FOLDER, SHARED, Checker, table_of


def marked() -> dict[str, list[tuple[str, str]]]:
    """By checker, the tests here with mutants that it kills: ``pytest.mark.kills`` has it."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for test in ast.parse(file.read_text()).body:
            for mark in getattr(test, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.kills":
                    names = file.stem, getattr(test, "name", "")
                    for checker in mark.args:
                        found[ast.literal_eval(checker)].append(
                            (names[0].removeprefix("test_"), names[1].removeprefix("test_"))
                        )
    return found


def test_the_readme_has_the_table() -> None:
    readme = (FOLDER / "README.md").read_text()
    table = table_of(marked())
    assert table in readme, f"the README's table is to be:\n{table}"


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
    assert marked()[checker.module]


def test_a_test_names_checkers_that_there_are() -> None:
    assert marked().keys() == {one.module for one in CHECKERS}
